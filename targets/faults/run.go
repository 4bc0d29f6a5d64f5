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

// Target is what faults are done to, by the names of hosts and nodes.
type Target interface {
	Kill(name string) error
	Pause(name string) error
	Resume(name string) error
	// Status is who can be meant at a moment.
	Status() []targets.NodeStatus
}

// statusPause is the time between two looks at a node that is to serve again.
const statusPause = 10 * time.Millisecond

// Run does what the schedule says, its times counted from start, and returns when
// all of it is done or ctx ends. The events say what was done and what could not
// be, in the order of their times; their node is the one that a role stood for.
func Run(ctx context.Context, s Schedule, start time.Time, target Target) []targets.Event {
	r := &runner{target: target, meant: map[string]string{}}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for _, fault := range s {
		timer.Reset(time.Until(start.Add(fault.At)))
		select {
		case <-timer.C:
			r.do(ctx, fault)
		case <-ctx.Done():
			r.note(fault.Who, "fault: %s: not done, the step had ended", fault)
		}
	}
	r.waits.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortStableFunc(r.events, func(a, b targets.Event) int { return int(a.UnixNS - b.UnixNS) })
	return r.events
}

// runner is one run of a schedule.
type runner struct {
	target Target
	meant  map[string]string // role -> the node that its last pause stopped
	waits  sync.WaitGroup    // for what is to serve again

	mu     sync.Mutex
	events []targets.Event // guarded by mu
}

func (r *runner) note(node, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, targets.Event{UnixNS: time.Now().UnixNano(), Node: node, Text: fmt.Sprintf(format, args...)})
}

func (r *runner) do(ctx context.Context, f Fault) {
	name, before, err := r.resolve(f)
	if err != nil {
		r.note(f.Who, "fault: %s: %v", f, err)
		return
	}
	// The moment that counts is that of the beginning: from then on it may fail.
	r.note(name, "fault: %s", f)
	switch f.Do {
	case Kill:
		err = r.target.Kill(name)
	case Pause:
		err = r.target.Pause(name)
		r.meant[f.Who] = name
	case Resume:
		err = r.target.Resume(name)
		delete(r.meant, f.Who)
	case Restart:
		if err = r.target.Kill(name); err == nil {
			begin := time.Now()
			r.waits.Go(func() { r.note(name, "fault: restart %s: %s", name, r.awaitServing(ctx, name, before, begin)) })
		}
	}
	if err != nil {
		r.note(name, "fault: %s: %v", f, err)
	}
}

// resolve finds whom a fault means now, and how often each node has been started
// again so far.
func (r *runner) resolve(f Fault) (name string, restarts map[string]int, err error) {
	restarts = map[string]int{}
	paused := map[string]bool{} // others have been started again since, or resumed by their own name
	nodes := r.target.Status()
	for _, n := range nodes {
		restarts[n.Node] = n.Restarts
		paused[n.Node] = n.State == targets.Paused
		if n.Host == f.Who || n.Node == f.Who {
			name = f.Who
		}
	}
	if stopped, found := r.meant[f.Who]; found && (f.Do == Resume || f.Do != Pause && paused[stopped]) {
		return stopped, restarts, nil
	}
	if name != "" {
		return name, restarts, nil
	}
	for _, n := range nodes {
		standing := n.ReplicationRole
		if n.Role == sut.DB && standing == "" {
			standing = targets.Primary // it has no copies
		}
		if n.State == targets.Serving && (string(n.Role) == f.Who || string(standing) == f.Who) {
			return n.Node, restarts, nil
		}
	}
	return "", nil, fmt.Errorf("no %s serves at this moment", f.Who)
}

// awaitServing waits until everything of that name has been started again and
// serves, and says how that went.
func (r *runner) awaitServing(ctx context.Context, name string, before map[string]int, begin time.Time) string {
	ticker := time.NewTicker(statusPause)
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
			return "it is no part of the system any more"
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
