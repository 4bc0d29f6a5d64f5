// Package cell measures: one step at one offered rate, and one cell, which is a
// configuration of the system under test times a workload.
//
// It is where the whole line meets: it brings a topology up (targets/local),
// aims a workload at it (workloads/driver), records outcomes (results/hdr,
// results/rundir), follows a search (results/capacity) and judges what came of
// it (results). It prints nothing; what goes on is told to a Progress.
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

// interval is the length of the intervals of histograms and timeline.
const interval = int64(time.Second)

// opsHashed is how many ops of a step its hash covers.
const opsHashed = 1000

// Progress is told what is going on.
type Progress interface {
	// Step begins a step at an offered rate.
	Step(purpose string, rate float64)
	// Sample tells what the last second of the step was like, in nanoseconds.
	Sample(p50, p99 *int64, completedRPS float64)
}

// Observed is a target whose own accounts can be read during a step.
type Observed interface {
	// Usage is what its hosts and nodes have used since they were started.
	Usage() (targets.Usage, error)
	// Events is what has happened to it so far.
	Events() []targets.Event
}

// Stepper measures steps of one workload against one target.
type Stepper struct {
	Driver   driver.Driver
	Clients  *driver.Clients
	Workload workloads.Workload
	SLO      results.SLO
	Timeout  time.Duration // of one op
	Drain    time.Duration // of a step that was cancelled
	Progress Progress

	// Target is nil for a target of which nothing but its address is known.
	Target Observed
	// Nodes lists the nodes of the target, whose metrics are read before and after a step; nil for a target of
	// which they are not known.
	Nodes func(ctx context.Context) ([]targets.NodeStatus, error)
	// Figures are what the nodes are asked for, besides their count of requests.
	Figures []ladder.Figure
	// ClientCPU is how many cores the client can use.
	ClientCPU float64
	// During does something to the target while a step lasts, from its start until
	// ctx ends with it, and says what; nil = nothing.
	During func(ctx context.Context, start time.Time) []targets.Event
	// History sees what all steps show of records; nil = none does.
	History *history.Recorder

	Log      *hdr.Log              // nil = not kept
	Also     func(results.Outcome) // sees every outcome; may be nil
	timeline *timeline             // nil = not kept
	next     uint64                // position in the workload
	left     int64                 // requests that the last step had left unanswered
	began    time.Time             // time 0 of the first step
	logError error
}

// Step offers the schedule for a duration and returns what came of it. Steps
// for a search may end early, when the objective can no longer be met.
func (s *Stepper) Step(
	ctx context.Context, purpose string, rate float64, schedule pace.Schedule, duration time.Duration,
) (results.Step, error) {
	s.Progress.Step(purpose, rate)
	scheduled := schedule.Count(duration)
	stepContext, giveUp := context.WithCancel(ctx)
	defer giveUp()
	before := s.before(ctx)
	f := &follower{
		stepper: s, recorder: hdr.New(time.Now(), s.SLO.BoundOf, s.keep), next: interval,
		hopeless: func() {}, tally: results.Tally{SLO: s.SLO, Scheduled: int64(scheduled)},
	}
	if purpose == "search" || purpose == "confirm" {
		f.hopeless = giveUp
	}
	finish := s.begin(stepContext)
	report, err := s.Driver.Run(stepContext, s.Clients, driver.Plan{
		Workload: s.Workload, First: s.next, Schedule: schedule, Duration: duration, Timeout: s.Timeout, Drain: s.Drain,
	}, f.outcome)
	done := finish()
	if err != nil {
		return results.Step{}, fmt.Errorf("%s step at %.0f/s: %w", purpose, rate, err)
	}
	after := s.after(context.WithoutCancel(ctx))
	step := f.recorder.Finish(report.Scheduled)
	step.Purpose, step.OfferedRPS, step.Schedule, step.CatchUp = purpose, rate, schedule.String(), driver.CatchUp
	step.CutShort = report.Window < duration && ctx.Err() == nil
	step.OpsHash = workloads.Hash(s.Workload, s.next, min(scheduled, opsHashed))
	s.next += scheduled
	s.fill(&step, report, before, after, done)
	step.Stale = s.stale(report)
	results.Judge(&step, s.SLO, results.Evidence{
		InFlightNS: report.InFlightNS, ServiceNS: f.recorder.ServiceNS(), Recorded: step.ResponseNS.Count,
		FDHeadroom: fileHeadroom(), EarlierUnanswered: s.left,
	})
	s.left = step.Ledger.Unanswered()
	if err := s.timeline.write(f.recorder.Timeline(), step); s.logError == nil {
		s.logError = err
	}
	return step, s.logError
}

// begin starts what is done to the target during a step. Call the result when
// the step is over: it returns what was done.
func (s *Stepper) begin(ctx context.Context) (finish func() []targets.Event) {
	if s.During == nil {
		return func() []targets.Event { return nil }
	}
	ctx, end := context.WithCancel(ctx)
	start, done := time.Now(), make(chan []targets.Event, 1)
	go func() { done <- s.During(ctx, start) }()
	return func() []targets.Event {
		end()
		return <-done
	}
}

// stale judges what the step showed of records.
func (s *Stepper) stale(report driver.Report) *results.Stale {
	if s.History == nil {
		return nil
	}
	if s.began.IsZero() {
		s.began = report.Start
	}
	ages, hits := hdr.NewHistogram(), hdr.NewHistogram()
	stale := s.History.EndStep(int64(report.Start.Sub(s.began)), func(read history.StaleRead) {
		ages.Record(read.AgeNS)
		if read.Cached {
			hits.Record(read.AgeNS)
		}
	})
	if stale.Reads == 0 {
		return nil
	}
	stale.AgeNS, stale.HitAgeNS = ages.Latency(0), hits.Latency(0)
	return &stale
}

// fill adds the rates, what target and client used between two snapshots, and what
// happened to the target; done is what was done to it on purpose.
func (s *Stepper) fill(step *results.Step, report driver.Report, before, after snapshot, done []targets.Event) {
	step.Seconds = report.Window.Seconds()
	completed := step.Ledger.OK + step.Ledger.HTTPError
	step.SentRPS = float64(step.Ledger.Sent) / max(step.Seconds, 1e-9)
	step.CompletedRPS = float64(completed) / max(report.Elapsed.Seconds(), 1e-9)
	step.OwnLatencyNS = report.OwnLatency
	step.Client = after.client.since(before.client, s.ClientCPU)
	if s.Target != nil {
		step.Hosts, step.Nodes = usageBetween(before.usage, after.usage, after.at.Sub(before.at))
		used := step.Client.CPUSeconds
		for _, h := range step.Hosts {
			used += h.CPUSeconds
		}
		step.Client.OutsideKnown = true
		step.Client.OutsideShare = after.machine.outside(before.machine, used)
		done = slices.Concat(done, s.Target.Events())
	}
	for _, e := range done {
		if at := e.UnixNS - report.Start.UnixNano(); at >= 0 && e.UnixNS <= after.at.UnixNano() {
			step.Events = append(step.Events, results.Event{AtNS: at, Text: e.Node + ": " + e.Text})
		}
	}
	slices.SortStableFunc(step.Events, func(a, b results.Event) int { return cmp.Compare(a.AtNS, b.AtNS) })
	step.Warnings = append(append([]string{}, before.problems...), after.problems...)
	for _, e := range step.Events {
		if strings.Contains(e.Text, "died") {
			step.Warnings = append(step.Warnings, e.Text)
		}
	}
	if before.known && after.known {
		fillFigures(step, s.Figures, deltas(before.nodes, after.nodes))
	}
}

// keep writes a closed interval to the histogram log.
func (s *Stepper) keep(i hdr.Interval) {
	if s.Log == nil || s.logError != nil {
		return
	}
	s.logError = s.Log.Write(i)
}

// timeline is the timeline of a cell. It goes on where it is when the processes
// are restarted, and a Stepper with them.
type timeline struct {
	rows   *rundir.Timeline
	second int // of the next step's first row
	steps  int
}

// write adds the seconds of a step; a nil timeline is not kept.
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

// follower watches one step as its outcomes come in.
type follower struct {
	stepper   *Stepper
	recorder  *hdr.Recorder
	next      int64 // end of the open interval
	completed int64 // in the open interval
	tally     results.Tally
	hopeless  func() // called when the objective can no longer be met
}

func (f *follower) outcome(o results.Outcome) {
	for o.Done >= f.next {
		recent := f.recorder.Tick(f.next)
		f.stepper.Progress.Sample(recent.P50, recent.P99, float64(f.completed)/(float64(interval)/1e9))
		f.next += interval
		f.completed = 0
	}
	f.recorder.Record(o)
	if f.stepper.History != nil {
		f.stepper.History.Record(o)
	}
	if f.stepper.Also != nil {
		f.stepper.Also(o)
	}
	if o.Fate == results.OK || o.Fate == results.HTTPError {
		f.completed++
	}
	if f.tally.Count(o) {
		f.hopeless()
	}
}
