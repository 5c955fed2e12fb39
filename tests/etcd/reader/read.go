package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/coredns/coredns/plugin"
	coredns "github.com/coredns/coredns/plugin/etcd"
	"github.com/coredns/coredns/request"
	"github.com/go-kit/kit/sd/etcdv3"
	micro "github.com/go-micro/plugins/v4/registry/etcd"
	"github.com/miekg/dns"
	"go-micro.dev/v4/registry"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	grpcresolver "google.golang.org/grpc/resolver"
)

const patience = 10 * time.Second

// instance is what a library makes of a registration.
type instance struct {
	Address  string         `json:"address"`
	Metadata map[string]any `json:"metadata,omitempty"`
	TTL      uint32         `json:"ttl,omitempty"`
}

// readers ask for a service by its library. Each gets the name as users of that library write it.
var readers = map[string]func(*reader, string) ([]instance, error){
	"grpc":     (*reader).grpc,
	"resolver": (*reader).resolver,
	"go-kit":   (*reader).goKit,
	"go-micro": (*reader).goMicro,
	"skydns":   (*reader).skydns,
	"key":      (*reader).keys,
	"lease":    (*reader).leases,
}

type reader struct {
	endpoints []string
	user      string
	password  string
	client    *clientv3.Client
}

// answer reads lines "LIBRARY NAME" from stdin, and writes a line of JSON for each.
func answer(addresses string, credentials []string) error {
	r := &reader{endpoints: strings.Split(addresses, ",")}
	if len(credentials) == 2 {
		r.user, r.password = credentials[0], credentials[1]
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: r.endpoints, DialTimeout: patience, Username: r.user, Password: r.password,
	})
	if err != nil {
		return err
	}
	defer client.Close()
	r.client = client
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		library, name, _ := strings.Cut(lines.Text(), " ")
		read, known := readers[library]
		if !known {
			return fmt.Errorf("no library %q", library)
		}
		found, err := read(r, name)
		said := map[string]any{"instances": found}
		if err != nil {
			said = map[string]any{"error": err.Error()}
		}
		text, err := json.Marshal(said)
		if err != nil {
			return err
		}
		fmt.Println(string(text))
	}
	return lines.Err()
}

// grpc reads by the endpoint manager of etcd's own client.
func (r *reader) grpc(service string) ([]instance, error) {
	manager, err := endpoints.NewManager(r.client, service)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	found, err := manager.List(ctx)
	if err != nil {
		return nil, err
	}
	var all []instance
	for _, endpoint := range found {
		metadata, _ := endpoint.Metadata.(map[string]any)
		all = append(all, instance{Address: endpoint.Addr, Metadata: metadata})
	}
	return sorted(all), nil
}

// resolver reads as a gRPC client that dials "etcd:///SERVICE" does.
func (r *reader) resolver(service string) ([]instance, error) {
	builder, err := resolver.NewBuilder(r.client)
	if err != nil {
		return nil, err
	}
	states := make(chan grpcresolver.State, 16)
	connection, err := grpc.NewClient(
		"etcd:///"+service,
		grpc.WithResolvers(recording{builder, states}),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
	)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	connection.Connect()
	select {
	case state := <-states:
		var all []instance
		for _, endpoint := range state.Endpoints {
			all = append(all, instance{Address: endpoint.Addresses[0].Addr})
		}
		return sorted(all), nil
	case <-time.After(2 * time.Second):
		return nil, nil // the resolver says nothing of a service without endpoints
	}
}

// recording hands on what a resolver finds.
type recording struct {
	grpcresolver.Builder
	states chan grpcresolver.State
}

func (b recording) Build(
	target grpcresolver.Target, connection grpcresolver.ClientConn, options grpcresolver.BuildOptions,
) (grpcresolver.Resolver, error) {
	return b.Builder.Build(target, listener{connection, b.states}, options)
}

type listener struct {
	grpcresolver.ClientConn
	states chan grpcresolver.State
}

func (l listener) UpdateState(state grpcresolver.State) error {
	l.states <- state
	return nil
}

// goKit reads the entries below a prefix, as an instancer does.
func (r *reader) goKit(prefix string) ([]instance, error) {
	client, err := etcdv3.NewClient(context.Background(), r.endpoints, etcdv3.ClientOptions{
		DialTimeout: patience, Username: r.user, Password: r.password,
	})
	if err != nil {
		return nil, err
	}
	entries, err := client.GetEntries(prefix)
	if err != nil {
		return nil, err
	}
	var all []instance
	for _, entry := range entries {
		all = append(all, instance{Address: entry})
	}
	return sorted(all), nil
}

// goMicro reads as a go-micro client that selects a node of the service does.
func (r *reader) goMicro(service string) ([]instance, error) {
	var addresses []string // without the scheme, as the plugin takes them
	for _, endpoint := range r.endpoints {
		addresses = append(addresses, strings.TrimPrefix(endpoint, "http://"))
	}
	options := []registry.Option{registry.Addrs(addresses...), registry.Timeout(patience)}
	if r.user != "" {
		options = append(options, micro.Auth(r.user, r.password))
	}
	services, err := micro.NewRegistry(options...).GetService(service)
	if errors.Is(err, registry.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []instance
	for _, version := range services {
		for _, node := range version.Nodes {
			metadata := map[string]any{"id": node.Id, "service": version.Name, "version": version.Version}
			for name, value := range node.Metadata {
				metadata["metadata."+name] = value
			}
			all = append(all, instance{Address: node.Address, Metadata: metadata})
		}
	}
	return sorted(all), nil
}

// skydns answers a question for SRV by CoreDNS' plugin, with the addresses of the targets.
func (r *reader) skydns(domain string) ([]instance, error) {
	server := &coredns.Etcd{Zones: []string{dns.Fqdn(domain)}, PathPrefix: "skydns", Client: r.client}
	question := new(dns.Msg)
	question.SetQuestion(dns.Fqdn(domain), dns.TypeSRV)
	state := request.Request{Req: question}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := server.Records(ctx, state, false); err != nil {
		if server.IsNameError(err) {
			return nil, nil
		}
		return nil, err
	}
	records, extra, err := plugin.SRV(ctx, server, dns.Fqdn(domain), state, plugin.Options{})
	if err != nil {
		return nil, err
	}
	addresses := map[string]string{}
	for _, record := range extra {
		switch record := record.(type) {
		case *dns.A:
			addresses[record.Hdr.Name] = record.A.String()
		case *dns.AAAA:
			addresses[record.Hdr.Name] = record.AAAA.String()
		}
	}
	var all []instance
	for _, record := range records {
		srv, is := record.(*dns.SRV)
		if !is {
			continue
		}
		metadata := map[string]any{"target": srv.Target, "priority": srv.Priority, "weight": srv.Weight}
		all = append(all, instance{
			Address: fmt.Sprintf("%s:%d", addresses[srv.Target], srv.Port), Metadata: metadata, TTL: srv.Hdr.Ttl,
		})
	}
	return sorted(all), nil
}

// keys reads keys and values below a prefix by etcd's own client.
func (r *reader) keys(prefix string) ([]instance, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	found, err := r.client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	var all []instance
	for _, kv := range found.Kvs {
		metadata := map[string]any{"key": string(kv.Key), "lease": fmt.Sprint(kv.Lease), "revision": kv.CreateRevision}
		all = append(all, instance{Address: string(kv.Value), Metadata: metadata})
	}
	return sorted(all), nil
}

// leases lists all leases with the seconds that they have left.
func (r *reader) leases(string) ([]instance, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	found, err := r.client.Leases(ctx)
	if err != nil {
		return nil, err
	}
	var all []instance
	for _, lease := range found.Leases {
		left, err := r.client.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())
		if err != nil {
			return nil, err
		}
		if left.TTL > 0 {
			metadata := map[string]any{"left": left.TTL, "granted": left.GrantedTTL, "keys": len(left.Keys)}
			all = append(all, instance{Address: fmt.Sprint(lease.ID), Metadata: metadata})
		}
	}
	return sorted(all), nil
}

func sorted(all []instance) []instance {
	sort.Slice(all, func(i, j int) bool { return all[i].Address < all[j].Address })
	return all
}
