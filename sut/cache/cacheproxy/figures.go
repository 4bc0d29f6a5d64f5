package cacheproxy

import "github.com/prometheus/client_golang/prometheus"

// figures are what a front counts.
type figures struct {
	loads     prometheus.Counter
	errors    prometheus.Counter
	unflushed prometheus.GaugeFunc
	flushed   prometheus.Counter
	refused   prometheus.Counter
	batches   prometheus.Counter
	failed    prometheus.Counter
}

func newFigures(p *pending) figures {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "stagebench_cache_node_" + name, Help: help})
	}
	return figures{
		loads:   counter("loads_total", "Records that the cache tier itself read from the database."),
		errors:  counter("value_errors_total", "Values that could not be stored or removed."),
		flushed: counter("flushed_total", "Acknowledged writes that were written back to the database."),
		refused: counter("refused_total",
			"Acknowledged writes that the database refused when they were written back: they are lost."),
		batches: counter("flushes_total", "Transactions in which writes were written back."),
		failed: counter("flush_errors_total",
			"Transactions in which writes should have been written back and were not; they are tried again."),
		unflushed: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "stagebench_cache_node_unflushed", Help: "Acknowledged writes that were not written back yet.",
		}, func() float64 { return float64(p.count()) }),
	}
}

func (f *figures) register(registry prometheus.Registerer) error {
	for _, collector := range []prometheus.Collector{
		f.loads, f.errors, f.unflushed, f.flushed, f.refused, f.batches, f.failed,
	} {
		if err := registry.Register(collector); err != nil {
			return err
		}
	}
	return nil
}
