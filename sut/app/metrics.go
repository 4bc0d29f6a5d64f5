package app

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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

func newMetrics(registry prometheus.Registerer, routes []route) (*metrics, error) {
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "stagebench_http_requests_total", Help: "Answered requests to the application, by op and status.",
	}, []string{"op", "code"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "stagebench_http_request_duration_seconds", Help: "Time from the first line of a request to the end of its handler, by op.",
		Buckets:                     []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5},
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
	}, []string{"op"})
	m := &metrics{
		inFlight:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "stagebench_http_requests_in_flight", Help: "Requests being answered."}),
		byOp:         map[string]*opMetrics{},
		uploads:      counter("stagebench_uploads_total", "Photos uploaded."),
		uploadBytes:  counter("stagebench_upload_bytes_total", "Bytes of the originals of uploaded photos."),
		likes:        counter("stagebench_likes_total", "Likes given."),
		comments:     counter("stagebench_comments_total", "Comments written."),
		follows:      counter("stagebench_follows_total", "Users followed, again included."),
		logins:       counter("stagebench_logins_total", "Sessions started."),
		sessionsLost: counter("stagebench_sessions_lost_total", "Requests with a session that this host does not know."),
	}
	for _, collector := range []prometheus.Collector{
		requests, seconds, m.inFlight, m.uploads, m.uploadBytes, m.likes, m.comments, m.follows, m.logins, m.sessionsLost,
	} {
		if err := registry.Register(collector); err != nil {
			return nil, fmt.Errorf("register the metrics of the app: %w", err)
		}
	}
	of := func(op string) *opMetrics {
		return &opMetrics{name: op, requests: requests.MustCurryWith(prometheus.Labels{"op": op}), seconds: seconds.WithLabelValues(op)}
	}
	for _, route := range routes {
		if m.byOp[route.op] == nil {
			m.byOp[route.op] = of(route.op)
		}
	}
	m.other = of(otherOp)
	return m, nil
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}
