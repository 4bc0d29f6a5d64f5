package balance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
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
	Layer  string     `json:"layer"` // Layer7 or Layer4
	Policy string     `json:"policy"`
	Sticky bool       `json:"sticky"`
	// Responses counts requests that have come to their end, by the status that
	// the client was sent: "200", "503"; "499" when the client left before. HAProxy
	// only has classes: "2xx", "5xx"; "other" when the client left before. Layer 7
	// only.
	Responses map[string]uint64 `json:"responses,omitempty"`
	// Connections counts those of clients; layer 4 only.
	Connections *ConnectionStatus `json:"connections,omitempty"`
	// Redispatches counts requests, at layer 4 connections, that went to another
	// host than the first one picked, because nothing could be sent to that.
	Redispatches uint64           `json:"redispatches"`
	Upstreams    []UpstreamStatus `json:"upstreams"`
}

// ConnectionStatus is the connections of clients at a balancer of layer 4.
type ConnectionStatus struct {
	Accepted uint64 `json:"accepted"`
	Active   int    `json:"active"`
	Failed   uint64 `json:"failed"`    // closed because no host could be reached
	BytesIn  uint64 `json:"bytes_in"`  // from clients to hosts; long transfers are counted in pieces
	BytesOut uint64 `json:"bytes_out"` // from hosts to clients
}

// UpstreamStatus is one host of a balancer.
type UpstreamStatus struct {
	Node    string `json:"node"`
	Address string `json:"address"`         // host:port
	Up      bool   `json:"up"`              // it gets requests
	Cause   string `json:"cause,omitempty"` // why it is down
	// Ejected: its health checks may be good, but it failed what it was asked for.
	Ejected bool `json:"ejected,omitempty"`
	// Draining: it is no member any more and finishes what it has.
	Draining  bool   `json:"draining,omitempty"`
	InFlight  int    `json:"in_flight"` // requests, at layer 4 connections
	Requests  uint64 `json:"requests"`  // sent to it, or tried to; at layer 4 connections
	WentUp    uint64 `json:"went_up"`   // times that it came back
	WentDown  uint64 `json:"went_down"` // ejections are among them
	Ejections uint64 `json:"ejections"`
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

// admin answers operators. An engine adds what it can be told.
func admin(registry *prometheus.Registry, status statusFunc) *http.ServeMux {
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

// errMembership: a membership makes no sense, or not to this engine.
var errMembership = errors.New("membership")

// defaultDrain bounds the wait for what hosts have to finish when the request
// for a membership does not.
const defaultDrain = 30 * time.Second

// membershipHandler takes a membership as sut.Membership says. The engine's
// function returns an errMembership for one that changes nothing, and ctx's
// error when hosts have not finished.
func membershipHandler(set func(context.Context, sut.Membership) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		drain, err := drainOf(r.Header.Get(sut.DrainHeader))
		if err != nil {
			writeError(w, http.StatusBadRequest, err.Error())
			return
		}
		m, err := readMembership(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			writeError(w, http.StatusBadRequest, err.Error())
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), drain)
		defer cancel()
		switch err := set(ctx, m); {
		case err == nil:
			w.WriteHeader(http.StatusNoContent)
		case errors.Is(err, errMembership):
			writeError(w, http.StatusBadRequest, err.Error())
		case errors.Is(err, context.DeadlineExceeded):
			writeError(w, http.StatusGatewayTimeout, err.Error())
		default:
			writeError(w, http.StatusInternalServerError, err.Error())
		}
	})
}

// drainOf reads the header with the bound.
func drainOf(text string) (time.Duration, error) {
	if text == "" {
		return defaultDrain, nil
	}
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil || !(seconds >= 0 && seconds <= 24*3600) {
		return 0, fmt.Errorf("%s %q: want seconds from 0 to a day, such as 10", sut.DrainHeader, text)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

// readMembership reads one JSON document with nothing that is unknown in it.
func readMembership(body io.Reader) (sut.Membership, error) {
	decoder := json.NewDecoder(body)
	decoder.DisallowUnknownFields()
	var m sut.Membership
	if err := decoder.Decode(&m); err != nil {
		return m, fmt.Errorf("%w: %w", errMembership, err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return m, fmt.Errorf("%w: more than one JSON document", errMembership)
	}
	return m, nil
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
type collector struct{ status statusFunc }

// Describe implements prometheus.Collector.
func (collector) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{
		requestsDesc, redispatchesDesc, upstreamRequestsDesc, upstreamInFlightDesc, upstreamConnectionsDesc, upstreamActiveDesc,
		upstreamUpDesc, upstreamTransitionsDesc, upstreamEjectionsDesc,
		connectionsDesc, connectionsActiveDesc, connectionsFailedDesc, connectionBytesDesc,
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
