package hdr

import (
	"encoding/json"
	"fmt"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/stagebench/stagebench/results"
)

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

// Merge adds all steps of another pool.
func (p *Pool) Merge(o *Pool) {
	for name, c := range o.classes {
		pooled := p.classes[name]
		if pooled == nil {
			pooled = new(newClocks())
			p.classes[name] = pooled
		}
		for i, h := range c {
			pooled[i].Merge(h)
		}
	}
	p.prompt.Merge(o.prompt)
}

// pooled is a pool as JSON.
type pooled struct {
	Classes map[string]*[clocks]*Histogram `json:"classes"`
	Prompt  *Histogram                     `json:"without_lag"`
}

// MarshalJSON returns the histograms without loss.
func (p *Pool) MarshalJSON() ([]byte, error) { return json.Marshal(pooled{p.classes, p.prompt}) }

// UnmarshalJSON reads what MarshalJSON returned.
func (p *Pool) UnmarshalJSON(text []byte) error {
	read := pooled{Prompt: NewHistogram()}
	if err := json.Unmarshal(text, &read); err != nil {
		return err
	}
	*p = Pool{classes: map[string]*[clocks]*Histogram{}, prompt: read.Prompt}
	for name, c := range read.Classes {
		for i, h := range c {
			if h == nil {
				return fmt.Errorf("class %s has no histogram %s", name, tag(i))
			}
		}
		p.classes[name] = c
	}
	return nil
}

// written is a histogram as JSON.
type written struct {
	Clamped int64  `json:"clamped,omitempty"`
	V2      string `json:"v2,omitempty"` // compressed encoding of HdrHistogram; empty = no value
}

// MarshalJSON returns the counters without loss.
func (h *Histogram) MarshalJSON() ([]byte, error) {
	w := written{Clamped: h.clamped}
	if h.Count() > 0 {
		text, err := h.h.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
		if err != nil {
			return nil, fmt.Errorf("encode histogram: %w", err)
		}
		w.V2 = string(text)
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads what MarshalJSON returned.
func (h *Histogram) UnmarshalJSON(text []byte) error {
	var w written
	if err := json.Unmarshal(text, &w); err != nil {
		return err
	}
	*h = Histogram{clamped: w.Clamped}
	if w.V2 == "" {
		return nil
	}
	decoded, err := hdrhistogram.Decode([]byte(w.V2))
	if err != nil {
		return fmt.Errorf("decode histogram: %w", err)
	}
	if dropped := h.counters().Merge(decoded); dropped != 0 {
		return fmt.Errorf("decode histogram: %d values are out of range", dropped)
	}
	return nil
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
