package main

import (
	"errors"
	"net/url"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
)

// newEtcd is etcd with one member on loopback. Its HTTP gateway (POST /v3/kv/compaction) is on the same address.
func newEtcd() *cobra.Command {
	var data, client, peer string
	command := &cobra.Command{
		Use:          "etcd",
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(command *cobra.Command, _ []string) error {
			clients, err := url.Parse(client)
			if err != nil {
				return err
			}
			peers, err := url.Parse(peer)
			if err != nil {
				return err
			}
			config := embed.NewConfig()
			config.Dir = data
			config.LogLevel = "warn"
			config.UnsafeNoFsync = true // what a test writes need not outlive the machine
			config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{*clients}, []url.URL{*clients}
			config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{*peers}, []url.URL{*peers}
			config.InitialCluster = config.InitialClusterFromName(config.Name)
			server, err := embed.StartEtcd(config)
			if err != nil {
				return err
			}
			defer server.Close()
			ended, forget := signal.NotifyContext(command.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer forget()
			select {
			case err := <-server.Err():
				return err
			case <-server.Server.StopNotify():
				return errors.New("etcd stopped by itself")
			case <-ended.Done():
				return nil
			}
		},
	}
	command.Flags().StringVar(&data, "data", "", "folder of the data")
	command.Flags().StringVar(&client, "client", "http://127.0.0.1:2379", "where clients ask")
	command.Flags().StringVar(&peer, "peer", "http://127.0.0.1:2380", "where other members would ask")
	return command
}
