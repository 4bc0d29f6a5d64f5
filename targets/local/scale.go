package local

import (
	"context"
	"errors"
	"fmt"
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
	// handOverBound is how long a host may take to hand over keys to their new owners.
	handOverBound = 5 * time.Minute
)

// errChanging is the error of a change during another change.
var errChanging = errors.New("the system is being changed already\nwait until that change is complete, then try again")

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
	next, role, err := ladder.Scale(s.Topology(), wanted.Tier, wanted.Hosts)
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
	if wanted.Tier == ladder.ScaleShards {
		return s.reshard(ctx, next, wanted)
	}
	return s.changeTopology(ctx, role, next, wanted)
}

// changeTopology changes the system to a topology that differs only in the hosts of one
// tier. It sets Moved and Held of done.
func (s *System) changeTopology(ctx context.Context, r sut.Role, next sut.Topology, done *targets.Scaled) error {
	ctx, end, err := s.beginChange(ctx)
	if err != nil {
		return err
	}
	defer end()
	before := s.Topology()
	if err := errors.Join(checkDifference(before, next), s.obstacle(r, next)); err != nil {
		return err
	}
	back := context.WithoutCancel(ctx) // a rollback is not cancelled; each of its steps is bounded
	added, err := s.place(next)
	if err == nil && r == sut.DB { // databases refuse a replica that they do not know
		s.change(func() {})
		err = s.updateMembers(ctx, r)
	}
	if err == nil {
		err = s.startAll(ctx, added)
	}
	if err != nil {
		return errors.Join(err, s.removeOthers(back, before))
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
		s.lockAndNote(n, "takes part")
	}
	// No node calls the leaving hosts any more, so the change cannot be rolled back.
	return s.removeOthers(back, next)
}

// beginChange prevents other changes of the topology until end is called. The context that it returns ends when the
// system goes down.
func (s *System) beginChange(ctx context.Context) (changing context.Context, end func(), err error) {
	if !s.scaling.TryLock() {
		return nil, nil, errChanging
	}
	if s.life.Err() != nil {
		s.scaling.Unlock()
		return nil, nil, errors.New("the system is going down")
	}
	changing, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.life, cancel)
	return changing, func() {
		stop()
		cancel()
		s.scaling.Unlock()
	}, nil
}

// rollBack undoes a change that failed, with the same steps. It keeps the change if the
// failover supervisor refuses, because the primary is dead or is one of the new nodes. It
// keeps the new hosts of a tier that stores data if a step fails, because a host may be the
// only one that has some of the data.
func (s *System) rollBack(r sut.Role, before, next sut.Topology) error {
	ctx := s.life // while the system stops, nodes need no new wiring
	if err := s.setNodes(ctx, r, before); err != nil {
		s.endChange(next)
		return errors.Join(fmt.Errorf("and the change stays: %w", err), s.removeOthers(context.WithoutCancel(ctx), next))
	}
	var errs []error
	for _, step := range s.steps(r, before, new(targets.Scaled)) {
		if err := step(ctx); err != nil {
			errs = append(errs, fmt.Errorf("and to roll back: %w", err))
		}
	}
	if errs != nil && scalingOf(r).Durable && len(next.Hosts) > len(before.Hosts) {
		s.endChange(next)
		errs = append(errs, errors.New("and all hosts stay, because a host may have the only copy of some data\n"+
			"scale again when all nodes serve: stagebench status"),
			s.updateCallers(ctx, r), s.updateMembers(ctx, r))
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, s.removeOthers(context.WithoutCancel(ctx), before))...)
}

// endChange adopts a topology and ends the move of keys and the draining of nodes.
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
		func(ctx context.Context) error { // members learn that keys will move; writes go on
			s.change(func() {
				s.moving = r
				for _, n := range s.nodes {
					_, stays := next.Node(n.Name)
					kept := n.leaving && stays // by a rollback
					n.joining, n.leaving = false, !stays
					switch {
					case kept:
						s.note(n, "does not drain any more")
					case !stays:
						leaving = append(leaving, n)
					}
				}
			})
			return s.updateMembers(ctx, r)
		},
		func(ctx context.Context) error { // callers send nothing new to leaving nodes
			s.change(func() {
				s.adopt(next)
				s.draining = leaving
				for _, n := range leaving {
					s.note(n, "drains")
				}
			})
			if err := s.setNodes(ctx, r, next); err != nil {
				return err
			}
			return s.updateCallers(ctx, r)
		},
		func(ctx context.Context) error { // members hand keys over to their new owners
			before, held := s.countMoved(ctx, r)
			s.change(func() { s.moving = "" })
			if err := s.updateMembers(ctx, r); err != nil {
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
			return s.updateCallers(ctx, r)
		},
	}
}

// awaitRead waits until all new replicas have caught up and serve reads.
func (s *System) awaitRead(ctx context.Context, r sut.Role, added []*node) error {
	replicas := slices.DeleteFunc(slices.Clone(added), func(n *node) bool { return !n.Replicated })
	if len(replicas) == 0 {
		return nil
	}
	if err := s.await(ctx, func() bool {
		return !slices.ContainsFunc(replicas, func(n *node) bool {
			return !s.isPrimary(n) && !slices.Contains(s.setOf(n).roles.Replicas, n.Name)
		})
	}); err != nil {
		return err
	}
	return s.updateCallers(ctx, r)
}

// obstacle returns an error if a node is in a state in which the change is not possible.
func (s *System) obstacle(r sut.Role, next sut.Topology) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		_, stays := next.Node(n.Name)
		member := n.Role == r && (scalingOf(r).Sharded || n.Replicated)
		switch {
		case !stays && s.isPrimary(n):
			return fmt.Errorf("%s would be removed, but it is the primary now\n"+
				"keep more replicas, or start a failover first: stagebench kill primary", n.Name)
		case !stays && n.Replicated && s.mayHoldLosses(n):
			return fmt.Errorf("%s would be removed, but it may have lost writes that are not collected yet\n"+
				"wait until it serves as a replica: stagebench status", n.Name)
		case r == sut.DB && s.isPrimary(n) && n.state != targets.Serving:
			return fmt.Errorf("the primary %s is %s\nwait for the failover: stagebench status", n.Name, n.state)
		case n.frozen && n.state == targets.Serving:
			return errors.New("the system is frozen, so that another one has the machine\ntry again later")
		case n.state == targets.Paused && (member || n.calls(r)):
			return pausedError(n.Name, "get the new wiring")
		case !stays && member && !n.Replicated && n.state != targets.Serving:
			return fmt.Errorf("%s would be removed, but it is %s and cannot hand over its keys\n"+
				"wait until it serves: stagebench status", n.Name, n.state)
		}
	}
	return nil
}

// checkDifference returns an error if a host or node of both topologies differs in something
// that cannot change while it runs.
func checkDifference(now, next sut.Topology) error {
	for _, h := range next.Hosts {
		if old, found := now.Host(h.Name); found && old != h {
			return fmt.Errorf("the size of host %s would change, which is not possible while the system runs", h.Name)
		}
	}
	for _, n := range next.Nodes {
		old, found := now.Node(n.Name)
		old.Uses, old.Routes = n.Uses, n.Routes
		if found && !reflect.DeepEqual(old, n) {
			return fmt.Errorf("the settings of node %s would change, which is not possible while the system runs", n.Name)
		}
	}
	return nil
}

// adopt makes a topology the current one, from which wirings are composed. The caller holds
// mu.
func (s *System) adopt(t sut.Topology) {
	s.topology = t
	nodes := map[string]*node{}
	for _, n := range s.nodes {
		nodes[n.Name] = n
	}
	for _, declared := range t.Nodes {
		n := nodes[declared.Name]
		// The other declared fields do not change, because they are read without a lock.
		n.Uses, n.Routes, n.uses = declared.Uses, declared.Routes, nil
		for _, name := range declared.Uses {
			n.uses = append(n.uses, nodes[name])
		}
	}
}

// updateCallers sends their wirings to all nodes that call a role. It waits for requests in
// flight at a leaving host for drainBound at most.
func (s *System) updateCallers(ctx context.Context, r sut.Role) error {
	return s.sendWirings(ctx, drainBound, func(n *node) bool { return n.calls(r) }, s.tolerateLate)
}

// tolerateLate converts the result of sending a caller its wiring: a late or dead caller is no
// error. The caller holds mu.
func (s *System) tolerateLate(n *node, err error) error {
	switch {
	case errors.Is(err, errLate):
		s.note(n, "still has requests in flight at a node that will be removed")
		return nil
	case errors.Is(err, errDead):
		return nil
	}
	return err
}

// updateMembers sends their wirings to the nodes of a role, if they share keys or replicate a database. A late node
// or a dead leaving node is an error if keys move, because its keys were not handed over.
func (s *System) updateMembers(ctx context.Context, r sut.Role) error {
	member := func(n *node) bool { return n.Role == r && (scalingOf(r).Sharded || n.Replicated) }
	return s.sendWirings(ctx, handOverBound, member, func(n *node, err error) error {
		switch {
		case errors.Is(err, errDead) && (!n.leaving || n.Replicated):
			return nil
		case errors.Is(err, errDead), errors.Is(err, errLate):
			return fmt.Errorf("%s has not handed over its keys: %w", n.Name, err)
		}
		return err
	})
}

// sendWirings sends nodes their wirings concurrently. judge converts the result of each node,
// with mu held. sendWirings returns the first error of judge.
func (s *System) sendWirings(
	ctx context.Context, patience time.Duration, which func(*node) bool, judge func(*node, error) error,
) error {
	var all errgroup.Group
	s.mu.Lock()
	for _, n := range s.nodes {
		if !which(n) {
			continue
		}
		all.Go(func() error {
			err := s.sendWiring(ctx, n, patience)
			s.mu.Lock()
			defer s.mu.Unlock()
			return judge(n, err)
		})
	}
	s.mu.Unlock()
	return all.Wait()
}

// countMoved returns how many keys or objects the members of a tier have handed over since
// they started, and how many keys they hold now; nil = unknown.
func (s *System) countMoved(ctx context.Context, r sut.Role) (moved, held *int64) {
	scaling := scalingOf(r)
	if scaling.Moved == "" {
		return nil, nil
	}
	nodes, err := s.scrape(ctx, r)
	if err != nil {
		return nil, nil
	}
	moved = new(int64)
	if scaling.Held != "" {
		held = new(int64)
	}
	for _, series := range nodes {
		if !series.Has(scaling.Moved) {
			return nil, nil
		}
		*moved += series.Sum(scaling.Moved)
		if held != nil {
			*held += series.Sum(scaling.Held)
		}
	}
	return moved, held
}

// scrape reads the metrics of all nodes of a role.
func (s *System) scrape(ctx context.Context, r sut.Role) (nodes []metrics.Series, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerBound)
	defer cancel()
	for _, n := range s.Status() {
		if n.Role != r {
			continue
		}
		series, err := metrics.Read(ctx, &s.admin, n.Admin, s.secret)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, series)
	}
	return nodes, nil
}

// lockAndNote locks mu and records an event.
func (s *System) lockAndNote(n *node, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(n, format, args...)
}

// removeOthers stops and removes the hosts and nodes that are not part of the topology.
func (s *System) removeOthers(ctx context.Context, t sut.Topology) error {
	_, now := s.members()
	for _, n := range now {
		if _, stays := t.Node(n.Name); !stays && n.Replicated {
			s.collectLast(ctx, n)
		}
	}
	leaving := s.leavingSets(t)
	for _, set := range leaving { // before its nodes stop: their deaths are no reason for a failover
		set.endLife()
		set.watched.Wait()
	}
	s.mu.Lock()
	var removedHosts []*host
	var removedNodes []*node
	s.hosts = slices.DeleteFunc(slices.Clone(s.hosts), func(h *host) bool {
		_, stays := t.Host(h.Name)
		if !stays {
			removedHosts = append(removedHosts, h)
		}
		return !stays
	})
	s.nodes = slices.DeleteFunc(slices.Clone(s.nodes), func(n *node) bool {
		_, stays := t.Node(n.Name)
		if !stays {
			removedNodes = append(removedNodes, n)
		}
		return !stays
	})
	s.mu.Unlock()
	var errs []error
	for _, n := range removedNodes {
		n.endLife()
		n.watched.Wait()
	}
	s.dropSets(leaving) // after the last restart of a node, which reads its role
	for _, h := range removedHosts {
		errs = append(errs, h.budget.Lift())
	}
	s.stopAll(ctx, removedNodes)
	for _, n := range removedNodes {
		s.lockAndNote(n, "removed")
	}
	for _, h := range removedHosts {
		errs = append(errs, h.budget.Remove())
	}
	for _, n := range removedNodes { // after the hosts: no process uses the directories any more
		errs = append(errs, s.opts.discard(n.dir))
	}
	if slices.ContainsFunc(removedNodes, func(n *node) bool { return n.Replicated }) {
		s.change(func() {})
		errs = append(errs, s.updateMembers(ctx, sut.DB))
	}
	return errors.Join(errs...)
}
