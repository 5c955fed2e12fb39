// The kubelet's prober, on standard input and output. Built once by make prober.
//
// A line of input is {"id": N, "pod": {...}}: a core/v1 Pod as its author wrote it. Its first container has the
// readinessProbe, status.podIP is the address. The pod gets the API server's defaults and is validated as the API
// server does it; then the kubelet probes it once. The line of output is {"id": N, "refused": "...", "pod": {...},
// "ready": true, "event": "..."}.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"
	_ "unsafe" // for go:linkname

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
	remote "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	core "k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	_ "k8s.io/kubernetes/pkg/kubelet/prober"
	"k8s.io/kubernetes/pkg/kubelet/prober/results"
	utilexec "k8s.io/utils/exec"
)

const readiness = 1 // probeType of pkg/kubelet/prober

// prober stands for the unexported type of pkg/kubelet/prober.
type prober struct{}

//go:linkname newProber k8s.io/kubernetes/pkg/kubelet/prober.newProber
func newProber(runner kubecontainer.CommandRunner, recorder record.EventRecorderLogger) *prober

//go:linkname probe k8s.io/kubernetes/pkg/kubelet/prober.(*prober).probe
func probe(pb *prober, ctx context.Context, probeType int, pod *v1.Pod, status v1.PodStatus, container v1.Container, id kubecontainer.ContainerID) (results.Result, error)

type question struct {
	ID  int     `json:"id"`
	Pod *v1.Pod `json:"pod"`
}

type answer struct {
	ID      int     `json:"id"`
	Refused string  `json:"refused,omitempty"`
	Pod     *v1.Pod `json:"pod,omitempty"`
	Ready   bool    `json:"ready"`
	Event   string  `json:"event,omitempty"`
}

func main() {
	klog.LogToStderr(false)
	klog.SetOutput(os.Stderr)
	lines := bufio.NewReader(os.Stdin)
	answers := json.NewEncoder(os.Stdout)
	var writing sync.Mutex
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var asked question
		if err := json.Unmarshal(line, &asked); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		go func() {
			given := ask(asked)
			writing.Lock()
			defer writing.Unlock()
			_ = answers.Encode(given)
		}()
	}
}

func ask(asked question) answer {
	pod := asked.Pod
	legacyscheme.Scheme.Default(pod)
	given := answer{ID: asked.ID, Pod: pod}
	if refused := validate(pod); refused != nil {
		given.Refused = refused.Error()
		return given
	}
	recorder := record.NewFakeRecorder(10)
	result, _ := probe(newProber(commands{}, recorder), context.Background(), readiness, pod, pod.Status,
		pod.Spec.Containers[0], kubecontainer.ContainerID{})
	given.Ready = result == results.Success
	select {
	case given.Event = <-recorder.Events:
	default:
	}
	return given
}

func validate(pod *v1.Pod) error {
	var internal core.Pod
	if err := legacyscheme.Scheme.Convert(pod, &internal, nil); err != nil {
		return err
	}
	options := podutil.GetValidationOptionsFromPodSpecAndMeta(&internal.Spec, nil, &internal.ObjectMeta, nil)
	options.ResourceIsPod = true
	return validation.ValidatePodCreate(&internal, options).ToAggregate()
}

// commands runs a probe's command on this machine, with the errors of a container runtime.
type commands struct{}

func (commands) RunInContainer(ctx context.Context, _ kubecontainer.ContainerID, words []string, timeout time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	output, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput()
	if ctx.Err() != nil {
		return output, remote.ErrCommandTimedOut
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code := exit.ExitCode()
		if code < 0 {
			code = 137
		}
		return output, utilexec.CodeExitError{Err: err, Code: code}
	}
	return output, err
}
