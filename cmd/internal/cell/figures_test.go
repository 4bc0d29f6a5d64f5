package cell

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// counted is what a node that counts the requests of clients has counted since it was
// started.
func counted(name string, role sut.Role, started float64, series map[string]float64) reading {
	c := reading{node: targets.NodeStatus{Node: name, Role: role, Counts: true}, series: map[string]float64{startedMetric: started}}
	for name, value := range series {
		c.series[name] = value
	}
	return c
}

func requests(ok, failed float64) map[string]float64 {
	return map[string]float64{requestsMetric + `{code="200",op="feed"}`: ok, requestsMetric + `{code="404",op="photo"}`: failed, "stagebench_uploads_total": 5}
}

func TestTheServersOwnCount(t *testing.T) {
	one := func(started, ok float64) reading { return counted("web-1", sut.Web, started, requests(ok, 1)) }
	two := counted("web-2", sut.Web, 150, requests(20, 4))
	behind := one(100, 99)
	behind.node.Counts = false
	for name, test := range map[string]struct {
		before, after []reading
		want          int64  // -1 = not known
		why           string // the node whose count is unknown
	}{
		"all series":           {[]reading{one(100, 10)}, []reading{one(100, 40)}, 30, ""},
		"a new node counts":    {[]reading{one(100, 10)}, []reading{one(100, 40), two}, 54, ""},
		"others do not":        {[]reading{behind, two}, []reading{behind, two}, 0, ""},
		"nobody counts":        {[]reading{behind}, []reading{behind}, -1, ""},
		"restarted":            {[]reading{one(100, 10)}, []reading{one(101, 40)}, -1, "web-1"},
		"gone":                 {[]reading{one(100, 10), two}, []reading{one(100, 40)}, -1, "web-2"},
		"did not answer":       {[]reading{one(100, 10), two}, []reading{one(100, 40), counting(unheard("web-2", sut.Web))}, -1, "web-2"},
		"had not answered":     {[]reading{one(100, 10), counting(unheard("web-2", sut.Web))}, []reading{one(100, 40), two}, -1, "web-2"},
		"is silent throughout": {[]reading{counting(unheard("web-2", sut.Web))}, []reading{counting(unheard("web-2", sut.Web))}, -1, "web-2"},
	} {
		got, why := served(deltas(test.before, test.after))
		if got == nil {
			got = new(int64(-1))
		}
		if *got != test.want || why != test.why {
			t.Errorf("%s: %d %q, want %d %q", name, *got, why, test.want, test.why)
		}
	}
}

func counting(c reading) reading {
	c.node.Counts = true
	return c
}

func user(name string, role sut.Role, started, hits, misses, reads, writes float64) reading {
	return counted(name, role, started, map[string]float64{
		"stagebench_cache_reads_total" + `{result="hit"}`: hits, "stagebench_cache_reads_total" + `{result="miss"}`: misses, "stagebench_cache_reads_total" + `{result="error"}`: 7,
		"stagebench_store_operations_total" + `{kind="read"}`: reads, "stagebench_store_operations_total" + `{kind="write"}`: writes,
	})
}

func TestCacheReadsAndDatabaseCallsBetweenTwoReadings(t *testing.T) {
	lone := cacheNodeThat("cache-1", 100, 1, false) // asks no database
	front := user("cache-2", sut.Cache, 100, 0, 0, 4, 1)
	later := user("cache-2", sut.Cache, 100, 0, 0, 5, 2)
	web := func(started, n float64) reading { return user("web-1", sut.Web, started, n, 2*n, 3*n, 4*n) }
	alone := func(n float64) reading {
		return counted("web-1", sut.Web, 100, map[string]float64{
			"stagebench_store_operations_total" + `{kind="read"}`: 3 * n, "stagebench_store_operations_total" + `{kind="write"}`: 4 * n,
		})
	}
	for name, test := range map[string]struct {
		before, after []reading
		reads         *results.CacheReads
		calls         *results.DatabaseCalls
	}{
		"no cache tier": {[]reading{alone(1)}, []reading{alone(11)}, nil, &results.DatabaseCalls{Reads: 30, Writes: 40}},
		"look-aside":    {[]reading{web(100, 1), lone}, []reading{web(100, 11), lone}, &results.CacheReads{Hits: 10, Misses: 20}, &results.DatabaseCalls{Reads: 30, Writes: 40}},
		"a front":       {[]reading{web(100, 1), front}, []reading{web(100, 11), later}, &results.CacheReads{Hits: 10, Misses: 20}, &results.DatabaseCalls{Reads: 31, Writes: 41}},
		"a look-aside cache host is restarted": {
			[]reading{web(100, 1), lone}, []reading{web(100, 11), cacheNodeThat("cache-1", 120, 1, false)}, &results.CacheReads{Hits: 10, Misses: 20}, &results.DatabaseCalls{Reads: 30, Writes: 40},
		},
		"a look-aside cache host is away": {
			[]reading{web(100, 1), lone}, []reading{web(100, 11), unheard("cache-1", sut.Cache)}, &results.CacheReads{Hits: 10, Misses: 20}, &results.DatabaseCalls{Reads: 30, Writes: 40},
		},
		"a front is away": {[]reading{web(100, 1), front}, []reading{web(100, 11), unheard("cache-2", sut.Cache)}, &results.CacheReads{Hits: 10, Misses: 20}, nil},
		// However much it has counted since.
		"a web host is restarted": {[]reading{web(100, 1), lone}, []reading{web(120, 11), lone}, nil, nil},
		"a web host is away":      {[]reading{web(100, 1), lone}, []reading{unheard("web-1", sut.Web), lone}, nil, nil},
		"a web host is new":       {[]reading{lone}, []reading{web(120, 1), lone}, &results.CacheReads{Hits: 1, Misses: 2}, &results.DatabaseCalls{Reads: 3, Writes: 4}},
		"a web host is silent throughout": {
			[]reading{web(100, 1), unheard("web-2", sut.Web), lone}, []reading{web(100, 11), unheard("web-2", sut.Web), lone}, nil, nil,
		},
		"nothing is known": {nil, nil, nil, nil},
	} {
		var step results.Step
		fillFigures(&step, ladder.Figures(), deltas(test.before, test.after))
		if diff := cmp.Diff(test.reads, step.Cache); diff != "" {
			t.Errorf("%s: reads (-want +got)\n%s", name, diff)
		}
		if diff := cmp.Diff(test.calls, step.Database); diff != "" {
			t.Errorf("%s: calls (-want +got)\n%s", name, diff)
		}
	}
}

// A first reading that failed leaves open what was counted before: nothing is said of the
// step then, and least of all that everything was counted in it.
func TestAFirstReadingThatFailed(t *testing.T) {
	page := func() string {
		return startedMetric + " 1\n" + requestsMetric + " 1e6\n" + "stagebench_cache_reads_total" + `{result="hit"} 5` + "\n" + "stagebench_store_operations_total" + `{kind="read"} 7` + "\n"
	}
	node := nodeThatSays(t, "web-1", sut.Web, page)
	node.Counts = true
	asked := 0
	_, steps := offer(t, &lagging{lag: -1}, likes{}, func(s *Stepper) {
		s.Figures = ladder.Figures()
		s.Nodes = func(context.Context) ([]targets.NodeStatus, error) {
			if asked++; asked == 1 {
				return nil, errors.New("no answer")
			}
			return []targets.NodeStatus{node}, nil
		}
	})
	if s := steps[0]; s.ServerCount != nil || s.Database != nil || len(s.Warnings) == 0 || !strings.Contains(s.Warnings[0], "no answer") {
		t.Errorf("server's count %v, databases %v, warnings %q", s.ServerCount, s.Database, s.Warnings)
	}
	if s := steps[1]; s.ServerCount == nil || *s.ServerCount != 0 {
		t.Errorf("the second step: server's count %v", s.ServerCount)
	}
}

// What nodes take to answer is no part of a step: the clocks are read after it at the
// beginning, and before it at the end.
func TestClocksAreReadNextToTheStep(t *testing.T) {
	var asked time.Time
	page := func() string { asked = time.Now(); return startedMetric + " 1\n" }
	nodes := []targets.NodeStatus{nodeThatSays(t, "web-1", sut.Web, page)}
	s := &Stepper{Nodes: func(context.Context) ([]targets.NodeStatus, error) { return nodes, nil }, Figures: ladder.Figures()}
	if l := s.before(t.Context()); l.at.Before(asked) || l.client.at.Before(asked) || len(l.nodes) != 1 || len(l.problems) > 0 {
		t.Errorf("before a step: asked at %v, clocks read at %v and %v", asked, l.at, l.client.at)
	}
	if l := s.after(t.Context()); l.at.After(asked) || l.client.at.After(asked) || len(l.nodes) != 1 {
		t.Errorf("after a step: asked at %v, clocks read at %v and %v", asked, l.at, l.client.at)
	}
}

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
		s.Figures = ladder.Figures()
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

// A figure is declared and emitted, and nothing else: it is then in the summary, in the ladder and in what an attack
// shows, in every format.
func TestADeclaredFigureIsShown(t *testing.T) {
	made := ladder.Figure{
		Name: "widgets_made", Metric: "widgets_total", From: []sut.Role{sut.Blob}, Kind: ladder.Counter,
		Title: "widgets\nmade", Doc: "widgets: things that blob hosts made",
	}
	held := ladder.Figure{Name: "widgets_held", Metric: `widgets{kind="red"}`, From: []sut.Role{sut.Blob, sut.DB}, Kind: ladder.Gauge, Title: "red widgets"}
	scrapes := 0
	page := func() string {
		scrapes++
		return fmt.Sprintf("widgets_total{color=\"red\"} %d\nwidgets_total{color=\"blue\"} 7\nwidgets{kind=\"red\"} 41\nwidgets{kind=\"blue\"} 5\n%s 1\n",
			1000*scrapes, startedMetric)
	}
	unasked := nodeThatSays(t, "lb-1", sut.Balance, func() string { t.Error("a balancer was asked"); return "" })
	nodes := []targets.NodeStatus{nodeThatSays(t, "blob-1", sut.Blob, page), unasked}
	_, steps := offer(t, &lagging{lag: -1}, likes{}, func(s *Stepper) {
		s.Figures = append(ladder.Figures(), made, held)
		s.Nodes = func(context.Context) ([]targets.NodeStatus, error) { return nodes, nil }
	})
	run := results.Run{Complete: true, Cells: []results.Cell{{Stage: "blob", Workload: "likes", CapacityMethod: "bracket", Reference: &steps[0]}}}
	shown := func(format table.Format, tables ...table.Table) string {
		var out bytes.Buffer
		if err := table.RenderAll(&out, tables, format); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	summary, err := json.Marshal(run)
	if err != nil {
		t.Fatal(err)
	}
	text, csv, attack := shown(table.FormatText, table.Ladder(run)), shown(table.FormatCSV, table.Ladder(run)), shown(table.FormatText, table.Attack(steps[0])...)
	for _, test := range []struct{ name, in, want string }{
		{"summary.json", string(summary), `{"name":"widgets_made","title":"widgets\nmade","doc":"widgets: things that blob hosts made","kind":"counter","value":1000}`},
		{"summary.json", string(summary), `{"name":"widgets_held","title":"red widgets","kind":"gauge","value":41}`},
		{"the ladder", text, "widgets  red widgets"},
		{"the ladder", text, "1,000           41"},
		{"the ladder", text, made.Doc},
		{"CSV", csv, ",widgets_made,widgets_held,"},
		{"CSV", csv, ",1000,41,"},
		{"an attack", attack, "1,000           41"},
	} {
		if !strings.Contains(test.in, test.want) {
			t.Errorf("%s lacks %q:\n%s", test.name, test.want, test.in)
		}
	}
}

// A node that does not answer makes a figure unknown, and never too small. One that was restarted is named.
func TestAFigureOfWhichAPartIsMissing(t *testing.T) {
	gauge := ladder.Figure{Name: "entries", Metric: cacheNodePrefix + "entries", From: []sut.Role{sut.Cache}, Kind: ladder.Gauge}
	counter := ladder.Figure{Name: "evictions", Metric: cacheNodePrefix + "evictions_total", From: []sut.Role{sut.Cache}, Kind: ladder.Counter}
	node := func(started, counted float64) reading { return cacheNodeThat("cache-1", started, counted, false) }
	other := cacheNodeThat("cache-2", 100, 1, false)
	figure := func(f ladder.Figure, value *int64, unknown, since []string) results.Figure {
		return results.Figure{Name: f.Name, Kind: string(f.Kind), Value: value, Unknown: unknown, SinceStart: since}
	}
	one, two := []string{"cache-1"}, []string{"cache-2"}
	for name, test := range map[string]struct {
		before, after []reading
		want          []results.Figure
	}{
		"all is known": {
			[]reading{node(100, 1), other},
			[]reading{node(100, 5), other},
			[]results.Figure{figure(gauge, new(int64(20)), nil, nil), figure(counter, new(int64(12)), nil, nil)},
		},
		"restarted": {
			[]reading{node(100, 1), other},
			[]reading{node(120, 5), other},
			[]results.Figure{figure(gauge, new(int64(20)), nil, nil), figure(counter, new(int64(15)), nil, one)},
		},
		"no answer at the end": {
			[]reading{node(100, 1), other},
			[]reading{node(100, 5), unheard("cache-2", sut.Cache)},
			[]results.Figure{figure(gauge, nil, two, nil), figure(counter, nil, two, nil)},
		},
		"gone":                {[]reading{node(100, 1), other}, []reading{other}, []results.Figure{figure(gauge, nil, one, nil), figure(counter, nil, one, nil)}},
		"nobody reports them": {[]reading{counted("web-1", sut.Web, 1, nil)}, []reading{counted("web-1", sut.Web, 1, nil)}, nil},
	} {
		if diff := cmp.Diff(test.want, figuresOf([]ladder.Figure{gauge, counter}, deltas(test.before, test.after))); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}
