package node

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
)

// cacheStatsTimeout bounds the request for the counters of a cache server. A scrape of
// the node waits up to this long.
const cacheStatsTimeout = time.Second

// cacheMetric is one figure of a cache node as a Prometheus metric.
type cacheMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(sut.CacheFigures) int64
}

// cacheCollector requests the counters of a cache server once for each scrape. A server
// that does not answer has no figures: old figures would make it look idle.
type cacheCollector struct {
	stats   func(context.Context) (sut.CacheFigures, error)
	metrics []cacheMetric
	errors  prometheus.Counter
}

func newCacheCollector(stats func(context.Context) (sut.CacheFigures, error)) *cacheCollector {
	const prefix = "stagebench_cache_node_"
	c := &cacheCollector{stats: stats, errors: prometheus.NewCounter(prometheus.CounterOpts{
		Name: prefix + "scrape_errors_total", Help: "Scrapes in which the server did not report its counters.",
	})}
	add := func(kind prometheus.ValueType, name, help string, value func(sut.CacheFigures) int64) {
		c.metrics = append(c.metrics, cacheMetric{prometheus.NewDesc(prefix+name, help, nil, nil), kind, value})
	}
	const counter, gauge = prometheus.CounterValue, prometheus.GaugeValue
	add(counter, "hits_total", "Reads of a key that was present, including those by a cache proxy.",
		func(f sut.CacheFigures) int64 { return f.Hits })
	add(counter, "misses_total", "Reads of a key that was absent, including those by a cache proxy.",
		func(f sut.CacheFigures) int64 { return f.Misses })
	add(counter, "evictions_total", "Entries removed because memory was full.",
		func(f sut.CacheFigures) int64 { return f.Evicted })
	add(counter, "expired_total", "Entries removed because their time to live was over.",
		func(f sut.CacheFigures) int64 { return f.Expired })
	add(gauge, "entries", "Keys in memory.", func(f sut.CacheFigures) int64 { return f.Entries })
	add(gauge, "bytes", "Memory of the entries in bytes, overhead included.",
		func(f sut.CacheFigures) int64 { return f.Bytes })
	add(gauge, "limit_bytes", "Memory budget in bytes; 0 = no limit.",
		func(f sut.CacheFigures) int64 { return f.MaxBytes })
	return c
}

// Describe implements prometheus.Collector.
func (c *cacheCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, m := range c.metrics {
		descs <- m.desc
	}
	c.errors.Describe(descs)
}

// Collect implements prometheus.Collector.
func (c *cacheCollector) Collect(metrics chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), cacheStatsTimeout)
	defer cancel()
	figures, err := c.stats(ctx)
	if err != nil {
		c.errors.Inc()
	} else {
		for _, m := range c.metrics {
			metrics <- prometheus.MustNewConstMetric(m.desc, m.kind, float64(m.value(figures)))
		}
	}
	c.errors.Collect(metrics)
}
