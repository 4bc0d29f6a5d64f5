package driver

import (
	"cmp"
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads"
)

// fineWait is the last part of a wait. It must not use the timers of the Go runtime: an
// idle Go process fires timers with a resolution of milliseconds.
const fineWait = 2 * time.Millisecond

// Flight is the state of one run, shared by all implementations: the clock, the slots,
// the next op, the journeys in progress and the outcomes. The implementation provides the goroutines. It calls
// Start, then Due, Dispatch and Carry for each op, and Finish at the end. Dispatch and
// Carry are safe for concurrent use by as many workers as there are connections.
type Flight struct {
	clients *Clients
	plan    Plan
	base    time.Time    // zero point of the clock
	began   atomic.Int64 // time 0 of the run, ns since base
	agenda  *agenda
	surplus int64        // of the transport's log before the run
	extra   atomic.Int64 // logins after lost sessions, which are not in the schedule
	free    *pool
	// Counts of the clients before the run.
	dialed, switched int64
	timer            *time.Timer

	outcomes  chan results.Outcome
	delivered chan struct{} // closed after the sink got the last outcome
	lastDone  int64         // latest end, ns; read it only after delivered is closed

	dispatching context.Context // ends when no more ops may be dispatched
	stop        context.CancelFunc
	window      atomic.Int64 // ns of the schedule that took place
	ctx         context.Context
	cancel      context.CancelFunc // aborts the ops in flight
	// inFlight is the number of ops in flight, integrated over time, in ns. It is the sum of
	// the ends minus the sum of the starts, so it does not depend on the order of the calls.
	inFlight atomic.Int64
	stalls   []results.Stall // read it only after watched is closed
	watched  chan struct{}   // closed when no more stalls are recorded
}

// freed is a free slot and the time at which it became free.
type freed struct {
	slot *slot
	at   int64
}

// Ticket is one dispatched op.
type Ticket struct {
	Op        workloads.Op
	malformed error // why the op cannot be built as a request; nil = it can
	due       dueOp
	session   *session
	slot      *slot
	outcome   results.Outcome
	flight    *Flight
}

// Slot returns the index of the ticket's slot, 0..Connections-1. It is unique among the
// ops in flight.
func (t *Ticket) Slot() int { return t.slot.index }

// Sendable reports whether the op can be built as a request. Call Carry even if not: it
// delivers the outcome.
func (t *Ticket) Sendable() bool { return t.malformed == nil }

// NewFlight prepares a run. One goroutine calls the sink with the outcomes.
func NewFlight(ctx context.Context, clients *Clients, plan Plan, sink func(results.Outcome)) (*Flight, error) {
	if err := plan.Validate(); err != nil {
		return nil, err
	}
	f := &Flight{
		clients: clients, plan: plan, base: time.Now(), agenda: newAgenda(plan),
		free: newPool(clients.slots), dialed: clients.dialed.Load(), switched: clients.switched.Load(),
		outcomes: make(chan results.Outcome, 4096), delivered: make(chan struct{}),
		watched: make(chan struct{}), timer: time.NewTimer(time.Hour), surplus: clients.config.Log.Surplus(),
	}
	f.dispatching, f.stop = context.WithCancel(context.Background())
	f.window.Store(int64(plan.Duration))
	// Ops in flight must not end with the caller's context: a cancelled run still waits
	// for their responses, up to Drain.
	f.ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(f.delivered)
		for o := range f.outcomes {
			f.lastDone = max(f.lastDone, o.Done)
			sink(o)
		}
	}()
	go f.watch(ctx)
	go f.watchStalls()
	return f, nil
}

// watch stops dispatching when the schedule ends or the caller cancels. After a
// cancellation it waits up to Drain and then aborts the ops in flight.
func (f *Flight) watch(ctx context.Context) {
	select {
	case <-time.After(f.plan.Duration + cmp.Or(f.plan.Grace, defaultGrace)):
		f.stop()
		// Ops in flight may take until their timeout. A cancellation now must still shorten
		// the wait to Drain.
		select {
		case <-f.delivered:
			return
		case <-ctx.Done():
		}
	case <-f.delivered:
		return
	case <-ctx.Done():
		f.window.Store(min(f.Now(), int64(f.plan.Duration)))
		f.stop()
	}
	select {
	case <-time.After(f.plan.Drain):
		f.cancel()
	case <-f.delivered:
	}
}

// Start sets time 0 of the run to now.
func (f *Flight) Start() { f.began.Store(int64(time.Since(f.base))) }

// Now returns the nanoseconds since Start.
func (f *Flight) Now() int64 { return int64(time.Since(f.base)) - f.began.Load() }

// Stopped returns a channel that is closed when no more ops may be dispatched.
func (f *Flight) Stopped() <-chan struct{} { return f.dispatching.Done() }

// Due waits until the next op is due. Dispatch must be called once for each call that returned true. Due returns false
// if there is no next op, or the run was stopped. It is not safe for concurrent use.
func (f *Flight) Due() bool {
	for f.dispatching.Err() == nil {
		at, more := f.agenda.next()
		if !more {
			return false
		}
		if wait := time.Duration(at - f.Now()); wait > fineWait {
			f.timer.Reset(wait - fineWait)
			select {
			case <-f.timer.C:
			case <-f.agenda.changed: // another op may be the next one now
			case <-f.Stopped():
			}
			continue
		}
		sleepUntil(f.Now, at)
		f.agenda.take()
		return true
	}
	return false
}

// Dispatch takes the op that Due has waited for, and a slot. It waits until a slot is free.
func (f *Flight) Dispatch() *Ticket {
	due := f.agenda.dispatch()
	op := f.plan.Workload.Op(due.op)
	source := f.clients.sourceOf(op.User)
	slot := f.free.take(source)
	f.clients.use(slot.slot, source)
	if op.Login {
		due.session = newSession()
	}
	_, err := http.NewRequest(op.Method, f.clients.URL(op), nil)
	t := f.ticket(op, err, slot, due.intended, f.Now())
	t.due, t.session = due, due.session
	if t.session == nil {
		t.session = f.clients.user(op.User)
	}
	return t
}

// ticket returns the ticket of an op with a slot.
func (f *Flight) ticket(op workloads.Op, malformed error, slot freed, intended, dispatched int64) *Ticket {
	t := &Ticket{Op: op, malformed: malformed, slot: slot.slot, flight: f, outcome: outcomeOf(op, intended)}
	t.outcome.Free, t.outcome.Dispatched, t.outcome.BytesOut = slot.at, dispatched, int64(len(op.Body))
	return t
}

// outcomeOf returns the outcome of an op that is not dispatched yet.
func outcomeOf(op workloads.Op, intended int64) results.Outcome {
	return results.Outcome{
		Index: op.Index, Class: string(op.Class), Intended: intended, Dispatched: -1, Sent: -1,
		Record: op.Record, Write: op.Write, User: op.User,
	}
}

// Finish ends the run and returns its report. It delivers the outcomes of the ops that were
// never sent. Call it after every worker has returned.
func (f *Flight) Finish() Report {
	f.stop()
	window := time.Duration(f.window.Load())
	for _, due := range f.agenda.unsent(int64(window)) {
		o := outcomeOf(f.plan.Workload.Op(due.op), due.intended)
		o.Done, o.Fate = int64(window), results.Unsent
		f.outcomes <- o
	}
	close(f.outcomes)
	<-f.delivered
	f.cancel()
	<-f.watched
	return Report{
		Start: f.base.Add(time.Duration(f.began.Load())), Window: window, Elapsed: max(window, time.Duration(f.lastDone)),
		Scheduled: f.agenda.scheduled + f.extra.Load(), Journeys: f.agenda.count(f.plan.until(window)),
		Connected: f.clients.dialed.Load() - f.dialed, Switched: f.clients.switched.Load() - f.switched,
		InFlightNS: f.inFlight.Load(), Stalls: f.stalls,
		Surplus: f.clients.config.Log.Surplus() - f.surplus,
	}
}

const (
	// heartbeat is the time between two checks whether this process runs.
	heartbeat = 10 * time.Millisecond
	// minStall is the least delay of a check that counts as a stall. The timers of an idle Go
	// process are late by up to two milliseconds.
	minStall = 3 * time.Millisecond
)

// watchStalls finds the times in which this process did not run: it sleeps again and again,
// and records when a sleep ended late. The lag of the ops does not show all of them. A client
// that stalls while all its connections are in use is late only in reading the responses.
//
// It must not sleep in a system call as sleepUntil does: in this time no other goroutine could
// use its processor, and the watch itself would make the client late.
func (f *Flight) watchStalls() {
	defer close(f.watched)
	timer := time.NewTimer(heartbeat)
	defer timer.Stop()
	for done := false; !done; {
		expected := f.Now() + int64(heartbeat)
		timer.Reset(heartbeat)
		select {
		case <-f.delivered:
			done = true
		case <-timer.C:
		}
		if late := f.Now() - expected; late >= int64(minStall) {
			f.stalls = append(f.stalls, results.Stall{AtNS: expected, LengthNS: late})
		}
	}
}
