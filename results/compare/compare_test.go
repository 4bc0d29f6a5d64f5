package compare_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/compare"
)

// cell returns a cell with one bracket. Repeats are the low ends of the brackets
// of its repeats, which are 2 % wide.
func cell(capacity, high float64, repeats ...float64) results.Cell {
	var highs []float64
	for _, low := range repeats {
		highs = append(highs, low*1.02)
	}
	return results.Cell{
		Stage: "lb", Workload: "read-heavy", SLO: "p99<100ms", Valid: true,
		Knobs:       map[string]string{"lb.policy": "round_robin", "web.hosts": "3"},
		CapacityRPS: capacity, CapacityLow: capacity, CapacityHigh: high, CapacityMethod: "bracket",
		Repeats: repeats, RepeatsHigh: highs,
		Reference: &results.Step{
			OfferedRPS:  100,
			ResponseAll: results.Latency{Count: 2000, P50: new(int64(1e6)), P99: new(int64(5e6))},
		},
	}
}

func run(id string, cells ...results.Cell) compare.Run {
	m := results.Manifest{Run: id, Data: "small", Cores: 2, Config: map[string]any{"slo": "p99<100ms"}}
	return compare.Run{Run: results.Run{Cells: cells}, Manifest: m}
}

// second compares two cells and returns the ratio of their capacities.
func second(base, other results.Cell) compare.Ratio {
	return compare.Compare([]compare.Run{run("a", base), run("b", other)}, 1).Rows[0].Capacity[1]
}

// Without repeats, the brackets decide and there is no confidence interval.
func TestBrackets(t *testing.T) {
	for _, test := range []struct {
		base, other results.Cell
		want        compare.Verdict
		low, high   float64
	}{
		{cell(300, 330), cell(320, 350), compare.NoDifference, 320. / 330, 350. / 300},
		{cell(300, 330), cell(600, 660), compare.Higher, 600. / 330, 660. / 300},
		{cell(300, 330), cell(100, 110), compare.Lower, 100. / 330, 110. / 300},
		{cell(300, 330), cell(600, 0), compare.Higher, 600. / 330, math.Inf(1)},
		{cell(300, 0), cell(600, 660), compare.NoDifference, 0, 660. / 300},
	} {
		got := second(test.base, test.other)
		if got.Verdict != test.want || got.Repeats != 0 || math.Abs(got.Low-test.low) > 1e-9 || got.High != test.high {
			t.Errorf("%v..%v against %v..%v: %+v, want %s in %v..%v", test.other.CapacityLow, test.other.CapacityHigh,
				test.base.CapacityLow, test.base.CapacityHigh, got, test.want, test.low, test.high)
		}
	}
}

// With repeats, there is a confidence interval of the ratio. Equal seeds give
// equal intervals.
func TestRepeats(t *testing.T) {
	base := cell(300, 320, 290, 300, 310, 305, 295)
	better := cell(400, 420, 390, 410, 400, 405, 395)
	same := cell(303, 320, 288, 309, 301, 303, 297)
	for range 2 {
		rows := compare.Compare([]compare.Run{run("a", base), run("b", better), run("c", same)}, 7).Rows[0]
		got := rows.Capacity
		if got[0].Verdict != compare.Base || got[1].Verdict != compare.Higher || got[1].Repeats != 5 ||
			!(got[1].Low > 1.2 && got[1].High < 1.45) {
			t.Errorf("better: %+v", got[1])
		}
		if got[2].Verdict != compare.NoDifference || !(got[2].Low < 1 && got[2].High > 1) {
			t.Errorf("same: %+v", got[2])
		}
	}
}

// Searches over the same rates often find the same bracket. The interval is as
// wide as the bracket even if all repeats agree. A single search compared with
// repeats gives no confidence interval, only the range that the brackets allow.
func TestNoIntervalIsNarrowerThanTheBrackets(t *testing.T) {
	equal := func(low, high float64) results.Cell {
		c := cell(low, low, low, low, low, low, low)
		for i := range c.RepeatsHigh {
			c.RepeatsHigh[i] = high
		}
		return c
	}
	spread := cell(250, 300, 250, 200, 300, 280, 240)
	spread.CapacityLow, spread.FailingRPS = 200, 204
	low := equal(300, 315)
	// The smallest rate above 315: two searches may compute the same rate differently.
	touching := equal(math.Nextafter(315, 400), 330.75)
	neverFailed := equal(400, 0)
	withoutHighs := equal(400, 420)
	withoutHighs.RepeatsHigh = nil
	for name, test := range map[string]struct {
		base, other results.Cell
		want        compare.Verdict
		repeats     int
		low, high   float64
	}{
		"brackets touch":             {low, equal(315, 330.75), compare.NoDifference, 5, 1, 330.75 / 300},
		"touch, except for rounding": {low, touching, compare.NoDifference, 5, 1, 330.75 / 300},
		"brackets do not touch":      {low, equal(330.75, 347), compare.Higher, 5, 330.75 / 315, 347. / 300},
		"no rate failed":             {low, neverFailed, compare.Higher, 5, 400. / 315, math.Inf(1)},
		"no rate failed in the base": {neverFailed, low, compare.Lower, 5, 0, 315. / 400},
		"high ends not stored":       {withoutHighs, low, compare.Lower, 5, 0, 315. / 400},
		"one search and repeats":     {cell(301, 305), spread, compare.NoDifference, 0, 200. / 305, 306. / 301},
		"repeats and one search":     {spread, cell(301, 310), compare.NoDifference, 0, 301. / 306, 310. / 200},
	} {
		got := second(test.base, test.other)
		near := func(a, b float64) bool { return a == b || math.Abs(a-b) < 1e-9 }
		if got.Verdict != test.want || got.Repeats != test.repeats ||
			!near(got.Low, test.low) || !near(got.High, test.high) {
			t.Errorf("%s: %+v, want %s in %v..%v from %d repeats",
				name, got, test.want, test.low, test.high, test.repeats)
		}
	}
}

// A ratio without a comparison says why.
func TestNotCompared(t *testing.T) {
	failed := cell(0, 0)
	failed.Error = "it did not come up"
	slo := cell(300, 330)
	slo.SLO = "p99<1s"
	rate := cell(300, 330)
	rate.Reference = &results.Step{OfferedRPS: 200, ResponseAll: rate.Reference.ResponseAll}
	invalid := cell(900, 990)
	invalid.Valid = false
	fixed := cell(300, 330)
	fixed.CapacityMethod = results.MethodFixed
	rows := compare.Compare([]compare.Run{
		run("a", cell(300, 330)), run("b", failed), run("c", slo), run("d", rate), run("e"), run("f", invalid),
		run("g", fixed),
	}, 1).Rows
	if len(rows) != 1 {
		t.Fatalf("%d rows, want 1", len(rows))
	}
	for i, want := range map[int]string{
		1: "the cell failed", 2: "another objective", 4: "no such cell", 6: "did not search for a capacity",
	} {
		if got := rows[0].Capacity[i]; got.Verdict != compare.NotCompared || !strings.Contains(got.Why, want) {
			t.Errorf("capacity of run %d: %+v, want it not compared: %s", i, got, want)
		}
	}
	if got := rows[0].P99[3]; got.Verdict != compare.NotCompared || !strings.Contains(got.Why, "different rates") {
		t.Errorf("p99 at another rate: %+v", got)
	}
	if got := rows[0].P99[2]; got.Verdict != compare.NotJudged || got.Value != 1 {
		t.Errorf("p99 at the same rate: %+v, want a ratio without a verdict", got)
	}
	got := second(fixed, cell(300, 330))
	if got.Verdict != compare.NotCompared || !strings.Contains(got.Why, "the base has no capacity") {
		t.Errorf("against one fixed rate: %+v", got)
	}
	got = rows[0].Capacity[5]
	if got.Verdict != compare.Higher || !strings.Contains(got.Why, "the cell is not valid") {
		t.Errorf("an invalid cell: %+v, want a warning", got)
	}
}

// The latency of a cell is that of its last repeat. The ratio says so.
func TestLatencyOfRepeats(t *testing.T) {
	c := cell(300, 330)
	c.Reference.Purpose = "reference"
	c.Steps = []results.Step{{Purpose: "warmup"}, *c.Reference, *c.Reference}
	got := compare.Compare([]compare.Run{run("a", cell(300, 330)), run("b", c)}, 1).Rows[0].P99[1]
	if got.Verdict != compare.NotJudged || !strings.Contains(got.Why, "of the last repeat") {
		t.Errorf("%+v, want a note about the last repeat", got)
	}
}

// If two runs differ in a knob, their cells share a row. If the cells of one run
// differ in a knob, each gets its own row.
func TestKnobs(t *testing.T) {
	other := cell(500, 550)
	other.Knobs = map[string]string{"lb.policy": "least_conn", "web.hosts": "3"}
	c := compare.Compare([]compare.Run{run("a", cell(300, 330)), run("b", other)}, 1)
	if len(c.Rows) != 1 || c.Rows[0].Knobs != "lb.policy=round_robin|least_conn" ||
		c.Rows[0].Capacity[1].Verdict != compare.Higher {
		t.Errorf("rows %+v", c.Rows)
	}
	c = compare.Compare([]compare.Run{run("a", cell(300, 330), other), run("b", cell(300, 330), other)}, 1)
	if len(c.Rows) != 2 || c.Rows[1].Knobs != "lb.policy=least_conn" || c.Rows[1].Cells[1].CapacityRPS != 500 {
		t.Errorf("rows %+v", c.Rows)
	}
}

func TestManifests(t *testing.T) {
	a, b := run("a"), run("b")
	b.Manifest.Data, b.Manifest.Kernel = "large", "6.1"
	a.Manifest.Config = map[string]any{
		"knobs":           map[string]any{"web.hosts": "3", "db.replicas": "2"},
		"plan":            map[string]any{"x": 1.0, "a": "b"},
		"connection_life": "0s",
	}
	b.Manifest.Config = map[string]any{
		"knobs": map[string]any{
			"web.hosts": "4", "db.replicas": map[string]any{"single": "0", "replicas": "2"},
		},
		"plan":            map[string]any{"a": "b", "x": 1.0},
		"connection_life": "1s", "rate_rps": 100.0, "duration": "30s", "faults": []string{"3s kill primary"},
	}
	b.Manifest.Engines = map[string]string{"db": "postgres"}
	want := []compare.Difference{
		{What: "config.connection_life", Values: []string{`"0s"`, `"1s"`}, Breaks: true},
		{What: "config.duration", Values: []string{"-", `"30s"`}, Breaks: true},
		{What: "config.faults", Values: []string{"-", `["3s kill primary"]`}, Breaks: true},
		{What: "config.rate_rps", Values: []string{"-", "100"}, Breaks: true},
		{What: "data", Values: []string{"small", "large"}, Breaks: true},
		{What: "engines.db", Values: []string{"-", "postgres"}},
		{What: "kernel", Values: []string{"", "6.1"}},
		{What: "knobs.db.replicas", Values: []string{"2", "replicas:2 single:0"}},
		{What: "knobs.web.hosts", Values: []string{"3", "4"}},
	}
	if diff := cmp.Diff(want, compare.Compare([]compare.Run{a, b}, 1).Differences); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if !slices.Equal(compare.Compare([]compare.Run{a, b}, 1).Runs, []string{"a", "b"}) {
		t.Error("the comparison does not list the runs")
	}
}
