package node

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
)

// cacheAnswer bounds how long the server of a cache node may take to say what it has
// counted. Whoever asks the node for its metrics waits as long.
const cacheAnswer = time.Second

// cacheFigure is one of the figures of a cache node as Prometheus has it.
type cacheFigure struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(sut.CacheFigures) int64
}

// cacheCollector asks the server of a cache node once for each scrape. One that does
// not answer has no figures: old ones would look like a server at rest.
type cacheCollector struct {
	ask     func(context.Context) (sut.CacheFigures, error)
	figures []cacheFigure
	errors  prometheus.Counter
}

func newCacheCollector(ask func(context.Context) (sut.CacheFigures, error)) *cacheCollector {
	const prefix = "stagebench_cache_node_"
	figure := func(name, help string, kind prometheus.ValueType, value func(sut.CacheFigures) int64) cacheFigure {
		return cacheFigure{prometheus.NewDesc(prefix+name, help, nil, nil), kind, value}
	}
	const counter, gauge = prometheus.CounterValue, prometheus.GaugeValue
	return &cacheCollector{
		ask: ask,
		figures: []cacheFigure{
			figure("hits_total", "Lookups of keys that were there, those of a front before the server included.", counter, func(f sut.CacheFigures) int64 { return f.Hits }),
			figure("misses_total", "Lookups of keys that were not there, those of a front before the server included.", counter, func(f sut.CacheFigures) int64 { return f.Misses }),
			figure("evictions_total", "Entries that went because the budget was used up.", counter, func(f sut.CacheFigures) int64 { return f.Evicted }),
			figure("expired_total", "Entries that went because their time was over.", counter, func(f sut.CacheFigures) int64 { return f.Expired }),
			figure("entries", "Keys that are there.", gauge, func(f sut.CacheFigures) int64 { return f.Entries }),
			figure("bytes", "Bytes of keys, values and their overhead.", gauge, func(f sut.CacheFigures) int64 { return f.Bytes }),
			figure("limit_bytes", "The budget in bytes; 0 = none.", gauge, func(f sut.CacheFigures) int64 { return f.MaxBytes }),
		},
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "scrape_errors_total", Help: "Times that the server did not say what it had counted.",
		}),
	}
}

// Describe implements prometheus.Collector.
func (c *cacheCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, f := range c.figures {
		descs <- f.desc
	}
	c.errors.Describe(descs)
}

// Collect implements prometheus.Collector.
func (c *cacheCollector) Collect(metrics chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), cacheAnswer)
	defer cancel()
	figures, err := c.ask(ctx)
	if err != nil {
		c.errors.Inc()
	} else {
		for _, f := range c.figures {
			metrics <- prometheus.MustNewConstMetric(f.desc, f.kind, float64(f.value(figures)))
		}
	}
	c.errors.Collect(metrics)
}
