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
	// stableAfter is the serving time after which a death starts a new count of failures.
	// Deaths after a shorter time count as failures in a row.
	stableAfter = 10 * time.Second
	// loopAfter is the number of failures in a row that is reported as a crash loop.
	loopAfter = 3
	// maxRestartDelay bounds the delay in a crash loop.
	maxRestartDelay = 30 * time.Second
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
		if s.opts.neverRestart {
			return
		}
		process = s.restart(n)
	}
}

// died records a death and kills all processes that the node left. A native server survives
// the death of its wrapper and would keep its port and its files.
func (s *System) died(n *node, exit proc.Exit) {
	if err := n.leaf.KillAll(); err != nil {
		s.opts.Log.Error("the processes of a dead node cannot be killed", "node", n.Name, "error", err)
	}
	oomKills := usageOf(n.leaf).OOMKills
	s.mu.Lock()
	defer s.mu.Unlock()
	outOfMemory := oomKills > n.oomKills && exit.Signal == syscall.SIGKILL
	n.oomKills = oomKills
	switch {
	case n.expected:
		n.cause = exit.Cause + " on request"
	case outOfMemory:
		n.cause = fmt.Sprintf("%s: over the host's memory limit of %d MiB", exit.Cause, n.host.MemoryBytes>>20)
	default:
		n.cause = causeOf(exit)
	}
	s.countDeath(n, time.Since(n.since) > stableAfter)
	s.set(n, targets.Dead)
	s.note(n, "died: %s", n.cause)
	if s.writesBack(n) && !exit.Clean() {
		s.losses.add(unknownLoss(n.Name, "it died ("+n.cause+") with acknowledged writes that it had not yet written to the "+
			"database. Only its memory had them, so their number and ids are unknown"))
	}
}

// countDeath counts unexpected deaths in a row. The caller holds mu.
func (s *System) countDeath(n *node, stable bool) {
	if n.expected || stable {
		n.failures = 0
	}
	if !n.expected {
		n.failures++
	}
	n.expected = false
}

// restart restarts a dead node and retries until that succeeds. It returns nil if the life
// of the node ends first.
func (s *System) restart(n *node) *proc.Process {
	for {
		wait := time.NewTimer(s.nextDelay(n))
		select {
		case <-wait.C:
		case <-n.life.Done():
			wait.Stop()
			return nil
		}
		// After the death of a host its nodes restart in their start order. A node does not
		// wait for nodes of other hosts.
		var before []*node
		for _, used := range s.usedBy(n) {
			if used.host == n.host {
				before = append(before, used)
			}
		}
		if s.awaitServing(n.life, before) != nil || s.claimStart(n) != nil {
			return nil
		}
		process, err := s.start(n.life, n)
		if process != nil {
			if err != nil {
				s.opts.Log.Error("the CPU budget of a restarted node is not in force", "node", n.Name, "error", err)
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
		s.note(n, "restart failed: %s", n.cause)
		s.mu.Unlock()
	}
}

// claimStart waits until no kill or fence holds the node and it is not paused. Under the same
// lock it sets launching, so that a later Fence waits for the new process and kills it.
func (s *System) claimStart(n *node) error {
	return s.await(n.life, func() bool {
		n.launching = n.launching || n.held == 0 && !n.frozen
		return n.launching
	})
}

// nextDelay returns the delay before the next restart: the configured delay, doubled for
// each failure in a row after the first, up to maxRestartDelay.
func (s *System) nextDelay(n *node) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	delay := s.opts.restartDelay
	for range n.failures - 1 {
		delay = min(2*delay, maxRestartDelay)
	}
	if n.failures >= loopAfter {
		s.note(n, "crash loop: it died %d times in a row, the next start is in %v", n.failures, delay)
	}
	return delay
}

// usageOf returns the usage of a leaf, zero if it cannot be read.
func usageOf(leaf *budget.Leaf) budget.Usage {
	usage, err := leaf.Usage()
	if err != nil {
		return budget.Usage{}
	}
	return usage
}

// causeOf returns the cause of a death, with the most useful line of the log tail.
func causeOf(exit proc.Exit) string {
	if line := deathLine(exit.Tail); line != "" {
		return exit.Cause + ": " + line
	}
	return exit.Cause
}

// deathLine returns the line of a log tail that best explains a death: the first line of a
// Go panic, or the last line. If the last line is JSON, it returns its message and error.
func deathLine(tail []string) string {
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
