package cell

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/stagebench/stagebench/results"
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

func metricsPage(t *testing.T, page string) (adminURL string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(page)) }))
	t.Cleanup(server.Close)
	return server.URL
}

func TestWhatACacheNodeSays(t *testing.T) {
	plain := results.CacheNode{Node: "cache-1", Hits: 1_200_000, Misses: 34, Evictions: 5, Expired: 6, Entries: 7, Bytes: 8_000_000, LimitBytes: 16 << 20}
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
		host, err := cacheHost(t.Context(), "cache-1", metricsPage(t, test.page))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(CacheHost{test.want, 1.7e9}, host, cmp.AllowUnexported(CacheHost{})); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	for name, page := range map[string]string{
		"its server does not answer": "stagebench_cache_node_scrape_errors_total 9\nstagebench_cache_node_unflushed 3\n",
		"metric":                     "stagebench_cache_node_hits_total many\n",
	} {
		if _, err := cacheHost(t.Context(), "cache-1", metricsPage(t, page)); err == nil || !strings.HasPrefix(err.Error(), "cache-1: "+name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatCacheNodesCountedBetweenTwoLooks(t *testing.T) {
	host := func(name string, started float64, counted int64, back bool) CacheHost {
		h := CacheHost{results.CacheNode{
			Node: name, Hits: counted, Misses: 2 * counted, Evictions: 3 * counted, Expired: 4 * counted, Entries: 10, Bytes: counted, LimitBytes: 30,
		}, started}
		if back {
			h.WriteBack = &results.WriteBack{Unflushed: counted, Flushed: 5 * counted, Refused: 6 * counted}
		}
		return h
	}
	before := []CacheHost{host("cache-1", 100, 7, true), host("cache-2", 100, 7, false), host("cache-4", 100, 7, false)}
	after := []CacheHost{host("cache-3", 190, 1, false), host("cache-1", 100, 9, true), host("cache-2", 200, 9, false)}
	want := []results.CacheNode{
		{
			Node: "cache-1", Hits: 2, Misses: 4, Evictions: 6, Expired: 8, Entries: 10, Bytes: 9, LimitBytes: 30,
			WriteBack: &results.WriteBack{Unflushed: 9, Flushed: 10, Refused: 12},
		},
		{Node: "cache-2", Hits: 9, Misses: 18, Evictions: 27, Expired: 36, Entries: 10, Bytes: 9, LimitBytes: 30, SinceStart: true}, // it was restarted
		{Node: "cache-3", Hits: 1, Misses: 2, Evictions: 3, Expired: 4, Entries: 10, Bytes: 1, LimitBytes: 30, SinceStart: true},    // it is new
	} // cache-4 does not answer
	for range 2 { // looks are not changed by being compared
		if diff := cmp.Diff(want, cacheNodesBetween(before, after)); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
}

// A step asks the cache hosts before and after; one that does not answer is missing
// from it, and said to be.
func TestAStepAsksTheCacheHosts(t *testing.T) {
	asked := 0
	_, steps := offer(t, &lagging{lag: -1}, likes{}, func(s *Stepper) {
		s.CacheHosts = func(context.Context) ([]CacheHost, error) {
			asked++
			host := CacheHost{results.CacheNode{Node: "cache-1", Hits: int64(10 * asked)}, 100}
			return []CacheHost{host}, fmt.Errorf("cache-2: look %d", asked)
		}
	})
	for i, step := range steps {
		if diff := cmp.Diff([]results.CacheNode{{Node: "cache-1", Hits: 10}}, step.CacheNodes, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("step %d (-want +got)\n%s", i, diff)
		}
		if text := strings.Join(step.Warnings, "; "); !strings.Contains(text, fmt.Sprintf("cache-2: look %d", 2*i+1)) || !strings.Contains(text, fmt.Sprintf("look %d", 2*i+2)) {
			t.Errorf("step %d: warnings %q", i, step.Warnings)
		}
	}
}
