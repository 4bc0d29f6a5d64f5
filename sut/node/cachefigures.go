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
	c := &cacheCollector{ask: ask, errors: prometheus.NewCounter(prometheus.CounterOpts{
		Name: prefix + "scrape_errors_total", Help: "Times that the server did not say what it had counted.",
	})}
	add := func(kind prometheus.ValueType, name, help string, value func(sut.CacheFigures) int64) {
		c.figures = append(c.figures, cacheFigure{prometheus.NewDesc(prefix+name, help, nil, nil), kind, value})
	}
	const counter, gauge = prometheus.CounterValue, prometheus.GaugeValue
	add(counter, "hits_total", "Lookups of keys that were there, those of a front before the server included.",
		func(f sut.CacheFigures) int64 { return f.Hits })
	add(counter, "misses_total", "Lookups of keys that were not there, those of a front before the server included.",
		func(f sut.CacheFigures) int64 { return f.Misses })
	add(counter, "evictions_total", "Entries that went because the budget was used up.",
		func(f sut.CacheFigures) int64 { return f.Evicted })
	add(counter, "expired_total", "Entries that went because their time was over.",
		func(f sut.CacheFigures) int64 { return f.Expired })
	add(gauge, "entries", "Keys that are there.", func(f sut.CacheFigures) int64 { return f.Entries })
	add(gauge, "bytes", "Bytes of keys, values and their overhead.", func(f sut.CacheFigures) int64 { return f.Bytes })
	add(gauge, "limit_bytes", "The budget in bytes; 0 = none.", func(f sut.CacheFigures) int64 { return f.MaxBytes })
	return c
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
