// Package cell measures steps and cells. A step is one offered rate. A cell is one
// configuration of the system under test with one workload.
//
// It starts a topology (targets/local), sends a workload to it (workloads/driver), records
// the outcomes (results/hdr, results/rundir), estimates the capacity (results/capacity)
// and judges the steps (results). It prints nothing and reports its progress to a Progress.
// Bench goes through the visits of all cells, and cellRun is one cell over its visits.
//
// Rates are requests per second. A Stepper or a Bench belongs to one goroutine.
package cell

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/hdr"
	"github.com/stagebench/stagebench/results/history"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
	"github.com/stagebench/stagebench/workloads/pace"
)

// interval is the length of an interval of histograms and timeline, in nanoseconds.
const interval = int64(time.Second)

// maxReconnects is the share of requests for which users with source addresses may reconnect without a note.
const maxReconnects = 0.05

// maxHashed is the number of ops that the hash of a step covers. More would delay the result by seconds.
const maxHashed = 1_000_000

// Progress receives the progress of a measurement.
type Progress interface {
	// Visit reports the begin of a visit: its index of all visits, and the expected time until the end of the last one.
	Visit(name string, index, of int, left time.Duration)
	// Step reports the begin of a step at an offered rate.
	Step(purpose string, rate float64)
	// Sample reports the response time percentiles of the last second, in nanoseconds.
	Sample(p50, p99 *int64, completedRPS float64)
}

// Target is a target that reports its resource use and its events.
type Target interface {
	// Usage returns the resource use of its hosts and nodes since their start.
	Usage() (targets.Usage, error)
	// Events returns all events so far.
	Events() []targets.Event
}

// Stepper measures steps of one workload against one target.
type Stepper struct {
	Driver   driver.Driver
	Clients  *driver.Clients
	Workload workloads.Workload
	SLO      results.SLO
	Timeout  time.Duration // of one op
	Drain    time.Duration // maximum wait for ops in flight after a step was cancelled
	Progress Progress

	// Target is nil if only the address of the target is known.
	Target Target
	// Remote: the target is on another machine, so that what other processes use here disturbs the client.
	Remote bool
	// Nodes lists the nodes of the target. They are scraped before and after each step. Nil if they are unknown.
	Nodes func(ctx context.Context) ([]targets.NodeStatus, error)
	// Figures are the figures to collect from the nodes, in addition to their count of requests.
	Figures []ladder.Figure
	// ClientCores is the number of cores that the client can use.
	ClientCores float64
	// Faults injects faults during a step and returns them as events. It must return when ctx is cancelled, at the
	// end of the step. Nil = no faults.
	Faults func(ctx context.Context, start time.Time) []targets.Event
	// History records the versions of records that all steps read and wrote; nil = no record.
	History *history.Recorder
	// OnOutcome gets every outcome, from one goroutine at a time; may be nil.
	OnOutcome func(results.Outcome)
	// Patience is how long AwaitProcessed waits; 0 = DefaultPatience.
	Patience time.Duration
	// Log is the histogram log; nil = no log.
	Log *hdr.Log

	ceiling     *ceiling      // of the edge; nil = unknown
	timeline    *timeline     // nil = no timeline
	last        distributions // of the last step
	nextJourney uint64        // number of the next journey in the workload; without journeys, of the next op
	unanswered  int64         // requests of the last step without an answer
	start       time.Time     // time 0 of the first step
	begun       time.Time     // time 0 of the last step
	made        []made        // records that the last step made
	logError    error         // first error of log or timeline
}

// Keep makes the stepper write histogram log and timeline of a cell to the directory of its run. Call closeFiles after
// the last step.
func (s *Stepper) Keep(run *rundir.Dir, c results.Cell) (closeFiles func() error, err error) {
	dir, err := run.Cell(rundir.CellName(c.Stage) + "/" + rundir.CellName(c.Workload))
	if err != nil {
		return func() error { return nil }, err
	}
	files, err := openFiles(dir, c)
	s.Log, s.timeline = files.log, files.timeline
	return files.close, err
}

// Step offers the schedule for a duration and returns the result.
func (s *Stepper) Step(
	ctx context.Context, purpose string, rate float64, schedule pace.Schedule, duration time.Duration,
) (results.Step, error) {
	s.Progress.Step(purpose, rate)
	journeys := pace.NewJourneys(s.Workload, s.nextJourney, schedule)
	stepContext, cancel := context.WithCancel(ctx)
	defer cancel()
	before := s.before(ctx)
	o := &observer{
		stepper: s, recorder: hdr.New(time.Now(), s.SLO.BoundOf, s.writeInterval), next: interval,
	}
	stopFaults := s.startFaults(stepContext)
	lower, realTime := s.raisePriority(before.usage)
	report, err := s.Driver.Run(stepContext, s.Clients, driver.Plan{
		Workload: s.Workload, First: s.nextJourney, Schedule: schedule, Duration: duration,
		Timeout: s.Timeout, Drain: s.Drain,
	}, o.outcome)
	lower()
	injected := stopFaults()
	if err != nil {
		return results.Step{}, fmt.Errorf("%s step at %.0f/s: %w", purpose, rate, err)
	}
	after := s.after(context.WithoutCancel(ctx))
	for _, stall := range report.Stalls {
		o.recorder.Stall(stall)
	}
	step := o.recorder.Finish(report.Scheduled)
	step.Purpose, step.OfferedRPS, step.Schedule, step.CatchUp = purpose, rate, journeys.String(), driver.CatchUp
	step.TimeoutNS = int64(s.Timeout)
	first, ops := journeys.Span(report.Window)
	step.OpsHash, step.Journeys = workloads.Hash(s.Workload, first, min(ops, maxHashed)), report.Journeys
	requests, reusable := s.ceiling.step(journeys, report.Window, report.Start)
	all, _ := journeys.Count(duration)
	s.nextJourney += all
	s.begun, s.made = report.Start, o.made
	s.fill(&step, report, before, after, injected)
	step.Client.RealTime = realTime
	if step.Static != nil {
		step.Static.Scheduled, step.Static.Reusable = requests, reusable
	}
	s.last = distributions{recorder: o.recorder, ages: hdr.NewHistogram(), hits: hdr.NewHistogram()}
	step.Stale = s.stale(report, s.last)
	s.last.evidence = results.Evidence{
		InFlightNS: report.InFlightNS, ServiceNS: o.recorder.ServiceNS(), Recorded: step.ResponseNS.Count,
		FDHeadroom: fileHeadroom(), EarlierUnanswered: s.unanswered, Stalls: report.Stalls,
	}
	results.Judge(&step, s.SLO, s.last.evidence)
	s.unanswered = step.Ledger.Unanswered()
	if err := s.timeline.write(o.recorder.Timeline(), step); s.logError == nil {
		s.logError = err
	}
	return step, s.logError
}

// raisePriority gives the driver real-time priority until lower is called, if all hosts of the target are isolated.
// Otherwise a driver with this priority would take the CPU from a target on the same machine: its lag would be small,
// and the latency of the target wrong. If the system does not permit it, the manifest says so.
func (s *Stepper) raisePriority(usage targets.Usage) (lower func(), raised bool) {
	shared := func(h targets.HostUsage) bool { return !h.Isolated }
	if len(usage.Hosts) == 0 || slices.ContainsFunc(usage.Hosts, shared) {
		return func() {}, false
	}
	lower, err := driver.RaisePriority()
	if err != nil {
		return func() {}, false
	}
	return lower, true
}

// startFaults starts the injection of faults. Call stop at the end of the step: it returns
// the injected faults.
func (s *Stepper) startFaults(ctx context.Context) (stop func() []targets.Event) {
	if s.Faults == nil {
		return func() []targets.Event { return nil }
	}
	ctx, cancel := context.WithCancel(ctx)
	start, injected := time.Now(), make(chan []targets.Event, 1)
	go func() { injected <- s.Faults(ctx, start) }()
	return func() []targets.Event {
		cancel()
		return <-injected
	}
}

// stale returns the stale reads of the step and adds their ages to d; nil if it read no records.
func (s *Stepper) stale(report driver.Report, d distributions) *results.Stale {
	if s.History == nil {
		return nil
	}
	if s.start.IsZero() {
		s.start = report.Start
	}
	stale := s.History.EndStep(int64(report.Start.Sub(s.start)), func(read history.StaleRead) {
		d.ages.Record(read.AgeNS)
		if read.Cached {
			d.hits.Record(read.AgeNS)
		}
	})
	if stale.Reads == 0 {
		return nil
	}
	stale.AgeNS, stale.HitAgeNS = d.ages.Latency(0), d.hits.Latency(0)
	return &stale
}

// fill adds rates, resource use, figures and events to a step. Before and after are the
// snapshots at its begin and end; events are the injected faults.
func (s *Stepper) fill(step *results.Step, report driver.Report, before, after snapshot, events []targets.Event) {
	step.Seconds = report.Window.Seconds()
	completed := step.Ledger.OK + step.Ledger.HTTPError
	step.SentRPS = float64(step.Ledger.Sent) / max(step.Seconds, 1e-9)
	step.CompletedRPS = float64(completed) / max(report.Elapsed.Seconds(), 1e-9)
	step.OwnLatencyNS = report.OwnLatency
	step.Client = after.client.since(before.client, s.ClientCores)
	step.Client.Connections = report.Connected
	if float64(report.Switched) > maxReconnects*float64(step.Ledger.Sent) {
		step.Notef("%d of %d requests made a new connection, because each user keeps its source address: this is a part of "+
			"the response times and of the CPU time; more connections help", report.Switched, step.Ledger.Sent)
	}
	for _, stall := range report.Stalls {
		step.Client.StallSumNS += stall.LengthNS
		step.Client.StallMaxNS = max(step.Client.StallMaxNS, stall.LengthNS)
	}
	if s.Target != nil {
		step.Hosts, step.Nodes = usageBetween(before.usage, after.usage, after.at.Sub(before.at))
		used := step.Client.CPUSeconds
		for _, h := range step.Hosts {
			used += h.CPUSeconds
		}
		step.Client.OutsideShare = after.machine.Outside(before.machine, used)
		all := s.Target.Events()
		step.Autoscaling = autoscalingOf(all, report.Start, after.at)
		events = slices.Concat(events, all)
	} else if s.Remote {
		step.Client.OutsideShare = after.machine.Outside(before.machine, step.Client.CPUSeconds)
	} else { // which of the other processes are the target is unknown
		step.Client.OutsideShare = after.machine.StolenShare(before.machine)
	}
	step.Client.OutsideKnown = after.machine.Covers(before.machine)
	for _, e := range events {
		if at := e.UnixNS - report.Start.UnixNano(); at >= 0 && e.UnixNS <= after.at.UnixNano() {
			step.Events = append(step.Events, results.Event{AtNS: at, Text: e.Node + ": " + e.Text})
		}
	}
	slices.SortStableFunc(step.Events, func(a, b results.Event) int { return cmp.Compare(a.AtNS, b.AtNS) })
	step.Notes = slices.Concat(before.problems, after.problems)
	if report.Surplus > 0 {
		step.Notef("%d times the target sent bytes that belong to no response, for example after the end of a body by its "+
			"Content-Length; each time the connection was closed", report.Surplus)
	}
	for _, e := range step.Events {
		if strings.Contains(e.Text, "died") && !strings.Contains(e.Text, "on request") { // a fault that was asked for
			step.Notes = append(step.Notes, e.Text)
		}
	}
	if before.listed && after.listed {
		fillFigures(step, s.Figures, deltas(before.nodes, after.nodes))
	}
}

// autoscalingOf returns what the autoscaler of a target did between two times; nil if it has none. events has all of
// the target, oldest first.
func autoscalingOf(events []targets.Event, from, until time.Time) *results.Autoscaling {
	var decisions []results.ScalingDecision
	var supply []results.Supply
	for _, e := range events {
		at := e.UnixNS - from.UnixNano()
		if e.Supply != nil {
			supply = append(supply, results.Supply{AtNS: at, Serving: e.Supply.Serving, Hosts: e.Supply.Hosts})
		}
		if d := e.Scaling; d != nil {
			decisions = append(decisions, results.ScalingDecision{
				AtNS: at, From: d.From, To: d.To, Advice: d.Advice, Metric: d.Metric, Limit: d.Limit, Reason: d.Reason,
			})
		}
	}
	if decisions == nil {
		return nil
	}
	return results.NewAutoscaling(decisions, supply, until.Sub(from).Nanoseconds())
}

// writeInterval writes a complete interval to the histogram log.
func (s *Stepper) writeInterval(i hdr.Interval) {
	if s.Log == nil || s.logError != nil {
		return
	}
	s.logError = s.Log.Write(i)
}

// timeline is the timeline of a cell. All visits of the cell write to it, and may have Steppers of their own.
type timeline struct {
	rows   *rundir.Timeline
	second int // second of the next step's first row
	steps  int // steps written so far
}

// write adds the seconds of a step. On a nil timeline it does nothing.
func (t *timeline) write(seconds []hdr.Second, step results.Step) error {
	if t == nil {
		return nil
	}
	t.steps++
	var failed error
	for i, row := range seconds {
		var events []string
		for _, e := range step.Events {
			if e.AtNS/interval == row.Second || i == len(seconds)-1 && e.AtNS/interval > row.Second {
				events = append(events, e.Text)
			}
		}
		err := t.rows.Write(rundir.TimelineRow{
			Second: t.second + int(row.Second), Step: fmt.Sprintf("%s-%d", step.Purpose, t.steps),
			Offered: step.OfferedRPS, Intended: row.Intended, Sent: row.Sent, Completed: row.Completed,
			OK: row.OK, Errors: row.Errors, P50NS: row.P50, P99NS: row.P99, Events: events,
		})
		if failed == nil {
			failed = err
		}
	}
	if n := len(seconds); n > 0 {
		t.second += int(seconds[n-1].Second) + 1
	}
	return failed
}

// observer processes the outcomes of one step as they arrive.
type observer struct {
	stepper   *Stepper
	recorder  *hdr.Recorder
	next      int64 // end of the current interval, ns since the begin of the step
	completed int64 // ops completed in the current interval
	made      []made
}

func (v *observer) outcome(o results.Outcome) {
	for o.Done >= v.next {
		recent := v.recorder.Tick(v.next)
		v.stepper.Progress.Sample(recent.P50, recent.P99, float64(v.completed)/(float64(interval)/1e9))
		v.next += interval
		v.completed = 0
	}
	v.recorder.Record(o)
	if v.stepper.History != nil {
		v.stepper.History.Record(o)
	}
	if v.stepper.OnOutcome != nil {
		v.stepper.OnOutcome(o)
	}
	if o.Created != "" {
		v.made = append(v.made, made{o.Created, o.Intended, o.Done})
	}
	if o.Fate == results.OK || o.Fate == results.HTTPError {
		v.completed++
	}
}
