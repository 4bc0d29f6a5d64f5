// Package gate decides from paired measurements whether a new version of a service, the head, is slower than an old
// one, the base.
//
// A block is one slice of the base and one of the head, next to each other in time, in an order drawn at random. For
// each metric it gives the difference d = ln(head/base), or ln(base/head) if a higher figure is better, so d is
// positive if the head is worse. If base and head are the same, the two labels of a block are exchangeable, so the
// sign of all differences of a block is random, whatever the noise, the drift or the correlation of metrics. This is
// the null distribution of the gate: it flips the signs of whole blocks.
//
// A regression is judged by the maximum over the metrics of their studentised means (Westfall and Young:
// Resampling-Based Multiple Testing, 1993), so the probability of any false alarm is bounded for all metrics and
// looks together. A pass excludes a change for the worse by the margin of each metric, with the paired t test. All
// metrics must pass, so no correction for their number is needed (Berger: Multiparameter Hypothesis Testing and
// Acceptance Sampling, 1982).
//
// The package does no I/O and reads no clock. The verdict is a function of the slices and of the seed. A Gate belongs
// to one goroutine.
package gate

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/stat/distuv"

	"github.com/stagebench/stagebench/results"
)

// Look is a number of blocks after which the gate may decide.
type Look struct {
	Blocks int
	// Alarm is the probability of a false regression that this look adds, and Pass that of a false pass.
	Alarm, Pass float64
}

// Looks returns the looks. The probabilities of a false alarm add up to 1 %, and those of a false pass to 5 %. The
// first look can only pass: eight blocks cannot show a regression with so small an error.
func Looks() []Look {
	return []Look{
		{8, 0, 0.005}, {12, 0.001, 0.0075}, {18, 0.0015, 0.01}, {27, 0.002, 0.0125}, {40, 0.0055, 0.015},
	}
}

// MaxBlocks is the number of blocks of the last look.
func MaxBlocks() int { return Looks()[len(Looks())-1].Blocks }

// A gate is invalid if it dropped more than this share of the blocks, and at least tooManyDropped.
const (
	maxDropped     = 0.25
	tooManyDropped = 4
)

// Gate judges the blocks of one comparison.
type Gate struct {
	metrics     []Metric
	null        *null
	next        int         // index of the next look
	differences [][]float64 // of the blocks that count, by metric
	result      results.Gate
}

// New returns a gate over these metrics. Seed is that of the sign flips, and of the order of the slices.
func New(metrics []Metric, seed uint64) (*Gate, error) {
	if len(metrics) == 0 {
		return nil, fmt.Errorf("no metric: a gate needs at least one")
	}
	g := &Gate{metrics: metrics, null: newNull(len(metrics), seed)}
	g.result = results.Gate{Verdict: results.GateUndecided, Seed: seed, Warnings: []string{}}
	for _, m := range metrics {
		g.result.Metrics = append(g.result.Metrics, m.Described())
	}
	for _, l := range Looks() {
		g.result.Looks = append(g.result.Looks, l.Blocks)
	}
	return g, nil
}

// HeadFirst reports whether the head is measured first in the nth block, counted from 0.
func HeadFirst(seed uint64, n int) bool { return rand.New(rand.NewPCG(seed, uint64(n))).IntN(2) == 1 }

// Verdict returns the verdict so far. Once it is not GateUndecided, further blocks change nothing.
func (g *Gate) Verdict() string { return g.result.Verdict }

// NextLook returns the number of counted blocks after which the gate may decide next, and how many it has.
func (g *Gate) NextLook() (at, counted int) {
	return Looks()[min(g.next, len(Looks())-1)].Blocks, len(g.differences)
}

// Add adds a block, and decides if this is the last block of a look. It returns why the block does not count, "" if it
// does.
func (g *Gate) Add(base, head Slice, headFirst bool) (dropped string) {
	if g.result.Verdict != results.GateUndecided {
		return ""
	}
	b := results.GateBlock{HeadFirst: headFirst, Base: map[string]float64{}, Head: map[string]float64{}}
	d := make([]float64, len(g.metrics))
	b.Dropped = doubt(base, head)
	for i, m := range g.metrics {
		before, known := m.value(base)
		after, also := m.value(head)
		if !known || !also {
			b.Dropped = cmp.Or(b.Dropped, m.Name+" could not be measured")
			continue
		}
		b.Base[m.Name], b.Head[m.Name] = before, after
		d[i] = m.difference(before, after)
	}
	g.result.Blocks = append(g.result.Blocks, b)
	if b.Dropped == "" {
		g.differences = append(g.differences, d)
		g.result.Counted = len(g.differences)
		if g.result.Counted == Looks()[g.next].Blocks {
			g.look()
		}
	}
	g.checkDropped()
	return b.Dropped
}

// checkDropped ends a gate of which too many blocks do not count.
func (g *Gate) checkDropped() {
	all := len(g.result.Blocks)
	dropped := all - g.result.Counted
	few := dropped < tooManyDropped || float64(dropped) <= maxDropped*float64(all)
	if few || g.result.Verdict == results.GateRegression {
		return
	}
	last := ""
	for _, b := range g.result.Blocks {
		last = cmp.Or(b.Dropped, last)
	}
	g.result.Verdict = results.GateInvalid
	g.result.Why = fmt.Sprintf("%d of %d blocks do not count, for example because %s", dropped, all, last)
}

// Result returns the verdict with the figures of the last look, and all blocks. Base, Head and OfferedRPS are left to
// the caller. End says that there are no more blocks.
func (g *Gate) Result(end bool) results.Gate {
	if g.result.Verdict == results.GateUndecided || g.result.Verdict == results.GateInvalid {
		g.estimate()
	}
	r := g.result
	if end && r.Verdict == results.GateUndecided {
		r.Verdict = results.GateInconclusive
		r.Why = fmt.Sprintf("there are %d blocks that count: a gate decides after %d or more", r.Counted, Looks()[0].Blocks)
		if g.next > 0 {
			r.Why = fmt.Sprintf("the first %d of the %d blocks that count did not decide, and the next look is after %d",
				Looks()[g.next-1].Blocks, r.Counted, Looks()[g.next].Blocks)
		}
	}
	r.Metrics, r.Blocks = slices.Clone(r.Metrics), slices.Clone(r.Blocks)
	return r
}

// look decides from the blocks so far.
func (g *Gate) look() {
	look := Looks()[g.next]
	g.next++
	worse := g.estimate()
	var chance []float64
	var alarms []bool
	if look.Alarm > 0 {
		chance, alarms = g.null.look(g.differences, look.Alarm)
	}
	verdict := results.GatePass
	for i := range g.result.Metrics {
		m := &g.result.Metrics[i]
		m.Verdict, m.Chance = results.GateInconclusive, nil
		if chance != nil {
			m.Chance = &chance[i]
		}
		switch {
		case alarms != nil && alarms[i] && g.metrics[i].worsening(*m) >= m.Material:
			m.Verdict, verdict = results.GateRegression, results.GateRegression
		case worse[i] <= look.Pass:
			m.Verdict = results.GatePass
		case verdict != results.GateRegression:
			verdict = results.GateUndecided
		}
	}
	if verdict == results.GateUndecided && g.next == len(Looks()) {
		verdict = results.GateInconclusive
	}
	g.result.Verdict, g.result.Why = verdict, g.why(verdict)
}

// why says in words what decided.
func (g *Gate) why(verdict string) string {
	var names []string
	for _, m := range g.result.Metrics {
		if m.Verdict == verdict {
			names = append(names, m.Text(m.Change)+" "+m.Title)
		}
	}
	switch verdict {
	case results.GateRegression:
		return joined(names)
	case results.GatePass:
		return "every metric excludes a change for the worse by its margin"
	case results.GateInconclusive:
		return fmt.Sprintf("%d blocks show no regression, but do not exclude one: %s", len(g.differences), joined(names))
	}
	return ""
}

// estimate sets the figures of all metrics from the counted blocks. It returns for each the probability of so small a
// change if the head is worse by the margin.
func (g *Gate) estimate() (worse []float64) {
	for i, m := range g.metrics {
		var base, head, d []float64
		for _, b := range g.result.Blocks {
			if b.Dropped == "" {
				base, head = append(base, b.Base[m.Name]), append(head, b.Head[m.Name])
			}
		}
		for _, all := range g.differences {
			d = append(d, all[i])
		}
		r := &g.result.Metrics[i]
		r.Base, r.Head = median(base), median(head)
		mean, reach, below := g.paired(m, d)
		r.Change, r.Low, r.High = m.change(mean), m.change(mean-reach), m.change(mean+reach)
		if r.Low > r.High {
			r.Low, r.High = r.High, r.Low
		}
		worse = append(worse, below)
	}
	return worse
}

// paired returns the mean of the differences, the half of its 90 % interval, and the probability of so small a mean if
// the head is worse by the margin. It uses the t distribution.
func (g *Gate) paired(m Metric, d []float64) (mean, reach, worse float64) {
	n := float64(len(d))
	if n < 2 {
		return 0, 0, 1
	}
	mean, deviation := spread(d)
	deviation /= math.Sqrt(n) // of the mean
	t := distuv.StudentsT{Sigma: 1, Nu: n - 1}
	distance := m.distance() - mean
	switch {
	case deviation > 0:
		worse = t.CDF(-distance / deviation)
	case distance <= 0:
		worse = 1
	}
	return mean, t.Quantile(0.95) * deviation, worse
}

// spread returns the mean and the standard deviation of at least two values.
func spread(d []float64) (mean, deviation float64) {
	n, squares := float64(len(d)), 0.0
	for _, x := range d {
		mean += x / n
	}
	for _, x := range d {
		squares += (x - mean) * (x - mean)
	}
	return mean, math.Sqrt(squares / (n - 1))
}

// median returns the median, 0 of nothing.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2
}
