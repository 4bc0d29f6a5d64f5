package cell

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/metrics"
)

// Declared figures that have a field of their own in results.Step.
const (
	cacheHits      = "cache_hits"
	cacheMisses    = "cache_misses"
	databaseReads  = "database_reads"
	databaseWrites = "database_writes"
)

// Metrics that are read besides those of the declared figures.
const (
	startedMetric   = "process_start_time_seconds"     // of every node
	requestsMetric  = "stagebench_http_requests_total" // of a web node or a balancer: those that have ended
	cacheNodePrefix = "stagebench_cache_node_"         // of a cache node
)

// scrapeTimeout bounds a scrape: a node that has stopped answering must not hold the run.
const scrapeTimeout = 5 * time.Second

var (
	errGone     = errors.New("it is gone")
	errNoServer = errors.New("its server does not answer")
)

// reading is what a node has counted since it was started, and what it holds.
type reading struct {
	node   targets.NodeStatus
	series metrics.Series
	err    error // why the node did not answer; the series are nil then
}

// readNodes reads the metrics of those nodes that are wanted, all at a time.
func readNodes(ctx context.Context, nodes []targets.NodeStatus, wanted func(targets.NodeStatus) bool) []reading {
	nodes = slices.DeleteFunc(slices.Clone(nodes), func(n targets.NodeStatus) bool { return !wanted(n) })
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	readings := make([]reading, len(nodes))
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() {
			r := reading{node: n}
			r.series, r.err = metrics.Read(ctx, http.DefaultClient, n.Admin)
			// A cache node whose server is down answers without the server's metrics.
			if r.err == nil && n.Role == sut.Cache && !r.series.Has(cacheNodePrefix+"hits_total") {
				r.series, r.err = nil, errNoServer
			}
			readings[i] = r
		})
	}
	all.Wait()
	return readings
}

// delta is two readings of a node, at the beginning and at the end of a step.
type delta struct {
	before, after reading // before is empty for a node that is new
	// complete says that the growth in between is known: the node answered both times, or is new, and was not
	// restarted.
	complete bool
}

// deltas pairs the readings of each node, in the order of after, with the nodes that are gone at the end.
func deltas(before, after []reading) (all []delta) {
	find := func(in []reading, node string) int {
		return slices.IndexFunc(in, func(r reading) bool { return r.node.Node == node })
	}
	for _, a := range after {
		d := delta{after: a, complete: a.err == nil}
		if i := find(before, a.node.Node); i >= 0 {
			d.before = before[i]
			d.complete = d.complete && d.before.err == nil && d.before.series[startedMetric] == a.series[startedMetric]
		}
		all = append(all, d)
	}
	for _, b := range before {
		if find(after, b.node.Node) < 0 {
			all = append(all, delta{before: b, after: reading{node: b.node, err: errGone}})
		}
	}
	return all
}

// growth is what a metric grew by. Where that is not known, it is the count since the node was started.
func (d delta) growth(metric string) int64 {
	if !d.complete {
		return d.after.series.Sum(metric)
	}
	return d.after.series.Sum(metric) - d.before.series.Sum(metric)
}

// reports reports whether the node is one that the figure comes from. A node that has never answered counts as
// one, and a node that answered without the metric does not, such as a cache node that uses no database.
func (d delta) reports(f ladder.Figure) bool {
	return slices.Contains(f.From, d.after.node.Role) &&
		(d.before.series == nil && d.after.series == nil || d.before.series.Has(f.Metric) || d.after.series.Has(f.Metric))
}

// figuresOf returns the figures that some node reports.
func figuresOf(declared []ladder.Figure, nodes []delta) (figures []results.Figure) {
	for _, f := range declared {
		figure := results.Figure{Name: f.Name, Title: f.Title, Doc: f.Doc, Kind: fmt.Sprint(f.Kind)}
		reported, sum := false, int64(0)
		for _, d := range nodes {
			if !d.reports(f) {
				continue
			}
			reported = true
			switch name := d.after.node.Node; {
			case d.after.err != nil:
				figure.Unknown = append(figure.Unknown, name)
			case f.Kind == ladder.Gauge:
				sum += d.after.series.Sum(f.Metric)
			default:
				sum += d.growth(f.Metric)
				if !d.complete {
					figure.SinceStart = append(figure.SinceStart, name)
				}
			}
		}
		if len(figure.Unknown) == 0 {
			figure.Value = &sum
		}
		if reported {
			figures = append(figures, figure)
		}
	}
	return figures
}

// fillFigures adds what the nodes counted during a step.
func fillFigures(step *results.Step, declared []ladder.Figure, nodes []delta) {
	step.Figures = figuresOf(declared, nodes)
	exact := func(name string) *int64 {
		if f := step.Figure(name); f != nil && len(f.SinceStart) == 0 {
			return f.Value
		}
		return nil
	}
	if hits, misses := exact(cacheHits), exact(cacheMisses); hits != nil && misses != nil {
		step.Cache = &results.CacheReads{Hits: *hits, Misses: *misses}
	}
	if reads, writes := exact(databaseReads), exact(databaseWrites); reads != nil && writes != nil {
		step.Database = &results.DatabaseCalls{Reads: *reads, Writes: *writes}
	}
	var unknown string
	if step.ServerCount, unknown = served(nodes); unknown != "" {
		step.Warnf("%s began to count anew during the step or did not answer, "+
			"so that the server's own count cannot be compared", unknown)
	}
	step.CacheNodes = cacheNodes(nodes)
	for _, n := range step.CacheNodes {
		if n.WriteBack != nil && n.WriteBack.Refused > 0 {
			step.Warnf("%s: the database refused %d acknowledged writes when they were written back: they are lost",
				n.Node, n.WriteBack.Refused)
		}
	}
}

// served is how many requests of clients have ended, by the target's own count; nil when no node counts them, or
// when the count of a node is unknown.
func served(nodes []delta) (requests *int64, unknown string) {
	for _, d := range nodes {
		switch {
		case !d.after.node.Counts:
			continue
		case !d.complete:
			return nil, d.after.node.Node
		case requests == nil:
			requests = new(int64)
		}
		*requests += d.growth(requestsMetric)
	}
	return requests, ""
}

// cacheNodes is what each cache node that answered has counted, and what it holds, in the order of their names.
func cacheNodes(nodes []delta) (all []results.CacheNode) {
	for _, d := range nodes {
		if d.after.node.Role != sut.Cache || d.after.err != nil {
			continue
		}
		count := func(name string) int64 { return d.growth(cacheNodePrefix + name) }
		holds := func(name string) int64 { return d.after.series.Sum(cacheNodePrefix + name) }
		n := results.CacheNode{
			Node: d.after.node.Node, SinceStart: !d.complete || d.before.series == nil,
			Hits: count("hits_total"), Misses: count("misses_total"),
			Evictions: count("evictions_total"), Expired: count("expired_total"),
			Entries: holds("entries"), Bytes: holds("bytes"), LimitBytes: holds("limit_bytes"),
		}
		if d.after.series.Has(cacheNodePrefix + "unflushed") {
			n.WriteBack = &results.WriteBack{
				Unflushed: holds("unflushed"), Flushed: count("flushed_total"), Refused: count("refused_total"),
			}
		}
		all = append(all, n)
	}
	slices.SortFunc(all, func(a, b results.CacheNode) int { return cmp.Compare(a.Node, b.Node) })
	return all
}

// CacheHosts returns what the cache nodes among some have counted since they were started, and what they hold.
// Nodes that do not answer are missing, and the error says why.
func CacheHosts(ctx context.Context, nodes []targets.NodeStatus) ([]results.CacheNode, error) {
	readings := readNodes(ctx, nodes, func(n targets.NodeStatus) bool { return n.Role == sut.Cache })
	var errs []error
	for _, r := range readings {
		if r.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.node.Node, r.err))
		}
	}
	return cacheNodes(deltas(nil, readings)), errors.Join(errs...)
}

// WatchCache returns what the web nodes among some find in the cache tier during that time; nil when there is none, or
// when the count of a node is unknown.
func WatchCache(ctx context.Context, nodes []targets.NodeStatus, d time.Duration) (*results.CacheReads, error) {
	webs := func(n targets.NodeStatus) bool { return n.Role == sut.Web }
	before := readNodes(ctx, nodes, webs)
	end := time.NewTimer(d)
	defer end.Stop()
	select {
	case <-end.C:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	var step results.Step
	fillFigures(&step, ladder.Figures(), deltas(before, readNodes(ctx, nodes, webs)))
	return step.Cache, nil
}
