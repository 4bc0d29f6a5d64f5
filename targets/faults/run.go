package faults

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
)

// Target is the system that gets the faults. A name is the name of a host or a node.
type Target interface {
	KillFor(name string, down time.Duration) error
	Pause(name string) error
	Resume(name string) error
	// Status returns the state of all nodes now.
	Status() []targets.NodeStatus
}

// statusInterval is the poll interval of awaitServing.
const statusInterval = 10 * time.Millisecond

// Run injects the faults of the schedule, with times relative to start. It returns when
// all are done or ctx ends. The events, ordered by time, say what was done and what
// failed. Their node is the node that a role was resolved to.
func Run(ctx context.Context, s Schedule, start time.Time, target Target) []targets.Event {
	r := &runner{target: target, paused: map[string]string{}}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for _, fault := range s {
		timer.Reset(time.Until(start.Add(fault.At)))
		select {
		case <-timer.C:
			r.do(ctx, fault)
		case <-ctx.Done():
			r.note(fault.Target, "fault: %s: skipped, the step ended before", fault)
		}
	}
	r.restarts.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortStableFunc(r.events, func(a, b targets.Event) int { return int(a.UnixNS - b.UnixNS) })
	return r.events
}

// runner is one run of a schedule.
type runner struct {
	target   Target
	paused   map[string]string // role -> the node that its last pause paused
	restarts sync.WaitGroup    // restarts whose nodes do not serve again yet

	mu     sync.Mutex
	events []targets.Event // guarded by mu
}

func (r *runner) note(node, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	r.events = append(r.events, targets.Event{UnixNS: time.Now().UnixNano(), Node: node, Text: text})
}

func (r *runner) do(ctx context.Context, f Fault) {
	name, before, err := r.resolve(f)
	if err != nil {
		r.note(f.Target, "fault: %s: %v", f, err)
		return
	}
	// The event has the time before the fault, because requests can fail from then on.
	r.note(name, "fault: %s", f)
	switch f.Do {
	case Kill:
		err = r.target.KillFor(name, f.For)
	case Pause:
		err = r.target.Pause(name)
		r.paused[f.Target] = name
	case Resume:
		err = r.target.Resume(name)
		delete(r.paused, f.Target)
	case Restart:
		if err = r.target.KillFor(name, 0); err == nil {
			begin := time.Now()
			r.restarts.Go(func() {
				r.note(name, "fault: restart %s: %s", name, r.awaitServing(ctx, name, before, begin))
			})
		}
	}
	if err != nil {
		r.note(name, "fault: %s: %v", f, err)
	}
}

// resolve returns the host or node that a fault means now, and the current number of
// restarts of every node.
func (r *runner) resolve(f Fault) (name string, restarts map[string]int, err error) {
	restarts = map[string]int{}
	// A node in r.paused may have been restarted since, or resumed by its own name.
	paused := map[string]bool{}
	nodes := r.target.Status()
	for _, n := range nodes {
		restarts[n.Node] = n.Restarts
		paused[n.Node] = n.State == targets.Paused
		if n.Host == f.Target || n.Node == f.Target {
			name = f.Target
		}
	}
	if node, found := r.paused[f.Target]; found && (f.Do == Resume || f.Do != Pause && paused[node]) {
		return node, restarts, nil
	}
	if name != "" {
		return name, restarts, nil
	}
	for _, n := range nodes {
		replicationRole := n.ReplicationRole
		if n.Role == sut.DB && replicationRole == "" {
			replicationRole = targets.Primary // the database is not replicated
		}
		if n.State == targets.Serving && (string(n.Role) == f.Target || replicationRole.Named(f.Target, n.Shard)) {
			return n.Node, restarts, nil
		}
	}
	return "", nil, fmt.Errorf("no %s is serving", f.Target)
}

// awaitServing waits until all nodes of the host or node have restarted and serve. It
// returns the result as the text of an event.
func (r *runner) awaitServing(ctx context.Context, name string, before map[string]int, begin time.Time) string {
	ticker := time.NewTicker(statusInterval)
	defer ticker.Stop()
	for {
		found, waiting := false, false
		for _, n := range r.target.Status() {
			if n.Host == name || n.Node == name {
				found = true
				waiting = waiting || n.State != targets.Serving || n.Restarts == before[n.Node]
			}
		}
		if !found {
			return "it was removed from the system before it served again"
		}
		if !waiting {
			return fmt.Sprintf("it serves again after %v", time.Since(begin).Round(time.Millisecond))
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return "it did not serve again before the end of the step"
		}
	}
}
