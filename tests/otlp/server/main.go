// Receivers of OTLP over HTTP, made of the packages of the OpenTelemetry collector and of Prometheus.
//
// Usage: receiver collector ADDRESS, or receiver prometheus ADDRESS FOLDER. They listen from the output's first line on.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if arguments[0] == "collector" {
		return runCollector(arguments[1])
	}
	return runPrometheus(arguments[1], arguments[2])
}

// Say that it listens, and wait for the end.
func wait() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	fmt.Println("listening")
	<-end
}
