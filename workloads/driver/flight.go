package driver

import (
	"cmp"
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads"
)

// coarse is the last stretch of a wait, for which the runtime's timers are too
// coarse: an idle Go process waits for them in whole milliseconds.
const coarse = 2 * time.Millisecond

// Flight is the state of one run that every implementation shares: the clock,
// the slots, the next op, the outcomes. An implementation decides when and on
// which goroutine ops are carried; it calls Start, then for each op Due,
// Dispatch and Carry, and Land at the end. Dispatch and Carry are safe for
// concurrent use by as many workers as there are connections.
type Flight struct {
	clients *Clients
	plan    Plan
	base    time.Time    // of the clock
	began   atomic.Int64 // time 0 of the run, ns since base
	total   uint64       // ops in the whole schedule
	next    atomic.Uint64
	extra   atomic.Int64 // ops called for by lost sessions, not by the schedule
	free    chan freed
	timer   *time.Timer

	outcomes chan results.Outcome
	sunk     chan struct{} // closed when the last outcome was delivered
	// Over the outcomes that were delivered; to be read when all are.
	lastDone, service int64

	dispatching context.Context // ends when no more ops may be dispatched
	stop        context.CancelFunc
	window      atomic.Int64 // ns of the schedule that count
	ctx         context.Context
	cancel      context.CancelFunc // gives up what is in flight
	meter       meter
}

// freed is a slot and the moment at which it became free.
type freed struct {
	slot *slot
	at   int64
}

// Ticket is one op on its way.
type Ticket struct {
	Op      workloads.Op
	refused error // why the op cannot be made into a request
	slot    *slot
	outcome results.Outcome
	flight  *Flight
}

// Slot identifies the ticket among those in flight, 0..Connections-1.
func (t *Ticket) Slot() int { return t.slot.index }

// Sendable reports whether the op can be made into a request; Carry accounts
// for one that cannot.
func (t *Ticket) Sendable() bool { return t.refused == nil }

// NewFlight prepares a run. The sink gets its outcomes from one goroutine.
func NewFlight(ctx context.Context, clients *Clients, plan Plan, sink func(results.Outcome)) (*Flight, error) {
	if err := plan.Validate(); err != nil {
		return nil, err
	}
	f := &Flight{
		clients: clients, plan: plan, base: time.Now(), total: plan.Schedule.Count(plan.Duration),
		free:     make(chan freed, len(clients.slots)),
		outcomes: make(chan results.Outcome, 4096), sunk: make(chan struct{}), timer: time.NewTimer(time.Hour),
	}
	f.dispatching, f.stop = context.WithCancel(context.Background())
	for _, s := range clients.slots {
		f.free <- freed{slot: s}
	}
	f.window.Store(int64(plan.Duration))
	// What is in flight must not die with the caller's context: a run that is
	// cancelled still waits, within the drain, for its answers.
	f.ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(f.sunk)
		for o := range f.outcomes {
			if o.Sent >= 0 {
				f.service += o.Service()
			}
			f.lastDone = max(f.lastDone, o.Done)
			sink(o)
		}
	}()
	go f.watch(ctx)
	return f, nil
}

// watch ends the dispatching when the schedule is over or the caller cancels, and
// gives up what is in flight when a caller who cancels has waited for the drain.
func (f *Flight) watch(ctx context.Context) {
	select {
	case <-time.After(f.plan.Duration + cmp.Or(f.plan.LastCall, defaultLastCall)):
		f.stop()
		// What is in flight may take as long as the timeout; whoever cancels now waits
		// for it no longer than before.
		select {
		case <-f.sunk:
			return
		case <-ctx.Done():
		}
	case <-f.sunk:
		return
	case <-ctx.Done():
		f.window.Store(min(f.Now(), int64(f.plan.Duration)))
		f.stop()
	}
	select {
	case <-time.After(f.plan.Drain):
		f.cancel()
	case <-f.sunk:
	}
}

// Start makes now the time 0 of the run.
func (f *Flight) Start() { f.began.Store(int64(time.Since(f.base))) }

// Now is the time since the start.
func (f *Flight) Now() int64 { return int64(time.Since(f.base)) - f.began.Load() }

// Stopped is closed when no more ops may be dispatched.
func (f *Flight) Stopped() <-chan struct{} { return f.dispatching.Done() }

// Due waits until op n is due. It returns false when there is no such op or the
// run was stopped. It may be called by one goroutine only.
func (f *Flight) Due(n uint64) bool {
	if n >= f.total || f.dispatching.Err() != nil {
		return false
	}
	at := int64(f.plan.Schedule.At(n))
	if wait := time.Duration(at - f.Now()); wait > coarse {
		f.timer.Reset(wait - coarse)
		select {
		case <-f.timer.C:
		case <-f.Stopped():
			return false
		}
	}
	sleepUntil(f.Now, at)
	return true
}

// Dispatch takes up the next op and a slot for it, waiting for one if need be.
func (f *Flight) Dispatch() *Ticket {
	slot := <-f.free
	n := f.next.Add(1) - 1
	op := f.plan.Workload.Op(f.plan.First + n)
	_, err := http.NewRequest(op.Method, f.clients.URL(op), nil)
	return f.ticket(op, err, slot, int64(f.plan.Schedule.At(n)), f.Now())
}

// ticket is for an op that has got a slot.
func (f *Flight) ticket(op workloads.Op, refused error, slot freed, intended, dispatched int64) *Ticket {
	t := &Ticket{Op: op, refused: refused, slot: slot.slot, flight: f, outcome: outcomeOf(op, intended)}
	t.outcome.Free, t.outcome.Dispatched, t.outcome.BytesOut = slot.at, dispatched, int64(len(op.Body))
	return t
}

// outcomeOf is the outcome of an op that was not dispatched yet.
func outcomeOf(op workloads.Op, intended int64) results.Outcome {
	return results.Outcome{
		Index: op.Index, Class: string(op.Class), Intended: intended, Dispatched: -1, Sent: -1,
		Record: op.Record, Write: op.Write, User: op.User,
	}
}

// Land ends the run, once every worker has returned: it accounts for what was
// never sent and says what the run came to.
func (f *Flight) Land() Report {
	f.stop()
	window := time.Duration(f.window.Load())
	dispatched := f.next.Load()
	// An op can be dispatched in the very moment in which the run is cancelled.
	scheduled := max(f.plan.Schedule.Count(window), dispatched)
	for n := dispatched; n < scheduled; n++ {
		o := outcomeOf(f.plan.Workload.Op(f.plan.First+n), int64(f.plan.Schedule.At(n)))
		o.Done, o.Fate = int64(window), results.Unsent
		f.outcomes <- o
	}
	close(f.outcomes)
	<-f.sunk
	f.cancel()
	return Report{
		Start: f.base.Add(time.Duration(f.began.Load())), Window: window, Elapsed: max(window, time.Duration(f.lastDone)),
		Scheduled:  int64(scheduled) + f.extra.Load(),
		InFlightNS: f.meter.area, ServiceNS: f.service,
	}
}

// meter integrates the number of ops in flight over time. Its area may be read when none is.
type meter struct {
	mu    sync.Mutex
	count int64
	since int64
	area  int64
}

func (m *meter) change(at, by int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	// Two ops can reach the meter in another order than that of their clocks;
	// time then stands still instead of running backwards.
	if at > m.since {
		m.area += m.count * (at - m.since)
		m.since = at
	}
	m.count += by
}
