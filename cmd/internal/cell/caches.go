package cell

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
)

// cacheReads is what the web nodes have found in the cache tier; nil when there is no
// such tier, or not all of it is known.
func cacheReads(all []span) *results.CacheReads {
	if !slices.ContainsFunc(all, func(s span) bool { return s.after.node.Role == sut.Cache }) {
		return nil
	}
	var reads results.CacheReads
	for _, s := range all {
		if s.after.node.Role != sut.Web {
			continue
		}
		if !s.whole {
			return nil
		}
		reads.Hits += s.since(cacheReadsMetric + `{result="hit"}`)
		reads.Misses += s.since(cacheReadsMetric + `{result="miss"}`)
	}
	return &reads
}

// WatchCache is what the web nodes among some find in the cache tier in that time; nil when
// there is no such tier, or not all of it is known.
func WatchCache(ctx context.Context, nodes []targets.NodeStatus, d time.Duration) (*results.CacheReads, error) {
	before := readCounts(ctx, nodes)
	end := time.NewTimer(d)
	defer end.Stop()
	select {
	case <-end.C:
		return cacheReads(spans(before, readCounts(ctx, nodes))), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// databaseCalls is what the nodes that use the databases have asked of them; nil when
// not all of it is known.
func databaseCalls(all []span) *results.DatabaseCalls {
	var sum *results.DatabaseCalls
	for _, s := range all {
		answered := s.before.series != nil || s.after.series != nil
		if answered && !s.before.series.Has(storeMetric) && !s.after.series.Has(storeMetric) {
			continue // such as a cache host that neither loads nor writes
		}
		if !s.whole {
			return nil
		}
		if sum == nil {
			sum = &results.DatabaseCalls{}
		}
		sum.Reads += s.since(storeMetric + `{kind="read"}`)
		sum.Writes += s.since(storeMetric + `{kind="write"}`)
	}
	return sum
}

// cacheNodes is what the cache nodes have counted, and what they hold. Those that did not
// answer are missing.
func cacheNodes(all []span) (nodes []results.CacheNode) {
	for _, s := range all {
		if s.after.node.Role != sut.Cache || s.after.err != nil {
			continue
		}
		node := cacheNode(s.after)
		node.SinceStart = !s.whole || s.before.series == nil
		if !node.SinceStart {
			b := cacheNode(s.before)
			node.Hits -= b.Hits
			node.Misses -= b.Misses
			node.Evictions -= b.Evictions
			node.Expired -= b.Expired
			if node.WriteBack != nil && b.WriteBack != nil {
				node.WriteBack.Flushed -= b.WriteBack.Flushed
				node.WriteBack.Refused -= b.WriteBack.Refused
			}
		}
		nodes = append(nodes, node)
	}
	slices.SortFunc(nodes, func(a, b results.CacheNode) int { return cmp.Compare(a.Node, b.Node) })
	return nodes
}

// cacheNode is what a cache node has counted since it was started, and what it holds.
func cacheNode(c count) results.CacheNode {
	of := func(name string) int64 { return c.series.Sum(cacheNodePrefix + name) }
	node := results.CacheNode{
		Node: c.node.Node, Hits: of("hits_total"), Misses: of("misses_total"), Evictions: of("evictions_total"), Expired: of("expired_total"),
		Entries: of("entries"), Bytes: of("bytes"), LimitBytes: of("limit_bytes"),
	}
	if c.series.Has(cacheNodePrefix + "unflushed") {
		node.WriteBack = &results.WriteBack{Unflushed: of("unflushed"), Flushed: of("flushed_total"), Refused: of("refused_total")}
	}
	return node
}

// CacheHosts asks the cache nodes among some for what they have counted since they were
// started, and what they hold. Those that do not answer are missing, and the error says
// why.
func CacheHosts(ctx context.Context, nodes []targets.NodeStatus) ([]results.CacheNode, error) {
	nodes = slices.DeleteFunc(slices.Clone(nodes), func(n targets.NodeStatus) bool { return n.Role != sut.Cache })
	var hosts []results.CacheNode
	var errs []error
	for _, c := range readCounts(ctx, nodes) {
		if c.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.node.Node, c.err))
			continue
		}
		hosts = append(hosts, cacheNode(c))
	}
	return hosts, errors.Join(errs...)
}
