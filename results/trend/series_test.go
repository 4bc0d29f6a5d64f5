package trend_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/trend"
)

// run returns a run with two cells that differ in a knob.
func run() (results.Run, results.Manifest) {
	ns := func(n int64) *int64 { return &n }
	cell := results.Cell{
		Stage: "lb", Workload: "read-heavy", Driver: "vegeta", SLO: "p99<100ms", Valid: true,
		Engines: map[string]string{"db": "sqlite"}, Knobs: map[string]string{"web.hosts": "3", "lb.policy": "round_robin"},
		CapacityRPS: 300, CapacityLow: 270, CapacityHigh: 330, CapacityMethod: "pooled, 2 visits, 90 % interval",
		Repeats: []float64{290, 310}, PeakRPS: 400, PeakLow: 380, PeakHigh: 420,
		Reference: &results.Step{
			ResponseAll: results.Latency{Count: 300, P50: ns(4e6), P95: ns(9e6)},
			Ledger:      results.Ledger{Scheduled: 400, Sent: 204, OK: 200, Timeout: 4},
			Nodes:       []results.NodeUsage{{CPUSeconds: 0.1}, {CPUSeconds: 0.3}},
		},
	}
	other := cell
	other.Variant, other.Knobs = "web.hosts=4", map[string]string{"web.hosts": "4", "lb.policy": "round_robin"}
	other.Valid, other.Invalid, other.CapacityMethod = false, []string{"too late", "too busy"}, results.MethodFixed
	other.Reference, other.PeakRPS = nil, 0
	failed := results.Cell{Stage: "lb", Workload: "write-heavy", Error: "it did not come up"}
	return results.Run{Cells: []results.Cell{cell, other, failed}}, results.Manifest{
		Run: "20261101-020000-00000a", Started: time.Date(2026, 11, 1, 2, 0, 0, 0, time.UTC), Version: "v1.2.0",
		Data: "small", CPUModel: "AMD EPYC", Cores: 2, Kernel: "6.1", OS: "Debian", Budgets: "cgroup v2", UnitCPU: 0.1,
		Reserve: 0.5, Priority: "real-time", Digests: map[string]string{"workload.read-heavy": "ab", "lb": "cd"},
		Config: map[string]any{
			"knobs": map[string]any{"web.hosts": "3"}, "endpoint": "http://127.0.0.1:41234/", "workloads": []string{"x"},
			"plan": struct{ Visits int }{2}, "long": strings.Repeat("x", 100), "speed": 1.0,
		},
	}
}

// A record has the figures that were measured, and the facts that cells share only once.
func TestOf(t *testing.T) {
	r := trend.Of(run())
	want := trend.Record{
		Schema: 1, Run: "20261101-020000-00000a", Time: time.Date(2026, 11, 1, 2, 0, 0, 0, time.UTC), Version: "v1.2.0",
		Machine: map[string]string{
			"cpu_model": "AMD EPYC", "cores": "2", "kernel": "6.1", "os": "Debian", "budgets": "cgroup v2", "unit_cpu": "0.1",
			"reserve_cpu": "0.5", "driver_priority": "real-time",
		},
		Plan: map[string]string{
			"data": "small", "config.plan.Visits": "2", "config.speed": "1",
			"config.long": "sha256:" + r.Plan["config.long"][7:],
		},
		Cells: []trend.Cell{
			{
				Stage: "lb", Workload: "read-heavy", Valid: true,
				Plan: map[string]string{
					"slo": "p99<100ms", "driver": "vegeta", "engines.db": "sqlite", "knobs.web.hosts": "3",
					"knobs.lb.policy": "round_robin", "workload_digest": "ab",
				},
				Metrics: map[string]trend.Figure{
					"capacity": {Value: 300, Low: 270, High: 330}, "peak": {Value: 400, Low: 380, High: 420},
					"p50": {Value: 4e6}, "p95": {Value: 9e6}, "errors": {Value: 0.01}, "cpu": {Value: 2e6},
				},
			},
			{
				Stage: "lb", Workload: "read-heavy", Variant: "web.hosts=4", Invalid: "too late",
				Plan: map[string]string{
					"slo": "p99<100ms", "driver": "vegeta", "engines.db": "sqlite", "knobs.web.hosts": "4",
					"knobs.lb.policy": "round_robin", "workload_digest": "ab",
				},
				Metrics: map[string]trend.Figure{},
			},
			{
				Stage: "lb", Workload: "write-heavy", Invalid: "it did not come up",
				Plan: map[string]string{"slo": "", "driver": ""}, Metrics: map[string]trend.Figure{},
			},
		},
	}
	if d := cmp.Diff(want, r); d != "" {
		t.Errorf("record (-want +got):\n%s", d)
	}
	if len(r.Plan["config.long"]) != len("sha256:")+16 {
		t.Errorf("a long value is %q, want a digest of 16 digits", r.Plan["config.long"])
	}
}

// history returns records of one cell, one a day, with the values as p99 in milliseconds.
func history(values ...float64) (records []trend.Record) {
	for i, v := range values {
		day := time.Date(2026, 1, 1+i, 0, 0, 0, 0, time.UTC)
		records = append(records, trend.Record{
			Schema: 1, Run: day.Format("20060102"), Time: day, Commit: day.Format("c0102"),
			Machine: map[string]string{"cores": "2"}, Plan: map[string]string{"data": "small"},
			Cells: []trend.Cell{{
				Stage: "lb", Workload: "read-heavy", Valid: true,
				Metrics: map[string]trend.Figure{"p99": {Value: v * 1e6}, "of the future": {Value: 1}},
			}},
		})
	}
	return records
}

// stepped returns values around a level, and from the middle on around one that is 20 % higher.
func stepped() (values []float64) {
	for _, v := range measured(3, 24, from(12, 1.2)) {
		values = append(values, 10*v)
	}
	return values
}

// only returns the only series of records.
func only(t *testing.T, records []trend.Record) trend.Series {
	t.Helper()
	all := trend.SeriesOf(records)
	if len(all) != 1 || all[0].Cell != "lb/read-heavy" || all[0].Metric.Name != "p99" {
		t.Fatalf("series %+v, want that of p99", all)
	}
	return all[0]
}

// A change point has a run, and levels before and after it. The order of the records does not matter.
func TestLevels(t *testing.T) {
	records := history(stepped()...)
	records[3], records[20] = records[20], records[3]
	s := only(t, records)
	level, before := s.Last()
	if len(s.Parts) != 1 || before == nil || level.From.Commit != "c0113" || level.Runs != 12 || before.Runs != 12 ||
		!s.Metric.Worse(level.Median, before.Median) || level.P <= 0 || before.P != 0 {
		t.Fatalf("levels %+v, %+v; want a change for the worse at c0113", before, level)
	}
	if newest, valid := s.Latest(); newest.Run != "20260124" || valid == nil || valid.Run != newest.Run {
		t.Errorf("the newest value is of run %s", newest.Run)
	}
	if got := s.Metric.Change(before.Median, level.Median); !strings.HasPrefix(got, "+") || !strings.HasSuffix(got, " %") {
		t.Errorf("change %q", got)
	}
}

// A series is cut where a fact changes, so the same step is no change point there. A fact that only one record has cuts
// nothing.
func TestCuts(t *testing.T) {
	records := history(stepped()...)
	for i := range records {
		if i >= 12 {
			records[i].Machine = map[string]string{"cores": "4"}
		}
	}
	s := only(t, records)
	if len(s.Parts) != 2 || s.Parts[1].Why != "cores was 2, is 4" || len(s.Parts[1].Points) != 12 {
		t.Fatalf("parts %+v, want a cut where the cores change", s.Parts)
	}
	if level, before := s.Last(); level == nil || before != nil || len(s.Parts[0].Levels) != 1 {
		t.Errorf("a change point across a cut: %+v", s.Parts)
	}
	records = history(stepped()...)
	records[5].Cells[0].Plan = map[string]string{"knobs.new": "1"}
	if s := only(t, records); len(s.Parts) != 1 {
		t.Errorf("parts %+v: a knob that only one run knows cuts the series", s.Parts)
	}
	records[6].Cells[0].Plan = map[string]string{"knobs.new": ""}
	if s := only(t, records); len(s.Parts) != 2 || s.Parts[1].Why != "knobs.new was 1, is empty" {
		t.Errorf("parts %+v, want a cut where the knob of a cell changes", s.Parts)
	}
}

// A value of an invalid cell stays in the series and counts for nothing.
func TestInvalid(t *testing.T) {
	values := stepped()
	records := history(values[:12]...)
	for i := 6; i < 12; i++ {
		records[i].Cells[0].Metrics["p99"] = trend.Figure{Value: 1e9}
		records[i].Cells[0].Valid, records[i].Cells[0].Invalid = false, "too late"
	}
	s := only(t, records)
	level, before := s.Last()
	if before != nil || level.Runs != 6 || level.Median > 11e6 || len(s.Parts[0].Points) != 12 {
		t.Errorf("levels %+v of %d points, want one of the 6 valid ones", s.Parts[0].Levels, len(s.Parts[0].Points))
	}
	newest, valid := s.Latest()
	if newest.Valid || newest.Why != "too late" || valid == nil || valid.Run != "20260106" {
		t.Errorf("newest %+v, valid %+v", newest, valid)
	}
	for i := range records {
		records[i].Cells[0].Valid = false
	}
	s = only(t, records)
	if level, _ := s.Last(); level != nil {
		t.Errorf("level %+v of values that are not valid", level)
	}
}

// Each metric says which direction is worse.
func TestDirections(t *testing.T) {
	for _, m := range trend.Metrics() {
		if higher := m.Name == "capacity" || m.Name == "peak"; m.Worse(1, 2) != higher || m.Worse(2, 1) == higher {
			t.Errorf("%s: wrong direction", m.Name)
		}
	}
}
