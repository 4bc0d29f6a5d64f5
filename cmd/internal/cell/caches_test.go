package cell

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
)

// figuresOfACacheNode is what /metrics of one without a front says.
const figuresOfACacheNode = `# HELP stagebench_cache_node_hits_total Keys that were asked for and there.
# TYPE stagebench_cache_node_hits_total counter
stagebench_cache_node_hits_total 1.2e+06
stagebench_cache_node_misses_total 34
stagebench_cache_node_evictions_total 5
stagebench_cache_node_expired_total 6
stagebench_cache_node_entries 7
stagebench_cache_node_bytes 8e+06
stagebench_cache_node_limit_bytes 1.6777216e+07
stagebench_cache_node_scrape_errors_total 9
process_start_time_seconds 1.7e+09
hits_total 99
`

// nodeThatSays is a node with a page of metrics.
func nodeThatSays(t *testing.T, name string, role sut.Role, page func() string) targets.NodeStatus {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := page()
		if r.URL.Path != "/metrics" || text == "" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(text))
	}))
	t.Cleanup(server.Close)
	return targets.NodeStatus{Node: name, Role: role, Admin: server.Listener.Addr().String()}
}

func TestWhatACacheNodeSays(t *testing.T) {
	plain := results.CacheNode{Node: "cache-1", Hits: 1_200_000, Misses: 34, Evictions: 5, Expired: 6, Entries: 7, Bytes: 8_000_000, LimitBytes: 16 << 20, SinceStart: true}
	back := plain
	back.WriteBack = &results.WriteBack{Unflushed: 3, Flushed: 40, Refused: 5}
	front := `stagebench_cache_node_unflushed{shard="1"} 1
stagebench_cache_node_unflushed{shard="2"} 2
stagebench_cache_node_flushed_total 40
stagebench_cache_node_refused_total 5
`
	for _, test := range []struct {
		page string
		want results.CacheNode
	}{{figuresOfACacheNode, plain}, {figuresOfACacheNode + front, back}} {
		web := nodeThatSays(t, "web-1", sut.Web, func() string { t.Error("a web host was asked"); return "" })
		hosts, err := CacheHosts(t.Context(), []targets.NodeStatus{web, nodeThatSays(t, "cache-1", sut.Cache, func() string { return test.page })})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]results.CacheNode{test.want}, hosts); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	for want, page := range map[string]string{
		"its server does not answer": "stagebench_cache_node_scrape_errors_total 9\nstagebench_cache_node_unflushed 3\n",
		"metric":                     "stagebench_cache_node_hits_total many\n",
		"GET http://":                "",
	} {
		hosts, err := CacheHosts(t.Context(), []targets.NodeStatus{nodeThatSays(t, "cache-1", sut.Cache, func() string { return page })})
		if err == nil || !strings.HasPrefix(err.Error(), "cache-1: "+want) || len(hosts) > 0 {
			t.Errorf("%q: %+v, %v", page, hosts, err)
		}
	}
}

// cacheNodeThat has counted so much since it was started.
func cacheNodeThat(name string, started, counted float64, back bool) reading {
	c := reading{node: targets.NodeStatus{Node: name, Role: sut.Cache}, series: map[string]float64{
		startedMetric: started, cacheNodePrefix + "hits_total": counted, cacheNodePrefix + "misses_total": 2 * counted,
		cacheNodePrefix + "evictions_total": 3 * counted, cacheNodePrefix + "expired_total": 4 * counted,
		cacheNodePrefix + "entries": 10, cacheNodePrefix + "bytes": counted, cacheNodePrefix + "limit_bytes": 30,
	}}
	if back {
		c.series[cacheNodePrefix+"unflushed"] = counted
		c.series[cacheNodePrefix+"flushed_total"] = 5 * counted
		c.series[cacheNodePrefix+"refused_total"] = 6 * counted
	}
	return c
}

// unheard is a node that did not answer.
func unheard(name string, role sut.Role) reading {
	return reading{node: targets.NodeStatus{Node: name, Role: role}, err: errors.New("no answer")}
}

func TestWhatCacheNodesCountedBetweenTwoReadings(t *testing.T) {
	before := []reading{
		cacheNodeThat("cache-1", 100, 7, true), cacheNodeThat("cache-2", 100, 7, false), cacheNodeThat("cache-4", 100, 7, false),
		cacheNodeThat("cache-5", 100, 7, false), unheard("cache-6", sut.Cache),
	}
	after := []reading{
		cacheNodeThat("cache-3", 190, 1, false), cacheNodeThat("cache-1", 100, 9, true), cacheNodeThat("cache-2", 200, 9, false), unheard("cache-4", sut.Cache),
		cacheNodeThat("cache-6", 100, 2, false),
	}
	want := []results.CacheNode{
		{
			Node: "cache-1", Hits: 2, Misses: 4, Evictions: 6, Expired: 8, Entries: 10, Bytes: 9, LimitBytes: 30,
			WriteBack: &results.WriteBack{Unflushed: 9, Flushed: 10, Refused: 12},
		},
		{Node: "cache-2", Hits: 9, Misses: 18, Evictions: 27, Expired: 36, Entries: 10, Bytes: 9, LimitBytes: 30, SinceStart: true}, // it was restarted
		{Node: "cache-3", Hits: 1, Misses: 2, Evictions: 3, Expired: 4, Entries: 10, Bytes: 1, LimitBytes: 30, SinceStart: true},    // it is new
		{Node: "cache-6", Hits: 2, Misses: 4, Evictions: 6, Expired: 8, Entries: 10, Bytes: 2, LimitBytes: 30, SinceStart: true},    // it had not answered
	} // cache-4 does not answer, and cache-5 is gone
	for range 2 { // readings are not changed by being compared
		if diff := cmp.Diff(want, cacheNodes(deltas(before, after))); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
}

// A step asks the nodes before and after, each once; one that does not answer is
// missing from it, and said to be.
func TestAStepAsksTheNodes(t *testing.T) {
	var asked atomic.Int64
	page := func() string {
		return fmt.Sprintf("stagebench_cache_node_hits_total %d\nprocess_start_time_seconds 100\n", 10*asked.Add(1))
	}
	nodes := []targets.NodeStatus{nodeThatSays(t, "cache-1", sut.Cache, page), nodeThatSays(t, "cache-2", sut.Cache, func() string { return "" })}
	_, steps := offer(t, &lagging{lag: -1}, likes{}, func(s *Stepper) {
		s.Nodes = func(context.Context) ([]targets.NodeStatus, error) { return nodes, nil }
		s.Figures = Figures()
	})
	for i, step := range steps {
		if diff := cmp.Diff([]results.CacheNode{{Node: "cache-1", Hits: 10}}, step.CacheNodes); diff != "" {
			t.Errorf("step %d (-want +got)\n%s", i, diff)
		}
		if text := strings.Join(step.Warnings, "; "); strings.Count(text, "what cache-2 counted is not known") != 2 {
			t.Errorf("step %d: warnings %q", i, step.Warnings)
		}
	}
	if n := asked.Load(); n != 4 {
		t.Errorf("a node was asked %d times in two steps, want twice in each", n)
	}
}
