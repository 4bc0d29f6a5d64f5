package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/metrics"
)

const (
	// drainBound is how long callers may take to finish their requests at a leaving host.
	// After that the host itself finishes what it can, and is stopped.
	drainBound = 10 * time.Second
	// handOverBound is how long a host may take to hand its keys to their new owners.
	handOverBound = 5 * time.Minute
)

// Scale changes the number of hosts of a tier while the system serves: it starts new hosts,
// or drains and stops the last ones. No request has to fail. Scale returns when the change
// is complete. When it fails or ctx ends, the system is rolled back, unless the error says
// that the change stays.
func (s *System) Scale(ctx context.Context, tier string, hosts int) (targets.Scaled, error) {
	begin, done := time.Now(), targets.Scaled{Tier: tier, Hosts: hosts}
	if err := s.scale(ctx, &done); err != nil {
		return targets.Scaled{}, fmt.Errorf("scale %s to %d: %w", tier, hosts, err)
	}
	done.TookNS = time.Since(begin).Nanoseconds()
	return done, nil
}

func (s *System) scale(ctx context.Context, wanted *targets.Scaled) error {
	next, tier, err := ladder.Scale(s.Topology(), wanted.Tier, wanted.Hosts)
	if err != nil {
		return err
	}
	if wanted.Hosts < 1 {
		return errors.New("at least one host must stay\nbring up a system without them instead: stagebench up")
	}
	if s.opts.Admit != nil {
		if err := s.opts.Admit(next); err != nil {
			return err
		}
	}
	return s.become(ctx, tier.Role, next, wanted)
}

// become changes the topology, which differs in the hosts of one tier, and fills in what
// moved.
func (s *System) become(ctx context.Context, r sut.Role, next sut.Topology, done *targets.Scaled) error {
	if !s.scaling.TryLock() {
		return errors.New("the system is being changed already: wait until that is done")
	}
	defer s.scaling.Unlock()
	if s.life.Err() != nil {
		return errors.New("the system is going down")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	before := s.Topology()
	if err := errors.Join(difference(before, next), s.obstacle(r, next)); err != nil {
		return err
	}
	back := context.WithoutCancel(ctx) // a rollback is not cancelled; each of its steps is bounded
	added, err := s.place(next)
	if err == nil {
		err = s.startAll(ctx, added)
	}
	if err != nil {
		return errors.Join(err, s.dismiss(back, before))
	}
	for _, step := range s.steps(r, next, done) {
		if err = step(ctx); err != nil {
			break
		}
	}
	if err == nil {
		err = s.awaitRead(ctx, r, added)
	}
	if err != nil {
		return errors.Join(err, s.rollBack(r, before, next))
	}
	for _, n := range added {
		s.noted(n, "takes part")
	}
	// No node calls the leaving hosts any more, so the change cannot be rolled back.
	return s.dismiss(back, next)
}

// rollBack undoes a change that failed, in the order of the change. It keeps the change when
// the supervisor of the databases refuses: the primary is dead, or is one of the new nodes.
// Hosts that may hold what no other has are kept when one could not hand that back.
func (s *System) rollBack(r sut.Role, before, next sut.Topology) error {
	ctx := s.life // on the way down no node has to be told
	if err := s.supervise(ctx, r, before); err != nil {
		s.endChange(next)
		return errors.Join(fmt.Errorf("and the change stays: %w", err), s.dismiss(context.WithoutCancel(ctx), next))
	}
	var errs []error
	for _, step := range s.steps(r, before, new(targets.Scaled)) {
		if err := step(ctx); err != nil {
			errs = append(errs, fmt.Errorf("and to roll back: %w", err))
		}
	}
	if errs != nil && scalingOf(r).Stores && len(next.Hosts) > len(before.Hosts) {
		s.endChange(next)
		errs = append(errs, errors.New("and all hosts stay, as they may hold what no other has: scale again when all serve"),
			s.tellCallers(ctx, r), s.tellMembers(ctx, r))
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, s.dismiss(context.WithoutCancel(ctx), before))...)
}

// endChange makes a topology the one that all work by: nothing moves any more.
func (s *System) endChange(t sut.Topology) {
	s.change(func() {
		s.adopt(t)
		s.moving, s.draining = "", nil
		for _, n := range s.nodes {
			n.leaving = false
		}
	})
}

// steps returns the steps of a change, in order. New nodes must serve before the first one;
// leaving nodes may be stopped after the last one.
func (s *System) steps(r sut.Role, next sut.Topology, done *targets.Scaled) []func(context.Context) error {
	var leaving []*node
	return []func(context.Context) error{
		func(ctx context.Context) error { // members learn that keys move, and hold back no write
			s.change(func() {
				s.moving = r
				for _, n := range s.nodes {
					_, stays := next.Node(n.Name)
					n.joining, n.leaving = false, !stays
					if !stays {
						leaving = append(leaving, n)
					}
				}
			})
			return s.tellMembers(ctx, r)
		},
		func(ctx context.Context) error { // callers send nothing new to leaving nodes
			s.change(func() {
				s.adopt(next)
				s.draining = leaving
			})
			if err := s.supervise(ctx, r, next); err != nil {
				return err
			}
			return s.tellCallers(ctx, r)
		},
		func(ctx context.Context) error { // members hand keys over to their new owners
			before, held := s.countMoved(ctx, r)
			s.change(func() { s.moving = "" })
			if err := s.tellMembers(ctx, r); err != nil {
				return err
			}
			if after, _ := s.countMoved(ctx, r); before != nil && after != nil && *after >= *before {
				*after -= *before
				done.Moved, done.Held = after, held
			}
			return nil
		},
		func(ctx context.Context) error { // callers forget the leaving nodes
			if len(leaving) == 0 {
				return nil
			}
			s.change(func() { s.draining = nil })
			return s.tellCallers(ctx, r)
		},
	}
}

// supervise has the databases of a topology supervised, when replicas are scaled.
func (s *System) supervise(ctx context.Context, r sut.Role, next sut.Topology) error {
	if r != sut.DB {
		return nil
	}
	var names []string
	for _, n := range next.Nodes {
		if n.Replicated {
			names = append(names, n.Name)
		}
	}
	return s.failover.SetNodes(ctx, names)
}

// awaitRead waits until all new replicas have caught up and serve reads.
func (s *System) awaitRead(ctx context.Context, r sut.Role, added []*node) error {
	replicas := slices.DeleteFunc(slices.Clone(added), func(n *node) bool { return !n.Replicated })
	if len(replicas) == 0 {
		return nil
	}
	if err := s.await(ctx, func() bool {
		return !slices.ContainsFunc(replicas, func(n *node) bool {
			return n.Name != s.roles.Primary && !slices.Contains(s.roles.Replicas, n.Name)
		})
	}); err != nil {
		return err
	}
	return s.tellCallers(ctx, r)
}

// obstacle returns why the system cannot be changed at this moment.
func (s *System) obstacle(r sut.Role, next sut.Topology) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		_, stays := next.Node(n.Name)
		member := scalingOf(r).Members && n.Role == r
		switch {
		case !stays && n.Name == s.roles.Primary:
			return fmt.Errorf("%s would be removed, and is the primary now\n"+
				"keep more replicas, or start a failover first: stagebench kill primary", n.Name)
		case r == sut.DB && n.Name == s.roles.Primary && n.state != targets.Serving:
			return fmt.Errorf("the primary %s is %s\nwait for the failover: stagebench status", n.Name, n.state)
		case n.state == targets.Paused && (member || n.calls(r)):
			return pausedError(n.Name)
		case !stays && member && n.state != targets.Serving:
			return fmt.Errorf("%s would be removed, and is %s: it cannot hand over its keys\n"+
				"wait until it serves: stagebench status", n.Name, n.state)
		}
	}
	return nil
}

// difference returns an error for a change that a running node cannot follow.
func difference(now, next sut.Topology) error {
	for _, h := range next.Hosts {
		if old, found := now.Host(h.Name); found && old != h {
			return fmt.Errorf("host %s would change its size: not possible while the system runs", h.Name)
		}
	}
	for _, n := range next.Nodes {
		old, found := now.Node(n.Name)
		old.Uses, old.Routes = n.Uses, n.Routes
		if found && !reflect.DeepEqual(old, n) {
			return fmt.Errorf("node %s would become another one: not possible while the system runs", n.Name)
		}
	}
	return nil
}

// adopt makes a topology the one that callers work by; the caller holds mu.
func (s *System) adopt(t sut.Topology) {
	s.topology = t
	nodes := map[string]*node{}
	for _, n := range s.nodes {
		nodes[n.Name] = n
	}
	for _, declared := range t.Nodes {
		n := nodes[declared.Name]
		// The rest of what is declared has not changed, and is read without a lock.
		n.Uses, n.Routes, n.uses = declared.Uses, declared.Routes, nil
		for _, name := range declared.Uses {
			n.uses = append(n.uses, nodes[name])
		}
	}
}

// tellCallers tells all nodes that call a role. Requests that are still under way at a
// leaving host after drainBound end with that host.
func (s *System) tellCallers(ctx context.Context, r sut.Role) error {
	return s.tellAll(ctx, drainBound, func(n *node) bool { return n.calls(r) }, s.drained)
}

// drained judges the answer of a caller; mu is held.
func (s *System) drained(n *node, err error) error {
	switch {
	case errors.Is(err, errLate):
		s.note(n, "still has requests at a node that leaves")
		return nil
	case errors.Is(err, errDead):
		return nil
	}
	return err
}

// tellMembers tells the nodes of a role about each other, if they share keys. A late node
// and a leaving node that is dead are errors: their keys were not handed over.
func (s *System) tellMembers(ctx context.Context, r sut.Role) error {
	member := func(n *node) bool { return n.Role == r && scalingOf(r).Members }
	return s.tellAll(ctx, handOverBound, member, func(n *node, err error) error {
		switch {
		case errors.Is(err, errDead) && !n.leaving:
			return nil
		case errors.Is(err, errDead), errors.Is(err, errLate):
			return fmt.Errorf("%s has not handed over its keys: %w", n.Name, err)
		}
		return err
	})
}

// tellAll sends nodes their wirings, all at a time, and returns the first error that judge
// makes of their answers. mu is held while judge runs.
func (s *System) tellAll(
	ctx context.Context, patience time.Duration, which func(*node) bool, judge func(*node, error) error,
) error {
	var all errgroup.Group
	s.mu.Lock()
	for _, n := range s.nodes {
		if !which(n) {
			continue
		}
		all.Go(func() error {
			err := s.tell(ctx, n, patience)
			s.mu.Lock()
			defer s.mu.Unlock()
			return judge(n, err)
		})
	}
	s.mu.Unlock()
	return all.Wait()
}

// countMoved returns how many keys or objects the members of a tier have handed over since
// they were started, and how many keys they hold; nil = unknown.
func (s *System) countMoved(ctx context.Context, r sut.Role) (moved, held *int64) {
	scaling := scalingOf(r)
	if scaling.Moved == "" {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, tellBound)
	defer cancel()
	moved, held = new(int64), new(int64)
	for _, n := range s.Status() {
		if n.Role != r {
			continue
		}
		series, err := metrics.Read(ctx, &s.admin, n.Admin)
		if err != nil || !series.Has(scaling.Moved) {
			return nil, nil
		}
		*moved += series.Sum(scaling.Moved)
		*held += series.Sum(scaling.Held)
	}
	return moved, held
}

func (s *System) noted(n *node, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(n, format, args...)
}

// dismiss stops and removes the hosts and nodes that are not part of the topology.
func (s *System) dismiss(ctx context.Context, t sut.Topology) error {
	s.mu.Lock()
	var goingHosts []*host
	var goingNodes []*node
	s.hosts = slices.DeleteFunc(slices.Clone(s.hosts), func(h *host) bool {
		_, stays := t.Host(h.Name)
		if !stays {
			goingHosts = append(goingHosts, h)
		}
		return !stays
	})
	s.nodes = slices.DeleteFunc(slices.Clone(s.nodes), func(n *node) bool {
		_, stays := t.Node(n.Name)
		if !stays {
			goingNodes = append(goingNodes, n)
		}
		return !stays
	})
	s.mu.Unlock()
	var errs []error
	for _, n := range goingNodes {
		n.endLife()
		n.watched.Wait()
	}
	for _, h := range goingHosts {
		errs = append(errs, h.budget.Lift())
	}
	s.stopAll(ctx, goingNodes)
	for _, n := range goingNodes {
		s.noted(n, "left")
		errs = append(errs, os.RemoveAll(n.dir))
	}
	for _, h := range goingHosts {
		errs = append(errs, h.budget.Remove())
	}
	return errors.Join(errs...)
}
