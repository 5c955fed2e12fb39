package main

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// The collector's receiver. Each request that it accepts is one line of JSON on the output.
//
// The pipeline behind it fails by the resource's attribute "fail": "always" with an error that lasts, "first" with one
// that passes after a second, for the first request with it.
func runCollector(address string) error {
	factory := otlpreceiver.NewFactory()
	config := factory.CreateDefaultConfig()
	protocols := map[string]any{"protocols": map[string]any{"http": map[string]any{"endpoint": address}}}
	if err := confmap.NewFromStringMap(protocols).Unmarshal(config); err != nil {
		return err
	}
	next, err := consumer.NewMetrics((&pipeline{}).consume)
	if err != nil {
		return err
	}
	settings := receiver.Settings{
		ID:                component.NewID(factory.Type()),
		TelemetrySettings: componenttest.NewNopTelemetrySettings(),
		BuildInfo:         component.NewDefaultBuildInfo(),
	}
	ctx := context.Background()
	metrics, err := factory.CreateMetrics(ctx, settings, config, next)
	if err != nil {
		return err
	}
	if err := metrics.Start(ctx, componenttest.NewNopHost()); err != nil {
		return err
	}

	wait()
	return metrics.Shutdown(ctx)
}

type pipeline struct {
	failed bool
}

func (p *pipeline) consume(_ context.Context, metrics pmetric.Metrics) error {
	fail := ""
	for _, resource := range metrics.ResourceMetrics().All() {
		if value, ok := resource.Resource().Attributes().Get("fail"); ok {
			fail = value.Str()
		}
	}
	if fail == "always" {
		return status.Error(codes.InvalidArgument, "the pipeline takes no metrics of this service")
	}
	if fail == "first" && !p.failed {
		p.failed = true
		wait := &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)}
		busy, err := status.New(codes.ResourceExhausted, "the queue is full").WithDetails(wait)
		if err != nil {
			return err
		}
		return busy.Err()
	}

	line, err := (&pmetric.JSONMarshaler{}).MarshalMetrics(metrics)
	if err != nil {
		return err
	}
	fmt.Println(string(line))
	return nil
}
