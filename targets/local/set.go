package local

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
)

// Set changes a knob while the system serves. No request has to fail. The knobs that can change are those of
// ladder.Set; today that is session.store, which moves all sessions out of the memory of the web hosts. When Set fails
// or ctx ends, the system is as before, unless the error says that the change stays.
func (s *System) Set(ctx context.Context, knob, value string) (targets.Changed, error) {
	begin, done := time.Now(), targets.Changed{Knob: knob, Value: value}
	if err := s.moveSessions(ctx, &done); err != nil {
		return targets.Changed{}, fmt.Errorf("set %s=%s: %w", knob, value, err)
	}
	done.TookNS = time.Since(begin).Nanoseconds()
	return done, nil
}

// moveSessions moves the sessions to the store of the new topology, in the steps of sut.SessionMove.
func (s *System) moveSessions(ctx context.Context, done *targets.Changed) error {
	ctx, end, err := s.beginChange(ctx)
	if err != nil {
		return err
	}
	defer end()
	before := s.Topology()
	s.mu.Lock()
	begun := s.sessions != nil && s.sessions.Store == done.Value && s.owning
	s.mu.Unlock()
	if !begun { // else an earlier call could not complete the move
		next, err := ladder.Set(before, done.Knob, done.Value)
		if err != nil {
			return err
		}
		if err := s.openStore(ctx, before, next, done.Value); err != nil {
			return err
		}
	}
	if err := s.copySessions(ctx, done); err != nil {
		return fmt.Errorf("%w\nthe change stays, and new sessions are in the store\n"+
			"give the same command again to move the other ones", err)
	}
	return nil
}

// openStore starts what the store needs, and makes all web hosts find sessions there.
func (s *System) openStore(ctx context.Context, before, next sut.Topology, store string) error {
	if s.opts.Admit != nil {
		if err := s.opts.Admit(next); err != nil {
			return err
		}
	}
	if err := errors.Join(checkDifference(before, next), s.pausedIn(sut.Web, sut.Balance)); err != nil {
		return err
	}
	back := context.WithoutCancel(ctx) // a rollback is not cancelled; each of its steps is bounded
	added, err := s.place(next)
	if err == nil {
		err = s.startAll(ctx, added)
	}
	if err != nil {
		return errors.Join(err, s.removeOthers(back, before))
	}
	s.change(func() {
		s.adopt(next)
		s.sessions, s.owning = &sut.SessionMove{Store: store}, true
	})
	if err := s.updateRole(ctx, sut.Web, drainBound); err != nil {
		s.change(func() {
			s.adopt(before)
			s.sessions, s.owning = nil, false
		})
		return errors.Join(err, s.updateRole(back, sut.Web, drainBound), s.removeOthers(back, before))
	}
	for _, n := range added {
		s.lockAndNote(n, "takes part")
	}
	return nil
}

// copySessions makes new sessions start in the store, copies the others, and ends the need to keep users on a host.
func (s *System) copySessions(ctx context.Context, done *targets.Changed) error {
	if err := s.pausedIn(sut.Web, sut.Balance); err != nil {
		return err
	}
	s.change(func() { s.sessions = &sut.SessionMove{Store: s.sessions.Store, Copy: true} })
	if err := s.updateRole(ctx, sut.Web, handOverBound); err != nil {
		return err
	}
	done.Moved = s.countCopied(ctx)
	s.change(func() { s.unsticky = true })
	if err := s.updateRole(ctx, sut.Balance, drainBound); err != nil {
		return err
	}
	s.change(func() { s.owning = false })
	return s.updateRole(ctx, sut.Web, drainBound)
}

// updateRole sends their wirings to the nodes of a role. A dead node gets its wiring when it restarts.
func (s *System) updateRole(ctx context.Context, r sut.Role, patience time.Duration) error {
	return s.sendWirings(ctx, patience, func(n *node) bool { return n.Role == r }, func(n *node, err error) error {
		switch {
		case errors.Is(err, errDead):
			return nil
		case errors.Is(err, errLate):
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		return err
	})
}

// pausedIn returns an error if a node of these roles is paused, and so cannot take part in a change.
func (s *System) pausedIn(roles ...sut.Role) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		if n.state == targets.Paused && slices.Contains(roles, n.Role) {
			return pausedError(n.Name, "get the new wiring")
		}
	}
	return nil
}

// sessionsFor returns the move of sessions for the wiring of a web node. The caller holds mu.
func (s *System) sessionsFor(n *node) *sut.SessionMove {
	if n.Role != sut.Web || s.sessions == nil {
		return nil
	}
	move := *s.sessions
	if !s.owning {
		return &move
	}
	for _, owner := range s.nodes {
		if owner.Role == sut.Web && owner.ready.Address != "" {
			move.Owners = append(move.Owners, owner.peer())
		}
	}
	return &move
}

// countCopied returns how many sessions the web hosts have copied to the store; nil = unknown.
func (s *System) countCopied(ctx context.Context) *int64 {
	nodes, err := s.scrape(ctx, sut.Web)
	if err != nil {
		return nil
	}
	sum := int64(0)
	for _, series := range nodes {
		sum += series.Sum("stagebench_sessions_copied_total")
	}
	return &sum
}
