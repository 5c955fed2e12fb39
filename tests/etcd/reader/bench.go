package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const inFlight = 10

// bench renews a number of leases of its own in two ways: by calls of KeepAliveOnce, and by the requests of KeepAlive,
// which sends the heartbeats of all leases through one stream. Each line of stdin is WAY SECONDS, and is answered with
// the heartbeats sent in that time and their cost.
func bench(addresses, user, password, count string) error {
	client, err := clientv3.New(clientv3.Config{
		Endpoints: strings.Split(addresses, ","), DialTimeout: patience, Username: user, Password: password,
	})
	if err != nil {
		return err
	}
	defer client.Close()
	number, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	var leases []clientv3.LeaseID
	for range number {
		granted, err := client.Grant(context.Background(), 60)
		if err != nil {
			return err
		}
		leases = append(leases, granted.ID)
	}
	stream, err := pb.NewLeaseClient(client.ActiveConnection()).LeaseKeepAlive(context.Background())
	if err != nil {
		return err
	}
	ways := map[string]func(time.Time) (int, error){
		"once":   func(until time.Time) (int, error) { return keepOnce(client, leases, until) },
		"stream": func(until time.Time) (int, error) { return keepByStream(stream, leases, until) },
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		way, text, _ := strings.Cut(lines.Text(), " ")
		seconds, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return err
		}
		began, before := time.Now(), processorSeconds()
		beats, err := ways[way](began.Add(time.Duration(seconds * float64(time.Second))))
		if err != nil {
			return err
		}
		cost, wall := processorSeconds()-before, time.Since(began).Seconds()
		fmt.Printf("= {\"beats\": %d, \"cpu\": %.6f, \"wall\": %.6f}\n", beats, cost, wall)
	}
	return lines.Err()
}

func keepOnce(client *clientv3.Client, leases []clientv3.LeaseID, until time.Time) (int, error) {
	var all sync.WaitGroup
	beats, failures := make([]int, inFlight), make([]error, inFlight)
	for worker := range inFlight {
		all.Add(1)
		go func() {
			defer all.Done()
			for at := worker; time.Now().Before(until); at += inFlight {
				if _, err := client.KeepAliveOnce(context.Background(), leases[at%len(leases)]); err != nil {
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

func keepByStream(stream pb.Lease_LeaseKeepAliveClient, leases []clientv3.LeaseID, until time.Time) (int, error) {
	sent, beats := 0, 0
	for time.Now().Before(until) || beats < sent {
		for sent-beats < inFlight && time.Now().Before(until) {
			lease := int64(leases[sent%len(leases)])
			if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: lease}); err != nil {
				return 0, err
			}
			sent++
		}
		answer, err := stream.Recv()
		if err != nil {
			return 0, err
		}
		if answer.TTL <= 0 {
			return 0, fmt.Errorf("lease %d has ended", answer.ID)
		}
		beats++
	}
	return beats, nil
}

func processorSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}
