package cell

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/metrics"
)

// Metrics of nodes that are read here.
const (
	startedMetric    = "process_start_time_seconds"        // of every node
	requestsMetric   = "stagebench_http_requests_total"    // of a web node or a balancer: those that have ended
	cacheReadsMetric = "stagebench_cache_reads_total"      // of a web node, by result
	storeMetric      = "stagebench_store_operations_total" // of a web or a cache node, by kind
	cacheNodePrefix  = "stagebench_cache_node_"            // of a cache node
)

// scrapeTimeout bounds the question: a node that has stopped answering must not hold
// the run.
const scrapeTimeout = 5 * time.Second

// count is what a node has counted since it was started.
type count struct {
	node   targets.NodeStatus
	series metrics.Series
	err    error // why it did not say; the series are nil then
}

// readCounts asks the nodes that count what is measured here, each once and all at a
// time.
func readCounts(ctx context.Context, nodes []targets.NodeStatus) []count {
	ctx, cancel := context.WithTimeout(ctx, scrapeTimeout)
	defer cancel()
	var counts []count
	for _, n := range nodes {
		if n.Counts || n.Role == sut.Web || n.Role == sut.Cache {
			counts = append(counts, count{node: n})
		}
	}
	var all sync.WaitGroup
	for i := range counts {
		all.Go(func() { counts[i].read(ctx) })
	}
	all.Wait()
	return counts
}

// read asks the node. One before a server of its own that does not answer has nothing to
// say of it.
func (c *count) read(ctx context.Context) {
	c.series, c.err = metrics.Read(ctx, http.DefaultClient, c.node.Admin)
	if c.err == nil && c.node.Role == sut.Cache && !c.series.Has(cacheNodePrefix+"hits_total") {
		c.series, c.err = nil, errNoServer
	}
}

// problems says which nodes did not say what they had counted.
func problems(counts []count) (texts []string) {
	for _, c := range counts {
		if c.err != nil {
			texts = append(texts, fmt.Sprintf("what %s counted is not known: %v", c.node.Node, c.err))
		}
	}
	return texts
}

// span is what a node counted between two looks.
type span struct {
	before, after count
	// whole says that all of it is known: the node has answered at both looks, or is new
	// at the second, and was not started anew in between.
	whole bool
}

var (
	errGone     = errors.New("it is gone")
	errNoServer = errors.New("its server does not answer")
)

// spans are what nodes counted between two looks, in the order of the second, with
// those that are gone at the end.
func spans(before, after []count) (all []span) {
	find := func(in []count, node string) int {
		return slices.IndexFunc(in, func(c count) bool { return c.node.Node == node })
	}
	for _, a := range after {
		s := span{after: a, whole: a.err == nil} // one that is new has counted from 0 on
		if i := find(before, a.node.Node); i >= 0 {
			s.before = before[i]
			s.whole = s.whole && s.before.err == nil && s.before.series[startedMetric] == a.series[startedMetric]
		}
		all = append(all, s)
	}
	for _, b := range before {
		if find(after, b.node.Node) < 0 {
			all = append(all, span{before: b, after: count{node: b.node, err: errGone}})
		}
	}
	return all
}

// since is what a metric grew by, in a span that is whole.
func (s span) since(metric string) int64 {
	return s.after.series.Sum(metric) - s.before.series.Sum(metric)
}

// served is how many requests of clients have ended, by the target's own count; nil when
// nobody counts them, or not all is known, and then it says why.
func served(all []span) (requests *int64, why string) {
	for _, s := range all {
		if !s.after.node.Counts {
			continue
		}
		if !s.whole {
			return nil, fmt.Sprintf("%s began to count anew during the step or did not answer, so that the server's own count cannot be compared", s.after.node.Node)
		}
		if requests == nil {
			requests = new(int64)
		}
		*requests += s.since(requestsMetric)
	}
	return requests, ""
}
