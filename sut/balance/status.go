package balance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/stagebench/stagebench/sut"
)

// Status is what a balancer knows of its hosts and has done so far. Metrics,
// /status and /readyz are three views of it.
type Status struct {
	Node   string     `json:"node"`
	Engine sut.Engine `json:"engine"`
	Policy string     `json:"policy"`
	Sticky bool       `json:"sticky"`
	// Responses counts requests that have come to their end, by the status that
	// the client was sent: "200", "503"; "499" when the client left before. HAProxy
	// only has classes: "2xx", "5xx"; "other" when the client left before.
	Responses map[string]uint64 `json:"responses"`
	// Redispatches counts requests that went to another host than the first one
	// picked, because nothing could be sent to that.
	Redispatches uint64           `json:"redispatches"`
	Upstreams    []UpstreamStatus `json:"upstreams"`
}

// UpstreamStatus is one host of a balancer.
type UpstreamStatus struct {
	Node     string `json:"node"`
	Address  string `json:"address"` // host:port
	Up       bool   `json:"up"`
	Cause    string `json:"cause,omitempty"` // why it is down
	InFlight int    `json:"in_flight"`
	Requests uint64 `json:"requests"` // sent to it, or tried to
	WentUp   uint64 `json:"went_up"`  // times that it came back
	WentDown uint64 `json:"went_down"`
}

// ready reports whether any host is up.
func (s Status) ready() bool {
	for _, u := range s.Upstreams {
		if u.Up {
			return true
		}
	}
	return false
}

// statusFunc returns the status of a balancer; the native one has to be asked.
type statusFunc func(context.Context) (Status, error)

// statusTimeout bounds asking, where the question comes without a bound.
const statusTimeout = 5 * time.Second

// admin answers operators.
func admin(registry *prometheus.Registry, status statusFunc) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	answer := func(pattern string, check func(Status) error) {
		mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), statusTimeout)
			defer cancel()
			s, err := status(ctx)
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
	serves := func(Status) error { return nil }
	answer("/healthz", serves)
	answer("/status", serves)
	answer("/readyz", func(s Status) error {
		if !s.ready() {
			return errors.New("no web host is up")
		}
		return nil
	})
	return mux
}

// The metrics of a balancer.
var (
	requestsDesc = prometheus.NewDesc("stagebench_http_requests_total",
		"Requests that have come to their end at this node, by status.", []string{"op", "code"}, nil)
	redispatchesDesc = prometheus.NewDesc("stagebench_lb_redispatches_total",
		"Requests that went to another host because the first one could not be reached.", nil, nil)
	upstreamRequestsDesc = prometheus.NewDesc("stagebench_lb_upstream_requests_total",
		"Requests sent to a host, or tried to.", []string{"upstream"}, nil)
	upstreamInFlightDesc = prometheus.NewDesc("stagebench_lb_upstream_in_flight",
		"Requests that a host is working on.", []string{"upstream"}, nil)
	upstreamUpDesc = prometheus.NewDesc("stagebench_lb_upstream_up",
		"1 when a host gets requests, 0 when it is down.", []string{"upstream"}, nil)
	upstreamTransitionsDesc = prometheus.NewDesc("stagebench_lb_upstream_transitions_total",
		"Times that a host went up or down.", []string{"upstream", "to"}, nil)
)

// collector renders a status as metrics.
type collector struct{ status statusFunc }

// Describe implements prometheus.Collector.
func (collector) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		requestsDesc, redispatchesDesc, upstreamRequestsDesc, upstreamInFlightDesc, upstreamUpDesc, upstreamTransitionsDesc,
	} {
		out <- desc
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), statusTimeout)
	defer cancel()
	status, err := c.status(ctx)
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
	for _, u := range status.Upstreams {
		up := 0
		if u.Up {
			up = 1
		}
		gauge(upstreamUpDesc, up, u.Node)
		gauge(upstreamInFlightDesc, u.InFlight, u.Node)
		count(upstreamRequestsDesc, u.Requests, u.Node)
		count(upstreamTransitionsDesc, u.WentUp, u.Node, "up")
		count(upstreamTransitionsDesc, u.WentDown, u.Node, "down")
	}
}
