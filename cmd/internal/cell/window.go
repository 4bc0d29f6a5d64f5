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
	Parts    []results.Step   `json:"parts"`
	Rejected []results.Step   `json:"rejected"` // slices that cannot be trusted, and are no part of the sum
	Wanted   int              `json:"wanted"`   // number of slices that the sum must have
	Clocks   *hdr.Pool        `json:"clocks"`   // nil = there is no slice
	Ages     *hdr.Histogram   `json:"ages"`
	Hits     *hdr.Histogram   `json:"hits"`
	Evidence results.Evidence `json:"evidence"`
}

func (p *pool) add(s sample) {
	p.prepare()
	p.Clocks.Add(s.distributions.recorder)
	p.join([]results.Step{s.result}, s.distributions.ages, s.distributions.hits, s.distributions.evidence)
}

// prepare makes the histograms, if there are none.
func (p *pool) prepare() {
	if p.Clocks == nil {
		p.Clocks, p.Ages, p.Hits = hdr.NewPool(), hdr.NewHistogram(), hdr.NewHistogram()
		p.Evidence.FDHeadroom = -1 // unknown: each slice is judged by its own
	}
}

// merge adds all slices of another pool.
func (p *pool) merge(o pool) {
	p.Rejected, p.Wanted = append(p.Rejected, o.Rejected...), p.Wanted+o.Wanted
	if o.Clocks != nil {
		p.prepare()
		p.Clocks.Merge(o.Clocks)
		p.join(o.Parts, o.Ages, o.Hits, o.Evidence)
	}
}

// join adds slices, without their clocks.
func (p *pool) join(parts []results.Step, ages, hits *hdr.Histogram, e results.Evidence) {
	p.Parts = append(p.Parts, parts...)
	p.Ages.Merge(ages)
	p.Hits.Merge(hits)
	p.Evidence.InFlightNS += e.InFlightNS
	p.Evidence.ServiceNS += e.ServiceNS
	p.Evidence.Recorded += e.Recorded
	p.Evidence.EarlierUnanswered += e.EarlierUnanswered
	p.Evidence.Stalls = append(p.Evidence.Stalls, e.Stalls...)
}

// step returns the joined step, nil if there are no slices. It is not valid if slices are missing because they could
// not be trusted.
func (p *pool) step(slo results.SLO) *results.Step {
	switch {
	case len(p.Parts)+len(p.Rejected) == 0:
		return nil
	case len(p.Parts) == 0:
		return &p.Rejected[0]
	case len(p.Parts) == 1 && p.Wanted <= 1:
		return &p.Parts[0]
	}
	s := results.Join(p.Parts)
	p.Clocks.Fill(&s)
	if s.Stale != nil {
		s.Stale.AgeNS, s.Stale.HitAgeNS = p.Ages.Latency(0), p.Hits.Latency(0)
	}
	results.Judge(&s, slo, p.Evidence)
	if missing := p.Wanted - len(p.Parts); missing > 0 && len(p.Rejected) > 0 {
		s.Invalidate(fmt.Sprintf("%d of %d slices are missing, because they cannot be trusted; the first one: %s",
			missing, p.Wanted, p.Rejected[0].Invalid[0]))
	}
	return &s
}
