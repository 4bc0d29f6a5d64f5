package cell

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/metrics"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/pace"
	"github.com/stagebench/stagebench/workloads/preset"
)

// Declared figures that have a field of their own in results.Step.
const (
	cacheHits      = "cache_hits"
	cacheMisses    = "cache_misses"
	databaseReads  = "database_reads"
	databaseWrites = "database_writes"
	originRequests = "origin_static_requests"
	originBytes    = "origin_static_bytes"
	jobsDone       = "jobs_done"
)

// Metrics that are read in addition to those of the declared figures.
const (
	startedMetric   = "process_start_time_seconds"     // of every node
	requestsMetric  = "stagebench_http_requests_total" // of a web node or a balancer: completed requests
	cacheNodePrefix = "stagebench_cache_node_"         // of a cache node
)

// scrapeTimeout is the maximum duration of a scrape, so that a frozen node cannot block the run.
const scrapeTimeout = 5 * time.Second

var (
	errGone     = errors.New("the node was removed")
	errNoServer = errors.New("its server does not answer")
)

// scrape holds the metrics of a node at one time.
type scrape struct {
	node   targets.NodeStatus
	series metrics.Series
	err    error // why there are no metrics; series is nil then
}

// scrapeNodes scrapes the wanted nodes concurrently.
func scrapeNodes(ctx context.Context, nodes []targets.NodeStatus, wanted func(targets.NodeStatus) bool) []scrape {
	nodes = slices.DeleteFunc(slices.Clone(nodes), func(n targets.NodeStatus) bool { return !wanted(n) })
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	scrapes := make([]scrape, len(nodes))
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() {
			s := scrape{node: n}
			s.series, s.err = metrics.Read(ctx, http.DefaultClient, n.Admin, n.Secret)
			// A cache node whose server is down answers without the server's metrics.
			if s.err == nil && n.Role == sut.Cache && !s.series.Has(cacheNodePrefix+"hits_total") {
				s.series, s.err = nil, errNoServer
			}
			scrapes[i] = s
		})
	}
	all.Wait()
	return scrapes
}

// delta is a pair of scrapes of a node, at the begin and at the end of a step.
type delta struct {
	before, after scrape // before is empty for a node that was added during the step
	// complete reports that the increase of the counters is known: both scrapes succeeded and the node was not
	// restarted in between, or the node was added and answered.
	complete bool
}

// deltas pairs the scrapes of each node, in the order of after. Nodes that were removed during the step are last.
func deltas(before, after []scrape) (all []delta) {
	find := func(in []scrape, node string) int {
		return slices.IndexFunc(in, func(s scrape) bool { return s.node.Node == node })
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
			all = append(all, delta{before: b, after: scrape{node: b.node, err: errGone}})
		}
	}
	return all
}

// increase returns the increase of a counter. If the delta is not complete, it returns the count since the start of
// the node.
func (d delta) increase(metric string) int64 {
	if !d.complete {
		return d.after.series.Sum(metric)
	}
	return d.after.series.Sum(metric) - d.before.series.Sum(metric)
}

// exports reports whether the node exports the metric of a figure. A node that never answered counts if its role
// does. A node that answered without the metric does not count, such as a cache node that uses no database.
func (d delta) exports(f ladder.Figure) bool {
	return slices.Contains(f.From, d.after.node.Role) &&
		(d.before.series == nil && d.after.series == nil || d.before.series.Has(f.Metric) || d.after.series.Has(f.Metric))
}

// figuresOf returns the declared figures that at least one node exports.
func figuresOf(declared []ladder.Figure, nodes []delta) (figures []results.Figure) {
	for _, f := range declared {
		figure := results.Figure{Name: f.Name, Title: f.Title, Doc: f.Doc, Kind: fmt.Sprint(f.Kind)}
		exported, sum, per, labels := false, int64(0), int64(0), map[string]int64{}
		for _, d := range nodes {
			if !d.exports(f) {
				continue
			}
			exported = true
			switch name := d.after.node.Node; {
			case d.after.err != nil, f.Kind == ladder.Gauge && !d.after.series.Has(f.Metric):
				figure.Unknown = append(figure.Unknown, name) // it may not have got an answer from its own server
			case f.Kind == ladder.Gauge:
				sum += d.after.series.Sum(f.Metric)
			default:
				sum, per = sum+d.increase(f.Metric), per+d.increase(f.Per)
				for series := range d.after.series.Labels(f.Metric) {
					labels[series] += d.increase(series)
				}
				if !d.complete {
					figure.SinceStart = append(figure.SinceStart, name)
				}
			}
		}
		switch f.Kind {
		case ladder.Busiest:
			sum = busiest(labels)
		case ladder.Mean:
			sum = int64(math.Round(float64(sum) / float64(max(per, 1))))
		}
		if len(figure.Unknown) == 0 {
			figure.Value = &sum
		}
		if exported {
			figures = append(figures, figure)
		}
	}
	return figures
}

// busiest returns the highest value in percent of the mean; 0 if all are 0.
func busiest(values map[string]int64) int64 {
	highest, sum := int64(0), int64(0)
	for _, v := range values {
		highest, sum = max(highest, v), sum+v
	}
	if sum == 0 {
		return 0
	}
	return int64(math.Round(100 * float64(highest) * float64(len(values)) / float64(sum)))
}

// A step with at least this number of uploads has a note if workers processed less than this share of them. In a step
// of a few seconds, some are still in work at its end.
const (
	minUploads = 20
	keptUp     = 0.7
)

// fillFigures adds the figures of the nodes to a step.
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
	if requests, bytes := exact(originRequests), exact(originBytes); requests != nil && bytes != nil {
		step.Static = staticReads(step.Ops, *requests, *bytes)
	}
	if reads, writes := exact(databaseReads), exact(databaseWrites); reads != nil && writes != nil {
		step.Database = &results.DatabaseCalls{Reads: *reads, Writes: *writes}
	}
	if done := exact(jobsDone); done != nil {
		upload := step.Ops[string(preset.Upload)]
		if uploads := upload.Count - upload.Errors; uploads >= minUploads && float64(*done) < keptUp*float64(uploads) {
			step.Notef("workers processed fewer photos than were uploaded: the backlog grew, and such a rate cannot last")
		}
	}
	var unknown string
	if step.ServerCount, unknown = serverCount(nodes); unknown != "" {
		step.Notef("%s was restarted during the step or did not answer: "+
			"the server's own count of requests is unknown", unknown)
	}
	step.CacheNodes = cacheNodes(nodes)
	for _, n := range step.CacheNodes {
		if n.WriteBack != nil && n.WriteBack.Refused > 0 {
			step.Notef("%s: the database refused the write-back of %d acknowledged writes: they are lost",
				n.Node, n.WriteBack.Refused)
		}
	}
}

// staticReads returns what clients got of images and assets, and what web hosts sent; nil if no edge answered anything.
func staticReads(ops map[string]results.OpStats, originRequests, originBytes int64) *results.StaticReads {
	reads := results.StaticReads{OriginRequests: originRequests, OriginBytes: originBytes}
	edges := false
	for _, class := range []workloads.Class{preset.Image, preset.Asset} {
		op := ops[string(class)]
		reads.Requests += op.Count - op.Errors - op.SessionLost
		reads.Bytes += op.BytesIn
		edges = edges || op.Edge != nil
	}
	if !edges {
		return nil
	}
	return &reads
}

// serverCount returns how many requests of clients the target completed, by its own count; nil if no node counts
// them, or if the count of a node is unknown.
func serverCount(nodes []delta) (requests *int64, unknown string) {
	for _, d := range nodes {
		switch {
		case !d.after.node.CountsClientRequests:
			continue
		case !d.complete:
			return nil, d.after.node.Node
		case requests == nil:
			requests = new(int64)
		}
		*requests += d.increase(requestsMetric)
	}
	return requests, ""
}

// cacheNodes returns the counters and the content of each cache node that answered, sorted by name.
func cacheNodes(nodes []delta) (all []results.CacheNode) {
	for _, d := range nodes {
		if d.after.node.Role != sut.Cache || d.after.err != nil {
			continue
		}
		count := func(name string) int64 { return d.increase(cacheNodePrefix + name) }
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

// CacheNodes returns the counters of the given nodes' cache nodes since their start, and their content. The result
// omits nodes that do not answer, and the error names them.
func CacheNodes(ctx context.Context, nodes []targets.NodeStatus) ([]results.CacheNode, error) {
	scrapes := scrapeNodes(ctx, nodes, func(n targets.NodeStatus) bool { return n.Role == sut.Cache })
	var errs []error
	for _, s := range scrapes {
		if s.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.node.Node, s.err))
		}
	}
	return cacheNodes(deltas(nil, scrapes)), errors.Join(errs...)
}

// CountCacheReads returns the cache hits and misses of the given nodes' web nodes during d. The result is nil if there
// is no cache tier, or if the count of a web node is unknown.
func CountCacheReads(ctx context.Context, nodes []targets.NodeStatus, d time.Duration) (*results.CacheReads, error) {
	webs := func(n targets.NodeStatus) bool { return n.Role == sut.Web }
	before := scrapeNodes(ctx, nodes, webs)
	end := time.NewTimer(d)
	defer end.Stop()
	select {
	case <-end.C:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	var step results.Step
	fillFigures(&step, ladder.Figures(), deltas(before, scrapeNodes(ctx, nodes, webs)))
	return step.Cache, nil
}

// ceiling counts how many requests for images and assets an edge could answer at most: one edge with unlimited memory
// that fetches what it does not have, or has for longer than its lifetime. It sees the requests of all steps.
type ceiling struct {
	ttl     time.Duration // lifetime of everything; 0 = as the origin says
	fetched map[string]time.Time
}

// newCeiling returns the ceiling of a system with these knobs; nil if it does not have exactly one edge. Several edges
// would share the requests in an unknown way.
func newCeiling(k sut.Knobs) *ceiling {
	s := ladder.EdgeOf(k)
	if s.Hosts != 1 {
		return nil
	}
	return &ceiling{ttl: s.TTL, fetched: map[string]time.Time{}}
}

// step counts the requests of a step that began at start and lasted for d.
func (c *ceiling) step(v pace.Journeys, d time.Duration, start time.Time) (requests, reusable int64) {
	if c == nil {
		return 0, 0
	}
	for n, due := range v.Planned(d) {
		op := v.Workload.Op(n)
		if op.Write || !sut.Shared(op.Path) {
			continue
		}
		requests++
		at := start.Add(due)
		if last, found := c.fetched[op.Path]; found && at.Sub(last) < c.lifetime(op.Path) {
			reusable++
		} else {
			c.fetched[op.Path] = at
		}
	}
	return requests, reusable
}

func (c *ceiling) lifetime(path string) time.Duration {
	switch _, query, _ := strings.Cut(path, "?"); {
	case c.ttl > 0:
		return c.ttl
	case query != "":
		return sut.VersionedLifetime
	}
	return sut.UnversionedLifetime
}
