package cell

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
)

// Metrics of web nodes and cache proxies.
const (
	cacheHitsMetric   = `stagebench_cache_reads_total{result="hit"}`
	cacheMissesMetric = `stagebench_cache_reads_total{result="miss"}`
	cacheErrorsMetric = `stagebench_cache_reads_total{result="error"}`
	dbReadsMetric     = `stagebench_store_operations_total{kind="read"}`
	dbWritesMetric    = `stagebench_store_operations_total{kind="write"}`
)

// countingNode returns a scrape of a node that counts the requests of clients. The node was
// started at that time.
func countingNode(name string, role sut.Role, started float64, series map[string]float64) scrape {
	s := scrape{
		node:   targets.NodeStatus{Node: name, Role: role, CountsClientRequests: true},
		series: map[string]float64{startedMetric: started},
	}
	maps.Copy(s.series, series)
	return s
}

// silentNode returns the failed scrape of a node.
func silentNode(name string, role sut.Role) scrape {
	return scrape{node: targets.NodeStatus{Node: name, Role: role}, err: errors.New("no answer")}
}

func TestServerCount(t *testing.T) {
	web := func(started, ok float64) scrape {
		return countingNode("web-1", sut.Web, started, map[string]float64{
			requestsMetric + `{code="200",op="feed"}`: ok, requestsMetric + `{code="404",op="photo"}`: 1,
			"stagebench_uploads_total": 5,
		})
	}
	other := countingNode("web-2", sut.Web, 150, map[string]float64{requestsMetric + `{code="200",op="feed"}`: 24})
	otherSilent := silentNode("web-2", sut.Web)
	otherSilent.node.CountsClientRequests = true
	notCounting := web(100, 99)
	notCounting.node.CountsClientRequests = false
	for name, test := range map[string]struct {
		before, after []scrape
		want          int64  // -1 = unknown
		unknown       string // the node whose count is unknown
	}{
		"sum of all series":       {[]scrape{web(100, 10)}, []scrape{web(100, 40)}, 30, ""},
		"node added":              {[]scrape{web(100, 10)}, []scrape{web(100, 40), other}, 54, ""},
		"one node does not count": {[]scrape{notCounting, other}, []scrape{notCounting, other}, 0, ""},
		"no node counts":          {[]scrape{notCounting}, []scrape{notCounting}, -1, ""},
		"restarted":               {[]scrape{web(100, 10)}, []scrape{web(101, 40)}, -1, "web-1"},
		"removed":                 {[]scrape{web(100, 10), other}, []scrape{web(100, 40)}, -1, "web-2"},
		"silent at the end":       {[]scrape{web(100, 10), other}, []scrape{web(100, 40), otherSilent}, -1, "web-2"},
		"silent at the begin":     {[]scrape{web(100, 10), otherSilent}, []scrape{web(100, 40), other}, -1, "web-2"},
		"always silent":           {[]scrape{otherSilent}, []scrape{otherSilent}, -1, "web-2"},
	} {
		got, unknown := serverCount(deltas(test.before, test.after))
		if got == nil {
			got = new(int64(-1))
		}
		if *got != test.want || unknown != test.unknown {
			t.Errorf("%s: %d %q, want %d %q", name, *got, unknown, test.want, test.unknown)
		}
	}
}

// cacheUser returns a scrape of a node that reads from the cache tier and from the database.
func cacheUser(name string, role sut.Role, started, hits, misses, reads, writes float64) scrape {
	return countingNode(name, role, started, map[string]float64{
		cacheHitsMetric: hits, cacheMissesMetric: misses, cacheErrorsMetric: 7,
		dbReadsMetric: reads, dbWritesMetric: writes,
	})
}

func TestCacheReadsAndDatabaseCalls(t *testing.T) {
	cache := cacheNode("cache-1", 100, 1, false) // without a proxy, so it does not use the database
	cacheRestarted := cacheNode("cache-1", 120, 1, false)
	cacheSilent := silentNode("cache-1", sut.Cache)
	proxyBefore := cacheUser("cache-2", sut.Cache, 100, 0, 0, 4, 1)
	proxyAfter := cacheUser("cache-2", sut.Cache, 100, 0, 0, 5, 2)
	proxySilent := silentNode("cache-2", sut.Cache)
	web := func(started, n float64) scrape { return cacheUser("web-1", sut.Web, started, n, 2*n, 3*n, 4*n) }
	webSilent, otherSilent := silentNode("web-1", sut.Web), silentNode("web-2", sut.Web)
	uncached := func(n float64) scrape {
		return countingNode("web-1", sut.Web, 100, map[string]float64{dbReadsMetric: 3 * n, dbWritesMetric: 4 * n})
	}
	reads := &results.CacheReads{Hits: 10, Misses: 20}
	calls := &results.DatabaseCalls{Reads: 30, Writes: 40}
	for name, test := range map[string]struct {
		before, after []scrape
		reads         *results.CacheReads
		calls         *results.DatabaseCalls
	}{
		"no cache tier":    {[]scrape{uncached(1)}, []scrape{uncached(11)}, nil, calls},
		"look-aside cache": {[]scrape{web(100, 1), cache}, []scrape{web(100, 11), cache}, reads, calls},
		"look-aside cache node restarted": {
			[]scrape{web(100, 1), cache},
			[]scrape{web(100, 11), cacheRestarted},
			reads, calls,
		},
		"look-aside cache node silent": {
			[]scrape{web(100, 1), cache},
			[]scrape{web(100, 11), cacheSilent},
			reads, calls,
		},
		"cache proxy": {
			[]scrape{web(100, 1), proxyBefore},
			[]scrape{web(100, 11), proxyAfter},
			reads, &results.DatabaseCalls{Reads: 31, Writes: 41},
		},
		"cache proxy silent": {[]scrape{web(100, 1), proxyBefore}, []scrape{web(100, 11), proxySilent}, reads, nil},
		// The counts since the restart are lower bounds, so the step does not get them.
		"web node restarted": {[]scrape{web(100, 1), cache}, []scrape{web(120, 11), cache}, nil, nil},
		"web node silent":    {[]scrape{web(100, 1), cache}, []scrape{webSilent, cache}, nil, nil},
		"web node added": {
			[]scrape{cache},
			[]scrape{web(120, 1), cache},
			&results.CacheReads{Hits: 1, Misses: 2}, &results.DatabaseCalls{Reads: 3, Writes: 4},
		},
		"web node always silent": {
			[]scrape{web(100, 1), otherSilent, cache},
			[]scrape{web(100, 11), otherSilent, cache},
			nil, nil,
		},
		"no nodes": {nil, nil, nil, nil},
	} {
		var step results.Step
		fillFigures(&step, ladder.Figures(), deltas(test.before, test.after))
		if diff := cmp.Diff(test.reads, step.Cache); diff != "" {
			t.Errorf("%s: cache reads (-want +got)\n%s", name, diff)
		}
		if diff := cmp.Diff(test.calls, step.Database); diff != "" {
			t.Errorf("%s: database calls (-want +got)\n%s", name, diff)
		}
	}
}

// Without the first scrape, the increase of the counters is unknown. The step must not
// contain the counts since the start of the node instead.
func TestFailedFirstScrape(t *testing.T) {
	page := strings.Join([]string{
		startedMetric + " 1", requestsMetric + " 1e6", cacheHitsMetric + " 5", dbReadsMetric + " 7", "",
	}, "\n")
	node := startMetrics(t, "web-1", sut.Web, func() string { return page })
	node.CountsClientRequests = true
	calls := 0
	_, steps := twoSteps(t, &recordService{lag: -1}, likes{}, func(s *Stepper) {
		s.Figures = ladder.Figures()
		s.Nodes = func(context.Context) ([]targets.NodeStatus, error) {
			if calls++; calls == 1 {
				return nil, errors.New("no answer")
			}
			return []targets.NodeStatus{node}, nil
		}
	})
	s := steps[0]
	if s.ServerCount != nil || s.Database != nil || len(s.Warnings) == 0 || !strings.Contains(s.Warnings[0], "no answer") {
		t.Errorf("first step: server's count %v, database calls %v, warnings %q", s.ServerCount, s.Database, s.Warnings)
	}
	if s := steps[1]; s.ServerCount == nil || *s.ServerCount != 0 {
		t.Errorf("second step: server's count %v, want 0", s.ServerCount)
	}
}

// A step does not include the time of the scrapes: the clocks are read after the scrapes at
// the begin, and before the scrapes at the end.
func TestClocksAreReadNextToTheStep(t *testing.T) {
	var scraped time.Time
	page := func() string { scraped = time.Now(); return startedMetric + " 1\n" }
	nodes := []targets.NodeStatus{startMetrics(t, "web-1", sut.Web, page)}
	s := &Stepper{
		Nodes:   func(context.Context) ([]targets.NodeStatus, error) { return nodes, nil },
		Figures: ladder.Figures(),
	}
	snap := s.before(t.Context())
	if snap.at.Before(scraped) || snap.client.at.Before(scraped) || len(snap.nodes) != 1 || len(snap.problems) > 0 {
		t.Errorf("before a step: scraped at %v, clocks read at %v and %v", scraped, snap.at, snap.client.at)
	}
	snap = s.after(t.Context())
	if snap.at.After(scraped) || snap.client.at.After(scraped) || len(snap.nodes) != 1 {
		t.Errorf("after a step: scraped at %v, clocks read at %v and %v", scraped, snap.at, snap.client.at)
	}
}

// cacheNodeMetrics is the /metrics page of a cache node without a proxy.
const cacheNodeMetrics = `# HELP stagebench_cache_node_hits_total Lookups that found the key.
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

// startMetrics starts a node that serves a page of metrics. With an empty page, the node
// answers 404.
func startMetrics(t *testing.T, name string, role sut.Role, page func() string) targets.NodeStatus {
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

func TestCacheNodes(t *testing.T) {
	plain := results.CacheNode{
		Node: "cache-1", Hits: 1_200_000, Misses: 34, Evictions: 5, Expired: 6,
		Entries: 7, Bytes: 8_000_000, LimitBytes: 16 << 20, SinceStart: true,
	}
	writeBack := plain
	writeBack.WriteBack = &results.WriteBack{Unflushed: 3, Flushed: 40, Refused: 5}
	proxyMetrics := `stagebench_cache_node_unflushed{shard="1"} 1
stagebench_cache_node_unflushed{shard="2"} 2
stagebench_cache_node_flushed_total 40
stagebench_cache_node_refused_total 5
`
	for _, test := range []struct {
		page string
		want results.CacheNode
	}{{cacheNodeMetrics, plain}, {cacheNodeMetrics + proxyMetrics, writeBack}} {
		nodes, err := CacheNodes(t.Context(), []targets.NodeStatus{
			startMetrics(t, "web-1", sut.Web, func() string { t.Error("a web node was scraped"); return "" }),
			startMetrics(t, "cache-1", sut.Cache, func() string { return test.page }),
		})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]results.CacheNode{test.want}, nodes); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	for want, page := range map[string]string{
		"its server does not answer": "stagebench_cache_node_scrape_errors_total 9\nstagebench_cache_node_unflushed 3\n",
		"metric":                     "stagebench_cache_node_hits_total many\n",
		"GET http://":                "",
	} {
		node := startMetrics(t, "cache-1", sut.Cache, func() string { return page })
		nodes, err := CacheNodes(t.Context(), []targets.NodeStatus{node})
		if err == nil || !strings.HasPrefix(err.Error(), "cache-1: "+want) || len(nodes) > 0 {
			t.Errorf("%q: %+v, %v", page, nodes, err)
		}
	}
}

// cacheNode returns a scrape of a cache node, whose counters are multiples of count.
func cacheNode(name string, started, count float64, writeBack bool) scrape {
	s := scrape{node: targets.NodeStatus{Node: name, Role: sut.Cache}, series: map[string]float64{
		startedMetric: started, cacheNodePrefix + "hits_total": count, cacheNodePrefix + "misses_total": 2 * count,
		cacheNodePrefix + "evictions_total": 3 * count, cacheNodePrefix + "expired_total": 4 * count,
		cacheNodePrefix + "entries": 10, cacheNodePrefix + "bytes": count, cacheNodePrefix + "limit_bytes": 30,
	}}
	if writeBack {
		s.series[cacheNodePrefix+"unflushed"] = count
		s.series[cacheNodePrefix+"flushed_total"] = 5 * count
		s.series[cacheNodePrefix+"refused_total"] = 6 * count
	}
	return s
}

func TestDeltasOfCacheNodes(t *testing.T) {
	before := []scrape{
		cacheNode("same", 100, 7, true),
		cacheNode("restarted", 100, 7, false),
		cacheNode("silent", 100, 7, false),
		cacheNode("removed", 100, 7, false),
		silentNode("was silent", sut.Cache),
	}
	after := []scrape{
		cacheNode("added", 190, 1, false),
		cacheNode("same", 100, 9, true),
		cacheNode("restarted", 200, 9, false),
		silentNode("silent", sut.Cache),
		cacheNode("was silent", 100, 2, false),
	}
	want := []results.CacheNode{ // sorted by name
		{
			Node: "added", SinceStart: true, Hits: 1, Misses: 2, Evictions: 3, Expired: 4,
			Entries: 10, Bytes: 1, LimitBytes: 30,
		},
		{
			Node: "restarted", SinceStart: true, Hits: 9, Misses: 18, Evictions: 27, Expired: 36,
			Entries: 10, Bytes: 9, LimitBytes: 30,
		},
		{
			Node: "same", Hits: 2, Misses: 4, Evictions: 6, Expired: 8,
			Entries: 10, Bytes: 9, LimitBytes: 30,
			WriteBack: &results.WriteBack{Unflushed: 9, Flushed: 10, Refused: 12},
		},
		{
			Node: "was silent", SinceStart: true, Hits: 2, Misses: 4, Evictions: 6, Expired: 8,
			Entries: 10, Bytes: 2, LimitBytes: 30,
		},
	}
	for range 2 { // the first comparison does not change the scrapes
		if diff := cmp.Diff(want, cacheNodes(deltas(before, after))); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
}

// A step scrapes each node once before it and once after it. It omits a node that does not
// answer and adds a warning.
func TestStepScrapesNodes(t *testing.T) {
	var scrapes atomic.Int64
	page := func() string {
		return fmt.Sprintf("stagebench_cache_node_hits_total %d\nprocess_start_time_seconds 100\n", 10*scrapes.Add(1))
	}
	nodes := []targets.NodeStatus{
		startMetrics(t, "cache-1", sut.Cache, page),
		startMetrics(t, "cache-2", sut.Cache, func() string { return "" }),
	}
	_, steps := twoSteps(t, &recordService{lag: -1}, likes{}, func(s *Stepper) {
		s.Nodes = func(context.Context) ([]targets.NodeStatus, error) { return nodes, nil }
		s.Figures = ladder.Figures()
	})
	for i, step := range steps {
		if diff := cmp.Diff([]results.CacheNode{{Node: "cache-1", Hits: 10}}, step.CacheNodes); diff != "" {
			t.Errorf("step %d (-want +got)\n%s", i, diff)
		}
		if text := strings.Join(step.Warnings, "; "); strings.Count(text, "metrics of cache-2 are unknown") != 2 {
			t.Errorf("step %d: warnings %q", i, step.Warnings)
		}
	}
	if n := scrapes.Load(); n != 4 {
		t.Errorf("a node was scraped %d times in two steps, want twice in each", n)
	}
}

// A figure only needs to be declared and exported by a node. It then appears in the summary,
// in the ladder and in the output of an attack, in every format.
func TestDeclaredFigureIsShown(t *testing.T) {
	counter := ladder.Figure{
		Name: "widgets_made", Metric: "widgets_total", From: []sut.Role{sut.Blob}, Kind: ladder.Counter,
		Title: "widgets\nmade", Doc: "widgets: things that blob hosts made",
	}
	gauge := ladder.Figure{
		Name: "widgets_held", Metric: `widgets{kind="red"}`, From: []sut.Role{sut.Blob, sut.DB}, Kind: ladder.Gauge,
		Title: "red widgets",
	}
	scrapes := 0
	page := func() string {
		scrapes++
		return fmt.Sprintf(`widgets_total{color="red"} %d
widgets_total{color="blue"} 7
widgets{kind="red"} 41
widgets{kind="blue"} 5
%s 1
`, 1000*scrapes, startedMetric)
	}
	nodes := []targets.NodeStatus{
		startMetrics(t, "blob-1", sut.Blob, page),
		startMetrics(t, "lb-1", sut.Balance, func() string { t.Error("a balancer was scraped"); return "" }),
	}
	_, steps := twoSteps(t, &recordService{lag: -1}, likes{}, func(s *Stepper) {
		s.Figures = append(ladder.Figures(), counter, gauge)
		s.Nodes = func(context.Context) ([]targets.NodeStatus, error) { return nodes, nil }
	})
	run := results.Run{Complete: true, Cells: []results.Cell{{
		Stage: "blob", Workload: "likes", CapacityMethod: "bracket", Reference: &steps[0],
	}}}
	summary, err := json.Marshal(run)
	if err != nil {
		t.Fatal(err)
	}
	const (
		counterJSON = `{"name":"widgets_made","title":"widgets\nmade","doc":"widgets: things that blob hosts made",` +
			`"kind":"counter","value":1000}`
		gaugeJSON = `{"name":"widgets_held","title":"red widgets","kind":"gauge","value":41}`
	)
	shown := map[string]string{
		"summary.json": string(summary),
		"ladder":       render(t, table.FormatText, table.Ladder(run)),
		"CSV":          render(t, table.FormatCSV, table.Ladder(run)),
		"attack":       render(t, table.FormatText, table.Attack(steps[0], "p99<100ms")...),
	}
	for _, test := range []struct{ name, want string }{
		{"summary.json", counterJSON},
		{"summary.json", gaugeJSON},
		{"ladder", "widgets  red widgets"},
		{"ladder", "1,000           41"},
		{"ladder", counter.Doc},
		{"CSV", ",widgets_made,widgets_held,"},
		{"CSV", ",1000,41,"},
		{"attack", "1,000           41"},
	} {
		if !strings.Contains(shown[test.name], test.want) {
			t.Errorf("%s lacks %q:\n%s", test.name, test.want, shown[test.name])
		}
	}
}

func render(t *testing.T, format table.Format, tables ...table.Table) string {
	t.Helper()
	var out bytes.Buffer
	if err := table.Render(&out, table.Style{Format: format}, tables...); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// If a node does not answer, its figures are unknown. The sum over the other nodes would be
// too low. A figure names the nodes that were restarted.
func TestIncompleteFigures(t *testing.T) {
	gauge := ladder.Figure{
		Name: "entries", Metric: cacheNodePrefix + "entries", From: []sut.Role{sut.Cache}, Kind: ladder.Gauge,
	}
	counter := ladder.Figure{
		Name: "evictions", Metric: cacheNodePrefix + "evictions_total", From: []sut.Role{sut.Cache}, Kind: ladder.Counter,
	}
	node := func(started, count float64) scrape { return cacheNode("cache-1", started, count, false) }
	other := cacheNode("cache-2", 100, 1, false)
	web := countingNode("web-1", sut.Web, 1, nil)
	figure := func(f ladder.Figure, value *int64, unknown, since []string) results.Figure {
		return results.Figure{Name: f.Name, Kind: string(f.Kind), Value: value, Unknown: unknown, SinceStart: since}
	}
	entries := figure(gauge, new(int64(20)), nil, nil)
	unknown := func(node string) []results.Figure {
		return []results.Figure{figure(gauge, nil, []string{node}, nil), figure(counter, nil, []string{node}, nil)}
	}
	for name, test := range map[string]struct {
		before, after []scrape
		want          []results.Figure
	}{
		"complete": {
			[]scrape{node(100, 1), other},
			[]scrape{node(100, 5), other},
			[]results.Figure{entries, figure(counter, new(int64(12)), nil, nil)},
		},
		"restarted": {
			[]scrape{node(100, 1), other},
			[]scrape{node(120, 5), other},
			[]results.Figure{entries, figure(counter, new(int64(15)), nil, []string{"cache-1"})},
		},
		"silent at the end": {
			[]scrape{node(100, 1), other},
			[]scrape{node(100, 5), silentNode("cache-2", sut.Cache)},
			unknown("cache-2"),
		},
		"removed":         {[]scrape{node(100, 1), other}, []scrape{other}, unknown("cache-1")},
		"no node exports": {[]scrape{web}, []scrape{web}, nil},
	} {
		got := figuresOf([]ladder.Figure{gauge, counter}, deltas(test.before, test.after))
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}
