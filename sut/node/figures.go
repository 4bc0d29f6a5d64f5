package node

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
)

// figuresTimeout bounds the request for the counters of a server. A scrape of the node
// waits up to this long.
const figuresTimeout = time.Second

// figure is one value of a server's figures F as a Prometheus metric.
type figure[F any] struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(F) int64 // negative = the server does not report it
}

// figuresCollector requests the figures of a server once for each scrape. A server that
// does not answer has no figures: old figures would make it look idle.
type figuresCollector[F any] struct {
	read    func(context.Context) (F, error)
	figures []figure[F]
	errors  prometheus.Counter
}

// newFiguresCollector returns a collector without figures. prefix begins the name of its own metric.
func newFiguresCollector[F any](prefix string, read func(context.Context) (F, error)) *figuresCollector[F] {
	return &figuresCollector[F]{read: read, errors: prometheus.NewCounter(prometheus.CounterOpts{
		Name: prefix + "scrape_errors_total", Help: "Scrapes in which the server did not report its counters.",
	})}
}

// counter adds a figure that only grows.
func (c *figuresCollector[F]) counter(name, help string, value func(F) int64) {
	c.figures = append(c.figures, figure[F]{prometheus.NewDesc(name, help, nil, nil), prometheus.CounterValue, value})
}

// gauge adds a figure that also shrinks.
func (c *figuresCollector[F]) gauge(name, help string, value func(F) int64) {
	c.figures = append(c.figures, figure[F]{prometheus.NewDesc(name, help, nil, nil), prometheus.GaugeValue, value})
}

// Describe implements prometheus.Collector.
func (c *figuresCollector[F]) Describe(descs chan<- *prometheus.Desc) {
	for _, f := range c.figures {
		descs <- f.desc
	}
	c.errors.Describe(descs)
}

// Collect implements prometheus.Collector.
func (c *figuresCollector[F]) Collect(metrics chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), figuresTimeout)
	defer cancel()
	figures, err := c.read(ctx)
	if err != nil {
		c.errors.Inc()
	} else {
		for _, f := range c.figures {
			if value := f.value(figures); value >= 0 {
				metrics <- prometheus.MustNewConstMetric(f.desc, f.kind, float64(value))
			}
		}
	}
	c.errors.Collect(metrics)
}

// newCacheCollector returns the collector of a cache server.
func newCacheCollector(stats func(context.Context) (sut.CacheFigures, error)) *figuresCollector[sut.CacheFigures] {
	const prefix = "stagebench_cache_node_"
	c := newFiguresCollector(prefix, stats)
	c.counter(prefix+"hits_total", "Reads of a key that was present, including those by a cache proxy.",
		func(f sut.CacheFigures) int64 { return f.Hits })
	c.counter(prefix+"misses_total", "Reads of a key that was absent, including those by a cache proxy.",
		func(f sut.CacheFigures) int64 { return f.Misses })
	c.counter(prefix+"evictions_total", "Entries removed because memory was full.",
		func(f sut.CacheFigures) int64 { return f.Evicted })
	c.counter(prefix+"expired_total", "Entries removed because their time to live was over.",
		func(f sut.CacheFigures) int64 { return f.Expired })
	c.gauge(prefix+"entries", "Keys in memory.", func(f sut.CacheFigures) int64 { return f.Entries })
	c.gauge(prefix+"bytes", "Memory of the entries in bytes, overhead included.",
		func(f sut.CacheFigures) int64 { return f.Bytes })
	c.gauge(prefix+"limit_bytes", "Memory budget in bytes; 0 = no limit.",
		func(f sut.CacheFigures) int64 { return f.MaxBytes })
	return c
}

// newSessionCollector returns the collector of a session host, whose entries are sessions.
func newSessionCollector(stats func(context.Context) (sut.CacheFigures, error)) *figuresCollector[sut.CacheFigures] {
	const prefix = "stagebench_session_node_"
	c := newFiguresCollector(prefix, stats)
	c.gauge(prefix+"sessions", "Sessions in memory.", func(f sut.CacheFigures) int64 { return f.Entries })
	c.gauge(prefix+"bytes", "Memory of the sessions in bytes, overhead included.",
		func(f sut.CacheFigures) int64 { return f.Bytes })
	c.gauge(prefix+"limit_bytes", "Memory budget in bytes; 0 = no limit.",
		func(f sut.CacheFigures) int64 { return f.MaxBytes })
	c.counter(prefix+"refused_total", "Logins refused because memory was full.",
		func(f sut.CacheFigures) int64 { return f.Refused })
	c.counter(prefix+"expired_total", "Sessions removed because their time was over.",
		func(f sut.CacheFigures) int64 { return f.Expired })
	return c
}

// newEdgeCollector returns the collector of an edge.
func newEdgeCollector(edge sut.EdgeServer) *figuresCollector[sut.EdgeFigures] {
	const prefix = "stagebench_edge_"
	c := newFiguresCollector(prefix, edge.Figures)
	c.counter("stagebench_http_requests_total", "Finished requests of clients.",
		func(f sut.EdgeFigures) int64 { return f.Requests })
	c.counter(prefix+"hits_total", "Requests answered without the origin.",
		func(f sut.EdgeFigures) int64 { return f.Hits })
	c.counter(prefix+"fetches_total", "Requests to the origin.", func(f sut.EdgeFigures) int64 { return f.Fetched })
	c.counter(prefix+"fetched_bytes_total", "Bytes of the bodies that the origin sent.",
		func(f sut.EdgeFigures) int64 { return f.FetchedBytes })
	c.counter(prefix+"stored_total", "Responses that were stored.", func(f sut.EdgeFigures) int64 { return f.Stored })
	c.counter(prefix+"evictions_total", "Entries removed because memory was full.",
		func(f sut.EdgeFigures) int64 { return f.Evicted })
	c.counter(prefix+"purged_total", "Entries removed by purges and by requests that change the content.",
		func(f sut.EdgeFigures) int64 { return f.Purged })
	c.gauge(prefix+"entries", "Entries in memory.", func(f sut.EdgeFigures) int64 { return f.Entries })
	c.gauge(prefix+"bytes", "Memory of the entries in bytes, overhead included.",
		func(f sut.EdgeFigures) int64 { return f.Bytes })
	c.gauge(prefix+"limit_bytes", "Memory budget in bytes.", func(f sut.EdgeFigures) int64 { return f.MaxBytes })
	return c
}
