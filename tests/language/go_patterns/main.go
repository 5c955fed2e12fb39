// Command go_patterns matches texts with Go's regexp, which is RE2 and what the API server has. It reads one line of JSON
// for each pattern, {"pattern", "texts"}, and prints one, {"error"} or {"matches"}.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
)

type question struct {
	Pattern string   `json:"pattern"`
	Texts   []string `json:"texts"`
}

type answer struct {
	Error   string `json:"error"`
	Matches []bool `json:"matches"`
}

func main() {
	output := bufio.NewWriter(os.Stdout)
	defer output.Flush()
	decoder, encoder := json.NewDecoder(bufio.NewReader(os.Stdin)), json.NewEncoder(output)
	for {
		var asked question
		if err := decoder.Decode(&asked); err == io.EOF {
			return
		} else if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		var said answer
		if compiled, err := regexp.Compile(asked.Pattern); err != nil {
			said.Error = err.Error()
		} else {
			for _, text := range asked.Texts {
				said.Matches = append(said.Matches, compiled.MatchString(text))
			}
		}
		if err := encoder.Encode(said); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
