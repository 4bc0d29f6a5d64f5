package app

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are the figures of one node. Labels are bounded: ops are those of the
// routes, codes those that the service sends.
type metrics struct {
	inFlight prometheus.Gauge
	byOp     map[string]*opMetrics
	other    *opMetrics // of requests that no route answers

	uploads      prometheus.Counter
	uploadBytes  prometheus.Counter
	likes        prometheus.Counter
	comments     prometheus.Counter
	follows      prometheus.Counter
	logins       prometheus.Counter
	sessionsLost prometheus.Counter
}

// opMetrics are the figures of one class of requests, looked up once.
type opMetrics struct {
	name     string
	requests *prometheus.CounterVec // by code
	seconds  prometheus.Observer
}

// newMetrics registers the metrics. A registry takes them once.
func newMetrics(registry prometheus.Registerer, routes []route) *metrics {
	auto := promauto.With(registry)
	counter := func(name, help string) prometheus.Counter {
		return auto.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	requests := auto.NewCounterVec(prometheus.CounterOpts{
		Name: "stagebench_http_requests_total", Help: "Answered requests to the application, by op and status.",
	}, []string{"op", "code"})
	seconds := auto.NewHistogramVec(prometheus.HistogramOpts{
		Name:                            "stagebench_http_request_duration_seconds",
		Help:                            "Time from the first line of a request to the end of its handler, by op.",
		Buckets:                         []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5},
		NativeHistogramBucketFactor:     1.1,
		NativeHistogramMaxBucketNumber:  100,
		NativeHistogramMinResetDuration: time.Hour,
	}, []string{"op"})
	of := func(op string) *opMetrics {
		counts := requests.MustCurryWith(prometheus.Labels{"op": op})
		return &opMetrics{name: op, requests: counts, seconds: seconds.WithLabelValues(op)}
	}
	m := &metrics{
		inFlight: auto.NewGauge(prometheus.GaugeOpts{
			Name: "stagebench_http_requests_in_flight", Help: "Requests being answered.",
		}),
		byOp:         map[string]*opMetrics{},
		other:        of(otherOp),
		uploads:      counter("stagebench_uploads_total", "Photos uploaded."),
		uploadBytes:  counter("stagebench_upload_bytes_total", "Bytes of the originals of uploaded photos."),
		likes:        counter("stagebench_likes_total", "Likes given."),
		comments:     counter("stagebench_comments_total", "Comments written."),
		follows:      counter("stagebench_follows_total", "Users followed, again included."),
		logins:       counter("stagebench_logins_total", "Sessions started."),
		sessionsLost: counter("stagebench_sessions_lost_total", "Requests with a session that this host does not know."),
	}
	for _, route := range routes {
		if m.byOp[route.op] == nil {
			m.byOp[route.op] = of(route.op)
		}
	}
	return m
}
