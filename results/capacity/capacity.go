// Package capacity estimates the capacity of a system: the highest rate at which it meets its
// objective. It decides which rates to offer, and how far the result can be trusted.
//
// It is pure: it measures nothing. A system is measured in several visits, which are spread
// over a run, because the speed of a shared machine moves within seconds and within minutes. In
// each visit the caller calls Begin, then asks Next for a rate, measures a step at this rate
// and reports it with Observe, until Next returns false. Estimate may be called at any time.
//
// The model has two parts. Whether a batch of ops misses the objective depends on the rate and
// on chance: a logistic function of the logarithm of the rate, fitted to the batches of all
// visits. A batch that misses it does so by much, because a queue has formed: its share of slow
// ops is a multiple of the allowed share, the excess. The objective is just met over a long time
// where the share of bad batches times their mean excess is one. Compared with a fit of the
// shares themselves, which is the usual way, the result moves much less from run to run: one
// batch with a long queue counts as one bad batch and not as hundreds of slow ops.
package capacity

import (
	"encoding/json"
	"math"
	"slices"
)

// Count is the number of ops that a term of an objective applies to, and how many missed it.
type Count struct{ Ops, Missed int64 }

// Batch holds the counts of one second of a step, by term of the objective.
type Batch []Count

// Config holds the parameters of an estimate.
type Config struct {
	Allowed []float64 // by term of the objective: the share of its ops that may miss it
	Start   float64   // first rate if the peak is unknown, requests/s
	Min     float64   // rates outside Min to Max are not offered
	Max     float64
	First   int // steps of the first visit
	Steps   int // steps of each later visit
}

const (
	// startShare is the part of the peak at which the first visit starts. Most systems miss an
	// objective of 100 ms between 0.6 and 0.8 of their peak.
	startShare = 0.75
	// growth is the factor between the rates of the first visit, until one step passed and one
	// failed; blindGrowth if the peak is unknown.
	growth      = 1.35
	blindGrowth = 2.0
	// minOps is the number of ops in a batch for the fit: seconds with fewer ops are joined.
	minOps = 100
)

// around returns the rates of the steps of a later visit, as multiples of the estimate. Steps at
// rates that surely pass or surely fail teach little. But with steps that are too near, an estimate
// from a first visit in an unusual moment would hardly move.
func around() []float64 { return []float64{1 / 1.2, 1, 1.2} }

// Estimator holds the measured steps. It belongs to one goroutine.
type Estimator struct {
	config Config
	visits []visit
}

type visit struct {
	Peak  float64 `json:"peak_rps"` // 0 = unknown
	Steps []step  `json:"steps"`
}

type step struct {
	Rate   float64 `json:"rate_rps"`
	Points []point `json:"points"`
	Met    bool    `json:"met"`
}

// New returns an estimator without any step.
func New(c Config) *Estimator { return &Estimator{config: c} }

// Begin begins a visit. Peak is the peak throughput of the system, at which the first visit
// starts its search; 0 = unknown.
func (e *Estimator) Begin(peak float64) { e.visits = append(e.visits, visit{Peak: peak}) }

// Append adds the visits of another estimator with the same objective.
func (e *Estimator) Append(o *Estimator) { e.visits = append(e.visits, o.visits...) }

// MarshalJSON returns the visits, which another process can read and append to its own.
func (e *Estimator) MarshalJSON() ([]byte, error) {
	return json.Marshal(append([]visit{}, e.visits...)) // never null
}

// UnmarshalJSON reads what MarshalJSON returned. The estimator has no configuration: it can only be appended.
func (e *Estimator) UnmarshalJSON(text []byte) error { return json.Unmarshal(text, &e.visits) }

// Next returns the rate of the next step; ok is false when the visit is over.
func (e *Estimator) Next() (rate float64, ok bool) {
	v := e.visits[len(e.visits)-1]
	if len(e.visits) > 1 {
		if len(v.Steps) >= e.config.Steps {
			return 0, false
		}
		factors := around()
		return e.clip(math.Exp(fit(e.visits)) * factors[(len(v.Steps)+len(e.visits))%len(factors)]), true
	}
	if len(v.Steps) >= e.config.First {
		return 0, false
	}
	factor := growth
	if v.Peak == 0 {
		factor = blindGrowth
	}
	switch passed, failed := bracket(v); {
	case len(v.Steps) == 0 && v.Peak > 0:
		rate = startShare * v.Peak
	case len(v.Steps) == 0:
		rate = e.config.Start
	case failed == 0:
		rate = passed * factor
	case passed == 0:
		rate = failed / factor
	default:
		rate = math.Sqrt(passed * failed)
	}
	rate = e.clip(rate)
	known := slices.ContainsFunc(v.Steps, func(s step) bool { return s.Rate == rate }) // at Min or Max
	return rate, !known
}

func (e *Estimator) clip(rate float64) float64 { return min(max(rate, e.config.Min), e.config.Max) }

// bracket returns the lowest rate of a visit that missed the objective, and the highest rate
// below it that met it; 0 = none.
func bracket(v visit) (passed, failed float64) {
	for _, s := range v.Steps {
		if !s.Met && (failed == 0 || s.Rate < failed) {
			failed = s.Rate
		}
	}
	for _, s := range v.Steps {
		if s.Met && s.Rate > passed && (failed == 0 || s.Rate < failed) {
			passed = s.Rate
		}
	}
	return passed, failed
}

// Observe records a step of the current visit: whether it met the objective, and its seconds. The
// last one may be shorter.
func (e *Estimator) Observe(rate float64, met bool, seconds []Batch) {
	s := step{Rate: rate, Met: met}
	var parts []Batch
	var part Batch
	for _, b := range seconds {
		if part = add(part, b); part.ops() >= minOps {
			parts, part = append(parts, part), nil
		}
	}
	switch n := len(parts); {
	case part == nil:
	case n == 0:
		parts = append(parts, part)
	default:
		parts[n-1] = add(parts[n-1], part)
	}
	for _, part := range parts {
		s.Points = append(s.Points, point{math.Log(rate), e.excess(part)})
	}
	v := &e.visits[len(e.visits)-1]
	v.Steps = append(v.Steps, s)
}

// ops returns the number of ops, of which each is counted by at least one term.
func (b Batch) ops() (n int64) {
	for _, c := range b {
		n = max(n, c.Ops)
	}
	return n
}

// add returns the sum of two batches; the first one may be nil.
func add(a, b Batch) Batch {
	sum := slices.Clone(b)
	for i := range a {
		sum[i].Ops += a[i].Ops
		sum[i].Missed += a[i].Missed
	}
	return sum
}

// excess returns 0 if a batch meets the objective, and otherwise how many times the allowed share
// of ops missed the term that was missed most. A single op can be too many in a small batch: such
// batches are then as rare as their excess is large.
func (e *Estimator) excess(b Batch) (excess float64) {
	for i, c := range b {
		if allowed := e.config.Allowed[i] * float64(c.Ops); float64(c.Missed) > allowed {
			excess = max(excess, float64(c.Missed)/max(allowed, 1e-3))
		}
	}
	return excess
}

// Estimate is the capacity with its interval.
type Estimate struct {
	Interval
	// ByVisit holds what each visit says of the capacity: its pseudo-value of the jackknife (Efron and
	// Tibshirani, An Introduction to the Bootstrap, 1993, chapter 11).
	ByVisit []float64
}

// Estimate returns the capacity. It returns false if no step met the objective, or none missed it:
// then the capacity lies outside the offered rates, and the interval goes from the highest rate
// that met the objective to the lowest one that missed it. A missing end is 0.
func (e *Estimator) Estimate() (estimate Estimate, ok bool) {
	var met, missed float64
	var visits []visit
	for _, v := range e.visits {
		if len(v.Steps) > 0 {
			visits = append(visits, v)
		}
		for _, s := range v.Steps {
			switch {
			case s.Met:
				met = max(met, s.Rate)
			case missed == 0 || s.Rate < missed:
				missed = s.Rate
			}
		}
	}
	if met == 0 || missed == 0 {
		return Estimate{Interval: Interval{met, met, missed}}, false
	}
	all, n := fit(visits), float64(len(visits))
	pseudo := []float64{all}
	if n > 1 {
		pseudo = nil
		for k := range visits {
			rest := slices.Delete(slices.Clone(visits), k, k+1)
			pseudo = append(pseudo, n*all-(n-1)*fit(rest))
		}
	}
	estimate.Interval = pool(all, pseudo, priorSD, modelSD)
	for _, logarithm := range pseudo {
		estimate.ByVisit = append(estimate.ByVisit, math.Exp(logarithm))
	}
	return estimate, true
}
