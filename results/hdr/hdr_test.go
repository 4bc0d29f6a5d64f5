package hdr_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/hdr"
)

func bound(string) int64 { return int64(100 * time.Millisecond) }

func outcome(intended, response int64, fate results.Fate) results.Outcome {
	o := results.Outcome{
		Class: "get", Intended: intended, Free: 0, Dispatched: intended, Sent: intended, Done: intended + response,
		Fate: fate,
	}
	if fate == results.Unsent || fate == results.ConnectError {
		o.Sent = -1
	}
	return o
}

func TestPercentilesAgreeWithTheSortedSamples(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	h := hdr.NewHistogram()
	var values []int64
	for range 100_000 {
		v := int64(random.ExpFloat64() * 5e6)
		values = append(values, v)
		h.Record(v)
	}
	slices.Sort(values)
	l := h.Latency(0)
	for _, c := range []struct {
		name string
		got  *int64
		rank float64
	}{{"p50", l.P50, 0.5}, {"p90", l.P90, 0.9}, {"p99", l.P99, 0.99}, {"p999", l.P999, 0.999}} {
		want := values[int(c.rank*float64(len(values)))-1]
		if c.got == nil || absolute(float64(*c.got)/float64(want)-1) > 0.001 {
			t.Errorf("%s is %v, want %d within 0.1%%", c.name, c.got, want)
		}
	}
}

func absolute(x float64) float64 { return max(x, -x) }

// Outages do not depend on the order in which the failures are recorded.
func TestOutagesInAnyOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var at []int64
	for range 2000 {
		at = append(at, random.Int64N(3000)*int64(time.Second))
	}
	at = append(at, slices.Repeat([]int64{at[0]}, 50_000)...)
	r := hdr.New(time.Now(), bound, nil)
	for _, intended := range at {
		r.Record(outcome(intended, 1, results.ConnectError))
	}
	got := r.Finish(int64(len(at))).Outages
	slices.Sort(at)
	var want []results.Outage
	for _, intended := range at {
		if n := len(want); n > 0 && intended-want[n-1].ToNS <= int64(time.Second) {
			want[n-1].ToNS = intended
			want[n-1].Failed++
			continue
		}
		want = append(want, results.Outage{FromNS: intended, ToNS: intended, Failed: 1})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("outages (-want +got)\n%s", diff)
	}
}

// Responses are counted by status. Causes without limit share one count.
func TestCountsByStatusAndCause(t *testing.T) {
	r := hdr.New(time.Now(), bound, nil)
	for n := range 1000 {
		o := outcome(0, 1, results.HTTPError)
		o.Status, o.Error = 500+n%2, fmt.Sprint("cause ", n)
		r.Record(o)
	}
	good, broken := outcome(0, 1, results.OK), outcome(0, 1, results.TransportError)
	good.Status = 204
	r.Record(good)
	r.Record(broken)
	step := r.Finish(1002)
	if diff := cmp.Diff(map[int]int64{204: 1, 500: 500, 501: 500}, step.Statuses); diff != "" {
		t.Errorf("statuses (-want +got)\n%s", diff)
	}
	if len(step.Causes) > 101 || step.Causes["other causes"] != 901 || step.Causes["cause 0"] != 1 {
		t.Errorf("%d causes, of these %d others", len(step.Causes), step.Causes["other causes"])
	}
}

// A percentile with fewer than ten samples beyond it is nil.
func TestFewSamplesLeavePercentilesBlank(t *testing.T) {
	h := hdr.NewHistogram()
	for i := range int64(999) {
		h.Record(i)
	}
	if l := h.Latency(0); l.P99 != nil || l.P95 == nil {
		t.Errorf("p99 %v, p95 %v of 999 samples; want none, and some", l.P99, l.P95)
	}
	h.Record(1)
	if l := h.Latency(0); l.P99 == nil || l.P999 != nil {
		t.Errorf("p99 %v, p999 %v of 1000 samples; want some, and none", l.P99, l.P999)
	}
}

// Failures count as infinitely slow: they can make a percentile higher or nil, but
// never lower.
func TestFailuresNeverImproveLatency(t *testing.T) {
	h := hdr.NewHistogram()
	for i := range int64(10_000) {
		h.Record(i + 1)
	}
	last := *h.Latency(0).P50
	for _, failed := range []int64{100, 1000, 5000, 9000} {
		l := h.Latency(failed)
		if l.P50 == nil || *l.P50 < last {
			t.Fatalf("with %d failures p50 is %v, below %d", failed, l.P50, last)
		}
		last = *l.P50
	}
	if l := h.Latency(101 * 2); l.P99 != nil {
		t.Errorf("p99 %v with 2%% failures, want none: its value is that of a failure", *l.P99)
	}
	if l := h.Latency(10_001); l.P50 != nil {
		t.Errorf("p50 %v with more failures than successes", *l.P50)
	}
}

func TestClampsAreCounted(t *testing.T) {
	h := hdr.NewHistogram()
	h.Record(int64(2 * time.Minute))
	h.Record(-5)
	if l := h.Latency(0); l.Clamped != 2 || l.Count != 2 {
		t.Errorf("clamped %d of %d, want both", l.Clamped, l.Count)
	}
}

// The merged intervals of a log are equal to the recorded histograms.
func TestLogHoldsWhatWasRecorded(t *testing.T) {
	file := lineWriter{t: t} // a killed process must leave only complete lines
	start := time.Unix(1_700_000_000, 0)
	log, err := hdr.NewLog(&file, "test", start)
	if err != nil {
		t.Fatal(err)
	}
	r := hdr.New(start, bound, func(i hdr.Interval) {
		if err := log.Write(i); err != nil {
			t.Error(err)
		}
	})
	random := rand.New(rand.NewPCG(3, 4))
	for i := range int64(5000) {
		at := i * int64(time.Millisecond)
		if i%1000 == 999 {
			r.Tick(at)
		}
		fate := results.OK
		if i%100 == 0 {
			fate = results.HTTPError
		}
		r.Record(outcome(at, int64(random.ExpFloat64()*1e7), fate))
	}
	step := r.Finish(5000)
	merged := readLog(t, &file)
	got := merged["get-rt"]
	if p99 := got.ValueAtPercentile(99); p99 != *step.ResponseNS.P99 || got.TotalCount() != step.ResponseNS.Count {
		t.Errorf("the log says %d samples with p99 %d, the step %d with %d",
			got.TotalCount(), p99, step.ResponseNS.Count, *step.ResponseNS.P99)
	}
	for tag, want := range map[string]int64{
		"get-rt": 4950, "get-ft": 50, "get-st": 4950, "get-fst": 50, "get-wt": 5000, "get-lag": 5000,
	} {
		if merged[tag] == nil || merged[tag].TotalCount() != want {
			t.Errorf("%s: %v, want %d samples", tag, merged[tag], want)
		}
	}
}

// readLog reads a log and merges all intervals by tag.
func readLog(t *testing.T, r io.Reader) map[string]*hdrhistogram.Histogram {
	t.Helper()
	merged := map[string]*hdrhistogram.Histogram{}
	reader := hdrhistogram.NewHistogramLogReader(r)
	for {
		h, err := reader.NextIntervalHistogram()
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case h == nil:
			return merged
		case merged[h.Tag()] == nil:
			merged[h.Tag()] = h
		default:
			merged[h.Tag()].Merge(h)
		}
	}
}

// lineWriter fails the test if a write ends within a line.
type lineWriter struct {
	t *testing.T
	bytes.Buffer
}

func (w *lineWriter) Write(p []byte) (int, error) {
	if !bytes.HasSuffix(p, []byte("\n")) {
		w.t.Errorf("the write %.40q ends within a line", p)
	}
	return w.Buffer.Write(p)
}

func TestStepFigures(t *testing.T) {
	r := hdr.New(time.Now(), bound, nil)
	for i := range int64(1000) {
		response := int64(10 * time.Millisecond)
		if i%50 == 0 {
			response = int64(150 * time.Millisecond)
		}
		r.Record(outcome(i*int64(time.Millisecond), response, results.OK))
	}
	for i := range int64(5) {
		r.Record(outcome(400e6+i, 1, results.ConnectError))
		r.Record(outcome(990e6, 10, results.Unsent))
	}
	s := r.Finish(1010)
	if err := s.Ledger.Check(); err != nil {
		t.Error(err)
	}
	if op := s.Ops["get"]; op.OverSLO != 20 || op.Errors != 10 || op.Count != 1010 {
		t.Errorf("class %+v, want 20 over the bound and 10 errors of 1010", op)
	}
	if len(s.Outages) != 1 || s.Outages[0].FromNS != 400e6 || s.Outages[0].Failed != 10 {
		t.Errorf("outages %+v, want one from 400 ms on with 10 failures", s.Outages)
	}
	var intended, completed int64
	for _, row := range r.Timeline() {
		intended += row.Intended
		completed += row.Completed
	}
	if intended != 1010 || completed != 1000 {
		t.Errorf("timeline has %d intended and %d completed ops, want 1010 and 1000", intended, completed)
	}
}

func TestLogRefusesInvalidTags(t *testing.T) {
	log, err := hdr.NewLog(&bytes.Buffer{}, "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := hdr.New(time.Now(), bound, func(i hdr.Interval) {
		if err := log.Write(i); err == nil {
			t.Errorf("%v was written", i)
		}
	})
	o := outcome(0, 1, results.OK)
	o.Class = ",get"
	r.Record(o)
	r.Finish(1)
}
