package local

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/budget"
	"github.com/stagebench/stagebench/targets/proc"
)

const (
	// stableAfter is how long a node must have served for its death to begin a
	// new count: a node that dies sooner, again and again, is in a crash loop.
	stableAfter = 10 * time.Second
	// loopAfter is how many deaths in a row are reported as a crash loop.
	loopAfter = 3
)

// keepUp restarts a node whenever it dies, until its life ends.
func (s *System) keepUp(n *node, process *proc.Process) {
	for process != nil {
		select {
		case <-n.life.Done():
			return
		case <-process.Done():
		}
		s.died(n, process.Wait())
		if s.opts.Restart.Never {
			return
		}
		process = s.restart(n)
	}
}

// died records a death and clears away what the node left: a native server
// outlives a wrapper that was killed, and would hold its port and its files.
func (s *System) died(n *node, exit proc.Exit) {
	if err := n.leaf.KillAll(); err != nil {
		s.opts.Log.Error("a dead node left processes", "node", n.Name, "error", err)
	}
	oomKills := usageOf(n.leaf).OOMKills
	s.mu.Lock()
	defer s.mu.Unlock()
	outOfMemory := oomKills > n.oomKills && exit.Signal == syscall.SIGKILL
	n.oomKills = oomKills
	switch {
	case n.asked:
		n.cause = exit.Cause + " on request"
	case outOfMemory:
		n.cause = fmt.Sprintf("%s: over the host's memory limit of %d MiB", exit.Cause, n.host.MemoryBytes>>20)
	default:
		n.cause = causeOf(exit)
	}
	s.countDeath(n, time.Since(n.since) > stableAfter)
	s.set(n, targets.Dead)
	s.note(n, "died: %s", n.cause)
}

// countDeath counts deaths in a row that nobody asked for; the caller holds mu.
func (s *System) countDeath(n *node, stable bool) {
	if n.asked || stable {
		n.failures = 0
	}
	if !n.asked {
		n.failures++
	}
	n.asked = false
}

// restart starts a dead node again, as often as it takes. It returns nil when
// the system's life ends first.
func (s *System) restart(n *node) *proc.Process {
	for {
		wait := time.NewTimer(s.nextDelay(n))
		select {
		case <-wait.C:
		case <-n.life.Done():
			wait.Stop()
			return nil
		}
		// After the death of a whole host its nodes come back in the order in
		// which they came up. Nodes of other hosts do not hold this one up.
		var before []*node
		for _, used := range s.usedBy(n) {
			if used.host == n.host {
				before = append(before, used)
			}
		}
		if s.awaitServing(n.life, before) != nil || s.awaitLetGo(n) != nil {
			return nil
		}
		process, err := s.start(n.life, n)
		if process != nil {
			if err != nil {
				s.opts.Log.Error("a restarted node is not held to its budget", "node", n.Name, "error", err)
			}
			s.mu.Lock()
			n.restarts++
			s.mu.Unlock()
			return process
		}
		if n.life.Err() != nil {
			return nil
		}
		s.mu.Lock()
		n.cause, _, _ = strings.Cut(err.Error(), "\n")
		s.countDeath(n, false)
		s.note(n, "restart: %s", n.cause)
		s.mu.Unlock()
	}
}

// awaitLetGo waits until nothing kills what there is of the node any more and its
// host is not paused. The node is launching from then on: whoever fences it after
// that knows that a process is about to be there.
func (s *System) awaitLetGo(n *node) error {
	return s.await(n.life, func() bool {
		n.launching = n.launching || n.held == 0 && !n.frozen
		return n.launching
	})
}

// nextDelay is how long a dead node stays dead: the configured delay, doubled
// with each death after the first in a row.
func (s *System) nextDelay(n *node) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	delay := s.opts.Restart.Delay
	for range n.failures - 1 {
		delay = min(2*delay, max(s.opts.Restart.MaxDelay, s.opts.Restart.Delay))
	}
	if n.failures >= loopAfter {
		s.note(n, "crash loop: it died %d times in a row, the next start is in %v", n.failures, delay)
	}
	return delay
}

// usageOf is a leaf's account, zero where it cannot be read: for the cause of
// a death, which is told with or without it.
func usageOf(leaf *budget.Leaf) budget.Usage {
	usage, err := leaf.Usage()
	if err != nil {
		return budget.Usage{}
	}
	return usage
}

// causeOf says what a process died of, with its last words.
func causeOf(exit proc.Exit) string {
	if words := lastWords(exit.Tail); words != "" {
		return exit.Cause + ": " + words
	}
	return exit.Cause
}

// lastWords picks the line of a log tail that says most about a death: the
// first line of a Go panic, or else the last line, of which, if it is a
// structured record, the message and the error.
func lastWords(tail []string) string {
	for _, line := range tail {
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			return line
		}
	}
	if len(tail) == 0 {
		return ""
	}
	last := tail[len(tail)-1]
	var record struct{ Msg, Error, Err string }
	if json.Unmarshal([]byte(last), &record) != nil || record.Msg == "" {
		return last
	}
	for _, detail := range []string{record.Error, record.Err} {
		if detail != "" {
			return record.Msg + ": " + detail
		}
	}
	return record.Msg
}
