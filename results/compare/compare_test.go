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

// cell returns a cell with an interval of 10 % around its capacity.
func cell(capacity float64) results.Cell {
	return results.Cell{
		Stage: "lb", Workload: "read-heavy", SLO: "p99<100ms", Valid: true,
		Knobs:       map[string]string{"lb.policy": "round_robin", "web.hosts": "3"},
		CapacityRPS: capacity, CapacityLow: capacity / 1.1, CapacityHigh: capacity * 1.1,
		CapacityMethod: "pooled, 2 visits, 90 % interval", Repeats: []float64{capacity / 1.05, capacity * 1.05},
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
	return compare.Compare([]compare.Run{run("a", base), run("b", other)}).Rows[0].Capacity[1]
}

// A difference is shown if the interval of the ratio does not contain 1. Two intervals of 10 % give one of 14 %.
func TestCapacity(t *testing.T) {
	unbounded := cell(600)
	unbounded.CapacityHigh, unbounded.Repeats = 0, nil
	once := cell(600)
	once.CapacityMethod, once.Repeats = "1 visit, 90 % interval", []float64{600}
	for _, test := range []struct {
		base, other results.Cell
		want        compare.Verdict
	}{
		{cell(300), cell(300), compare.NoDifference},
		{cell(300), cell(340), compare.NoDifference},
		{cell(300), cell(350), compare.Higher},
		{cell(300), cell(265), compare.NoDifference},
		{cell(300), cell(260), compare.Lower},
		{cell(300), once, compare.NotJudged},
		{once, cell(300), compare.NotJudged},
		{cell(300), unbounded, compare.NotCompared},
		{unbounded, cell(300), compare.NotCompared},
	} {
		got := second(test.base, test.other)
		if got.Verdict != test.want {
			t.Errorf("%v against %v: %+v, want %s", test.other.CapacityRPS, test.base.CapacityRPS, got, test.want)
		}
		if test.want == compare.NotCompared || test.want == compare.NotJudged {
			continue
		}
		factor := math.Exp(math.Sqrt2 * math.Log(1.1))
		if math.Abs(got.Low*factor-got.Value) > 1e-9 || math.Abs(got.High/factor-got.Value) > 1e-9 || got.Visits != 2 {
			t.Errorf("%+v, want an interval of a factor of %v", got, factor)
		}
	}
}

// A ratio without a comparison says why.
func TestNotCompared(t *testing.T) {
	failed := cell(0)
	failed.Error = "it did not come up"
	slo := cell(300)
	slo.SLO = "p99<1s"
	rate := cell(300)
	rate.Reference = &results.Step{OfferedRPS: 200, ResponseAll: rate.Reference.ResponseAll}
	invalid := cell(900)
	invalid.Valid = false
	fixed := cell(300)
	fixed.CapacityMethod = results.MethodFixed
	rows := compare.Compare([]compare.Run{
		run("a", cell(300)), run("b", failed), run("c", slo), run("d", rate), run("e"), run("f", invalid),
		run("g", fixed),
	}).Rows
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
	got := second(fixed, cell(300))
	if got.Verdict != compare.NotCompared || !strings.Contains(got.Why, "the base has no capacity") {
		t.Errorf("against one fixed rate: %+v", got)
	}
	base := compare.Compare([]compare.Run{run("a", fixed), run("b", fixed)}).Rows[0]
	if base.Capacity[0].Value != 0 || base.P50[0].Value != 1 {
		t.Errorf("ratios of the base: %+v, %+v; want one only for a figure that it has", base.Capacity[0], base.P50[0])
	}
	got = rows[0].Capacity[5]
	if got.Verdict != compare.NotJudged || got.Value != 3 || !strings.Contains(got.Why, "the cell is not valid") {
		t.Errorf("an invalid cell: %+v, want a ratio without a verdict", got)
	}
}

// If two runs differ in a knob, their cells share a row. If the cells of one run
// differ in a knob, each gets its own row.
func TestKnobs(t *testing.T) {
	other := cell(500)
	other.Knobs = map[string]string{"lb.policy": "least_conn", "web.hosts": "3"}
	c := compare.Compare([]compare.Run{run("a", cell(300)), run("b", other)})
	if len(c.Rows) != 1 || c.Rows[0].Knobs != "lb.policy=round_robin|least_conn" ||
		c.Rows[0].Capacity[1].Verdict != compare.Higher {
		t.Errorf("rows %+v", c.Rows)
	}
	c = compare.Compare([]compare.Run{run("a", cell(300), other), run("b", cell(300), other)})
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
		"connection_life": "0s", "slo": "p99<50ms",
	}
	b.Manifest.Config = map[string]any{
		"knobs": map[string]any{
			"web.hosts": "4", "db.replicas": map[string]any{"single": "0", "replicas": "2"},
		},
		"plan":            map[string]any{"a": "b", "x": 1.0},
		"connection_life": "1s", "slo": "p99<100ms", "rate_rps": 100.0, "duration": "30s",
		"faults": []string{"3s kill primary"},
	}
	b.Manifest.Engines = map[string]string{"db": "postgres"}
	want := []compare.Difference{
		{What: "config.connection_life", Values: []string{`"0s"`, `"1s"`}, Breaks: true},
		{What: "config.duration", Values: []string{"-", `"30s"`}, Breaks: true},
		{What: "config.faults", Values: []string{"-", `["3s kill primary"]`}, Breaks: true},
		{What: "config.rate_rps", Values: []string{"-", "100"}, Breaks: true},
		{What: "config.slo", Values: []string{`"p99<50ms"`, `"p99<100ms"`}, Breaks: true},
		{What: "data", Values: []string{"small", "large"}, Breaks: true},
		{What: "engines.db", Values: []string{"-", "postgres"}},
		{What: "kernel", Values: []string{"", "6.1"}},
		{What: "knobs.db.replicas", Values: []string{"2", "replicas:2 single:0"}},
		{What: "knobs.web.hosts", Values: []string{"3", "4"}},
	}
	if diff := cmp.Diff(want, compare.Compare([]compare.Run{a, b}).Differences); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if !slices.Equal(compare.Compare([]compare.Run{a, b}).Runs, []string{"a", "b"}) {
		t.Error("the comparison does not list the runs")
	}
}
