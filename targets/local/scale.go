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
	// drainBound is how long the callers of a tier may take to finish what they have at a
	// host that leaves. Then the host itself finishes what it can, and is stopped.
	drainBound = 10 * time.Second
	// handOverBound is how long a host may take to give its keys to others.
	handOverBound = 5 * time.Minute
)

// Scale changes the number of hosts of a tier while the system runs: more are started and
// take part, or the last ones are drained and stopped. No request has to fail for it. It
// returns when it is done; when it fails, or ctx ends, the system is what it was before.
func (s *System) Scale(ctx context.Context, tier string, hosts int) (targets.Scaled, error) {
	begin, done := time.Now(), targets.Scaled{Tier: tier, Hosts: hosts}
	if err := s.scale(ctx, &done); err != nil {
		return targets.Scaled{}, fmt.Errorf("scale %s to %d: %w", tier, hosts, err)
	}
	done.TookNS = time.Since(begin).Nanoseconds()
	return done, nil
}

func (s *System) scale(ctx context.Context, wanted *targets.Scaled) error {
	next, scaling, err := ladder.Scale(s.Topology(), wanted.Tier, wanted.Hosts)
	if err != nil {
		return err
	}
	if wanted.Hosts < 1 {
		return errors.New("at least one host stays: without any, those that call them are other nodes")
	}
	if s.opts.Admit != nil {
		if err := s.opts.Admit(next); err != nil {
			return err
		}
	}
	return s.become(ctx, roleOf(scaling), next, wanted)
}

// roleOf returns the role of the nodes that are scaled so.
func roleOf(scaling ladder.Scaling) (r sut.Role) {
	for _, t := range ladder.Tiers() {
		if t.Scaling != nil && t.Scaling.Name == scaling.Name {
			r = t.Role
		}
	}
	return r
}

// become makes the system another topology, which differs by the hosts of one tier, and
// notes what moved.
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
	back := context.WithoutCancel(ctx) // what was begun is taken back whole; each step is bounded
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
		return errors.Join(err, s.takeBack(r, before, next))
	}
	for _, n := range added {
		s.noted(n, "takes part")
	}
	// From here on nobody uses the hosts that leave, so nothing can bring them back.
	return s.dismiss(back, next)
}

// takeBack makes the system what it was before a change that failed. Where that is not
// possible because one of the new databases is the primary by now, or about to become it,
// the change stays.
func (s *System) takeBack(r sut.Role, before, next sut.Topology) error {
	// On the way down there is nobody left to tell.
	ctx := s.life
	if err := s.supervise(ctx, r, before); err != nil {
		s.change(func() {
			s.adopt(next)
			s.draining = nil
		})
		return errors.Join(fmt.Errorf("and the change stays: %w", err), s.dismiss(context.WithoutCancel(ctx), next))
	}
	var errs []error
	for _, step := range s.steps(r, before, new(targets.Scaled)) {
		if err := step(ctx); err != nil {
			errs = append(errs, fmt.Errorf("and to take it back: %w", err))
		}
	}
	return errors.Join(append(errs, s.dismiss(context.WithoutCancel(ctx), before))...)
}

// steps are what makes all nodes work by a topology, in their order. The nodes that it adds
// serve; those that are not part of it may be stopped at the end.
func (s *System) steps(r sut.Role, next sut.Topology, done *targets.Scaled) []func(context.Context) error {
	var leaving []*node
	return []func(context.Context) error{
		func(ctx context.Context) error { // the members learn of each other, and keep nothing to themselves
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
		func(ctx context.Context) error { // those that leave get nothing new from their callers
			s.change(func() {
				s.adopt(next)
				s.draining = leaving
			})
			if err := s.supervise(ctx, r, next); err != nil {
				return err
			}
			return s.tellCallers(ctx, r)
		},
		func(ctx context.Context) error { // the members hand over what is not theirs
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
		func(ctx context.Context) error { // nobody asks those that leave for what others have now
			if len(leaving) == 0 {
				return nil
			}
			s.change(func() { s.draining = nil })
			return s.tellCallers(ctx, r)
		},
	}
}

// supervise makes the databases of a topology the supervised ones, when it is they
// whose number changes.
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

// awaitRead waits until all replicas among some nodes have caught up, and are read.
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

// obstacle says why the system cannot be changed at this moment.
func (s *System) obstacle(r sut.Role, next sut.Topology) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		_, stays := next.Node(n.Name)
		member := sharesKeys(r) && n.Role == r
		switch {
		case !stays && n.Name == s.roles.Primary:
			return fmt.Errorf("%s would leave, and is the primary now\n"+
				"keep more replicas, or have another database take its place: stagebench kill primary", n.Name)
		case r == sut.DB && n.Name == s.roles.Primary && n.state != targets.Serving:
			return fmt.Errorf("%s is the primary, and is %s\nwait until a database takes its place: stagebench status", n.Name, n.state)
		case n.state == targets.Paused && (member || n.calls(r)):
			return pausedError(n.Name)
		case !stays && member && n.state != targets.Serving:
			return fmt.Errorf("%s would leave, and is %s: it cannot hand over what it holds\n"+
				"wait until it serves: stagebench status", n.Name, n.state)
		}
	}
	return nil
}

// difference refuses what cannot be done to a running system.
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

// adopt makes a topology the one that callers are told of; the caller holds mu.
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

// tellCallers tells all nodes that call those of a role. What still has work for hosts that
// leave finishes it, or fails, with these.
func (s *System) tellCallers(ctx context.Context, r sut.Role) error {
	return s.tellAll(ctx, drainBound, func(n *node) bool { return n.calls(r) }, s.drained)
}

// drained judges what came of telling a caller; with mu held.
func (s *System) drained(n *node, err error) error {
	switch {
	case errors.Is(err, errLate):
		s.note(n, "still has work for a node that it calls no more")
		return nil
	case errors.Is(err, errDead):
		return nil
	}
	return err
}

// tellMembers tells the nodes of a role of each other, if they share keys. None may be
// late, and none that leaves may be dead: others have to know what it holds.
func (s *System) tellMembers(ctx context.Context, r sut.Role) error {
	member := func(n *node) bool { return n.Role == r && sharesKeys(r) }
	return s.tellAll(ctx, handOverBound, member, func(n *node, err error) error {
		switch {
		case errors.Is(err, errDead) && !n.leaving:
			return nil
		case errors.Is(err, errDead), errors.Is(err, errLate):
			return fmt.Errorf("%s has not handed over what it holds: %w", n.Name, err)
		}
		return err
	})
}

// tellAll tells nodes their wirings at the same time, and has what comes of each judged,
// with mu held.
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

// countMoved returns how many keys or objects the members of a tier have given away since
// they were started, and how many keys they hold; nil = not known.
func (s *System) countMoved(ctx context.Context, r sut.Role) (moved, held *int64) {
	prefix, known := map[sut.Role]string{sut.Cache: "stagebench_cache_node_", sut.Blob: "stagebench_blob_"}[r]
	if !known {
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
		if err != nil || !series.Has(prefix+"moved_total") {
			return nil, nil
		}
		*moved += series.Sum(prefix + "moved_total")
		*held += series.Sum(prefix + "entries")
	}
	return moved, held
}

func (s *System) noted(n *node, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(n, format, args...)
}

// dismiss stops and removes what is not part of the topology. Nobody may use it
// any more.
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
