package pivot

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
)

// searched returns a valid cell with a capacity and a median in nanoseconds.
func searched(capacity float64, p50 int64) results.Cell {
	step := results.Step{
		ResponseAll: results.Latency{P50: &p50}, Ledger: results.Ledger{Scheduled: 200, OK: 198, HTTPError: 2, Sent: 200},
		Nodes: []results.NodeUsage{{Role: "web", CPUSeconds: 0.3}, {Role: "db", CPUSeconds: 0.1}},
	}
	return results.Cell{
		CapacityRPS: capacity, CapacityLow: capacity - 10, CapacityHigh: capacity + 10, Repeats: []float64{1},
		CapacityMethod: "1 visit, 90 % interval", PeakRPS: 2 * capacity, Valid: true, Reference: &step,
	}
}

func TestFigures(t *testing.T) {
	c := searched(100, 5_000_000)
	for name, want := range map[string]Value{
		"capacity": {Number: 100, Low: 90, High: 110}, "peak": {Number: 200}, "p50": {Number: 5_000_000},
		"p99": {Why: "too few samples beyond it, or failures"}, "errors": {Number: 0.01}, "cpu": {Number: 0.4 / 200},
	} {
		f, err := Find(name)
		if err != nil {
			t.Fatal(err)
		}
		got := f.Of(c)
		if diff := got.Number - want.Number; diff > 1e-12 || diff < -1e-12 {
			t.Errorf("%s is %v, want %v", name, got.Number, want.Number)
		}
		got.Number = want.Number
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	capacity, _ := Find("capacity")
	c.Valid, c.Invalid = false, []string{"late"}
	if v := capacity.Of(c); len(v.Doubts) != 1 || v.Doubts[0] != "not valid: late" {
		t.Errorf("an invalid cell: %+v", v)
	}
	for want, c := range map[string]results.Cell{
		"failed: no port":              {Error: "no port"},
		"not measured yet":             {},
		"no capacity was searched for": {Reference: c.Reference, CapacityMethod: results.MethodFixed},
	} {
		if v := capacity.Of(c); v.Why != want {
			t.Errorf("got %+v, want %s", v, want)
		}
	}
	low := results.Cell{Reference: c.Reference, CapacityHigh: 5, Valid: true}
	if v := capacity.Of(low); v.Number != 0 || v.Doubts == nil {
		t.Errorf("no rate met the objective: %+v", v)
	}
	if _, err := Find("p42"); err == nil {
		t.Error("p42 is a figure")
	}
}

func TestArrange(t *testing.T) {
	var cells []Placed
	for i, at := range []map[string]string{
		{"stage": "lb", "engine": "resp", "rate": "1"},
		{"stage": "lb", "engine": "redis", "rate": "1"},
		{"stage": "cache", "engine": "resp", "rate": "1"},
		{"stage": "cache", "engine": "resp", "rate": "2"},
	} {
		cells = append(cells, Placed{searched(float64(100*(i+1)), 1), at})
	}
	axes := []Axis{{"stage", []string{"lb", "cache"}}, {"engine", []string{"resp", "redis"}}, {"rate", []string{"1", "2"}}}
	capacity, _ := Find("capacity")
	numbers := func(grids []Grid) (all [][][]float64) {
		for _, g := range grids {
			var rows [][]float64
			for _, values := range g.Values {
				var row []float64
				for _, v := range values {
					if v == nil {
						row = append(row, -1)
						continue
					}
					row = append(row, v.Number)
				}
				rows = append(rows, row)
			}
			all = append(all, rows)
		}
		return all
	}
	grids := Arrange(cells, axes, "stage", "engine", capacity)
	if diff := cmp.Diff([][][]float64{{{100, 200}, {300, -1}}, {{400}}}, numbers(grids)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"rate=2"}, grids[1].Fixed); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"cache"}, grids[1].Rows); diff != "" {
		t.Error(diff)
	}
	axes = []Axis{{"stage", []string{"lb"}}, {"engine", []string{"resp", "redis"}}}
	one := Arrange(cells[:2], axes, "engine", "", capacity)
	if diff := cmp.Diff([][][]float64{{{100}, {200}}}, numbers(one)); diff != "" {
		t.Error(diff)
	}
}
