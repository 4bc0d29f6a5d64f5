package hdr

import (
	"cmp"
	"maps"
	"runtime"
	"slices"
	"time"

	"github.com/stagebench/stagebench/results"
)

// outageGap is the longest time without a failure within one outage.
const outageGap = int64(time.Second)

// maxCauses is the maximum number of causes with a count of their own.
const maxCauses = 100

// Recorder collects the outcomes of one step.
type Recorder struct {
	start    time.Time // wall time of the step's time 0
	bound    func(class string) int64
	closed   func(Interval)
	classes  map[string]*class
	ledger   results.Ledger
	causes   map[string]int64
	statuses map[int]int64
	outages  []results.Outage // in order
	seconds  map[int64]*Second
	delays   delays
	prompt   *Histogram // response times of successes without their lag
	bytesIn  int64
	bytesOut int64

	failedServiceSum int64      // ns, of all ops that were sent and failed
	intervalStart    int64      // start of the current interval
	recent           *Histogram // response times of successes in the current interval
	lastDone         int64
	serviceNS        int64
}

// class holds the figures of one op class.
type class struct {
	ledger  results.Ledger
	overSLO int64
	bytesIn int64
	edge    map[string]int64   // successes by what an edge did
	cached  int64              // successes that the cache tier answered
	total   [clocks]*Histogram // all closed intervals
	current [clocks]*Histogram // the current interval
}

// The clocks of a class, in the order of the tags.
const (
	response = iota
	failed
	service
	failedService
	wait
	lag
	clocks
)

func newClocks() (all [clocks]*Histogram) {
	for i := range all {
		all[i] = NewHistogram()
	}
	return all
}

func tag(clock int) string { return [clocks]string{"rt", "ft", "st", "fst", "wt", "lag"}[clock] }

// Second is one row of a timeline: the ops of one second of the step. An op counts
// in the second of its intended time, in that of its sending, and in that of its
// end. These can be three different seconds.
type Second struct {
	Second                                int64
	Intended, Sent, Completed, OK, Errors int64
	P50, P99                              *int64 // ns, of successes completed in this second
}

// New returns a recorder for a step whose time 0 is start. The function bound
// returns the SLO's bound of a class in nanoseconds. If closed is not nil, Tick
// calls it for every interval that it closes.
func New(start time.Time, bound func(class string) int64, closed func(Interval)) *Recorder {
	return &Recorder{
		start: start, bound: bound, closed: closed,
		classes: map[string]*class{}, causes: map[string]int64{}, statuses: map[int]int64{}, seconds: map[int64]*Second{},
		recent: NewHistogram(), prompt: NewHistogram(),
	}
}

// Record adds one outcome.
func (r *Recorder) Record(o results.Outcome) {
	c := r.class(o.Class)
	r.ledger.Count(o)
	c.ledger.Count(o)
	c.ledger.Scheduled++
	r.count(o)
	if o.Fate.Failed() {
		r.fail(o)
	}
	bound := r.bound(o.Class)
	r.delays.record(o, bound)
	if o.Fate == results.Unsent {
		return
	}
	c.current[lag].Record(o.Lag())
	r.lastDone = max(r.lastDone, o.Done)
	if o.Fate == results.ConnectError {
		c.current[failed].Record(o.Response())
		return
	}
	c.current[wait].Record(o.Wait())
	if o.Fate == results.OK || o.Fate == results.HTTPError {
		r.statuses[o.Status]++
	}
	r.bytesIn += o.BytesIn
	r.bytesOut += o.BytesOut
	c.bytesIn += o.BytesIn
	if o.Fate != results.OK {
		r.failedServiceSum += o.Service()
		c.current[failed].Record(o.Response())
		c.current[failedService].Record(o.Service())
		return
	}
	c.countSource(o)
	c.current[response].Record(o.Response())
	c.current[service].Record(o.Service())
	r.recent.Record(o.Response())
	r.prompt.Record(o.Response() - o.Lag())
	if o.Response() > bound {
		c.overSLO++
	}
}

// countSource counts which tier answered a success. An edge stores the header with which the cache tier answered once,
// so that header says nothing about a hit of the edge.
func (c *class) countSource(o results.Outcome) {
	if o.Edge != "" {
		if c.edge == nil {
			c.edge = map[string]int64{}
		}
		c.edge[o.Edge]++
	}
	if o.Cached && o.Edge != "hit" {
		c.cached++
	}
}

func (r *Recorder) fail(o results.Outcome) {
	cause := cmp.Or(o.Error, o.Fate.String())
	if o.SessionLost {
		cause = "session lost"
	} else {
		r.outages = addFailure(r.outages, o.Intended)
	}
	if _, known := r.causes[cause]; !known && len(r.causes) >= maxCauses {
		cause = "other causes"
	}
	r.causes[cause]++
}

func (r *Recorder) count(o results.Outcome) {
	r.second(o.Intended).Intended++
	if o.Fate == results.Unsent {
		r.second(o.Intended).Errors++
		return
	}
	if o.Sent >= 0 {
		r.second(o.Sent).Sent++
	}
	done := r.second(o.Done)
	if o.Fate == results.OK || o.Fate == results.HTTPError {
		done.Completed++
	}
	switch {
	case o.Fate == results.OK:
		done.OK++
	case !o.SessionLost:
		done.Errors++
	}
}

func (r *Recorder) second(ns int64) *Second {
	n := max(ns, 0) / int64(time.Second)
	s := r.seconds[n]
	if s == nil {
		s = &Second{Second: n}
		r.seconds[n] = s
	}
	return s
}

func (r *Recorder) class(name string) *class {
	c := r.classes[name]
	if c == nil {
		c = &class{total: newClocks(), current: newClocks()}
		r.classes[name] = c
	}
	return c
}

// Tick closes the interval that ends at now, in nanoseconds since the start of the
// step. It returns the response times of the successes in the interval.
func (r *Recorder) Tick(now int64) results.Latency {
	from, to := r.start.Add(time.Duration(r.intervalStart)).UnixMilli(), r.start.Add(time.Duration(now)).UnixMilli()
	for _, name := range r.names() {
		c := r.classes[name]
		for i, current := range c.current {
			if current.Count() == 0 {
				continue
			}
			if r.closed != nil {
				current.h.SetTag(name + "-" + tag(i))
				current.h.SetStartTimeMs(from)
				current.h.SetEndTimeMs(to)
				r.closed(Interval{current.h})
			}
			current.moveTo(c.total[i])
			// Closing an interval takes milliseconds. Without this yield, a client with
			// one or two cores would send the ops that are due in this time too late.
			runtime.Gosched()
		}
	}
	recent := r.recent.Latency(0)
	if recent.Count > 0 {
		s := r.second(max(now-1, 0))
		s.P50, s.P99 = recent.P50, recent.P99
	}
	r.recent.reset()
	r.intervalStart = now
	return recent
}

// Stall records a time in which the client did not run. Call it before Finish.
func (r *Recorder) Stall(s results.Stall) { r.delays.stall(s) }

// Finish closes the last interval and returns the figures of the step. The caller
// adds rates, validity and usage.
func (r *Recorder) Finish(scheduled int64) results.Step {
	r.Tick(max(r.lastDone, r.intervalStart))
	r.ledger.Scheduled = scheduled
	step := results.Step{
		Ledger: r.ledger, Ops: map[string]results.OpStats{}, BytesIn: r.bytesIn, BytesOut: r.bytesOut,
		Outages: r.outages,
	}
	slow, unsent := r.delays.excused()
	for name, c := range r.classes {
		step.Ops[name] = results.OpStats{
			Count: c.ledger.Scheduled, Errors: c.ledger.Errors(), SessionLost: c.ledger.SessionLost,
			BytesIn: c.bytesIn, Edge: c.edge, Cached: c.cached,
			OverSLO: c.overSLO, OverSLOByClient: slow[name], UnsentByClient: unsent[name],
		}
	}
	if len(r.causes) > 0 {
		step.Causes = r.causes
	}
	if len(r.statuses) > 0 {
		step.Statuses = r.statuses
	}
	all := Pool{classes: map[string]*[clocks]*Histogram{}, prompt: r.prompt}
	for name, c := range r.classes {
		all.classes[name] = &c.total
	}
	all.Fill(&step)
	r.serviceNS = all.total(service).sum() + r.failedServiceSum
	return step
}

// ServiceNS returns the sum of the service times of all sent ops. The part of the
// successes comes from the histograms. Call it after Finish.
func (r *Recorder) ServiceNS() int64 { return r.serviceNS }

// Timeline returns the seconds of the step in order. Seconds without ops are left out.
func (r *Recorder) Timeline() []Second {
	var rows []Second
	for _, n := range slices.Sorted(maps.Keys(r.seconds)) {
		rows = append(rows, *r.seconds[n])
	}
	return rows
}

func (r *Recorder) names() []string { return slices.Sorted(maps.Keys(r.classes)) }

// addFailure adds a failure to outages, which are in order: to the outage that is at most outageGap apart, or to a new
// one. Failures may come in any order of their intended times.
func addFailure(outages []results.Outage, at int64) []results.Outage {
	i, _ := slices.BinarySearchFunc(outages, at, func(o results.Outage, at int64) int {
		return cmp.Compare(o.ToNS+outageGap, at)
	})
	if i == len(outages) || outages[i].FromNS-outageGap > at {
		return slices.Insert(outages, i, results.Outage{FromNS: at, ToNS: at, Failed: 1})
	}
	o := &outages[i]
	o.FromNS, o.ToNS = min(o.FromNS, at), max(o.ToNS, at)
	o.Failed++
	if next := i + 1; next < len(outages) && outages[next].FromNS-o.ToNS <= outageGap {
		o.ToNS, o.Failed = outages[next].ToNS, o.Failed+outages[next].Failed
		outages = slices.Delete(outages, next, next+1)
	}
	return outages
}
