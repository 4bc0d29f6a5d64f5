// Package hdr records the outcomes of a step in HDR histograms, per op class,
// clock and interval, and computes the figures of a results.Step.
//
// Values are nanoseconds with three significant digits, from 1 ns to 60 s. Larger
// values are recorded as 60 s and counted as clamped. Samples need no correction
// for coordinated omission, because response and wait start at the intended time.
// Percentiles are those of merged histograms, never averages of percentiles: the
// value at rank floor(p*N + 0.5), which is the library's rule.
//
// A Recorder belongs to one goroutine. The usual order of calls: New, Record
// for every outcome, Tick at the end of each interval, Finish once.
package hdr

import (
	"fmt"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/stagebench/stagebench/results"
)

// Limits of every histogram.
const (
	highest = 60_000_000_000 // ns
	digits  = 3
	// tailSamples is the least number of samples beyond a percentile that is shown.
	// With fewer samples the percentile is mostly chance.
	tailSamples = 10
)

// Histogram is a distribution of one clock. It is a dense HDR histogram that
// counts clamped values.
type Histogram struct {
	h       *hdrhistogram.Histogram // nil = no value was recorded yet: its counters take a quarter of a megabyte
	clamped int64
}

// NewHistogram returns an empty histogram.
func NewHistogram() *Histogram { return &Histogram{} }

// counters returns the counters, which it makes at the first call.
func (h *Histogram) counters() *hdrhistogram.Histogram {
	if h.h == nil {
		h.h = hdrhistogram.New(1, highest, digits)
	}
	return h.h
}

// Record adds one value in nanoseconds. A negative value is possible only if a
// clock went backwards. It is recorded as 0 and counted as clamped.
func (h *Histogram) Record(ns int64) {
	if ns < 0 || ns > highest {
		h.clamped++
		ns = min(max(ns, 0), highest)
	}
	if err := h.counters().RecordValue(ns); err != nil {
		panic("hdr: record a clamped value: " + err.Error())
	}
}

// Merge adds all values of another histogram, without loss.
func (h *Histogram) Merge(o *Histogram) {
	h.clamped += o.clamped
	if o.Count() == 0 {
		return
	}
	if dropped := h.counters().Merge(o.h); dropped != 0 {
		panic(fmt.Sprintf("hdr: merge histograms with equal limits: %d values were dropped", dropped))
	}
}

// moveTo moves all values to another histogram, without loss.
func (h *Histogram) moveTo(o *Histogram) {
	if o.Count() == 0 {
		o.clamped += h.clamped
		h.h, h.clamped, o.h = o.h, 0, h.h
		return
	}
	o.Merge(h)
	h.reset()
}

// reset removes all values.
func (h *Histogram) reset() {
	h.clamped = 0
	if h.h != nil {
		h.h.Reset()
	}
}

// Count is the number of recorded values.
func (h *Histogram) Count() int64 {
	if h.h == nil {
		return 0
	}
	return h.h.TotalCount()
}

// Latency returns the reported distribution. It includes failed more values that
// count as infinitely slow. A percentile is nil if fewer than ten samples lie
// beyond it, or if its value is that of a failure.
func (h *Histogram) Latency(failed int64) results.Latency {
	ok := h.Count()
	l := results.Latency{Count: ok + failed, Clamped: h.clamped}
	l.P50, l.P90, l.P95 = h.at(50, failed), h.at(90, failed), h.at(95, failed)
	l.P99, l.P999 = h.at(99, failed), h.at(99.9, failed)
	if ok > 0 && failed == 0 {
		l.Max = new(h.h.ValueAtPercentile(100)) // as Max(), which walks through all counters
		l.Mean = new(int64(h.h.Mean()))
	}
	return l
}

func (h *Histogram) at(percentile float64, failed int64) *int64 {
	ok := h.Count()
	total := ok + failed
	if float64(total)*(100-percentile)/100 < tailSamples-1e-9 {
		return nil
	}
	// The failures are the slowest samples. So this percentile of all samples is a
	// higher percentile of the successes, or lies beyond all of them.
	amongSuccesses := percentile * float64(total) / float64(max(ok, 1))
	if amongSuccesses > 100 || ok == 0 {
		return nil
	}
	return new(h.h.ValueAtPercentile(amongSuccesses))
}

// sum returns the sum of all values, within the histogram's precision.
func (h *Histogram) sum() int64 {
	if h.h == nil {
		return 0
	}
	return int64(h.h.Mean() * float64(h.h.TotalCount()))
}
