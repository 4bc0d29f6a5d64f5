package hdr

import "github.com/stagebench/stagebench/results"

// Pool joins the distributions of several steps, so that percentiles are those of merged histograms.
type Pool struct {
	classes map[string]*[clocks]*Histogram
	prompt  *Histogram // response times of successes without their lag
}

// NewPool returns an empty pool.
func NewPool() *Pool { return &Pool{classes: map[string]*[clocks]*Histogram{}, prompt: NewHistogram()} }

// Add adds a step whose recorder is finished.
func (p *Pool) Add(r *Recorder) {
	for name, c := range r.classes {
		pooled := p.classes[name]
		if pooled == nil {
			pooled = new(newClocks())
			p.classes[name] = pooled
		}
		for i, h := range c.total {
			pooled[i].Merge(h)
		}
	}
	p.prompt.Merge(r.prompt)
}

// Fill sets the distributions of a step that has the sums of all added steps.
func (p *Pool) Fill(s *results.Step) {
	for name, c := range p.classes {
		op := s.Ops[name]
		op.ResponseNS, op.ResponseAll = c[response].Latency(0), c[response].Latency(op.Errors)
		op.ServiceNS, op.WaitNS, op.LagNS = c[service].Latency(0), c[wait].Latency(0), c[lag].Latency(0)
		op.FailedNS, op.FailedServiceNS = c[failed].Latency(0), c[failedService].Latency(0)
		s.Ops[name] = op
	}
	failures := s.Ledger.Errors()
	all := p.total(response)
	s.ResponseNS, s.ResponseAll, s.ResponseNoLag = all.Latency(0), all.Latency(failures), p.prompt.Latency(failures)
	s.ServiceNS, s.WaitNS, s.LagNS = p.total(service).Latency(0), p.total(wait).Latency(0), p.total(lag).Latency(0)
	s.FailedNS, s.FailedServiceNS = p.total(failed).Latency(0), p.total(failedService).Latency(0)
}

// total returns the distribution of a clock over all classes.
func (p *Pool) total(clock int) *Histogram {
	all := NewHistogram()
	for _, c := range p.classes {
		all.Merge(c[clock])
	}
	return all
}
