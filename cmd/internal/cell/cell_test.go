package cell

import (
	"math"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/capacity"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
)

func TestSourcesAreForLoopbackOnly(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]int{
		"http://127.0.0.1:80":      sourceCount,
		"http://192.0.2.1:80":      0,
		"http://[::1]:80":          0,
		"http://localhost:" + port: sourceCount,
		"http://localhost:1":       0, // nothing listens at its IPv4 address
		"http://name.invalid:80":   0,
	} {
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		if got := Sources(u, 7); len(got) != want {
			t.Errorf("%s: %d addresses, want %d", target, len(got), want)
		}
	}
}

func TestUsageBetween(t *testing.T) {
	before := targets.Usage{
		Hosts: []targets.HostUsage{{
			Host: "web-1", CPU: 0.1, CPUSeconds: 1, ThrottledSeconds: 2, Periods: 100, ThrottledPeriods: 10,
		}},
		Nodes: []targets.NodeUsage{{Node: "web-1", Host: "web-1", Role: "web", CPUSeconds: 1}},
	}
	after := targets.Usage{
		Hosts: []targets.HostUsage{{
			Host: "web-1", CPU: 0.1, Isolated: true, CPUSeconds: 1.5, ThrottledSeconds: 3.5, Periods: 1100,
			ThrottledPeriods: 510,
		}},
		Nodes: []targets.NodeUsage{{Node: "web-1", Host: "web-1", Role: "web", CPUSeconds: 1.4, RSSBytes: 42}},
	}
	hosts, nodes := usageBetween(before, after, 10*time.Second)
	if h := hosts[0]; h.CPUSeconds != 0.5 || h.CPUShare != 0.5 || h.ThrottledShare != 0.5 || !h.Isolated {
		t.Errorf("host %+v, want 50%% of 0.1 cores for 10 s, throttled in 50%% of the periods", h)
	}
	if n := nodes[0]; n.CPUSeconds < 0.399 || n.CPUSeconds > 0.401 || n.RSSBytes != 42 || n.ThrottledSeconds != 1.5 {
		t.Errorf("node %+v, want 0.4 s of CPU, 1.5 s throttled and 42 bytes", n)
	}
}

// A step at a low rate is longer, so that it has enough ops.
func TestLength(t *testing.T) {
	l := Length{Ops: 1000, Min: 2 * time.Second, Max: 5 * time.Second}
	lengths := map[float64]time.Duration{100: 5 * time.Second, 250: 4 * time.Second, 10_000: 2 * time.Second}
	for rate, want := range lengths {
		if got := l.At(rate); got != want {
			t.Errorf("at %v/s: %v, want %v", rate, got, want)
		}
	}
}

// searchedCell is a cell with a capacity: it met the objective at 100/s and 200/s, but not at 400/s.
func searchedCell() results.Cell {
	step := func(purpose string, rate float64, met bool, share float64) results.Step {
		return results.Step{
			Purpose: purpose, OfferedRPS: rate, CompletedRPS: rate, Seconds: 2, SLOMet: met, Valid: true,
			Ledger: results.Ledger{OK: int64(2 * rate)},
			Hosts: []results.HostUsage{
				{Host: "web-1", CPU: 0.1, CPUSeconds: 0.2 * share, CPUShare: share, Isolated: true},
				{Host: "db-1", CPU: 0.1, CPUSeconds: 0.1 * share, CPUShare: share / 2, Isolated: true},
			},
			Nodes: []results.NodeUsage{
				{Node: "web-1", Host: "web-1", Role: "web", CPUSeconds: 0.2 * share},
				{Node: "db-1", Host: "db-1", Role: "db", CPUSeconds: 0.1 * share},
			},
		}
	}
	c := results.Cell{
		CapacityRPS: 200, CapacityLow: 180, CapacityHigh: 220, Repeats: []float64{200}, CapacityMethod: "1 visit",
		Hosts: []results.CellHost{{Host: "web-1"}, {Host: "db-1"}},
	}
	c.Steps = []results.Step{
		step("warmup", 100, true, 1), step("reference", 100, true, 0.5),
		step("capacity", 400, false, 1), step("capacity", 200, true, 0.9), step("capacity", 190, true, 0.84),
		step("peak", 250, false, 1),
	}
	c.Reference = &c.Steps[1]
	return c
}

// Two phases have no arrivals and no ops in common. They depend only on the seed and the visit.
func TestArrivals(t *testing.T) {
	r := &cellRun{Bench: &Bench{Seed: 7}, stepper: &Stepper{}}
	type begin struct{ seed, op uint64 }
	var all []begin
	for n := range Full().Visits {
		r.visits = n
		for p := range phases {
			r.begin(p)
			all = append(all, begin{r.seed, r.stepper.nextJourney})
		}
	}
	if all[0] != (begin{7, 0}) {
		t.Errorf("the first phase begins at %+v, want seed 7 and op 0", all[0])
	}
	for i, b := range all[1:] {
		if b.seed < all[i].seed+1000 || b.op < all[i].op+1<<30 {
			t.Errorf("two phases begin at %+v and %+v", all[i], b)
		}
	}
}

// The evidence for the limit are the steps that met the objective near the capacity.
func TestConclude(t *testing.T) {
	c := searchedCell()
	conclude(&c, quiet{})
	if !c.Valid || c.LimitedBy != "web" || !strings.HasPrefix(c.Limit.Figure, "87%") || c.Limit.Next != "db" ||
		math.Abs(c.Limit.NextCPUShare-0.435) > 1e-9 {
		t.Errorf("valid %v, limit %+v: want web with 87%%, then db", c.Valid, c.Limit)
	}
	// Near the capacity 0.348 s of CPU in 780 requests. At the peak 0.2 s in 500, which is the whole budget of web.
	want := map[string]results.Demand{
		"web": {AtReference: 0.1 / 200, AtCapacity: 0.348 / 780, AtPeak: 0.2 / 500, BoundRPS: 250, Host: "web-1"},
		"db":  {AtReference: 0.05 / 200, AtCapacity: 0.174 / 780, AtPeak: 0.1 / 500, BoundRPS: 500, Host: "db-1"},
	}
	if diff := cmp.Diff(want, c.Demand, cmpopts.EquateApprox(1e-9, 0)); diff != "" {
		t.Error("demand (-want +got)\n" + diff)
	}
	if !c.Isolated() {
		t.Error("the hosts are isolated")
	}

	for _, method := range []string{results.MethodReplay, results.MethodFixed} {
		c = searchedCell()
		c.CapacityMethod, c.Steps, c.CapacityLow = method, c.Steps[1:2], 0
		conclude(&c, quiet{})
		if !c.Valid || c.LimitedBy != "unknown" || c.Limit.Figure != "no limit was looked for" || c.Demand != nil {
			t.Errorf("%s: valid %v, limit %+v, want no limit, although the objective was met", method, c.Valid, c.Limit)
		}
	}

	c = results.Cell{Error: "the topology did not start"}
	conclude(&c, quiet{})
	if c.Valid || c.LimitedBy != "unknown" {
		t.Errorf("cell with an error: valid %v, limited by %s", c.Valid, c.LimitedBy)
	}
}

// A cell takes over the warnings of the steps that its figures depend on.
func TestConcludeWithWarnings(t *testing.T) {
	const late = "the client was late"
	for name, test := range map[string]struct {
		change  func(c *results.Cell)
		valid   bool
		limit   string
		warning string // "" = none
	}{
		"nothing": {func(*results.Cell) {}, true, "web", ""},
		"the client had no CPU left": {func(c *results.Cell) {
			s := &c.Steps[2]
			s.Valid, s.Client.CPUShare, s.Invalid = false, 0.95, []string{"the client used 95% of its CPU"}
		}, false, "client", "1 of 4 steps"},
		"the client decided a step": {func(c *results.Cell) {
			c.Steps[2].Valid, c.Steps[2].ByClient, c.Steps[2].Invalid = false, true, []string{late}
		}, false, "client", "capacity step at 400/s: " + late},
		"but it was repeated": {func(c *results.Cell) {
			c.Steps[2].Valid, c.Steps[2].ByClient, c.Steps[2].Invalid = false, true, []string{late}
			c.Steps[2].Repeated = true
		}, true, "web", ""},
		"late, but not decisive": {func(c *results.Cell) {
			c.Steps[2].Valid, c.Steps[2].Excused, c.Steps[2].Invalid = false, true, []string{late}
		}, true, "web", ""},
		"the reference is late": {func(c *results.Cell) {
			c.Steps[1].Valid, c.Steps[1].Excused, c.Steps[1].Warnings = false, true, []string{late}
		}, false, "web", "reference step at 100/s: " + late},
		"a node died near the capacity": {func(c *results.Cell) {
			c.Steps[3].Notes = []string{"web-1 died"}
		}, true, "web", "steps near the capacity: web-1 died"},
		"requests in flight far from it": {func(c *results.Cell) {
			c.Steps[2].Notes = []string{"5 requests were still in flight"}
		}, true, "web", ""},
	} {
		c := searchedCell()
		test.change(&c)
		conclude(&c, quiet{})
		if c.Valid != test.valid || c.LimitedBy != test.limit {
			t.Errorf("%s: valid %v, limited by %s, want %v, %s", name, c.Valid, c.LimitedBy, test.valid, test.limit)
		}
		text := strings.Join(c.Warnings, "\n")
		if !strings.Contains(text, test.warning) || (text == "") != (test.warning == "") {
			t.Errorf("%s: warnings %q, want %q", name, c.Warnings, test.warning)
		}
	}
}

// On a larger machine, hosts, rates, connections and the driver's reserve are larger. At the highest capacity that was
// measured on two cores (replicas, read-heavy: 900/s, at 0.3 ms of the driver's CPU), scaled to the unit, the driver
// uses less than 60 % of its reserve.
func TestPlanByCores(t *testing.T) {
	for _, test := range []struct {
		cores               int
		reserve, unit       float64
		connections         int
		reference, peak, up float64
	}{
		{2, 0.5, 0.1, 64, 100, 2_000, 50_000},
		{4, 1, 0.2, 128, 200, 4_000, 100_000},
		{8, 2, 0.4, 256, 400, 8_000, 200_000},
		{16, 4, 0.8, 512, 800, 16_000, 400_000},
		{64, 16, 3.2, 2048, 3_200, 64_000, 1_600_000},
	} {
		unit, p := Unit(test.cores), Default().For(Unit(test.cores))
		if Reserve(test.cores) != test.reserve || math.Abs(unit-test.unit) > 1e-9 ||
			Connections(test.cores) != test.connections || p.ReferenceRPS != test.reference ||
			p.FirstPeak != test.peak || p.Search.Max != test.up {
			t.Errorf("%d cores: reserve %v, unit %v, %d connections, plan %+v, want %+v", test.cores,
				Reserve(test.cores), unit, Connections(test.cores), p, test)
		}
		if share := 900 * unit / smallUnit * 0.3e-3 / Reserve(test.cores); share >= 0.6 {
			t.Errorf("%d cores: the driver needs %.0f%% of its reserve", test.cores, share*100)
		}
	}
	for cells, visits := range map[int]int{1: 5, 8: 5, 9: 4, 13: 3, 18: 2, 100: 2} {
		if p := Default().Across(cells); p.Visits != visits || (p.Step.Max < Default().Step.Max) != (visits == 2) {
			t.Errorf("%d cells: %d visits with steps of %+v, want %d visits", cells, p.Visits, p.Step, visits)
		}
	}
	if quick := Quick().Across(18); quick.Visits != 1 || quick.Step != Quick().Step {
		t.Errorf("--quick depends on the number of cells: %+v", quick)
	}
	if one := Default().For(Unit(1)); one.ReferenceRPS != 100 {
		t.Errorf("on one core the reference rate is %v, want 100", one.ReferenceRPS)
	}
}

// Ops count after the cut, by their intended time; successes by their end.
func TestWindow(t *testing.T) {
	w := window{terms: results.DefaultSLO().Terms(), end: 2500e6}
	for i := range 250 { // one op every 10 ms
		at := int64(i) * 10e6
		o := results.Outcome{Class: "feed", Intended: at, Done: at + 1e6}
		switch {
		case i%100 == 60: // at 0.6 s and 1.6 s
			o.Done = at + 150e6
		case i%100 == 70:
			o.Fate = results.HTTPError
		case i%100 == 80:
			o.Class, o.Done = "upload", at+150e6
		}
		w.record(o)
	}
	// In each second: 99 ops with the shared bound, of which two missed it; one upload; 100 ops, of which one failed.
	second := capacity.Batch{{Ops: 99, Missed: 2}, {Ops: 1}, {Ops: 100, Missed: 1}}
	if diff := cmp.Diff([]capacity.Batch{second, second}, w.seconds); diff != "" {
		t.Error("(-want +got)\n" + diff)
	}
	if got := w.goodput(); got != 99 {
		t.Errorf("goodput %v/s, want 99", got)
	}
}

// What a run took is the forecast of the next one.
func TestForecast(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	spec := func(stage sut.Stage) Spec {
		return Spec{Topology: sut.Topology{Stage: stage}, Load: load.Load{Workload: likes{}}}
	}
	f := NewForecast(Default(), false)
	planned := f.Visit(spec("single"), 0)
	f.Learn(spec("single"), 0, 50*time.Second)
	f.Learn(spec("single"), 1, 20*time.Second)
	if err := f.Save(); err != nil {
		t.Fatal(err)
	}
	f = NewForecast(Default(), false)
	visit := func(n int) time.Duration { return f.Visit(spec("single"), n) }
	first, third, last := visit(0), visit(2), visit(Default().Visits-1)
	if first != 50*time.Second || third != 20*time.Second || last == third || planned == first {
		t.Errorf("visits of %v, %v and %v: want the first two as in the last run, 50 s and 20 s, and the last as planned",
			first, third, last)
	}
	if other := f.Visit(spec("lb"), 0); other != planned {
		t.Errorf("another cell: %v, want %v as planned", other, planned)
	}
	if full := NewForecast(Full(), false).Visit(spec("single"), 0); full == first {
		t.Error("another plan has the durations of this one")
	}
	atOneRate := spec("single")
	atOneRate.Fixed = &Fixed{Duration: time.Minute}
	if fixed := f.Visit(atOneRate, 0); fixed < time.Minute || fixed > 70*time.Second {
		t.Errorf("a minute at a fixed rate takes %v", fixed)
	}
	path, err := secondsFile()
	if err == nil {
		err = os.WriteFile(path, []byte("[half a"), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := NewForecast(Default(), false).Visit(spec("single"), 0); got != planned {
		t.Errorf("with a broken file: %v, want %v as planned", got, planned)
	}
}
