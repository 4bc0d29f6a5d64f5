package cacheproxy

import "github.com/prometheus/client_golang/prometheus"

// metrics are the Prometheus metrics of a proxy.
type metrics struct {
	loads     prometheus.Counter
	errors    prometheus.Counter
	unflushed prometheus.GaugeFunc
	flushed   prometheus.Counter
	refused   prometheus.Counter
	batches   prometheus.Counter
	failed    prometheus.Counter
}

func newMetrics(b *backlog) metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "stagebench_cache_node_" + name, Help: help})
	}
	return metrics{
		loads:   counter("loads_total", "Records that the cache tier itself read from the database."),
		errors:  counter("value_errors_total", "Cached values that could not be stored or removed."),
		flushed: counter("flushed_total", "Acknowledged writes that were written back to the database."),
		refused: counter("refused_total",
			"Acknowledged writes that are lost because they could not be written back to the database."),
		batches: counter("flushes_total", "Transactions that wrote a batch back to the database."),
		failed: counter("flush_errors_total",
			"Write-back transactions that failed. Their writes are retried."),
		unflushed: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "stagebench_cache_node_unflushed", Help: "Acknowledged writes that are not yet written back.",
		}, func() float64 { return float64(b.count()) }),
	}
}

func (m *metrics) register(registry prometheus.Registerer) error {
	for _, collector := range []prometheus.Collector{
		m.loads, m.errors, m.unflushed, m.flushed, m.refused, m.batches, m.failed,
	} {
		if err := registry.Register(collector); err != nil {
			return err
		}
	}
	return nil
}
