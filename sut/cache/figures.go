package cache

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// figures are what the client counts.
type figures struct {
	reads  *prometheus.CounterVec // by result
	hits   prometheus.Counter     // of reads
	misses prometheus.Counter     // likewise
	errors *prometheus.CounterVec // by host and kind
	fills  prometheus.Counter
	shared prometheus.Counter
}

func newFigures() figures {
	f := figures{
		reads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stagebench_cache_reads_total", Help: "Keys that a cache host was asked for and answered.",
		}, []string{"result"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stagebench_cache_errors_total", Help: "Requests that a cache host did not answer (unavailable) or refused.",
		}, []string{"cache", "kind"}),
		fills: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stagebench_cache_fills_total", Help: "Loads of values that the cache did not have.",
		}),
		shared: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stagebench_cache_shared_fills_total",
			Help: "Requests that got their value from a load that another one had begun.",
		}),
	}
	f.hits, f.misses = f.reads.WithLabelValues("hit"), f.reads.WithLabelValues("miss")
	return f
}

func (f *figures) register(registry prometheus.Registerer) error {
	for _, collector := range []prometheus.Collector{f.reads, f.errors, f.fills, f.shared} {
		if err := registry.Register(collector); err != nil {
			return err
		}
	}
	return nil
}

func (f *figures) read(found bool) {
	if found {
		f.hits.Inc()
	} else {
		f.misses.Inc()
	}
}

// asked notes how a request to a host ended. A caller that left is no error, and a
// record that is not there, say, is an answer.
func (f *figures) asked(host string, err error) {
	switch {
	case err == nil, errors.Is(err, context.Canceled), ofRecords(err):
	case errors.Is(err, ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		f.errors.WithLabelValues(host, "unavailable").Inc()
	default:
		f.errors.WithLabelValues(host, "refused").Inc()
	}
}
