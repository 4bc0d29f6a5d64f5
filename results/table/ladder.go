package table

import (
	"cmp"
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
	rows := make([]ladderRow, len(cells))
	for i, c := range cells {
		rows[i] = ladderRow{c, stageBefore(cells[:i], c, varied), varied}
	}
	more, moreLegend := extras(rows, at)
	legend := append(ladderLegend(cells, at, engines, sameEngines), moreLegend...)
	t := newTable("Ladder", slices.Concat(ladderColumns(at, perRow), more, verdictColumns()), rows, legend...)
	t.Notes = slices.Clone(run.Warnings)
	if sameEngines {
		t.setAudience(Machines, "engines")
	}
	if len(varied) == 0 {
		t.setAudience(Machines, "knobs")
	}
	if note := isolation(cells); note != "" {
		t.Notes = append(t.Notes, note)
	}
	if !run.Complete {
		t.Notes = append(t.Notes, "the run is not complete: cells may be missing")
	}
	return t
}

// ladderRow is a cell of the run with what it is compared with.
type ladderRow struct {
	results.Cell
	before *results.Cell // the stage before; nil = none
	varied []string      // knobs that tell the cells of the run apart
}

// measured is the step at the reference rate, the zero step where there is none.
func (r ladderRow) measured() results.Step {
	if r.Error != "" || r.Reference == nil {
		return results.Step{}
	}
	return *r.Reference
}

func ladderColumns(at string, perRow Audience) []column[ladderRow] {
	return []column[ladderRow]{
		words("stage", "", func(r ladderRow) Cell { return Text(r.Stage) }),
		words("workload", "", func(r ladderRow) Cell { return Text(r.Workload) }),
		words("engines", "", func(r ladderRow) Cell { return Text(allPairs(r.Engines)) }),
		words("knobs", "", func(r ladderRow) Cell { return Text(pairs(r.Knobs, r.varied)) }),
		machineOnly("driver", func(r ladderRow) Cell { return Text(r.Driver) }),
		numbers("hosts\n(units)", "hosts", func(r ladderRow) Cell {
			return r.ifUp(Cell{Text: fmt.Sprintf("%d (%s)", len(r.Hosts), Number(r.Units).Text), Value: len(r.Hosts)})
		}),
		machineOnly("units", func(r ladderRow) Cell { return r.ifUp(Number(r.Units)) }),
		machineOnly("isolated", func(r ladderRow) Cell { return r.ifUp(YesNo(r.Isolated())) }),
		numbers("capacity\nrps", "capacity_rps", ladderRow.capacity),
		{Column{Name: "bracket\nrps", Align: Right, For: People}, ladderRow.bracket},
		machineOnly("capacity_low", func(r ladderRow) Cell { return r.ifFound(Rate(r.CapacityLow)) }),
		machineOnly("capacity_high", func(r ladderRow) Cell {
			if r.CapacityHigh == 0 {
				return Cell{}
			}
			return r.ifFound(Rate(r.CapacityHigh))
		}),
		numbers("gain", "", ladderRow.gain),
		{Column{Name: "reference\nrps", Key: "reference_rps", Align: Right, For: perRow}, func(r ladderRow) Cell {
			if r.Reference == nil {
				return Cell{}
			}
			return Rate(r.Reference.OfferedRPS)
		}},
		numbers("p50 ms\n"+at, "p50_ns", atReference(func(s results.Step) Cell { return p50(s.ResponseAll) })),
		numbers("p99 ms\n"+at, "p99_ns", atReference(func(s results.Step) Cell { return p99(s.ResponseAll) })),
		numbers("errors\n"+at, "errors_share", atReference(func(s results.Step) Cell {
			return Share(s.Ledger.ErrorRate())
		})),
	}
}

func verdictColumns() []column[ladderRow] {
	return []column[ladderRow]{
		words("limited by", "limited_by", func(r ladderRow) Cell {
			by := cmp.Or(r.Limit.By, r.LimitedBy)
			cell := Text(by)
			if r.Limit.Figure != "" {
				cell.Text = fmt.Sprintf("%s (%s)", by, r.Limit.Figure)
			}
			return cell
		}),
		machineOnly("limited_by_figure", func(r ladderRow) Cell { return textOrNothing(r.Limit.Figure) }),
		words("valid", "", func(r ladderRow) Cell {
			cell := YesNo(r.Valid && r.Error == "").With(r.Warnings...)
			if r.Error != "" {
				cell = cell.With(r.Error)
			}
			return cell
		}),
		machineOnly("error", func(r ladderRow) Cell { return textOrNothing(r.Error) }),
	}
}

// ifUp is blank for a cell that was never brought up.
func (r ladderRow) ifUp(c Cell) Cell {
	if len(r.Hosts) == 0 {
		return Cell{}
	}
	return c
}

// ifFound is blank for a cell without a capacity.
func (r ladderRow) ifFound(c Cell) Cell {
	if r.Error != "" || !r.Searched() {
		return Cell{}
	}
	return c
}

func (r ladderRow) capacity() Cell {
	switch {
	case r.Error != "":
		return Cell{Text: "failed", Notes: []string{r.Error}}
	case r.CapacityMethod == results.MethodReplay:
		return Blank("a replay has its own times: no rate was searched for")
	case r.CapacityMethod == results.MethodFixed:
		return Blank("one rate was asked for: no other was searched for")
	}
	rate := Rate(r.CapacityRPS)
	if r.CapacityHigh == 0 {
		rate = rate.With("no rate was offered that the system could not serve: the capacity is at least this")
	}
	if r.CapacityRPS == 0 {
		rate = rate.With(broken(r.Steps)...)
	}
	return rate
}

func (r ladderRow) bracket() Cell {
	low := Rate(r.CapacityLow).Text
	if r.CapacityHigh == 0 {
		return r.ifFound(Text(">=" + low))
	}
	return r.ifFound(Text(low + ".." + Rate(r.CapacityHigh).Text))
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
func (r ladderRow) gain() Cell {
	switch {
	case r.Error != "" || r.before == nil || !r.Searched():
		return Cell{}
	case r.before.Error != "":
		return Blank("the stage before could not be measured")
	case r.before.CapacityRPS == 0:
		return Blank("the stage before has no capacity to compare with")
	}
	ratio := r.CapacityRPS / r.before.CapacityRPS
	cell := Cell{Text: "x" + significant(ratio, 2), Value: ratio}
	if !r.before.Valid {
		return cell.With("the stage before is not valid, so neither is the gain over it")
	}
	return cell
}

// atReference shows a figure at the rate that all stages share, with the doubts about that step. Failures count
// as infinitely slow: errors never improve latency.
func atReference(cell func(results.Step) Cell) func(ladderRow) Cell {
	return func(r ladderRow) Cell {
		switch {
		case r.Error != "":
			return Cell{}
		case r.Reference == nil:
			return Blank("not measured at the reference rate")
		case r.Reference.Valid:
			return cell(*r.Reference)
		}
		doubt := "the step at the reference rate is not valid"
		if len(r.Reference.Warnings) > 0 {
			doubt += ": " + strings.Join(r.Reference.Warnings, "; ")
		}
		return cell(*r.Reference).With(doubt)
	}
}

// byWorkload sorts by the first appearance of a workload, and keeps the order of the run within it.
func byWorkload(cells []results.Cell) []results.Cell {
	first := func(c results.Cell) int {
		return slices.IndexFunc(cells, func(other results.Cell) bool { return other.Workload == c.Workload })
	}
	return slices.SortedStableFunc(slices.Values(cells), func(a, b results.Cell) int { return first(a) - first(b) })
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
		"capacity: the highest offered rate that met the SLO and was confirmed by a longer step; " +
			"bracket: " + bracketLegend(cells),
		"gain: capacity against the stage before; " +
			"p50, p99: response time since the intended start, failures as infinitely slow",
	}
	if slices.ContainsFunc(cells, func(c results.Cell) bool { return len(c.ReferenceSteps()) > 1 }) {
		legend = append(legend, "the figures "+at+" are those of the last repeat; "+
			"a repeat that is not valid there makes the cell invalid")
	}
	setting := []string{
		distinct("SLO: ", " or ", cells, func(c results.Cell) string { return c.SLO }),
		distinct("driver: ", ", ", cells, func(c results.Cell) string { return c.Driver }),
	}
	if sameEngines && len(engines) > 0 {
		setting = append(setting, "engines: "+allPairs(engines))
	}
	setting = slices.DeleteFunc(setting, func(s string) bool { return s == "" })
	if len(setting) > 0 {
		legend = append(legend, strings.Join(setting, "; "))
	}
	return legend
}

// distinct lists the different texts of some cells after a label, nothing where there are none.
func distinct(label, separator string, cells []results.Cell, of func(results.Cell) string) string {
	var texts []string
	for _, c := range cells {
		if text := of(c); text != "" && !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	if len(texts) == 0 {
		return ""
	}
	return label + strings.Join(texts, separator)
}

// bracketLegend says what the bracket holds, which depends on how it was found.
func bracketLegend(cells []results.Cell) string {
	if slices.ContainsFunc(cells, func(c results.Cell) bool { return len(c.Repeats) > 1 }) {
		return "the lowest..the highest of all repeats"
	}
	return "the highest that met it..the lowest that did not"
}
