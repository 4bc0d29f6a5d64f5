package table

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Ladder is the main table: the capacity, latency and limit of each stage, by
// workload. A cell is compared with the previous stage: the nearest earlier cell
// of another stage with the same workload, objective, driver, engines and varied
// knobs.
func Ladder(run results.Run) Table {
	cells := byWorkload(run.Cells)
	rate, common := commonRate(cells)
	varied := results.VariedKnobs(cells)
	engines, sameEngines := commonEngines(cells)

	latency, perRow := "Latency at "+Rate(rate).Text+" rps", Machines
	if !common {
		latency, perRow = "Latency at the reference rate", Everyone
	}
	rows := make([]ladderRow, len(cells))
	for i, c := range cells {
		rows[i] = ladderRow{Cell: c, varied: varied}
		if p := results.PreviousStage(cells, i); p >= 0 {
			rows[i].previous = &cells[p]
		}
	}
	work, workDocs := workColumns(rows)
	consistency, consistencyDocs := consistencyColumns(rows)
	t := newTable("Ladder", slices.Concat(
		ladderColumns(), in(latency, latencyOfCells(perRow)...), in(partLimits, limitColumns()...),
		in(partCost, costColumns()...), in(partWork, work...), in(partConsistency, consistency...),
	), rows, ladderLegend(run, cells, engines, sameEngines)...)
	t.PartLegend = map[string][]string{
		latency:         latencyLegend(cells),
		partCost:        {"unit: the CPU of the smallest host" + unitSize(cells)},
		partWork:        {strings.Join(workDocs, "; ")},
		partConsistency: {strings.Join(consistencyDocs, "; ")},
	}
	t.Notes = slices.Clone(run.Warnings)
	if sameEngines {
		t.setAudience(Machines, "engines")
	}
	if len(varied) == 0 {
		t.setAudience(Machines, "knobs")
	}
	if note := isolationNote(cells); note != "" {
		t.Notes = append(t.Notes, note)
	}
	if speed := results.SpeedOfMachine(cells); speed != "" {
		t.Notes = append(t.Notes, speed)
	}
	if !run.Complete {
		t.Notes = append(t.Notes, "the run is not complete: cells may be missing")
	}
	return t
}

// ladderRow is a cell of the run and the cell that it is compared with.
type ladderRow struct {
	results.Cell
	previous *results.Cell // cell of the previous stage; nil = none
	varied   []string      // knobs with more than one value within a stage
}

// measured returns the step at the reference rate, or a zero step.
func (r ladderRow) measured() results.Step {
	if r.Error != "" || r.Reference == nil {
		return results.Step{}
	}
	return *r.Reference
}

// The parts of the ladder, besides the latency.
const (
	partLimits      = "Limits"
	partCost        = "Cost"
	partWork        = "Work of the tiers at the reference rate"
	partConsistency = "Consistency at the reference rate"
)

func ladderColumns() []column[ladderRow] {
	return slices.Concat([]column[ladderRow]{
		identifying("stage", func(r ladderRow) Cell { return Text(r.Stage) }),
		identifying("workload", func(r ladderRow) Cell { return Text(r.Workload) }),
		identifying("engines", func(r ladderRow) Cell { return Text(allPairs(r.Engines)) }),
		identifying("knobs", func(r ladderRow) Cell { return Text(pairs(r.Knobs, r.varied)) }),
		machineOnly("driver", func(r ladderRow) Cell { return Text(r.Driver) }),
	}, capacityColumns("gain", ladderRow.gain, func(r ladderRow) ladderRow { return r }), []column[ladderRow]{
		numbers("peak\nrps", "peak_rps", func(r ladderRow) Cell {
			if r.PeakRPS == 0 {
				return Cell{}
			}
			return Rate(r.PeakRPS)
		}),
		words("limited by", "limited_by", func(r ladderRow) Cell {
			return r.ifLookedFor(Text(cmp.Or(r.Limit.By, r.LimitedBy)))
		}),
		words("valid", "", ladderRow.valid),
		machineOnly("error", func(r ladderRow) Cell { return textOrNothing(r.Error) }),
	})
}

// capacityColumns returns the columns of the capacity and of its gain over another one. Of is the cell of a row.
func capacityColumns[R any](gain string, gained func(R) Cell, of func(R) ladderRow) []column[R] {
	return []column[R]{
		numbers("capacity\nrps", "capacity_rps", func(r R) Cell { return of(r).capacity() }),
		{Column{Name: "90 % interval\nrps", Align: Right, For: People}, func(r R) Cell { return of(r).interval() }},
		machineOnly("capacity_low", func(r R) Cell { return of(r).ifFound(Rate(of(r).CapacityLow)) }),
		machineOnly("capacity_high", func(r R) Cell {
			if of(r).CapacityHigh == 0 {
				return Cell{}
			}
			return of(r).ifFound(Rate(of(r).CapacityHigh))
		}),
		numbers(gain, "gain", gained),
		machineOnly("gain_low", func(r R) Cell { return gainEnd(of(r).Gain, func(g results.Gain) float64 { return g.Low }) }),
		machineOnly("gain_high", func(r R) Cell {
			return gainEnd(of(r).Gain, func(g results.Gain) float64 { return g.High })
		}),
	}
}

// latencyOfCells returns the columns of the step at the reference rate. PerRow is who sees its rate in each row.
func latencyOfCells(perRow Audience) []column[ladderRow] {
	return []column[ladderRow]{
		{Column{Name: "reference\nrps", Key: "reference_rps", Align: Right, For: perRow}, func(r ladderRow) Cell {
			if r.Reference == nil {
				return Cell{}
			}
			return Rate(r.Reference.OfferedRPS)
		}},
		numbers("p50 ms", "p50_ns", atReference(func(s results.Step) Cell { return p50(s.ResponseAll) })),
		numbers("p90 ms", "p90_ns", atReference(func(s results.Step) Cell {
			return percentile(s.ResponseAll.P90, s.ResponseAll.Count, 0.90)
		})),
		numbers("p99 ms", "p99_ns", atReference(func(s results.Step) Cell { return p99(s.ResponseAll) })),
		numbers("errors", "errors_share", atReference(func(s results.Step) Cell {
			return Share(s.Ledger.ErrorRate())
		})),
	}
}

func limitColumns() []column[ladderRow] {
	return []column[ladderRow]{
		{Column{Name: "limited by", For: People}, func(r ladderRow) Cell {
			return r.ifLookedFor(textOrNothing(r.Limit.By))
		}},
		words("evidence", "limited_by_figure", func(r ladderRow) Cell {
			return r.ifLookedFor(textOrNothing(r.Limit.Figure))
		}),
		words("next limit", "next_limit", func(r ladderRow) Cell {
			if r.Limit.Next == "" {
				return Cell{}
			}
			text := fmt.Sprintf("%s (%s of its CPU)", r.Limit.Next, percent(r.Limit.NextCPUShare))
			return Cell{Text: text, Value: r.Limit.Next}
		}),
	}
}

func costColumns() []column[ladderRow] {
	return []column[ladderRow]{
		numbers("hosts", "", func(r ladderRow) Cell { return r.ifUp(Count(int64(len(r.Hosts)))) }),
		numbers("units", "", func(r ladderRow) Cell { return r.ifUp(Number(r.Units)) }),
		numbers("capacity\nper unit", "capacity_per_unit", func(r ladderRow) Cell {
			if r.Units == 0 || r.CapacityRPS == 0 {
				return Cell{}
			}
			return r.ifFound(Rate(r.CapacityRPS / r.Units))
		}),
		machineOnly("isolated", func(r ladderRow) Cell {
			if !r.Measured() {
				return Cell{}
			}
			return YesNo(r.Isolated())
		}),
	}
}

// ifUp returns the table cell, or an empty one if the system was not brought up.
func (r ladderRow) ifUp(c Cell) Cell {
	if len(r.Hosts) == 0 {
		return Cell{}
	}
	return c
}

// ifLookedFor returns the table cell, for people an empty one if no limit was looked for.
func (r ladderRow) ifLookedFor(c Cell) Cell {
	if !r.Searched() {
		c.Text = ""
	}
	return c
}

// valid says whether the figures of the row can be trusted, and why not.
func (r ladderRow) valid() Cell {
	cell := YesNo(r.Valid && r.Error == "").With(doubts(r.Invalid, r.Warnings)...)
	if r.Error != "" {
		cell = cell.With(r.Error)
	}
	return cell
}

// ifFound returns the table cell, or an empty one if there is no capacity.
func (r ladderRow) ifFound(c Cell) Cell {
	if r.Error != "" || !r.Searched() {
		return Cell{}
	}
	return c
}

func (r ladderRow) capacity() Cell {
	switch {
	case r.Error != "":
		return Cell{Text: "failed", Notes: []string{r.Error}, Bad: true}
	case r.CapacityMethod == results.MethodReplay:
		return Blank("a trace was replayed at its own times: there was no capacity search")
	case r.CapacityMethod == results.MethodFixed:
		return Blank("measured at one fixed rate: there was no capacity search")
	case r.CapacityRPS == 0 && r.CapacityHigh == 0:
		return Blank("the measurement ended before a step around the capacity")
	}
	rate := Rate(r.CapacityRPS)
	if r.CapacityHigh == 0 {
		rate = rate.With("every offered rate met the SLO: the capacity is at least this")
	}
	if r.CapacityRPS == 0 {
		rate = rate.With(broken(r.Steps)...)
	}
	return rate
}

func (r ladderRow) interval() Cell {
	low := Rate(r.CapacityLow).Text
	switch {
	case r.CapacityLow == 0 && r.CapacityHigh == 0:
		return Cell{}
	case r.CapacityHigh == 0:
		return r.ifFound(Text(">=" + low))
	case r.CapacityLow == 0:
		return r.ifFound(Text("<" + Rate(r.CapacityHigh).Text))
	}
	return r.ifFound(Text(low + ".." + Rate(r.CapacityHigh).Text))
}

// broken returns why the lowest rate that missed the objective missed it.
func broken(steps []results.Step) []string {
	var lowest *results.Step
	for i, s := range steps {
		if s.SLOBroken != "" && !s.Repeated && (lowest == nil || s.OfferedRPS < lowest.OfferedRPS) {
			lowest = &steps[i]
		}
	}
	if lowest == nil {
		return nil
	}
	return []string{fmt.Sprintf("missed even at %s rps: %s", Rate(lowest.OfferedRPS).Text, lowest.SLOBroken)}
}

// gain is the capacity divided by that of the previous stage, with its 90 % interval.
func (r ladderRow) gain() Cell {
	switch {
	case r.Error != "" || r.previous == nil || !r.Searched():
		return Cell{}
	case r.previous.Error != "":
		return Blank("the previous stage could not be measured")
	case r.Gain == nil:
		return Blank("this stage or the previous one has no capacity to compare")
	}
	cell := gain(*r.Gain)
	if !r.previous.Valid {
		return cell.With("the previous stage is not valid, so the gain is not valid either")
	}
	return cell
}

func gain(g results.Gain) Cell {
	interval := significant(g.Low, 2) + ".." + significant(g.High, 2)
	return Cell{Text: "x" + significant(g.Ratio, 2) + " (" + interval + ")", Value: g.Ratio}
}

func gainEnd(g *results.Gain, end func(results.Gain) float64) Cell {
	if g == nil {
		return Cell{}
	}
	return Number(end(*g))
}

// atReference makes cells from the step at the reference rate, with the warnings of this step.
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
		note := "the step at the reference rate is not valid"
		if len(r.Reference.Warnings) > 0 {
			note += ": " + strings.Join(r.Reference.Warnings, "; ")
		}
		return cell(*r.Reference).With(note)
	}
}

// byWorkload groups the cells by workload. The groups and the cells within them keep the order of the run.
func byWorkload(cells []results.Cell) []results.Cell {
	first := func(c results.Cell) int {
		return slices.IndexFunc(cells, func(other results.Cell) bool { return other.Workload == c.Workload })
	}
	return slices.SortedStableFunc(slices.Values(cells), func(a, b results.Cell) int { return first(a) - first(b) })
}

// commonRate returns the reference rate if all cells have the same one.
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

// commonEngines returns the engine of each role if it is the same in all cells.
func commonEngines(cells []results.Cell) (engines map[string]string, common bool) {
	engines = map[string]string{}
	for _, c := range cells {
		if !results.Agree(engines, c.Engines) {
			return nil, false
		}
		maps.Copy(engines, c.Engines)
	}
	return engines, true
}

func allPairs(m map[string]string) string { return pairs(m, slices.Sorted(maps.Keys(m))) }

// pairs returns "key=value key=value" for the given keys.
func pairs(m map[string]string, keys []string) string {
	var text []string
	for _, key := range keys {
		if value, has := m[key]; has {
			text = append(text, key+"="+value)
		}
	}
	return strings.Join(text, " ")
}

func isolationNote(cells []results.Cell) string {
	var notIsolated []string
	all := true
	for _, c := range cells {
		switch name := c.Stage + "/" + c.Workload; {
		case !c.Measured(): // it is not known
		case c.Isolated():
			all = false
		case !slices.Contains(notIsolated, name):
			notIsolated = append(notIsolated, name)
		}
	}
	switch {
	case len(notIsolated) == 0:
		return ""
	case all:
		return "hosts: not isolated"
	}
	return "hosts: not isolated in " + strings.Join(notIsolated, ", ")
}

// unitSize returns the size of a unit: ", 0.1 cores"; "" if it is unknown.
func unitSize(cells []results.Cell) string {
	for _, c := range cells {
		cores := 0.0
		for _, h := range c.Hosts {
			cores += h.CPU
		}
		if c.Units > 0 && cores > 0 {
			return ", " + trimmed(cores/c.Units, 2) + " cores"
		}
	}
	return ""
}

// latencyLegend explains the latency columns, and names what makes them repeatable: the warm-up, and the ops.
func latencyLegend(cells []results.Cell) []string {
	legend := []string{"p50, p99: response time from the intended start; failures count as infinitely slow"}
	var cut int64
	for _, c := range cells {
		cut = max(cut, c.WarmupCutNS)
	}
	if cut > 0 {
		legend = append(legend, "before it, up to "+Number(float64(cut)/1e9).Text+" s of warm-up are cut off")
	}
	return append(legend, sequences(cells)...)
}

// sequences returns the hashes of the ops at the reference rate, by workload. If the stages of a workload had different
// ops, because a step was repeated, it is left out.
func sequences(cells []results.Cell) (legend []string) {
	hashes := map[string]string{}
	for _, c := range cells {
		if c.Reference == nil || c.Reference.OpsHash == "" {
			continue
		}
		if known, has := hashes[c.Workload]; has && known != c.Reference.OpsHash {
			hashes[c.Workload] = ""
			continue
		}
		hashes[c.Workload] = c.Reference.OpsHash
	}
	for _, workload := range slices.Sorted(maps.Keys(hashes)) {
		if hashes[workload] != "" {
			legend = append(legend, "op sequence of "+workload+": "+hashes[workload])
		}
	}
	return legend
}

func ladderLegend(
	run results.Run, cells []results.Cell, engines map[string]string, sameEngines bool,
) []string {
	var legend []string
	if slices.ContainsFunc(cells, results.Cell.Searched) {
		legend = []string{
			"capacity: the highest offered rate at which the SLO is met over a long time; " +
				"peak: successes per second while more is offered",
			"gain: capacity divided by that of the previous stage, which was measured in turn with this one",
		}
	}
	setting := []string{
		distinct("SLO: ", " or ", cells, func(c results.Cell) string { return c.SLO }),
		distinct("driver: ", ", ", cells, func(c results.Cell) string { return c.Driver }),
		distinct("late ops are sent: ", ", ", cells, func(c results.Cell) string {
			if c.Reference == nil {
				return ""
			}
			return c.Reference.CatchUp
		}),
	}
	if sameEngines && len(engines) > 0 {
		setting = append(setting, "engines: "+allPairs(engines))
	}
	if run.Data != "" {
		setting = append(setting, "data: "+run.Data)
	}
	setting = slices.DeleteFunc(setting, func(s string) bool { return s == "" })
	if len(setting) > 0 {
		legend = append(legend, strings.Join(setting, "; "))
	}
	return legend
}

// distinct returns a label and the distinct texts of the cells, "" if there are none.
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
