// Package compare compares runs: their figures cell by cell, with a verdict on
// each difference, and their manifests.
//
// It is pure: it reads no file and prints nothing. The first run is the base of all ratios.
//
// Every capacity has a 90 % interval, from the spread of the visits of its cell. The
// runs are independent, so the logarithm of the ratio of two capacities has the sum of
// their variances. "No difference shown" is a valid result.
package compare

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Run is one run with its manifest.
type Run struct {
	results.Run
	Manifest results.Manifest
	Name     string // as the user wrote it; "" = the id
	Tool     string // that measured it; "" = stagebench
}

// Comparison is the result of Compare.
type Comparison struct {
	Runs        []string // names, the base first
	Complete    []bool   // by run
	Rows        []Row
	Differences []Difference
	// Service says that the latencies are service times, because a run has no response times: another tool measured it.
	Service bool
}

// Row is one configuration and workload in every run.
type Row struct {
	Stage, Workload string
	Knobs           string          // knobs that are not equal in all cells, "name=value ..."
	Cells           []*results.Cell // by run; nil = the run has no such cell
	Capacity        []Ratio         // by run, relative to the base; the first is the base itself
	P50, P95, P99   []Ratio         // the same for response times at the reference rate, or for service times
}

// Verdict is the conclusion from a ratio.
type Verdict string

// The verdicts.
const (
	Base         Verdict = "base"
	Higher       Verdict = "higher"
	Lower        Verdict = "lower"
	NoDifference Verdict = "no difference shown"
	NotJudged    Verdict = "not judged" // no interval, a single visit, or a cell is not valid
	NotCompared  Verdict = "not compared"
)

// Ratio is a figure of a run divided by that of the base.
type Ratio struct {
	Value float64 // 0 = none
	// Low and High are the 90 % interval; both are 0 if it is unknown.
	Low, High float64
	Visits    int // visits behind the interval, of the run with fewer ones; 0 = no interval
	Verdict   Verdict
	Why       string // why there is no comparison, or a warning about it
}

// Compare compares all runs with the first one.
func Compare(runs []Run) Comparison {
	var c Comparison
	for _, r := range runs {
		c.Runs = append(c.Runs, cmp.Or(r.Name, r.Manifest.Run))
		c.Complete = append(c.Complete, r.Complete)
	}
	if !slices.ContainsFunc(runs, func(r Run) bool { return r.Tool != "" }) { // files of other tools have no manifest
		c.Differences = differences(runs)
	}
	c.Service = slices.ContainsFunc(runs, withoutResponse)
	for _, row := range align(runs, variedKnobs(runs)) {
		base := row.Cells[0]
		row.Capacity = []Ratio{itself(base != nil && base.Searched() && base.CapacityRPS > 0)}
		for _, cell := range row.Cells[1:] {
			row.Capacity = append(row.Capacity, capacity(base, cell))
		}
		for _, p := range []struct {
			ratios *[]Ratio
			of     func(results.Latency) *int64
		}{
			{&row.P50, func(l results.Latency) *int64 { return l.P50 }},
			{&row.P95, func(l results.Latency) *int64 { return l.P95 }},
			{&row.P99, func(l results.Latency) *int64 { return l.P99 }},
		} {
			of := func(cell *results.Cell) *int64 { return p.of(c.Latency(cell)) }
			*p.ratios = []Ratio{itself(of(base) != nil)}
			for _, cell := range row.Cells[1:] {
				*p.ratios = append(*p.ratios, latency(base, cell, of))
			}
		}
		c.Rows = append(c.Rows, row)
	}
	return c
}

// withoutResponse reports whether a run has service times only.
func withoutResponse(r Run) bool {
	return r.Tool != "" && slices.ContainsFunc(r.Cells, func(c results.Cell) bool {
		return c.Reference != nil && c.Reference.ResponseAll.Count == 0
	})
}

// Latency returns the compared distribution of a cell at the reference rate; empty for a cell without one.
func (c Comparison) Latency(cell *results.Cell) results.Latency {
	switch {
	case cell == nil || cell.Reference == nil:
		return results.Latency{}
	case c.Service:
		return cell.Reference.ServiceNS
	}
	return cell.Reference.ResponseAll
}

// itself returns the ratio of the base to itself: 1 if it has the figure.
func itself(has bool) Ratio {
	if !has {
		return Ratio{Verdict: Base}
	}
	return Ratio{Value: 1, Verdict: Base}
}

// align puts equal cells of all runs into one row. Cells are equal if they have
// the same stage, workload and knobs. A knob with one value within each run is
// ignored: the comparison of two runs that differ in it is the purpose. A run of another
// tool has one cell, whose workload is not known. It shares a row with the only cell of
// each other run.
func align(runs []Run, varied []string) []Row {
	type key struct{ stage, workload, variant, knobs string }
	var rows []Row
	places := map[key]int{}
	alone := slices.ContainsFunc(runs, func(r Run) bool { return r.Tool != "" }) &&
		!slices.ContainsFunc(runs, func(r Run) bool { return len(r.Cells) != 1 })
	for i, run := range runs {
		for j := range run.Cells {
			cell := &run.Cells[j]
			k := key{cell.Stage, cell.Workload, cell.Variant, distinctKnobs(run, cell)}
			if alone {
				k = key{}
			}
			place, known := places[k]
			if !known {
				place = len(rows)
				places[k] = place
				row := Row{Stage: cell.Stage, Workload: cell.Workload, Cells: make([]*results.Cell, len(runs))}
				rows = append(rows, row)
			}
			rows[place].Cells[i] = cell
		}
	}
	for i := range rows {
		rows[i].Knobs = shownKnobs(rows[i].Cells, varied)
	}
	return rows
}

// distinctKnobs returns the knobs in which the cell differs from other cells of
// its run with the same stage and workload.
func distinctKnobs(run Run, cell *results.Cell) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(cell.Knobs)) {
		for _, other := range run.Cells {
			if other.Stage == cell.Stage && other.Workload == cell.Workload && other.Knobs[name] != cell.Knobs[name] {
				parts = append(parts, name+"="+cell.Knobs[name])
				break
			}
		}
	}
	return strings.Join(parts, " ")
}

// variedKnobs lists the knobs with more than one value over all cells.
func variedKnobs(runs []Run) []string {
	first, varied := map[string]string{}, map[string]bool{}
	for _, run := range runs {
		for _, cell := range run.Cells {
			for name, value := range cell.Knobs {
				if other, seen := first[name]; seen && other != value {
					varied[name] = true
				}
				first[name] = value
			}
		}
	}
	return slices.Sorted(maps.Keys(varied))
}

// shownKnobs returns the varied knobs of a row: one value if its cells agree,
// otherwise one value per run.
func shownKnobs(cells []*results.Cell, varied []string) string {
	var parts []string
	for _, name := range varied {
		var values []string
		for _, cell := range cells {
			value := "-"
			if cell != nil {
				value = cmp.Or(cell.Knobs[name], "-")
			}
			values = append(values, value)
		}
		if !differ(values) {
			values = values[:1]
		}
		parts = append(parts, name+"="+strings.Join(values, "|"))
	}
	return strings.Join(parts, " ")
}

// comparable reports whether two cells can be compared. If not, why is the
// reason, otherwise a warning about the comparison.
func comparable(base, cell *results.Cell) (why string, ok bool) {
	switch {
	case base == nil:
		return "the base has no such cell", false
	case cell == nil:
		return "the run has no such cell", false
	case base.Error != "":
		return "the base's cell failed: " + base.Error, false
	case cell.Error != "":
		return "the cell failed: " + cell.Error, false
	}
	var doubts []string
	if !base.Valid {
		doubts = append(doubts, "the base's cell is not valid")
	}
	if !cell.Valid {
		doubts = append(doubts, "the cell is not valid")
	}
	return strings.Join(doubts, "; "), true
}

// capacity compares the capacities of two cells.
func capacity(base, cell *results.Cell) Ratio {
	why, ok := comparable(base, cell)
	switch {
	case !ok:
		return Ratio{Verdict: NotCompared, Why: why}
	case !base.Searched() || base.CapacityRPS == 0:
		return Ratio{Verdict: NotCompared, Why: "the base has no capacity"}
	case !cell.Searched():
		return Ratio{Verdict: NotCompared, Why: "the run did not search for a capacity"}
	case base.SLO != cell.SLO:
		return Ratio{Verdict: NotCompared, Why: "another objective: " + base.SLO + " and " + cell.SLO}
	}
	if !base.HasInterval() || !cell.HasInterval() {
		return Ratio{Verdict: NotCompared, Why: joined(why, "one of the capacities has no interval: "+
			"no rate met the objective, or none missed it, or an older stagebench measured it")}
	}
	r := Ratio{Value: cell.CapacityRPS / base.CapacityRPS, Why: why}
	r.Visits = min(len(base.Repeats), len(cell.Repeats))
	r.Low = r.Value / both(cell.CapacityRPS/cell.CapacityLow, base.CapacityHigh/base.CapacityRPS)
	r.High = r.Value * both(cell.CapacityHigh/cell.CapacityRPS, base.CapacityRPS/base.CapacityLow)
	switch {
	case !base.Valid || !cell.Valid:
		r.Verdict = NotJudged
	case r.Visits < 2:
		r.Verdict, r.Why = NotJudged, joined(why, "measured in a single visit, as with --quick")
	case r.Low > 1:
		r.Verdict = Higher
	case r.High < 1:
		r.Verdict = Lower
	default:
		r.Verdict = NoDifference
	}
	return r
}

// both returns the factor of a product of two independent figures that are uncertain by these factors.
func both(a, b float64) float64 { return math.Exp(math.Hypot(math.Log(a), math.Log(b))) }

// latency compares a percentile at the reference rate.
func latency(base, cell *results.Cell, of func(*results.Cell) *int64) Ratio {
	why, ok := comparable(base, cell)
	switch {
	case !ok:
		return Ratio{Verdict: NotCompared, Why: why}
	case base.Reference == nil || cell.Reference == nil:
		return Ratio{Verdict: NotCompared, Why: "not measured at a reference rate"}
	}
	b, c := base.Reference, cell.Reference
	switch offered := b.OfferedRPS > 0 && c.OfferedRPS > 0; {
	case offered && math.Abs(b.OfferedRPS-c.OfferedRPS) > 0.001*b.OfferedRPS:
		return Ratio{Verdict: NotCompared, Why: fmt.Sprintf("measured at %.0f/s and %.0f/s: "+
			"latencies at different rates cannot be compared", b.OfferedRPS, c.OfferedRPS)}
	case !offered && math.Abs(b.SentRPS-c.SentRPS) > 0.02*b.SentRPS: // other tools do not say what they offered
		why = joined(why, fmt.Sprintf("sent at different rates, %.0f/s and %.0f/s", b.SentRPS, c.SentRPS))
	}
	from, to := of(base), of(cell)
	if from == nil || to == nil || *from == 0 {
		return Ratio{Verdict: NotCompared, Why: "a run does not have the percentile, it has too few samples beyond it, " +
			"or its value is that of a failed request"}
	}
	why = joined(why, "no interval: it comes from one joined measurement per run")
	return Ratio{Value: float64(*to) / float64(*from), Verdict: NotJudged, Why: why}
}

func joined(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), "; ")
}
