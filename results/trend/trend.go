// Package trend keeps the figures of many runs as records, makes a series of each figure, and finds the runs from which
// on a figure has another level: its change points.
//
//	record := trend.Of(run, manifest)      // one run, as it is kept in a file
//	series := trend.SeriesOf(records)      // of all cells and metrics
//	changes := trend.Detect(values, seed)  // of one series
//
// It is pure: it reads no file and no clock, and prints nothing; package lines has the file. Values are in the unit of
// their metric: requests per second, nanoseconds, or shares from 0 to 1. All functions may be called concurrently.
//
// Only values of equal circumstances are compared. A series is cut where the machine or the plan of its cell changes,
// and no change point lies across a cut. Values of invalid cells are kept and count for nothing.
package trend

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/stagebench/stagebench/results"
)

// Schema is the version of a record. Fields may be added, never renamed.
const Schema = 1

// Record is one run.
type Record struct {
	Schema  int       `json:"schema"`
	Run     string    `json:"run"`
	Time    time.Time `json:"time"`              // when the run started
	Commit  string    `json:"commit,omitempty"`  // of the code that was measured
	Version string    `json:"version,omitempty"` // of stagebench
	// Machine and Plan are facts about the run by name, such as cpu_model and config.slo: where it was measured, and
	// what was asked of all cells.
	Machine map[string]string `json:"machine"`
	Plan    map[string]string `json:"plan"`
	Cells   []Cell            `json:"cells"`
}

// Cell is one cell of a run.
type Cell struct {
	Stage    string `json:"stage"`
	Workload string `json:"workload"`
	Variant  string `json:"variant,omitempty"`
	// Plan has the facts that the cell does not share with all others of its run.
	Plan    map[string]string `json:"plan,omitempty"`
	Valid   bool              `json:"valid"`
	Invalid string            `json:"invalid,omitempty"` // the first reason, if it is not valid
	// Metrics has the figures by the name of their metric. A figure that was not measured is missing.
	Metrics map[string]Figure `json:"metrics"`
}

// Name returns the name of a cell, "lb/read-heavy" or "lb/read-heavy/peak".
func (c Cell) Name() string {
	if c.Variant == "" {
		return c.Stage + "/" + c.Workload
	}
	return c.Stage + "/" + c.Workload + "/" + c.Variant
}

// Figure is a value with its 90 % interval; Low and High are 0 if it has none.
type Figure struct {
	Value float64 `json:"value"`
	Low   float64 `json:"low,omitempty"`
	High  float64 `json:"high,omitempty"`
}

// Metric is a figure of a cell.
type Metric struct {
	Name   string // "p99"
	Unit   string // "rps", "ns" or "share"
	Higher bool   // a higher value is better
	of     func(results.Cell) (Figure, bool)
}

// The units of metrics.
const (
	RPS   = "rps"
	NS    = "ns"
	Share = "share"
)

// Metrics returns all metrics. Latencies, errors and CPU time are those at the reference rate, or at the only rate.
func Metrics() []Metric {
	percentile := func(of func(results.Latency) *int64) func(results.Cell) (Figure, bool) {
		return atReference(func(s results.Step) (float64, bool) {
			if ns := of(s.ResponseAll); ns != nil {
				return float64(*ns), true
			}
			return 0, false
		})
	}
	return []Metric{
		{"capacity", RPS, true, func(c results.Cell) (Figure, bool) {
			// Without an interval it is only a bound: every offered rate met the objective, or none.
			return Figure{c.CapacityRPS, c.CapacityLow, c.CapacityHigh}, c.HasInterval() && c.CapacityRPS > 0
		}},
		{"peak", RPS, true, func(c results.Cell) (Figure, bool) {
			return Figure{c.PeakRPS, c.PeakLow, c.PeakHigh}, c.PeakRPS > 0
		}},
		{"p50", NS, false, percentile(func(l results.Latency) *int64 { return l.P50 })},
		{"p95", NS, false, percentile(func(l results.Latency) *int64 { return l.P95 })},
		{"p99", NS, false, percentile(func(l results.Latency) *int64 { return l.P99 })},
		{"errors", Share, false, atReference(func(s results.Step) (float64, bool) {
			return s.Ledger.ErrorRate(), s.Ledger.Scheduled > 0
		})},
		{"cpu", NS, false, atReference(func(s results.Step) (float64, bool) {
			ns := 1e9 * s.CPUPerRequest()
			return ns, ns > 0
		})},
	}
}

// atReference returns a figure of the step at the reference rate.
func atReference(of func(results.Step) (float64, bool)) func(results.Cell) (Figure, bool) {
	return func(c results.Cell) (f Figure, ok bool) {
		if c.Reference == nil {
			return f, false
		}
		f.Value, ok = of(*c.Reference)
		return f, ok
	}
}

// Of returns the record of a run, without its commit.
func Of(run results.Run, m results.Manifest) Record {
	r := Record{
		Schema: Schema, Run: m.Run, Time: m.Started.UTC(), Version: m.Version,
		Machine: map[string]string{
			"cpu_model": m.CPUModel, "cores": fmt.Sprint(m.Cores), "kernel": m.Kernel, "os": m.OS, "budgets": m.Budgets,
			"unit_cpu": fmt.Sprint(m.UnitCPU), "reserve_cpu": fmt.Sprint(m.Reserve), "driver_priority": m.Priority,
		},
		Plan: map[string]string{}, Cells: []Cell{},
	}
	for _, measured := range run.Cells {
		c := Cell{
			Stage: measured.Stage, Workload: measured.Workload, Variant: measured.Variant, Plan: planOf(measured, m),
			Valid: measured.Valid && measured.Error == "", Metrics: map[string]Figure{},
		}
		if !c.Valid {
			c.Invalid = cmp.Or(measured.Error, strings.Join(measured.Invalid[:min(1, len(measured.Invalid))], ""), "unknown")
		}
		for _, metric := range Metrics() {
			if f, ok := metric.of(measured); ok {
				c.Metrics[metric.Name] = f
			}
		}
		r.Cells = append(r.Cells, c)
	}
	r.share()
	return r
}

// share moves the facts that all cells share to the record.
func (r *Record) share() {
	if len(r.Cells) == 0 {
		return
	}
	for name, value := range r.Cells[0].Plan {
		if !slices.ContainsFunc(r.Cells, func(c Cell) bool { v, has := c.Plan[name]; return !has || v != value }) {
			r.Plan[name] = value
		}
	}
	for _, c := range r.Cells {
		maps.DeleteFunc(c.Plan, func(name, _ string) bool { _, shared := r.Plan[name]; return shared })
	}
}

// planOf returns what was asked of a cell: data, configuration, workload, engines and knobs. Versions of engines are
// not part of it, because an update of an engine may be what changed a figure.
func planOf(c results.Cell, m results.Manifest) map[string]string {
	plan := map[string]string{"data": m.Data, "slo": c.SLO, "driver": c.Driver}
	for name, value := range m.Config {
		// Knobs are those of the cell. Addresses of a target differ from run to run. Prices decide no figure here, and
		// which other cells a run has decides none.
		if !slices.Contains([]string{"knobs", "endpoint", "urls", "prices", "workloads", "slo"}, name) {
			flatten(plan, "config."+name, value)
		}
	}
	for role, engine := range c.Engines {
		plan["engines."+role] = engine
	}
	for knob, value := range c.Knobs {
		plan["knobs."+knob] = value
	}
	if digest := cmp.Or(m.Digests["workload."+c.Workload], m.Digests["workload"]); digest != "" {
		plan["workload_digest"] = digest
	}
	return plan
}

// flatten adds a value of the configuration: an object as its fields, anything else as JSON. A long value is
// replaced by its digest.
func flatten(into map[string]string, name string, value any) {
	const limit = 60
	text, err := json.Marshal(value)
	if err != nil {
		text = fmt.Append(nil, value)
	}
	var fields map[string]any
	if json.Unmarshal(text, &fields) == nil && fields != nil {
		for field, value := range fields {
			flatten(into, name+"."+field, value)
		}
		return
	}
	if len(text) > limit {
		text = fmt.Appendf(nil, "sha256:%.8x", sha256.Sum256(text))
	}
	into[name] = strings.Trim(string(text), `"`)
}
