// Package compare puts runs side by side: their figures cell by cell, with what
// can be said of the difference, and what their manifests do not share.
//
// It is pure: it reads no file, prints nothing and draws no random number that
// its caller did not seed. The first run is the base of all ratios.
//
// Of a capacity a search knows no more than its bracket. A ratio comes with a
// confidence interval only where there are repeats that restarted the processes;
// it is never narrower than their brackets. Without repeats, where the brackets of
// two runs overlap, no difference is shown, and where they do not, one is, without
// a probability. That no difference is shown is a result.
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

// Comparison is runs side by side.
type Comparison struct {
	Runs        []string // their ids, the base first
	Rows        []Row
	Differences []Difference
}

// Row is one configuration and workload in every run.
type Row struct {
	Stage, Workload string
	Knobs           string          // those that the runs do not all share, "name=value ..."
	Cells           []*results.Cell // by run; nil where the run has none
	Capacity        []Ratio         // of each run to the base; the first is of the base to itself
	P50, P99        []Ratio         // of the response times at the reference rate, likewise
}

// Verdict is what a ratio shows.
type Verdict string

// The verdicts.
const (
	Base         Verdict = "base"
	Higher       Verdict = "higher"
	Lower        Verdict = "lower"
	NoDifference Verdict = "no difference shown"
	NotJudged    Verdict = "not judged" // one sample each
	NotCompared  Verdict = "not compared"
)

// Ratio is a figure of a run against that of the base.
type Ratio struct {
	Value     float64 // 0 where there is none
	Low, High float64 // 95 % confidence interval, see bootstrap, or what the brackets allow; 0 where neither is known
	// Repeats is the number of repeats that the interval rests on, the smaller of
	// the two runs; 0 = it is no confidence interval.
	Repeats int
	Verdict Verdict
	Why     string // why it is not compared, or what to doubt
}

// Compare compares runs with the first of them. The seed is that of the
// resampling.
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

// align lists the cells of all runs by what they measured. Of the knobs, those
// that are the same within a run do not tell its cells apart: comparing two runs
// that differ in one is what a comparison is for.
func align(runs []Run, varied []string) []Row {
	type key struct{ stage, workload, knobs string }
	var rows []Row
	places := map[key]int{}
	for i, run := range runs {
		for j := range run.Cells {
			cell := &run.Cells[j]
			k := key{cell.Stage, cell.Workload, within(run, cell)}
			place, known := places[k]
			if !known {
				place = len(rows)
				places[k] = place
				rows = append(rows, Row{Stage: cell.Stage, Workload: cell.Workload, Cells: make([]*results.Cell, len(runs))})
			}
			rows[place].Cells[i] = cell
		}
	}
	for i := range rows {
		rows[i].Knobs = shownKnobs(rows[i].Cells, varied)
	}
	return rows
}

// within is the knobs that tell the cells of one run with the same stage and
// workload apart.
func within(run Run, cell *results.Cell) string {
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

// variedKnobs lists the knobs that do not have one value in all cells.
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

// shownKnobs is the varied knobs of a row: one value where its cells agree, one
// for each run where they do not.
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

// comparable says why two cells cannot be compared, or what to doubt.
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

// capacity compares capacities.
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
		return Ratio{Verdict: NotCompared, Why: "the run searched for no capacity"}
	}
	r := Ratio{Value: cell.CapacityRPS / base.CapacityRPS, Why: why}
	of, to := brackets(cell), brackets(base)
	if old(base) || old(cell) {
		r.Why = joined(r.Why, "a run of an older version does not say what its repeats left open")
	}
	if n := min(len(of), len(to)); n >= minRepeats {
		r.Repeats = n
		r.Low, r.High = bootstrap(to, of, seed)
	} else {
		// The truth is somewhere within each bracket.
		cells, bases := hull(of), hull(to)
		r.Low, r.High = cells.low/bases.high, cells.high/bases.low
	}
	r.Verdict = judge(r.Low, r.High)
	return r
}

// old reports whether a cell comes from before repeats kept their brackets.
func old(c *results.Cell) bool { return len(c.Repeats) > 1 && len(c.RepeatsHigh) < len(c.Repeats) }

// bracket is what one search leaves open of a capacity: its high end is infinite
// where no rate failed.
type bracket struct{ low, high float64 }

// brackets are those of the repeats of a cell, or the one that it has.
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

// hull is the bracket that holds all others.
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
		return Ratio{Verdict: NotCompared, Why: fmt.Sprintf("offered at %.0f/s and %.0f/s: latencies at different loads say nothing about each other", base.Reference.OfferedRPS, cell.Reference.OfferedRPS)}
	}
	b, c := of(base.Reference.ResponseAll), of(cell.Reference.ResponseAll)
	if b == nil || c == nil || *b == 0 {
		return Ratio{Verdict: NotCompared, Why: "too few samples beyond the percentile, or it lies among the failures"}
	}
	return Ratio{Value: float64(*c) / float64(*b), Verdict: NotJudged, Why: joined(why, oneEach(base, cell))}
}

// oneEach says why a ratio of latencies has no interval.
func oneEach(base, cell *results.Cell) string {
	if len(base.ReferenceSteps()) > 1 || len(cell.ReferenceSteps()) > 1 {
		return "one reference step each, of several repeats the last: no interval"
	}
	return "one reference step each: no interval"
}

func joined(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), "; ")
}

// rounding is how far apart one rate may be that two searches came to.
const rounding = 1e-9

// judge says what an interval of a ratio shows. Brackets that touch show nothing.
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
	// minRepeats is the least number of repeats that an interval may rest on.
	minRepeats = 3
	// resamples is how often the repeats are drawn again.
	resamples = 10_000
)

// bootstrap returns the 95 % interval of the ratio of medians: each run's repeats
// are drawn again with replacement, and the ratio of the medians is looked at, the
// least and the most that the brackets drawn allow. The interval goes from the
// 2.5th percentile of the least to the 97.5th of the most. So repeats that agree,
// as those of searches on the same rates often do, leave open what one bracket
// does, and not nothing.
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

// medians is the median of the low ends and that of the high ends.
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
