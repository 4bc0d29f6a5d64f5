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

// publishBound bounds how long a failover waits for requests in flight at a database that is no
// longer used.
const publishBound = time.Second

// declareRoles sets the initial replication roles: the database that uses no other database
// is the primary, and all others are replicas.
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

// superviseDatabases starts the failover supervisor if the databases are replicated. It
// runs until the life of the system ends.
func (s *System) superviseDatabases(ctx context.Context) error {
	if s.roles.Epoch == 0 {
		return nil
	}
	if s.roles.Primary == "" {
		// The primaries started concurrently and do not know each other's addresses yet.
		if err := s.sendOrigins(ctx); err != nil {
			return err
		}
	}
	db := ladder.DBOf(s.topology.Knobs)
	s.failover = failover.New(failover.Config{
		Databases: databases{s}, Roles: s.roles, Silence: s.opts.FailoverSilence,
		Interval: db.ProbeInterval, Failures: db.ProbeFailures, Sync: db.SyncCopies() > 0,
		OnEvent: func(name, text string) {
			if n := s.node(name); n != nil {
				s.lockAndNote(n, "%s", text)
			}
		},
	})
	s.watching.Go(func() { s.failover.Run(s.life) })
	s.watching.Go(s.collectLosses)
	return nil
}

// Failovers returns the failovers so far.
func (s *System) Failovers() []targets.Failover {
	if s.failover == nil {
		return nil
	}
	return s.failover.Failovers()
}

// replicationRole returns the replication role of a node, "" if it is not a replicated
// database. The caller holds mu.
func (s *System) replicationRole(n *node) targets.ReplicationRole {
	switch {
	case !n.Replicated:
		return ""
	case n.Name == s.roles.Primary, s.roles.Primary == "":
		return targets.Primary
	}
	return targets.Replica
}

// replication returns the replication configuration of a database. The caller holds mu.
func (s *System) replication(n *node) *sut.Replication {
	if s.roles.Primary == "" {
		return &sut.Replication{Epoch: s.roles.Epoch, MultiPrimary: true, Origins: s.origins(n)}
	}
	replication := &sut.Replication{Epoch: s.roles.Epoch}
	if s.roles.Primary != n.Name {
		replication.Primary = &s.peers([]string{s.roles.Primary})[0]
	}
	return replication
}

// origins returns the nodes from which a primary of a multi-primary database receives
// changes. In a ring that is the live primary before it. Otherwise it is all other
// primaries. Nodes without an address yet are left out. The caller holds mu.
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
			// A dead primary: its neighbours in the ring are connected to each other meanwhile.
		case after:
			others = append(others, other.peer())
		default:
			before = append(before, other.peer())
		}
	}
	if ladder.DBOf(s.topology.Knobs).Topology != ladder.Ring || len(before)+len(others) == 0 {
		return others
	}
	ring := append(others, before...) // in ring order from the node on: the last one precedes it
	return ring[len(ring)-1:]
}

// sendOrigins sends every serving primary of a multi-primary database its origins.
func (s *System) sendOrigins(ctx context.Context) error {
	s.mu.Lock()
	documents := map[string]*sut.Replication{}
	for _, n := range s.nodes {
		if n.Replicated && n.state == targets.Serving {
			documents[n.Name] = s.replication(n)
		}
	}
	s.mu.Unlock()
	var all errgroup.Group
	for name, document := range documents {
		all.Go(func() error {
			return s.call(ctx, name, request{method: http.MethodPut, path: sut.ReplicationPath, document: document})
		})
	}
	return all.Wait()
}

// databases implements failover.Databases.
type databases struct{ *System }

// Probe implements failover.Databases.
func (d databases) Probe(ctx context.Context, name string) (status sut.ReplicationStatus, err error) {
	err = d.call(ctx, name, request{method: http.MethodGet, path: sut.ReplicationPath, answer: &status})
	if err == nil && status.Node != name {
		// The node has died, and another node has got its admin port.
		err = fmt.Errorf("%s answers at the address of %s", status.Node, name)
	}
	if len(status.Kept) > 0 {
		d.noticeKept()
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
		n.expected = true
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
	// A start that began before the hold may create a process after the first kill.
	if err := d.await(ctx, func() bool { return !n.launching }); err != nil {
		return nil, err
	}
	if err := n.leaf.KillAll(); err != nil {
		return nil, err
	}
	return func() { d.hold([]*node{n}, -1) }, nil
}

// PublishRoles implements failover.Databases. It does not wait for nodes that are starting.
func (d databases) PublishRoles(ctx context.Context, roles failover.Roles) error {
	d.change(func() { d.roles = roles })
	var origins errgroup.Group
	if roles.Primary == "" {
		origins.Go(func() error { return d.sendOrigins(ctx) })
	}
	var starting error
	err := d.sendWirings(ctx, publishBound, func(n *node) bool {
		if n.calls(sut.DB) && n.launching {
			starting = fmt.Errorf("%s is starting", n.Name)
		}
		return n.calls(sut.DB) && !n.launching
	}, d.tolerateLate)
	return errors.Join(starting, err, origins.Wait())
}
