package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"
)

const inFlight = 10

// bench renews the TTL checks of instances. Each line of stdin is a number of seconds, and is answered with the
// heartbeats sent in that time and their cost.
func bench(arguments []string) error {
	config := api.DefaultConfig()
	config.Address, config.Token = arguments[0], arguments[1]
	client, err := api.NewClient(config)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		seconds, err := strconv.ParseFloat(lines.Text(), 64)
		if err != nil {
			return err
		}
		began, before := time.Now(), processorSeconds()
		beats, err := keep(client, arguments[2:], began.Add(time.Duration(seconds*float64(time.Second))))
		if err != nil {
			return err
		}
		cost, wall := processorSeconds()-before, time.Since(began).Seconds()
		fmt.Printf("= {\"beats\": %d, \"cpu\": %.6f, \"wall\": %.6f}\n", beats, cost, wall)
	}
	return lines.Err()
}

func keep(client *api.Client, checks []string, until time.Time) (int, error) {
	var all sync.WaitGroup
	beats, failures := make([]int, inFlight), make([]error, inFlight)
	for worker := range inFlight {
		all.Add(1)
		go func() {
			defer all.Done()
			for at := worker; time.Now().Before(until); at += inFlight {
				if err := client.Agent().UpdateTTL(checks[at%len(checks)], "", api.HealthPassing); err != nil {
					failures[worker] = err
					return
				}
				beats[worker]++
			}
		}()
	}
	all.Wait()
	total := 0
	for worker := range inFlight {
		if failures[worker] != nil {
			return 0, failures[worker]
		}
		total += beats[worker]
	}
	return total, nil
}

func processorSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}
