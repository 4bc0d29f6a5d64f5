package balance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/stagebench/stagebench/sut"
)

// Engine is a balancer that operators ask, whatever realises it.
type Engine interface {
	// Status says what the balancer knows; a native one is asked.
	Status(ctx context.Context) (sut.BalancerStatus, error)
}

// statusTimeout bounds asking, where the question comes without a bound.
const statusTimeout = 5 * time.Second

// Admin answers operators: /metrics of a registry, which gets those of the engine,
// /healthz, /readyz and /status. All are views of the engine's status.
func Admin(registry *prometheus.Registry, e Engine) (http.Handler, error) {
	if err := registry.Register(collector{e}); err != nil {
		return nil, fmt.Errorf("balance: metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	answer := func(pattern string, check func(sut.BalancerStatus) error) {
		mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), statusTimeout)
			defer cancel()
			s, err := e.Status(ctx)
			if err == nil {
				err = check(s)
			}
			if err != nil {
				writeError(w, http.StatusServiceUnavailable, err.Error())
				return
			}
			w.Header().Set("Content-Type", "application/json")
			// The client may have gone; there is nobody else to tell.
			_ = json.NewEncoder(w).Encode(s)
		})
	}
	serves := func(sut.BalancerStatus) error { return nil }
	answer("/healthz", serves)
	answer("/status", serves)
	answer("/readyz", func(s sut.BalancerStatus) error {
		if !slices.ContainsFunc(s.Upstreams, func(u sut.UpstreamStatus) bool { return u.Up }) {
			return errors.New("no web host is up")
		}
		return nil
	})
	return mux, nil
}

// The metrics of a balancer.
var (
	requestsDesc = prometheus.NewDesc("stagebench_http_requests_total",
		"Requests that have come to their end at this node, by status.", []string{"op", "code"}, nil)
	redispatchesDesc = prometheus.NewDesc("stagebench_lb_redispatches_total",
		"Requests, at layer 4 connections, that went to another host because the first one could not be reached.", nil, nil)
	upstreamRequestsDesc = prometheus.NewDesc("stagebench_lb_upstream_requests_total",
		"Requests sent to a host, or tried to.", []string{"upstream"}, nil)
	upstreamInFlightDesc = prometheus.NewDesc("stagebench_lb_upstream_in_flight",
		"Requests that a host is working on.", []string{"upstream"}, nil)
	upstreamConnectionsDesc = prometheus.NewDesc("stagebench_lb_upstream_connections_total",
		"Connections made to a host for a client, or tried to.", []string{"upstream"}, nil)
	upstreamActiveDesc = prometheus.NewDesc("stagebench_lb_upstream_connections_active",
		"Connections of clients that lead to a host.", []string{"upstream"}, nil)
	upstreamUpDesc = prometheus.NewDesc("stagebench_lb_upstream_up",
		"1 when a host gets requests, 0 when it is down.", []string{"upstream"}, nil)
	upstreamTransitionsDesc = prometheus.NewDesc("stagebench_lb_upstream_transitions_total",
		"Times that a host went up or down.", []string{"upstream", "to"}, nil)
	upstreamEjectionsDesc = prometheus.NewDesc("stagebench_lb_upstream_ejections_total",
		"Times that a host was taken out for failing what it was asked for.", []string{"upstream"}, nil)
	connectionsDesc = prometheus.NewDesc("stagebench_lb_connections_total",
		"Connections that clients made.", nil, nil)
	connectionsActiveDesc = prometheus.NewDesc("stagebench_lb_connections_active",
		"Connections of clients that are open.", nil, nil)
	connectionsFailedDesc = prometheus.NewDesc("stagebench_lb_connections_failed_total",
		"Connections that were closed because no host could be reached.", nil, nil)
	connectionBytesDesc = prometheus.NewDesc("stagebench_lb_connection_bytes_total",
		"Bytes that were passed from clients (in) and to them (out).", []string{"direction"}, nil)
)

// collector renders a status as metrics.
type collector struct{ engine Engine }

// Describe implements prometheus.Collector.
func (collector) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		requestsDesc, redispatchesDesc, upstreamRequestsDesc, upstreamInFlightDesc, upstreamConnectionsDesc,
		upstreamActiveDesc, upstreamUpDesc, upstreamTransitionsDesc, upstreamEjectionsDesc,
		connectionsDesc, connectionsActiveDesc, connectionsFailedDesc, connectionBytesDesc,
	} {
		out <- desc
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), statusTimeout)
	defer cancel()
	status, err := c.engine.Status(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(requestsDesc, fmt.Errorf("balance: status: %w", err))
		return
	}
	count := func(desc *prometheus.Desc, value uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(value), labels...)
	}
	gauge := func(desc *prometheus.Desc, value int, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), labels...)
	}
	for code, n := range status.Responses {
		count(requestsDesc, n, "all", code)
	}
	count(redispatchesDesc, status.Redispatches)
	attempts, current := upstreamRequestsDesc, upstreamInFlightDesc
	if c := status.Connections; c != nil {
		attempts, current = upstreamConnectionsDesc, upstreamActiveDesc
		count(connectionsDesc, c.Accepted)
		count(connectionsFailedDesc, c.Failed)
		gauge(connectionsActiveDesc, c.Active)
		count(connectionBytesDesc, c.BytesIn, "in")
		count(connectionBytesDesc, c.BytesOut, "out")
	}
	for _, u := range status.Upstreams {
		up := 0
		if u.Up {
			up = 1
		}
		gauge(upstreamUpDesc, up, u.Node)
		gauge(current, u.InFlight, u.Node)
		count(attempts, u.Requests, u.Node)
		count(upstreamEjectionsDesc, u.Ejections, u.Node)
		count(upstreamTransitionsDesc, u.WentUp, u.Node, "up")
		count(upstreamTransitionsDesc, u.WentDown, u.Node, "down")
	}
}
