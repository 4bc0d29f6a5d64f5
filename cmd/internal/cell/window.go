package cell

import (
	"fmt"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/capacity"
	"github.com/stagebench/stagebench/results/hdr"
)

// cut is the first part of a step that does not count for capacity and peak: the system has to get used to the rate.
const cut = 500 * time.Millisecond

// window counts the ops of a step after the cut.
type window struct {
	terms   []results.Term
	end     int64            // of the step, in ns since its begin
	seconds []capacity.Batch // by intended time
	done    int64            // successes that ended in the window
}

func (w *window) record(o results.Outcome) {
	if o.Fate == results.OK && o.Done >= int64(cut) && o.Done < w.end {
		w.done++
	}
	if o.Intended < int64(cut) {
		return
	}
	n := int(o.Intended-int64(cut)) / int(time.Second)
	for len(w.seconds) <= n {
		w.seconds = append(w.seconds, make(capacity.Batch, len(w.terms)))
	}
	for i, term := range w.terms {
		if applies, missed := term.Judge(o); applies {
			w.seconds[n][i].Ops++
			if missed {
				w.seconds[n][i].Missed++
			}
		}
	}
}

// goodput returns the successes per second.
func (w *window) goodput() float64 {
	return float64(w.done) / time.Duration(w.end-int64(cut)).Seconds()
}

// sample is a measured step with what is not part of its result.
type sample struct {
	result        results.Step
	seconds       []capacity.Batch
	distributions distributions
}

// distributions are what a step measured besides its result.
type distributions struct {
	recorder   *hdr.Recorder
	ages, hits *hdr.Histogram // of stale reads
	evidence   results.Evidence
}

// pool joins the slices of the cell's latency measurement to one step. The zero value is empty.
type pool struct {
	parts    []results.Step
	rejected []results.Step // slices that cannot be trusted, and are no part of the sum
	wanted   int            // number of slices that the sum must have
	clocks   *hdr.Pool
	ages     *hdr.Histogram
	hits     *hdr.Histogram
	evidence results.Evidence
}

func (p *pool) add(s sample) {
	if p.clocks == nil {
		p.clocks, p.ages, p.hits = hdr.NewPool(), hdr.NewHistogram(), hdr.NewHistogram()
		p.evidence.FDHeadroom = -1 // unknown: each slice is judged by its own
	}
	p.parts = append(p.parts, s.result)
	p.clocks.Add(s.distributions.recorder)
	p.ages.Merge(s.distributions.ages)
	p.hits.Merge(s.distributions.hits)
	e := s.distributions.evidence
	p.evidence.InFlightNS += e.InFlightNS
	p.evidence.ServiceNS += e.ServiceNS
	p.evidence.Recorded += e.Recorded
	p.evidence.EarlierUnanswered += e.EarlierUnanswered
	p.evidence.Stalls = append(p.evidence.Stalls, e.Stalls...)
}

// step returns the joined step, nil if there are no slices. It is not valid if slices are missing because they could
// not be trusted.
func (p *pool) step(slo results.SLO) *results.Step {
	switch {
	case len(p.parts)+len(p.rejected) == 0:
		return nil
	case len(p.parts) == 0:
		return &p.rejected[0]
	case len(p.parts) == 1 && p.wanted <= 1:
		return &p.parts[0]
	}
	s := results.Join(p.parts)
	p.clocks.Fill(&s)
	if s.Stale != nil {
		s.Stale.AgeNS, s.Stale.HitAgeNS = p.ages.Latency(0), p.hits.Latency(0)
	}
	results.Judge(&s, slo, p.evidence)
	if missing := p.wanted - len(p.parts); missing > 0 && len(p.rejected) > 0 {
		s.Invalidate(fmt.Sprintf("%d of %d slices are missing, because they cannot be trusted; the first one: %s",
			missing, p.wanted, p.rejected[0].Invalid[0]))
	}
	return &s
}
