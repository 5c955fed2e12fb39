package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// Prometheus' receiver of OTLP before its database, without the rest of the server: Debian's package has no such
// receiver. GET /series answers with all series and their last values.
func runPrometheus(address, folder string) error {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	configuration, err := config.Load("otlp: {promote_resource_attributes: [k8s.pod.name]}", logger)
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	database, err := tsdb.Open(folder, logger, registry, tsdb.DefaultOptions(), nil)
	if err != nil {
		return err
	}
	defer database.Close()

	read := func() config.Config { return *configuration }
	handler := remote.NewOTLPWriteHandler(logger, registry, database, read, remote.OTLPOptions{})
	http.Handle("POST /api/v1/otlp/v1/metrics", handler)
	http.HandleFunc("GET /series", func(answer http.ResponseWriter, request *http.Request) {
		found, err := series(request.Context(), database)
		if err != nil {
			http.Error(answer, err.Error(), http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(answer).Encode(found)
	})
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(listener, nil) }()
	wait()
	return nil
}

type lastValue struct {
	Labels map[string]string `json:"labels"`
	Value  float64           `json:"value"`
}

func series(ctx context.Context, database *tsdb.DB) ([]lastValue, error) {
	querier, err := database.Querier(0, math.MaxInt64)
	if err != nil {
		return nil, err
	}
	defer querier.Close()
	found := []lastValue{}
	all := labels.MustNewMatcher(labels.MatchNotEqual, "__name__", "")
	set := querier.Select(ctx, true, nil, all)
	for set.Next() {
		last := lastValue{Labels: set.At().Labels().Map()}
		values := set.At().Iterator(nil)
		for values.Next() == chunkenc.ValFloat {
			_, last.Value = values.At()
		}
		found = append(found, last)
	}
	return found, set.Err()
}
