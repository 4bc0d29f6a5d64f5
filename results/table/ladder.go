package table

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Ladder is the main table: what each stage buys, workload by workload. A cell
// is compared with the stage before it, that is, the nearest earlier cell of
// another stage with the same workload, objective, driver, engines and varied
// knobs.
func Ladder(run results.Run) Table {
	cells := byWorkload(run.Cells)
	rate, common := commonRate(cells)
	varied := variedKnobs(cells)
	engines, sameEngines := commonEngines(cells)

	at, perRow := fmt.Sprintf("at %s rps", Rate(rate).Text), Machines
	if !common {
		at, perRow = "at reference", Everyone
	}
	t := Table{
		Title:   "Ladder",
		Columns: ladderColumns(at, perRow),
		Legend:  ladderLegend(cells, at, engines, sameEngines),
		Notes:   slices.Clone(run.Warnings),
	}
	if sameEngines {
		t.setAudience("engines", Machines)
	}
	if len(varied) == 0 {
		t.setAudience("knobs", Machines)
	}
	for i, c := range cells {
		t.Rows = append(t.Rows, ladderRow(c, stageBefore(cells[:i], c, varied), varied))
	}
	addExtras(&t, cells, at)
	if note := isolation(cells); note != "" {
		t.Notes = append(t.Notes, note)
	}
	if !run.Complete {
		t.Notes = append(t.Notes, "the run is not complete: cells may be missing")
	}
	return t
}

func ladderColumns(at string, perRow Audience) []Column {
	return []Column{
		{Name: "stage"},
		{Name: "workload"},
		{Name: "engines"},
		{Name: "knobs"},
		{Key: "driver", For: Machines},
		{Name: "hosts\n(units)", Key: "hosts", Align: Right},
		{Key: "units", For: Machines},
		{Key: "isolated", For: Machines},
		{Name: "capacity\nrps", Key: "capacity_rps", Align: Right},
		{Name: "bracket\nrps", Align: Right, For: People},
		{Key: "capacity_low", For: Machines},
		{Key: "capacity_high", For: Machines},
		{Name: "gain", Align: Right},
		{Name: "reference\nrps", Key: "reference_rps", Align: Right, For: perRow},
		{Name: "p50 ms\n" + at, Key: "p50_ns", Align: Right},
		{Name: "p99 ms\n" + at, Key: "p99_ns", Align: Right},
		{Name: "errors\n" + at, Key: "errors_share", Align: Right},
		{Name: "limited by", Key: "limited_by"},
		{Key: "limited_by_figure", For: Machines},
		{Name: "valid"},
		{Key: "error", For: Machines},
	}
}

func (t *Table) setAudience(key string, reader Audience) {
	for i := range t.Columns {
		if t.Columns[i].key() == key {
			t.Columns[i].For = reader
		}
	}
}

func ladderRow(c results.Cell, before *results.Cell, varied []string) []Cell {
	reference := Cell{}
	p50, p99, errors := referenceFigures(c)
	if c.Reference != nil {
		reference = Rate(c.Reference.OfferedRPS)
	}
	capacity := capacityCells(c)
	limit, size := limitCells(c), sizeCells(c)
	failure := Cell{}
	if c.Error != "" {
		failure = Text(c.Error)
	}
	return []Cell{
		Text(c.Stage), Text(c.Workload), Text(allPairs(c.Engines)), Text(pairs(c.Knobs, varied)), Text(c.Driver),
		size.hosts, size.units, size.isolated,
		capacity.rate, capacity.bracket, capacity.low, capacity.high,
		gain(c, before), reference, p50, p99, errors,
		limit.by, limit.figure, validity(c), failure,
	}
}

type sizeFigures struct{ hosts, units, isolated Cell }

// sizeCells are blank for a cell that was never brought up.
func sizeCells(c results.Cell) sizeFigures {
	if len(c.Hosts) == 0 {
		return sizeFigures{}
	}
	f := sizeFigures{units: Number(c.Units), isolated: YesNo(c.Isolated())}
	f.hosts = Cell{Text: fmt.Sprintf("%d (%s)", len(c.Hosts), f.units.Text), Value: len(c.Hosts)}
	return f
}

type capacityFigures struct{ rate, bracket, low, high Cell }

func capacityCells(c results.Cell) capacityFigures {
	if c.Error != "" {
		return capacityFigures{rate: Cell{Text: "failed", Notes: []string{c.Error}}}
	}
	switch c.CapacityMethod {
	case results.MethodReplay:
		return capacityFigures{rate: Blank("a replay has its own times: no rate was searched for")}
	case results.MethodFixed:
		return capacityFigures{rate: Blank("one rate was asked for: no other was searched for")}
	}
	f := capacityFigures{rate: Rate(c.CapacityRPS), low: Rate(c.CapacityLow), high: Rate(c.CapacityHigh)}
	f.bracket = Text(f.low.Text + ".." + f.high.Text)
	if c.CapacityHigh == 0 {
		f.bracket, f.high = Text(">="+f.low.Text), Cell{}
		f.rate = f.rate.With("no rate was offered that the system could not serve: the capacity is at least this")
	}
	if c.CapacityRPS == 0 {
		f.rate = f.rate.With(broken(c.Steps)...)
	}
	return f
}

// broken says what broke the objective at the lowest rate that missed it.
func broken(steps []results.Step) []string {
	var lowest *results.Step
	for i, s := range steps {
		if s.SLOBroken != "" && (lowest == nil || s.OfferedRPS < lowest.OfferedRPS) {
			lowest = &steps[i]
		}
	}
	if lowest == nil {
		return nil
	}
	return []string{fmt.Sprintf("at %s rps already: %s", Rate(lowest.OfferedRPS).Text, lowest.SLOBroken)}
}

// gain is the ratio of two capacities of the table.
func gain(c results.Cell, before *results.Cell) Cell {
	switch {
	case c.Error != "" || before == nil || !c.Searched():
		return Cell{}
	case before.Error != "":
		return Blank("the stage before could not be measured")
	case before.CapacityRPS == 0:
		return Blank("the stage before has no capacity to compare with")
	}
	ratio := c.CapacityRPS / before.CapacityRPS
	cell := Cell{Text: "x" + significant(ratio, 2), Value: ratio}
	if !before.Valid {
		return cell.With("the stage before is not valid, so neither is the gain over it")
	}
	return cell
}

// referenceFigures are the latencies and errors at the rate that all stages
// share. Failures count as infinitely slow: errors never improve latency.
func referenceFigures(c results.Cell) (p50, p99, errors Cell) {
	if c.Error != "" {
		return Cell{}, Cell{}, Cell{}
	}
	if c.Reference == nil {
		missing := Blank("not measured at the reference rate")
		return missing, missing, missing
	}
	l := c.Reference.ResponseAll
	p50 = percentile(l.P50, l.Count, 0.50)
	p99 = percentile(l.P99, l.Count, 0.99)
	errors = Share(c.Reference.Ledger.ErrorRate())
	if c.Reference.Valid {
		return p50, p99, errors
	}
	doubt := "the step at the reference rate is not valid"
	if len(c.Reference.Warnings) > 0 {
		doubt += ": " + strings.Join(c.Reference.Warnings, "; ")
	}
	return p50.With(doubt), p99.With(doubt), errors.With(doubt)
}

// fewBeyond is how many samples have to lie beyond a percentile for it to be
// given.
const fewBeyond = 10

// percentile shows a percentile, or says why there is none.
func percentile(ns *int64, count int64, q float64) Cell {
	switch {
	case ns != nil:
		return Nanoseconds(*ns)
	case float64(count)*(1-q) < fewBeyond-1e-9: // 1000 * (1 - 0.99) is a little less than 10
		return Blank(fmt.Sprintf("fewer than %d samples lie beyond this percentile", fewBeyond))
	}
	return amongFailures()
}

func amongFailures() Cell { return Blank("lies among the failures, which count as infinitely slow") }

type limitFigures struct{ by, figure Cell }

func limitCells(c results.Cell) limitFigures {
	by := c.Limit.By
	if by == "" {
		by = c.LimitedBy
	}
	f := limitFigures{by: Text(by)}
	if c.Limit.Figure != "" {
		f.by.Text = fmt.Sprintf("%s (%s)", by, c.Limit.Figure)
		f.figure = Text(c.Limit.Figure)
	}
	return f
}

func validity(c results.Cell) Cell {
	cell := YesNo(c.Valid && c.Error == "").With(c.Warnings...)
	if c.Error != "" {
		cell = cell.With(c.Error)
	}
	return cell
}

// byWorkload keeps the order of the run within a workload.
func byWorkload(cells []results.Cell) []results.Cell {
	var workloads []string
	for _, c := range cells {
		if !slices.Contains(workloads, c.Workload) {
			workloads = append(workloads, c.Workload)
		}
	}
	sorted := slices.Clone(cells)
	slices.SortStableFunc(sorted, func(a, b results.Cell) int {
		return slices.Index(workloads, a.Workload) - slices.Index(workloads, b.Workload)
	})
	return sorted
}

func stageBefore(earlier []results.Cell, c results.Cell, varied []string) *results.Cell {
	for i := len(earlier) - 1; i >= 0; i-- {
		e := &earlier[i]
		if e.Stage != c.Stage && e.Workload == c.Workload && e.SLO == c.SLO && e.Driver == c.Driver &&
			agree(e.Engines, c.Engines) && pairs(e.Knobs, varied) == pairs(c.Knobs, varied) {
			return e
		}
	}
	return nil
}

// agree reports whether two maps have equal values wherever both have one: a
// stage adds roles, and these do not make it incomparable.
func agree(a, b map[string]string) bool {
	for key, value := range a {
		if other, both := b[key]; both && other != value {
			return false
		}
	}
	return true
}

// commonRate returns the reference rate, if there is one for all.
func commonRate(cells []results.Cell) (rate float64, common bool) {
	for _, c := range cells {
		switch {
		case c.Reference == nil:
		case !common:
			rate, common = c.Reference.OfferedRPS, true
		case rate != c.Reference.OfferedRPS:
			return 0, false
		}
	}
	return rate, common
}

// variedKnobs lists the knobs that have more than one value among the cells of one
// stage. Between stages some differ because the earlier one has no such hosts: that
// is what the stage adds, and not another configuration.
func variedKnobs(cells []results.Cell) []string {
	type knob struct{ stage, name string }
	first, varied := map[knob]string{}, map[string]bool{}
	for _, c := range cells {
		for name, value := range c.Knobs {
			k := knob{c.Stage, name}
			if other, seen := first[k]; seen && other != value {
				varied[name] = true
			}
			first[k] = value
		}
	}
	return slices.Sorted(maps.Keys(varied))
}

// commonEngines returns the engine of every role, if it is the same wherever
// the role occurs.
func commonEngines(cells []results.Cell) (engines map[string]string, common bool) {
	engines = map[string]string{}
	for _, c := range cells {
		if !agree(engines, c.Engines) {
			return nil, false
		}
		maps.Copy(engines, c.Engines)
	}
	return engines, true
}

func allPairs(m map[string]string) string { return pairs(m, slices.Sorted(maps.Keys(m))) }

// pairs writes "key=value key=value" for the given keys.
func pairs(m map[string]string, keys []string) string {
	var text []string
	for _, key := range keys {
		if value, has := m[key]; has {
			text = append(text, key+"="+value)
		}
	}
	return strings.Join(text, " ")
}

func isolation(cells []results.Cell) string {
	var open []string
	all := true
	for _, c := range cells {
		switch name := c.Stage + "/" + c.Workload; {
		case len(c.Hosts) == 0: // it was not brought up
		case c.Isolated():
			all = false
		case !slices.Contains(open, name):
			open = append(open, name)
		}
	}
	switch {
	case len(open) == 0:
		return ""
	case all:
		return "hosts: not isolated"
	}
	return "hosts: not isolated in " + strings.Join(open, ", ")
}

func ladderLegend(cells []results.Cell, at string, engines map[string]string, sameEngines bool) []string {
	legend := []string{
		"capacity: the highest offered rate that met the SLO and was confirmed by a longer step; bracket: " + bracketLegend(cells),
		"gain: capacity against the stage before; p50, p99: response time since the intended start, failures as infinitely slow",
	}
	if slices.ContainsFunc(cells, func(c results.Cell) bool { return len(c.ReferenceSteps()) > 1 }) {
		legend = append(legend, "the figures "+at+" are those of the last repeat; a repeat that is not valid there makes the cell invalid")
	}
	var slos, drivers []string
	for _, c := range cells {
		if c.SLO != "" && !slices.Contains(slos, c.SLO) {
			slos = append(slos, c.SLO)
		}
		if c.Driver != "" && !slices.Contains(drivers, c.Driver) {
			drivers = append(drivers, c.Driver)
		}
	}
	var setting []string
	if len(slos) > 0 {
		setting = append(setting, "SLO: "+strings.Join(slos, " or "))
	}
	if len(drivers) > 0 {
		setting = append(setting, "driver: "+strings.Join(drivers, ", "))
	}
	if sameEngines && len(engines) > 0 {
		setting = append(setting, "engines: "+allPairs(engines))
	}
	if len(setting) > 0 {
		legend = append(legend, strings.Join(setting, "; "))
	}
	return legend
}

// bracketLegend says what the bracket holds, which depends on how it was found.
func bracketLegend(cells []results.Cell) string {
	for _, c := range cells {
		if len(c.Repeats) > 1 {
			return "the lowest..the highest of all repeats"
		}
	}
	return "the highest that met it..the lowest that did not"
}
