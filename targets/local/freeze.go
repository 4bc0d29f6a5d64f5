package local

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/stagebench/stagebench/targets"
)

// Freeze stops all processes of the system with SIGSTOP and suspends its supervision, so that
// other systems have the machine for a while. Thaw continues it: clients keep their
// connections, and no node is replaced. Both belong to one goroutine. Freeze returns an error
// and stops nothing if a node does not serve.
func (s *System) Freeze(ctx context.Context) (thaw func() error, err error) {
	hosts, nodes := s.members()
	if i := slices.IndexFunc(nodes, func(n *node) bool { return s.stateOf(n) != targets.Serving }); i >= 0 {
		return nil, fmt.Errorf("freeze %s: %s is %s", s.opts.Topology.Stage, nodes[i].Name, s.stateOf(nodes[i]))
	}
	resume := func() {}
	if s.failover != nil {
		if resume, err = s.failover.Suspend(ctx); err != nil {
			return nil, fmt.Errorf("freeze %s: %w", s.opts.Topology.Stage, err)
		}
	}
	// A topology lists a host before those that it uses. A host that checks others stops first and
	// continues last, so it never finds them silent.
	thaw = func() error {
		var errs []error
		for _, h := range slices.Backward(hosts) {
			errs = append(errs, h.budget.Signal(syscall.SIGCONT))
		}
		s.setFrozen(nodes, false)
		resume()
		return errors.Join(errs...)
	}
	s.setFrozen(nodes, true)
	for _, h := range hosts {
		if err := h.budget.Signal(syscall.SIGSTOP); err != nil {
			return nil, errors.Join(fmt.Errorf("freeze %s: %w", s.opts.Topology.Stage, err), thaw())
		}
	}
	return thaw, nil
}

func (s *System) stateOf(n *node) targets.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return n.state
}

// setFrozen marks nodes. A node that dies while it is frozen restarts after the thaw.
func (s *System) setFrozen(nodes []*node, frozen bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range nodes {
		n.frozen = frozen
	}
	s.wake()
}
