package cache

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the Prometheus metrics of a client.
type metrics struct {
	reads  *prometheus.CounterVec // by result
	hits   prometheus.Counter     // reads with the result "hit"
	misses prometheus.Counter     // reads with the result "miss"
	errors *prometheus.CounterVec // by host and kind
	fills  prometheus.Counter
	shared prometheus.Counter
}

func newMetrics() metrics {
	m := metrics{
		reads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stagebench_cache_reads_total", Help: "Reads that a cache host answered, by hit or miss.",
		}, []string{"result"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stagebench_cache_errors_total",
			Help: "Requests that a cache host did not answer (unavailable) or refused.",
		}, []string{"cache", "kind"}),
		fills: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stagebench_cache_fills_total", Help: "Loads of values that the cache did not have.",
		}),
		shared: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stagebench_cache_shared_fills_total",
			Help: "Requests that shared the load of an earlier request for the same key.",
		}),
	}
	m.hits, m.misses = m.reads.WithLabelValues("hit"), m.reads.WithLabelValues("miss")
	return m
}

func (m *metrics) register(registry prometheus.Registerer) error {
	for _, collector := range []prometheus.Collector{m.reads, m.errors, m.fills, m.shared} {
		if err := registry.Register(collector); err != nil {
			return err
		}
	}
	return nil
}

func (m *metrics) countRead(found bool) {
	if found {
		m.hits.Inc()
	} else {
		m.misses.Inc()
	}
}

// countError counts a request that failed. A canceled caller is not an error of the
// host. An error of a record, such as "not found", is a valid answer.
func (m *metrics) countError(host string, err error) {
	switch {
	case err == nil, errors.Is(err, context.Canceled), isRecordError(err):
	case errors.Is(err, ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		m.errors.WithLabelValues(host, "unavailable").Inc()
	default:
		m.errors.WithLabelValues(host, "refused").Inc()
	}
}
