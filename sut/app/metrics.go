package app

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/stagebench/stagebench/sut"
)

// metrics are the Prometheus metrics of one node. The label op has one value per
// kind of route, so the number of series is bounded.
type metrics struct {
	inFlight prometheus.Gauge
	byOp     map[string]*opMetrics
	other    *opMetrics // requests without a route

	staticRequests prometheus.Counter
	staticBytes    prometheus.Counter

	uploads      prometheus.Counter
	uploadBytes  prometheus.Counter
	likes        prometheus.Counter
	comments     prometheus.Counter
	follows      prometheus.Counter
	logins       prometheus.Counter
	sessionsLost prometheus.Counter
}

// opMetrics are the metrics of one op. They are looked up once, at the start.
type opMetrics struct {
	name     string
	requests *prometheus.CounterVec // by code
	seconds  prometheus.Observer
	static   bool // its responses are the same for all users
}

// newMetrics registers the metrics. It panics if the registry already has them.
func newMetrics(registry prometheus.Registerer, routes []route) *metrics {
	auto := promauto.With(registry)
	counter := func(name, help string) prometheus.Counter {
		return auto.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	requests := auto.NewCounterVec(prometheus.CounterOpts{
		Name: "stagebench_http_requests_total", Help: "Answered requests, by op and status. Health checks are not counted.",
	}, []string{"op", "code"})
	seconds := auto.NewHistogramVec(prometheus.HistogramOpts{
		Name:                            "stagebench_http_request_duration_seconds",
		Help:                            "Time from the first line of a request to the end of its handler, by op.",
		Buckets:                         []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5},
		NativeHistogramBucketFactor:     1.1,
		NativeHistogramMaxBucketNumber:  100,
		NativeHistogramMinResetDuration: time.Hour,
	}, []string{"op"})
	newOp := func(op string) *opMetrics {
		counts := requests.MustCurryWith(prometheus.Labels{"op": op})
		return &opMetrics{name: op, requests: counts, seconds: seconds.WithLabelValues(op)}
	}
	m := &metrics{
		inFlight: auto.NewGauge(prometheus.GaugeOpts{
			Name: "stagebench_http_requests_in_flight", Help: "Requests that are being served.",
		}),
		byOp:           map[string]*opMetrics{},
		other:          newOp(otherOp),
		staticRequests: counter("stagebench_static_requests_total", "Answered requests for images and assets."),
		staticBytes: counter("stagebench_static_bytes_total",
			"Bytes of the bodies of images and assets that were sent, before compression."),
		uploads:      counter("stagebench_uploads_total", "Photos uploaded."),
		uploadBytes:  counter("stagebench_upload_bytes_total", "Bytes of the originals of uploaded photos."),
		likes:        counter("stagebench_likes_total", "Likes given."),
		comments:     counter("stagebench_comments_total", "Comments written."),
		follows:      counter("stagebench_follows_total", "Follow requests that succeeded, repeated ones included."),
		logins:       counter("stagebench_logins_total", "Sessions started."),
		sessionsLost: counter("stagebench_sessions_lost_total", "Requests with a session that is unknown to this host."),
	}
	for _, route := range routes {
		if m.byOp[route.op] == nil {
			m.byOp[route.op] = newOp(route.op)
			m.byOp[route.op].static = sut.Shared(route.pattern)
		}
	}
	return m
}
