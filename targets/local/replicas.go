package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
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

// replicaSet is databases that replicate each other: those of one shard, or of the whole
// system before stage shards. Each set has roles and a supervisor of its own, so a failover
// in one shard changes nothing in the others.
type replicaSet struct {
	shard int // number of the shard, 0 = the database is not sharded

	life    context.Context // ends when the set leaves the system, or the system ends
	endLife context.CancelFunc
	watched sync.WaitGroup // the goroutine of failover.Run

	// System.mu guards the fields below. supervisor is set once, before the change of the topology that
	// adds the set ends. So a later change may read it without mu.
	roles      failover.Roles
	supervisor *failover.Supervisor // nil = not supervised yet
}

// has reports whether a node belongs to the set.
func (r *replicaSet) has(n *node) bool { return n.Replicated && n.Shard == r.shard }

// last returns the last status that a node of the set reported. known is false if there is
// none. The caller holds System.mu.
func (r *replicaSet) last(name string) (status sut.ReplicationStatus, known bool) {
	if r == nil || r.supervisor == nil {
		return sut.ReplicationStatus{}, false
	}
	return r.supervisor.Last(name)
}

// failovers lists the failovers of the set. The caller holds System.mu.
func (r *replicaSet) failovers() []targets.Failover {
	if r == nil || r.supervisor == nil {
		return nil
	}
	return r.supervisor.Failovers()
}

// declareSets adds the sets of a topology that the system does not have, with their initial
// roles: the database that uses no other database is the primary of its set, and all others
// are replicas.
func (s *System) declareSets(t sut.Topology) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var added []*replicaSet
	for _, n := range t.Nodes {
		if !n.Replicated || setIn(s.replicaSets, n.Shard) != nil {
			continue
		}
		set := setIn(added, n.Shard)
		if set == nil {
			set = &replicaSet{shard: n.Shard, roles: failover.Roles{Epoch: 1}}
			set.life, set.endLife = context.WithCancel(s.life)
			added = append(added, set)
		}
		switch {
		case t.MultiPrimary():
			set.roles.Primaries = append(set.roles.Primaries, n.Name)
		case len(n.Uses) == 0:
			set.roles.Primary = n.Name
		default:
			set.roles.Replicas = append(set.roles.Replicas, n.Name)
		}
	}
	s.replicaSets = slices.Concat(s.replicaSets, added)
}

// superviseDatabases starts the failover supervisors of the sets that have none. The nodes of
// these sets must serve. A supervisor runs until its set leaves the system.
func (s *System) superviseDatabases(ctx context.Context) error {
	for _, set := range s.sets() {
		s.mu.Lock()
		supervised, multiPrimary := set.supervisor != nil, set.roles.Primary == ""
		s.mu.Unlock()
		if supervised {
			continue
		}
		if multiPrimary {
			// The primaries started concurrently and do not know each other's addresses yet.
			if err := s.sendOrigins(ctx, set); err != nil {
				return err
			}
		}
		if err := s.supervise(set); err != nil {
			return err
		}
	}
	return nil
}

// supervise starts the failover supervisor of a set.
func (s *System) supervise(set *replicaSet) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.Err() != nil { // Down does not wait for supervisors that start later
		return errors.New("the system is going down")
	}
	db := ladder.DBOf(s.topology.Knobs)
	supervisor := failover.New(failover.Config{
		Databases: databases{s, set}, Roles: set.roles, Silence: s.opts.FailoverSilence,
		Interval: db.ProbeInterval, Failures: db.ProbeFailures, Sync: db.SyncCopies() > 0,
		OnEvent: func(name, text string) {
			if n := s.node(name); n != nil {
				s.lockAndNote(n, "%s", text)
			}
		},
	})
	set.supervisor = supervisor
	set.watched.Go(func() { supervisor.Run(set.life) })
	return nil
}

// setNodes gives the supervisors the databases of a topology if replicas are scaled.
func (s *System) setNodes(ctx context.Context, r sut.Role, next sut.Topology) error {
	if r != sut.DB {
		return nil
	}
	for _, set := range s.sets() {
		var names []string
		for _, n := range next.Nodes {
			if n.Replicated && n.Shard == set.shard {
				names = append(names, n.Name)
			}
		}
		if err := set.supervisor.SetNodes(ctx, names); err != nil {
			return err
		}
	}
	return nil
}

// leavingSets returns the sets that a topology does not have.
func (s *System) leavingSets(t sut.Topology) []*replicaSet {
	return slices.DeleteFunc(slices.Clone(s.sets()), func(set *replicaSet) bool {
		return slices.ContainsFunc(t.Nodes, func(n sut.Node) bool { return n.Replicated && n.Shard == set.shard })
	})
}

// dropSets removes sets without nodes from the system.
func (s *System) dropSets(sets []*replicaSet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replicaSets = slices.DeleteFunc(slices.Clone(s.replicaSets), func(r *replicaSet) bool {
		return slices.Contains(sets, r)
	})
}

// suspend suspends the supervision of all sets, or of none if it returns an error.
func (s *System) suspend(ctx context.Context) (resume func(), err error) {
	var suspended []func()
	resume = func() {
		for _, one := range suspended {
			one()
		}
	}
	for _, set := range s.sets() {
		one, err := set.supervisor.Suspend(ctx)
		if err != nil {
			resume()
			return nil, err
		}
		suspended = append(suspended, one)
	}
	return resume, nil
}

// Failovers returns the failovers of all databases so far, oldest first.
func (s *System) Failovers() []targets.Failover {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []targets.Failover
	for _, set := range s.replicaSets {
		all = append(all, set.failovers()...)
	}
	slices.SortStableFunc(all, func(a, b targets.Failover) int { return cmp.Compare(a.UnixNS, b.UnixNS) })
	return all
}

// sets returns the current sets in the order of the shards; none if the databases are not
// replicated.
func (s *System) sets() []*replicaSet {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replicaSets
}

// setOf returns the set of a node, nil if it is not a replicated database. The caller holds mu.
func (s *System) setOf(n *node) *replicaSet {
	if !n.Replicated {
		return nil
	}
	return setIn(s.replicaSets, n.Shard)
}

// setIn returns the set of a shard, nil if there is none.
func setIn(sets []*replicaSet, shard int) *replicaSet {
	if i := slices.IndexFunc(sets, func(r *replicaSet) bool { return r.shard == shard }); i >= 0 {
		return sets[i]
	}
	return nil
}

// isPrimary reports whether a node is the only primary of its set. The caller holds mu.
func (s *System) isPrimary(n *node) bool {
	set := s.setOf(n)
	return set != nil && set.roles.Primary == n.Name
}

// replicationRole returns the replication role of a node, "" if it is not a replicated
// database. The caller holds mu.
func (s *System) replicationRole(n *node) targets.ReplicationRole {
	switch set := s.setOf(n); {
	case set == nil:
		return ""
	case n.Name == set.roles.Primary, set.roles.Primary == "":
		return targets.Primary
	}
	return targets.Replica
}

// replication returns the replication configuration of a database. The caller holds mu.
func (s *System) replication(n *node) *sut.Replication {
	roles := s.setOf(n).roles
	if roles.Primary == "" {
		return &sut.Replication{Epoch: roles.Epoch, MultiPrimary: true, Origins: s.origins(n)}
	}
	replication := &sut.Replication{Epoch: roles.Epoch}
	if roles.Primary != n.Name {
		replication.Primary = &s.peers([]string{roles.Primary})[0]
	}
	return replication
}

// origins returns the nodes from which a primary of a multi-primary database receives
// changes. In a ring that is the live primary before it. Otherwise it is all other
// primaries. Nodes without an address yet are left out. The caller holds mu.
func (s *System) origins(n *node) []sut.Peer {
	var before, others []sut.Peer
	after, set := false, s.setOf(n)
	for _, other := range s.nodes {
		switch {
		case other == n:
			after = true
		case !set.has(other) || other.ready.Address == "":
		case ladder.DBOf(s.topology.Knobs).Topology != ladder.Ring:
			others = append(others, other.peer())
		case !slices.Contains(set.roles.Primaries, other.Name):
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

// sendOrigins sends every serving primary of a multi-primary set its origins.
func (s *System) sendOrigins(ctx context.Context, set *replicaSet) error {
	s.mu.Lock()
	documents := map[string]*sut.Replication{}
	for _, n := range s.nodes {
		if set.has(n) && n.state == targets.Serving {
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

// probe returns the replication status of a database.
func (s *System) probe(ctx context.Context, name string) (status sut.ReplicationStatus, err error) {
	err = s.call(ctx, name, request{method: http.MethodGet, path: sut.ReplicationPath, answer: &status})
	if err == nil && status.Node != name {
		// The node has died, and another node has got its admin port.
		err = fmt.Errorf("%s answers at the address of %s", status.Node, name)
	}
	if len(status.Kept) > 0 {
		s.noticeKept()
	}
	return status, err
}

// databases implements failover.Databases for one set.
type databases struct {
	*System
	group *replicaSet
}

// Probe implements failover.Databases.
func (d databases) Probe(ctx context.Context, name string) (sut.ReplicationStatus, error) {
	return d.probe(ctx, name)
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
	d.change(func() { d.group.roles = roles })
	var origins errgroup.Group
	if roles.Primary == "" {
		origins.Go(func() error { return d.sendOrigins(ctx, d.group) })
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
