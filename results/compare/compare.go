// Package compare compares runs: their figures cell by cell, with a verdict on
// each difference, and their manifests.
//
// It is pure: it reads no file, prints nothing, and its random numbers come from
// the caller's seed. The first run is the base of all ratios.
//
// A search finds a bracket for a capacity, not a value. A ratio gets a confidence
// interval only if there are enough repeats, each with restarted processes. The
// interval is never narrower than the brackets. Otherwise the brackets decide: if
// those of two runs overlap, the verdict is "no difference shown"; if they do not
// overlap, the verdict is a difference, but without a probability. "No difference
// shown" is a valid result.
package compare

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Run is one run with its manifest.
type Run struct {
	results.Run
	Manifest results.Manifest
}

// Comparison is the result of Compare.
type Comparison struct {
	Runs        []string // ids, the base first
	Rows        []Row
	Differences []Difference
}

// Row is one configuration and workload in every run.
type Row struct {
	Stage, Workload string
	Knobs           string          // knobs that are not equal in all cells, "name=value ..."
	Cells           []*results.Cell // by run; nil = the run has no such cell
	Capacity        []Ratio         // by run, relative to the base; the first is the base itself
	P50, P99        []Ratio         // the same for response times at the reference rate
}

// Verdict is the conclusion from a ratio.
type Verdict string

// The verdicts.
const (
	Base         Verdict = "base"
	Higher       Verdict = "higher"
	Lower        Verdict = "lower"
	NoDifference Verdict = "no difference shown"
	NotJudged    Verdict = "not judged" // one sample per run
	NotCompared  Verdict = "not compared"
)

// Ratio is a figure of a run divided by that of the base.
type Ratio struct {
	Value float64 // 0 = none
	// Low and High are the 95 % confidence interval (see bootstrap), or the range
	// that the brackets allow. Both are 0 if unknown.
	Low, High float64
	// Repeats is the number of repeats behind the confidence interval, the smaller
	// one of the two runs. 0 = Low and High are no confidence interval.
	Repeats int
	Verdict Verdict
	Why     string // why there is no comparison, or a warning about it
}

// Compare compares all runs with the first one. The seed is for the resampling.
func Compare(runs []Run, seed uint64) Comparison {
	var c Comparison
	for _, r := range runs {
		c.Runs = append(c.Runs, r.Manifest.Run)
	}
	c.Differences = differences(runs)
	for _, row := range align(runs, variedKnobs(runs)) {
		base, self := row.Cells[0], Ratio{Value: 1, Verdict: Base}
		row.Capacity, row.P50, row.P99 = []Ratio{self}, []Ratio{self}, []Ratio{self}
		for _, cell := range row.Cells[1:] {
			row.Capacity = append(row.Capacity, capacity(base, cell, seed))
			row.P50 = append(row.P50, latency(base, cell, func(l results.Latency) *int64 { return l.P50 }))
			row.P99 = append(row.P99, latency(base, cell, func(l results.Latency) *int64 { return l.P99 }))
		}
		c.Rows = append(c.Rows, row)
	}
	return c
}

// align puts equal cells of all runs into one row. Cells are equal if they have
// the same stage, workload and knobs. A knob with one value within each run is
// ignored: the comparison of two runs that differ in it is the purpose.
func align(runs []Run, varied []string) []Row {
	type key struct{ stage, workload, knobs string }
	var rows []Row
	places := map[key]int{}
	for i, run := range runs {
		for j := range run.Cells {
			cell := &run.Cells[j]
			k := key{cell.Stage, cell.Workload, distinctKnobs(run, cell)}
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
func capacity(base, cell *results.Cell, seed uint64) Ratio {
	why, ok := comparable(base, cell)
	switch {
	case !ok:
		return Ratio{Verdict: NotCompared, Why: why}
	case base.SLO != cell.SLO:
		return Ratio{Verdict: NotCompared, Why: "another objective: " + base.SLO + " and " + cell.SLO}
	case !base.Searched() || base.CapacityRPS == 0:
		return Ratio{Verdict: NotCompared, Why: "the base has no capacity"}
	case !cell.Searched():
		return Ratio{Verdict: NotCompared, Why: "the run did not search for a capacity"}
	}
	r := Ratio{Value: cell.CapacityRPS / base.CapacityRPS, Why: why}
	of, to := brackets(cell), brackets(base)
	if withoutBrackets(base) || withoutBrackets(cell) {
		r.Why = joined(r.Why, "an older stagebench wrote one of these runs, without "+
			"the upper ends of the brackets: they count as unlimited; measure that run again")
	}
	if n := min(len(of), len(to)); n >= minRepeats {
		r.Repeats = n
		r.Low, r.High = bootstrap(to, of, seed)
	} else {
		// The true capacity can be anywhere within its bracket.
		cells, bases := hull(of), hull(to)
		r.Low, r.High = cells.low/bases.high, cells.high/bases.low
	}
	r.Verdict = judge(r.Low, r.High)
	return r
}

// withoutBrackets reports whether the high ends of a cell's repeats are missing.
// Older versions did not store them.
func withoutBrackets(c *results.Cell) bool {
	return len(c.Repeats) > 1 && len(c.RepeatsHigh) < len(c.Repeats)
}

// bracket is the range in which one search found the capacity. The high end is
// infinite if no rate failed.
type bracket struct{ low, high float64 }

// brackets returns one bracket per repeat of a cell, or its only bracket.
func brackets(c *results.Cell) []bracket {
	lows, highs := c.Repeats, c.RepeatsHigh
	if len(lows) < 2 {
		lows, highs = []float64{c.CapacityLow}, []float64{c.CapacityHigh}
	}
	var all []bracket
	for i, low := range lows {
		b := bracket{low, math.Inf(1)}
		if i < len(highs) {
			b.high = cmp.Or(highs[i], b.high)
		}
		all = append(all, b)
	}
	return all
}

// hull returns the smallest bracket that contains all others.
func hull(all []bracket) bracket {
	h := all[0]
	for _, b := range all {
		h.low, h.high = min(h.low, b.low), max(h.high, b.high)
	}
	return h
}

// latency compares a percentile at the reference rate.
func latency(base, cell *results.Cell, of func(results.Latency) *int64) Ratio {
	why, ok := comparable(base, cell)
	switch {
	case !ok:
		return Ratio{Verdict: NotCompared, Why: why}
	case base.Reference == nil || cell.Reference == nil:
		return Ratio{Verdict: NotCompared, Why: "not measured at a reference rate"}
	case math.Abs(base.Reference.OfferedRPS-cell.Reference.OfferedRPS) > 0.001*base.Reference.OfferedRPS:
		return Ratio{Verdict: NotCompared, Why: fmt.Sprintf("measured at %.0f/s and %.0f/s: "+
			"latencies at different rates cannot be compared", base.Reference.OfferedRPS, cell.Reference.OfferedRPS)}
	}
	b, c := of(base.Reference.ResponseAll), of(cell.Reference.ResponseAll)
	if b == nil || c == nil || *b == 0 {
		return Ratio{Verdict: NotCompared, Why: "the percentile has too few samples beyond it, " +
			"or its value is that of a failed request"}
	}
	return Ratio{Value: float64(*c) / float64(*b), Verdict: NotJudged, Why: joined(why, noInterval(base, cell))}
}

// noInterval returns the reason why a ratio of latencies has no interval.
func noInterval(base, cell *results.Cell) string {
	if len(base.ReferenceSteps()) > 1 || len(cell.ReferenceSteps()) > 1 {
		return "no interval: of a run with repeats, only the reference step of the last repeat is compared"
	}
	return "no interval: each run has only one reference step"
}

func joined(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), "; ")
}

// rounding is the largest relative difference of two equal rates.
const rounding = 1e-9

// judge returns the verdict for an interval of a ratio. Brackets that only touch
// show no difference.
func judge(low, high float64) Verdict {
	switch {
	case low > 1+rounding:
		return Higher
	case high < 1-rounding && high > 0:
		return Lower
	}
	return NoDifference
}

const (
	// minRepeats is the least number of repeats for a confidence interval.
	minRepeats = 3
	// resamples is the number of bootstrap samples.
	resamples = 10_000
)

// bootstrap returns the 95 % confidence interval of cell's median over base's.
// Each sample draws the repeats of both runs with replacement. The drawn brackets
// give the smallest and the largest possible ratio of the medians. The interval
// goes from the 2.5th percentile of the smallest ratios to the 97.5th percentile
// of the largest. So the interval is as wide as the brackets even if all repeats
// agree. Searches on the same rates often agree, and a plain bootstrap would then
// return an interval without width.
// Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13,
// the percentile interval.
func bootstrap(base, cell []bracket, seed uint64) (low, high float64) {
	random := rand.New(rand.NewPCG(seed, resamples))
	least, most := make([]float64, resamples), make([]float64, resamples)
	for i := range resamples {
		b, c := medians(draw(random, base)), medians(draw(random, cell))
		least[i], most[i] = c.low/b.high, c.high/b.low
	}
	slices.Sort(least)
	slices.Sort(most)
	return least[resamples*25/1000], most[resamples*975/1000]
}

func draw(random *rand.Rand, from []bracket) []bracket {
	drawn := make([]bracket, len(from))
	for i := range drawn {
		drawn[i] = from[random.IntN(len(from))]
	}
	return drawn
}

// medians returns the median of the low ends and the median of the high ends.
func medians(all []bracket) bracket {
	var lows, highs []float64
	for _, b := range all {
		lows, highs = append(lows, b.low), append(highs, b.high)
	}
	return bracket{median(lows), median(highs)}
}

func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	if n%2 == 1 {
		return values[n/2]
	}
	return (values[n/2-1] + values[n/2]) / 2
}
