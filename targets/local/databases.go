package local

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/failover"
)

// useBound is how long requests at a database that is no longer used may delay a failover.
const useBound = time.Second

// declareRoles sets the first roles of the databases: the one that uses no other
// is the primary, and all others may be read once they are ready.
func (s *System) declareRoles(t sut.Topology) {
	for _, n := range t.Nodes {
		switch {
		case !n.Replicated:
		case t.MultiPrimary():
			s.roles.Epoch, s.roles.Primaries = 1, append(s.roles.Primaries, n.Name)
		case len(n.Uses) == 0:
			s.roles.Epoch, s.roles.Primary = 1, n.Name
		default:
			s.roles.Replicas = append(s.roles.Replicas, n.Name)
		}
	}
}

// superviseDatabases keeps one of the databases the primary, as long as the system
// lives, if there are several.
func (s *System) superviseDatabases(ctx context.Context) error {
	if s.roles.Epoch == 0 {
		return nil
	}
	if s.roles.Primary == "" {
		// They have been started at once, and did not know each other's addresses.
		if err := s.tellOrigins(ctx); err != nil {
			return err
		}
	}
	db := ladder.DBOf(s.topology.Knobs)
	s.failover = failover.New(failover.Config{
		Databases: databases{s}, Roles: s.roles, Silence: s.opts.Silence,
		Interval: db.ProbeInterval, Failures: db.ProbeFailures,
		Note: func(name, text string) {
			if n := s.node(name); n != nil {
				s.noted(n, "%s", text)
			}
		},
	})
	s.watching.Go(func() { s.failover.Run(s.life) })
	return nil
}

// Failovers lists the changes of the primary so far.
func (s *System) Failovers() []targets.Failover {
	if s.failover == nil {
		return nil
	}
	return s.failover.Failovers()
}

// Recover says what failovers have cost: what the databases that were the primary
// held, and the ones that took their place did not get. With replay that is done
// once more at the primary, where it can.
func (s *System) Recover(ctx context.Context, replay bool) (targets.Recovery, error) {
	recovery := targets.Recovery{Failovers: s.Failovers(), Lost: []sut.Lost{}}
	if s.failover == nil {
		return recovery, fmt.Errorf("stage %s has one database and no copies of it: nothing can be lost in a failover", s.Topology().Stage)
	}
	s.mu.Lock()
	if s.roles.Primary == "" {
		s.mu.Unlock()
		return recovery, errors.New("each of several primaries keeps what it has: nothing is promoted, and nothing lost by that")
	}
	order := sut.Replay{Primary: s.peers([]string{s.roles.Primary})[0]}
	var asked []*node
	for _, n := range s.nodes {
		back := !slices.ContainsFunc(recovery.Failovers, func(f targets.Failover) bool { return f.From == n.Name && f.ReplaceNS == 0 })
		switch {
		case !n.Replicated:
		case n.state != targets.Serving || !back && n.Name != s.roles.Primary:
			recovery.Lost = append(recovery.Lost, sut.Lost{Node: n.Name, Partial: "it is not back yet: what it alone held is not known, ask again"})
		default:
			asked = append(asked, n)
		}
	}
	s.mu.Unlock()
	for _, n := range asked {
		var lost sut.Lost
		if err := s.call(ctx, n.Name, request{method: http.MethodGet, path: sut.LostPath, answer: &lost}); err != nil {
			recovery.Lost = append(recovery.Lost, sut.Lost{Node: n.Name, Partial: "what it alone held is not known: " + err.Error()})
			continue
		}
		if lost.Epoch == 0 {
			continue
		}
		recovery.Lost = append(recovery.Lost, lost)
		if !replay || lost.Replayed || len(lost.Changes) == 0 {
			continue
		}
		var done sut.Replayed
		if err := s.call(ctx, n.Name, request{method: http.MethodPost, path: sut.LostPath, document: order, answer: &done}); err != nil {
			done = sut.Replayed{Refused: []string{err.Error()}}
		}
		if recovery.Replayed == nil {
			recovery.Replayed = map[string]sut.Replayed{}
		}
		recovery.Replayed[n.Name] = done
	}
	return recovery, nil
}

// standing is what a database is among its copies; the caller holds mu.
func (s *System) replicationRole(n *node) targets.ReplicationRole {
	switch {
	case !n.Replicated:
		return ""
	case n.Name == s.roles.Primary, s.roles.Primary == "":
		return targets.Primary
	}
	return targets.Replica
}

// replication is what a database is told of its copies; the caller holds mu.
func (s *System) replication(n *node) *sut.Replication {
	if s.roles.Primary == "" {
		return &sut.Replication{Epoch: s.roles.Epoch, Several: true, Origins: s.origins(n)}
	}
	told := &sut.Replication{Epoch: s.roles.Epoch}
	if s.roles.Primary != n.Name {
		told.Primary = &s.peers([]string{s.roles.Primary})[0]
	}
	return told
}

// origins are those that one of several primaries gets changes from: the one before
// it of those that live in a ring, else all others. Those that have no address yet
// are left out. The caller holds mu.
func (s *System) origins(n *node) []sut.Peer {
	var before, others []sut.Peer
	after := false
	for _, other := range s.nodes {
		switch {
		case other == n:
			after = true
		case !other.Replicated || other.ready.Address == "":
		case ladder.DBOf(s.topology.Knobs).Topology != ladder.Ring:
			others = append(others, other.peer())
		case !slices.Contains(s.roles.Primaries, other.Name):
			// Its neighbours are each other's until it comes back.
		case after:
			others = append(others, other.peer())
		default:
			before = append(before, other.peer())
		}
	}
	if ladder.DBOf(s.topology.Knobs).Topology != ladder.Ring || len(before)+len(others) == 0 {
		return others
	}
	ring := append(others, before...) // in the order after the node: the last one is before it
	return ring[len(ring)-1:]
}

// tellOrigins tells each of several primaries whom to get changes from.
func (s *System) tellOrigins(ctx context.Context) error {
	s.mu.Lock()
	told := map[string]*sut.Replication{}
	for _, n := range s.nodes {
		if n.Replicated && n.state == targets.Serving {
			told[n.Name] = s.replication(n)
		}
	}
	s.mu.Unlock()
	var all errgroup.Group
	for name, document := range told {
		all.Go(func() error {
			return s.call(ctx, name, request{method: http.MethodPut, path: sut.ReplicationPath, document: document})
		})
	}
	return all.Wait()
}

// databases is the system as the supervisor of its databases sees it.
type databases struct{ *System }

// Probe implements failover.Databases.
func (d databases) Probe(ctx context.Context, name string) (status sut.ReplicationStatus, err error) {
	err = d.call(ctx, name, request{method: http.MethodGet, path: sut.ReplicationPath, answer: &status})
	if err == nil && status.Node != name {
		err = fmt.Errorf("%s answers at the address of %s", status.Node, name) // which has died, and had its port
	}
	return status, err
}

// Assign implements failover.Databases.
func (d databases) Assign(ctx context.Context, name string, epoch int64, primary string) error {
	next := sut.Replication{Epoch: epoch}
	if primary != name {
		d.mu.Lock()
		next.Primary = &d.peers([]string{primary})[0]
		d.mu.Unlock()
	}
	return d.call(ctx, name, request{method: http.MethodPut, path: sut.ReplicationPath, document: next})
}

// Fence implements failover.Databases: it kills all processes of the node.
func (d databases) Fence(ctx context.Context, name string) (release func(), err error) {
	n := d.node(name)
	if n == nil {
		return nil, fmt.Errorf("there is no node %s", name)
	}
	d.mu.Lock()
	if n.serves() {
		n.asked = true
		d.set(n, targets.Dead)
	}
	d.note(n, "fenced")
	d.mu.Unlock()
	d.hold([]*node{n}, 1)
	defer func() {
		if err != nil {
			d.hold([]*node{n}, -1)
		}
	}()
	if err := n.leaf.KillAll(); err != nil {
		return nil, err
	}
	// A start that had begun before may have got past the first blow.
	if err := d.await(ctx, func() bool { return !n.launching }); err != nil {
		return nil, err
	}
	if err := n.leaf.KillAll(); err != nil {
		return nil, err
	}
	return func() { d.hold([]*node{n}, -1) }, nil
}

// Use implements failover.Databases. It does not wait for nodes that are starting.
func (d databases) Use(ctx context.Context, roles failover.Roles) error {
	d.change(func() { d.roles = roles })
	var origins errgroup.Group
	if roles.Primary == "" {
		origins.Go(func() error { return d.tellOrigins(ctx) })
	}
	var starting error
	told := d.tellAll(ctx, useBound, func(n *node) bool {
		if n.calls(sut.DB) && n.launching {
			starting = fmt.Errorf("%s is starting", n.Name)
		}
		return n.calls(sut.DB) && !n.launching
	}, d.drained)
	return errors.Join(starting, told, origins.Wait())
}
