package cell

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets/local"
)

// Metrics of a system with a cache tier that are read here.
const (
	cacheReadsMetric = "stagebench_cache_reads_total"      // of a web node, by result
	storeMetric      = "stagebench_store_operations_total" // of a web or a cache node, by kind
	cacheNodePrefix  = "stagebench_cache_node_"            // of a cache node
	startedMetric    = "process_start_time_seconds"        // of every node
)

// CacheReads asks the web nodes of a system what they have found in the cache tier;
// nil when it has none.
func CacheReads(ctx context.Context, system *local.System) (*results.CacheReads, error) {
	if len(nodesOf(system, sut.Cache)) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, servedTimeout)
	defer cancel()
	var reads results.CacheReads
	for _, name := range nodesOf(system, sut.Web) {
		found, err := metricsOf(ctx, system.AdminURL(name), cacheReadsMetric+`{result="hit"}`, cacheReadsMetric+`{result="miss"}`)
		if err != nil {
			return nil, err
		}
		reads.Hits, reads.Misses = reads.Hits+found[0], reads.Misses+found[1]
	}
	return &reads, nil
}

// Calls is what one node has asked of the databases since it was started.
type Calls struct {
	node    string
	started float64 // seconds since the Unix epoch: tells one life of the node from the next
	results.DatabaseCalls
}

// DatabaseCalls asks all nodes of a system that use its databases what they have asked
// of them.
func DatabaseCalls(ctx context.Context, system *local.System) (all []Calls, err error) {
	ctx, cancel := context.WithTimeout(ctx, servedTimeout)
	defer cancel()
	for _, name := range slices.Concat(nodesOf(system, sut.Web), nodesOf(system, sut.Cache)) {
		calls, uses := Calls{node: name}, false
		err := scrape(ctx, system.AdminURL(name), func(series string, value float64) {
			switch series {
			case startedMetric:
				calls.started = value
			case storeMetric + `{kind="read"}`:
				calls.Reads, uses = int64(value), true
			case storeMetric + `{kind="write"}`:
				calls.Writes = int64(value)
			}
		})
		if err != nil {
			return nil, err
		}
		if uses { // a cache host that neither loads nor writes does not
			all = append(all, calls)
		}
	}
	return all, nil
}

// callsBetween is what was asked between two looks; nil when one of the nodes was
// restarted, came or went.
func callsBetween(before, after []Calls) *results.DatabaseCalls {
	same := slices.EqualFunc(before, after, func(b, a Calls) bool { return b.node == a.node && b.started == a.started })
	if !same || len(after) == 0 {
		return nil
	}
	var sum results.DatabaseCalls
	for i, a := range after {
		sum.Reads += a.Reads - before[i].Reads
		sum.Writes += a.Writes - before[i].Writes
	}
	return &sum
}

// CacheHosts asks the cache nodes of a system what they have counted since they were
// started, and what they hold. Those that do not answer are missing, and the error
// says why.
func CacheHosts(ctx context.Context, system *local.System) ([]CacheHost, error) {
	ctx, cancel := context.WithTimeout(ctx, servedTimeout)
	defer cancel()
	var hosts []CacheHost
	var errs []error
	for _, name := range nodesOf(system, sut.Cache) {
		host, err := cacheHost(ctx, name, system.AdminURL(name))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		hosts = append(hosts, host)
	}
	return hosts, errors.Join(errs...)
}

// nodesOf lists the names of the nodes of a role.
func nodesOf(system *local.System, role sut.Role) (names []string) {
	for _, n := range system.Topology().Nodes {
		if n.Role == role {
			names = append(names, n.Name)
		}
	}
	return names
}

// CacheHost is what a cache node has counted since it was started, and what it holds.
type CacheHost struct {
	results.CacheNode
	started float64 // seconds since the Unix epoch: tells one life of the node from the next
}

// since is what a cache node counted from an earlier answer of its own on.
func (h CacheHost) since(before []CacheHost) results.CacheNode {
	node := h.CacheNode
	i := slices.IndexFunc(before, func(b CacheHost) bool { return b.Node == h.Node && b.started == h.started })
	if i < 0 {
		node.SinceStart = true
		return node
	}
	b := before[i]
	node.Hits -= b.Hits
	node.Misses -= b.Misses
	node.Evictions -= b.Evictions
	node.Expired -= b.Expired
	if node.WriteBack != nil && b.WriteBack != nil {
		node.WriteBack = &results.WriteBack{
			Unflushed: node.WriteBack.Unflushed,
			Flushed:   node.WriteBack.Flushed - b.WriteBack.Flushed, Refused: node.WriteBack.Refused - b.WriteBack.Refused,
		}
	}
	return node
}

// cacheNodesBetween is what the cache nodes counted between two looks.
func cacheNodesBetween(before, after []CacheHost) []results.CacheNode {
	var nodes []results.CacheNode
	for _, host := range after {
		nodes = append(nodes, host.since(before))
	}
	slices.SortFunc(nodes, func(a, b results.CacheNode) int { return cmp.Compare(a.Node, b.Node) })
	return nodes
}

// cacheHost asks one cache node.
func cacheHost(ctx context.Context, name, adminURL string) (CacheHost, error) {
	host := CacheHost{CacheNode: results.CacheNode{Node: name}}
	var back results.WriteBack
	figures := map[string]*int64{
		"hits_total": &host.Hits, "misses_total": &host.Misses, "evictions_total": &host.Evictions, "expired_total": &host.Expired,
		"entries": &host.Entries, "bytes": &host.Bytes, "limit_bytes": &host.LimitBytes,
		"unflushed": &back.Unflushed, "flushed_total": &back.Flushed, "refused_total": &back.Refused,
	}
	answered := false
	err := scrape(ctx, adminURL, func(series string, value float64) {
		metric, _, _ := strings.Cut(series, "{")
		name, _ := strings.CutPrefix(metric, cacheNodePrefix)
		switch figure := figures[name]; {
		case metric == startedMetric:
			host.started = value
		case name == metric || figure == nil:
		default:
			*figure += int64(value)
			answered = answered || figure == &host.Hits
			if figure == &back.Unflushed {
				host.WriteBack = &back
			}
		}
	})
	if err == nil && !answered {
		err = errors.New("its server does not answer")
	}
	if err != nil {
		return CacheHost{}, fmt.Errorf("%s: %w", name, err)
	}
	return host, nil
}
