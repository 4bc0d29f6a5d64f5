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

// Engine is an embedded or native balancer with a status.
type Engine interface {
	// Status returns the state of the balancer. A native engine asks its process.
	Status(ctx context.Context) (sut.BalancerStatus, error)
}

// statusTimeout is the time limit of one Status call.
const statusTimeout = 5 * time.Second

// Admin returns a handler for the operator endpoints /metrics, /healthz, /readyz and
// /status. All of them show the engine's status. Admin registers the engine's metrics
// in the registry, and /metrics serves the registry.
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
			// Encode fails only when the client has left.
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
		"Finished requests of this node, by status.", []string{"op", "code"}, nil)
	redispatchesDesc = prometheus.NewDesc("stagebench_lb_redispatches_total",
		"Requests (layer 4: connections) sent to another host because the first one was unreachable.", nil, nil)
	upstreamRequestsDesc = prometheus.NewDesc("stagebench_lb_upstream_requests_total",
		"Attempts to send a request to a host.", []string{"upstream"}, nil)
	upstreamInFlightDesc = prometheus.NewDesc("stagebench_lb_upstream_in_flight",
		"Requests in flight at a host.", []string{"upstream"}, nil)
	upstreamConnectionsDesc = prometheus.NewDesc("stagebench_lb_upstream_connections_total",
		"Attempts to connect a client to a host.", []string{"upstream"}, nil)
	upstreamActiveDesc = prometheus.NewDesc("stagebench_lb_upstream_connections_active",
		"Open client connections that are forwarded to a host.", []string{"upstream"}, nil)
	upstreamUpDesc = prometheus.NewDesc("stagebench_lb_upstream_up",
		"1 when a host gets requests, 0 when it is down.", []string{"upstream"}, nil)
	upstreamTransitionsDesc = prometheus.NewDesc("stagebench_lb_upstream_transitions_total",
		"Times that a host went up or down.", []string{"upstream", "to"}, nil)
	upstreamEjectionsDesc = prometheus.NewDesc("stagebench_lb_upstream_ejections_total",
		"Times that a host was ejected after consecutive failures.", []string{"upstream"}, nil)
	connectionsDesc = prometheus.NewDesc("stagebench_lb_connections_total",
		"Accepted client connections.", nil, nil)
	connectionsActiveDesc = prometheus.NewDesc("stagebench_lb_connections_active",
		"Open client connections.", nil, nil)
	connectionsFailedDesc = prometheus.NewDesc("stagebench_lb_connections_failed_total",
		"Client connections closed because no host was reachable.", nil, nil)
	connectionBytesDesc = prometheus.NewDesc("stagebench_lb_connection_bytes_total",
		"Bytes forwarded from clients (in) and to clients (out).", []string{"direction"}, nil)
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
