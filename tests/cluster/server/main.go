// Kubernetes in one program, each part a process of its own: cluster etcd, cluster apiserver, cluster kubelet, ...
package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

var parts = map[string]func() *cobra.Command{
	"apiserver":          apiserver.NewAPIServerCommand,
	"controller-manager": controllermanager.NewControllerManagerCommand,
	"etcd":               newEtcd,
	"key":                newKey,
	"kubectl":            kubectl.NewDefaultKubectlCommand,
	"kubelet":            func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"proxy":              proxy.NewProxyCommand,
	"scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
}

func main() {
	if len(os.Args) > 1 {
		if part, ok := parts[os.Args[1]]; ok {
			if os.Getenv("CLUSTER_ENDS_WITH") == "stdin" {
				go endWithStdin()
			}
			os.Args = os.Args[1:] // as if each were a program
			os.Exit(cli.Run(part()))
		}
	}
	names := strings.Join(slices.Sorted(maps.Keys(parts)), "|")
	fmt.Fprintf(os.Stderr, "usage: %s %s [flags]\n", os.Args[0], names)
	os.Exit(2)
}

// endWithStdin ends this process with whoever has the other end of its stdin, however that one ends.
func endWithStdin() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// newKey prints a key with which service accounts' tokens can be signed.
func newKey() *cobra.Command {
	return &cobra.Command{
		Use:  "key",
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			key, err := keyutil.MakeEllipticPrivateKeyPEM()
			if err == nil {
				_, err = command.OutOrStdout().Write(key)
			}
			return err
		},
	}
}
