package cell

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
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
		fillFigures(&step, Figures(), deltas(test.before, test.after))
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
		s.Figures = Figures()
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
	s := &Stepper{Nodes: func(context.Context) ([]targets.NodeStatus, error) { return nodes, nil }, Figures: Figures()}
	if l := s.before(t.Context()); l.at.Before(asked) || l.client.at.Before(asked) || len(l.nodes) != 1 || len(l.problems) > 0 {
		t.Errorf("before a step: asked at %v, clocks read at %v and %v", asked, l.at, l.client.at)
	}
	if l := s.after(t.Context()); l.at.After(asked) || l.client.at.After(asked) || len(l.nodes) != 1 {
		t.Errorf("after a step: asked at %v, clocks read at %v and %v", asked, l.at, l.client.at)
	}
}
