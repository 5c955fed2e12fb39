// Reads registrations as Consul's own clients do: reader ADDRESS [TOKEN], with a name of a service on each line of stdin;
// or renews them: reader bench ADDRESS TOKEN CHECK...
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	"github.com/hashicorp/consul/api"
)

// instance is what a client makes of an entry.
type instance struct {
	ID      string            `json:"id"`
	Address string            `json:"address"`
	Port    int               `json:"port"`
	Status  string            `json:"status"`
	Tags    []string          `json:"tags,omitempty"`
	Meta    map[string]string `json:"meta,omitempty"`
}

func main() {
	run, arguments := answer, os.Args[1:]
	if len(arguments) > 3 && arguments[0] == "bench" {
		run, arguments = bench, arguments[1:]
	}
	if err := run(arguments); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// answer writes a line of JSON with all instances for each service, or with the error.
func answer(arguments []string) error {
	if len(arguments) == 0 || len(arguments) > 2 {
		return fmt.Errorf("usage: reader ADDRESS [TOKEN]")
	}
	config := api.DefaultConfig()
	config.Address = arguments[0]
	if len(arguments) == 2 {
		config.Token = arguments[1]
	}
	client, err := api.NewClient(config)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		said := map[string]any{}
		entries, _, err := client.Health().Service(lines.Text(), "", false, nil)
		if err != nil {
			said["error"] = err.Error()
		} else {
			said["instances"] = instances(entries)
		}
		text, err := json.Marshal(said)
		if err != nil {
			return err
		}
		fmt.Println(string(text))
	}
	return lines.Err()
}

func instances(entries []*api.ServiceEntry) []instance {
	found := []instance{}
	for _, entry := range entries {
		service := entry.Service
		found = append(found, instance{
			ID: service.ID, Address: service.Address, Port: service.Port,
			Status: entry.Checks.AggregatedStatus(), Tags: service.Tags, Meta: service.Meta,
		})
	}
	return found
}
