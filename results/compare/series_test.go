package compare_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/compare"
)

// series returns one benchmark with samples around a value, not sorted.
func series(center float64, n int) compare.Series {
	s := compare.Series{Name: "X", Unit: "sec/op", Better: -1}
	for i := range n {
		s.Values = append(s.Values, center+float64((i*5)%n)-float64(n-1)/2)
	}
	return s
}

// A difference is shown if the U test finds it. "No difference shown" needs enough samples to find one.
func TestSeries(t *testing.T) {
	same := compare.Series{Name: "X", Unit: "sec/op", Values: []float64{5, 5}}
	invalid := series(200, 6)
	invalid.Invalid = true
	for name, test := range map[string]struct {
		base, other compare.Series
		want        compare.Verdict
		why         string
	}{
		"equal":      {series(100, 6), series(100, 6), compare.NoDifference, ""},
		"higher":     {series(100, 6), series(110, 6), compare.Higher, ""},
		"lower":      {series(100, 6), series(90, 6), compare.Lower, ""},
		"constant":   {same, same, compare.NoDifference, "all samples are equal"},
		"few":        {series(100, 3), series(110, 3), compare.NotJudged, "too few samples"},
		"few in one": {series(100, 6), series(110, 2), compare.NotJudged, "too few samples"},
		"enough":     {series(100, 4), series(110, 4), compare.Higher, ""},
		"not valid":  {series(100, 6), invalid, compare.NotJudged, "not valid"},
	} {
		before := slices.Clone(test.base.Values)
		rows := compare.CompareSeries([][]compare.Series{{test.base}, {test.other}})
		if len(rows) != 1 || rows[0].Samples[0].Verdict != compare.Base {
			t.Fatalf("%s: %+v", name, rows)
		}
		got := rows[0].Samples[1]
		if got.Verdict != test.want || !strings.Contains(got.Why, test.why) || test.why == "" && got.Why != "" {
			t.Errorf("%s: %+v, want %s", name, got, test.want)
		}
		if ratio := got.Median / rows[0].Samples[0].Median; math.Abs(got.Ratio-ratio) > 1e-9 {
			t.Errorf("%s: ratio %v, want %v", name, got.Ratio, ratio)
		}
		if !slices.Equal(before, test.base.Values) {
			t.Errorf("%s: the samples were sorted in place", name)
		}
	}
}

// A figure that only one file has is not compared.
func TestSeriesOfOneFile(t *testing.T) {
	only := series(100, 6)
	only.Name = "Y"
	rows := compare.CompareSeries([][]compare.Series{{series(100, 6)}, {only}})
	if len(rows) != 2 || rows[0].Name != "X" || rows[0].Samples[1].Verdict != compare.NotCompared ||
		rows[0].Samples[1].Count != 0 || rows[1].Samples[0].Verdict != compare.NotCompared ||
		rows[1].Samples[1].Verdict != compare.NotCompared || rows[1].Samples[1].Count != 6 {
		t.Errorf("%+v", rows)
	}
}

// other returns a run of another tool with one cell, which has service times.
func other(sent float64, p95 int64) compare.Run {
	step := results.Step{
		SentRPS: sent, ServiceNS: results.Latency{Count: 1000, P50: new(p95 / 2), P95: new(p95), P99: new(2 * p95)},
	}
	c := results.Cell{
		Stage: "target", Workload: "vegeta", CapacityMethod: results.MethodFixed, Valid: true, Reference: &step,
	}
	return compare.Run{Run: results.Run{Cells: []results.Cell{c}, Complete: true}, Name: "a.bin", Tool: "vegeta"}
}

// A run of another tool is compared by service times with the only cell of any run, whatever its name.
func TestOtherTools(t *testing.T) {
	own := cell(300)
	own.Reference.SentRPS = 100
	own.Reference.ServiceNS = results.Latency{Count: 2000, P50: new(int64(2e6)), P95: new(int64(4e6))}
	c := compare.Compare([]compare.Run{run("ours", own), other(100, 8e6), other(150, 8e6)})
	if !c.Service || len(c.Rows) != 1 || len(c.Differences) != 0 {
		t.Fatalf("%+v", c)
	}
	row := c.Rows[0]
	if got := row.P95[1]; got.Value != 2 || got.Verdict != compare.NotJudged || strings.Contains(got.Why, "rates") {
		t.Errorf("p95 at about the same rate: %+v", got)
	}
	if got := row.P95[2]; got.Value != 2 || !strings.Contains(got.Why, "sent at different rates, 100/s and 150/s") {
		t.Errorf("p95 at another rate: %+v", got)
	}
	if got := row.P99[1]; got.Verdict != compare.NotCompared {
		t.Errorf("a percentile that the base does not have: %+v", got)
	}
	if got := row.Capacity[1]; got.Verdict != compare.NotCompared {
		t.Errorf("capacity: %+v", got)
	}
	// With several cells, names decide.
	if rows := compare.Compare([]compare.Run{run("ours", own, cell(200)), other(100, 8e6)}).Rows; len(rows) != 2 {
		t.Errorf("%d rows, want that of ours and that of the other tool", len(rows))
	}
	// Our own vegeta files have response times.
	mine := other(100, 8e6)
	step := mine.Cells[0].Reference
	step.ResponseAll, step.ServiceNS = step.ServiceNS, results.Latency{}
	if c := compare.Compare([]compare.Run{run("ours", own), mine}); c.Service || c.Latency(&mine.Cells[0]).P95 == nil {
		t.Errorf("two runs with response times are compared by service times")
	}
}
