// Command kubectl_yaml prints what kubectl makes of YAML files, as kubectl's resource builder reads them: one line
// of JSON for each file named on a line of standard input, {"file", "documents"} or {"file", "error"}.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/util/yaml"
)

type reading struct {
	File      string            `json:"file"`
	Documents []json.RawMessage `json:"documents"`
	Error     string            `json:"error,omitempty"`
}

// extension takes any JSON as it is, as runtime.RawExtension does.
type extension struct{ raw []byte }

func (e *extension) UnmarshalJSON(raw []byte) error {
	e.raw = bytes.TrimSpace(append([]byte(nil), raw...))
	return nil
}

func main() {
	output := bufio.NewWriter(os.Stdout)
	defer output.Flush()
	encoder := json.NewEncoder(output)
	names := bufio.NewScanner(os.Stdin)
	for names.Scan() {
		if err := encoder.Encode(read(names.Text())); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func read(file string) reading {
	result := reading{File: file, Documents: []json.RawMessage{}}
	data, err := os.ReadFile(file)
	if err != nil {
		return reading{File: file, Error: err.Error()}
	}
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
	for {
		var document extension
		if err := decoder.Decode(&document); err == io.EOF {
			return result
		} else if err != nil {
			result.Error = err.Error()
			return result
		}
		if len(document.raw) != 0 && !bytes.Equal(document.raw, []byte("null")) {
			result.Documents = append(result.Documents, document.raw)
		}
	}
}
