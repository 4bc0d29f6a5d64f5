// Package multiprimary replicates an embedded database in a multi-primary set: every node takes writes, and each change
// reaches every node. Of two changes to one row, the later one wins on every node. When writes have stopped and all
// changes have arrived, all copies are equal.
//
// A change carries the whole row. It also carries the version of the row and the base version, which it replaced. A
// version is the time of the commit and the origin. The change with the highest version wins, in any order of arrival.
// SQLite's own changesets carry only the changed columns. With them, two concurrent updates of different columns would
// mix, and the result would depend on their order.
//
// A conflict is two changes with the same base version: neither knew the other, and one is lost. Conflicts follow from
// the set of changes alone, so every node counts the same number. An update also carries what it added to each integer,
// so every node knows by how much a counter such as likes is too low. A secondary UNIQUE key works in the same way. If
// several rows have the same value, the row with the highest version is in the table, and the others are hidden. A
// hidden row counts as a conflict until the value is free; then the row returns. A table may have one such key. With
// more keys the outcome could depend on the order.
//
// Times are microseconds since 1970 of a hybrid logical clock, see Clock. Each node logs its own changes and those it
// receives, in the order in which it commits them. For each origin it stores the index of the last known change. The
// entry, its changes to rows and this index are one transaction, so no change is lost or applied twice. An origin is
// one database: its name is the node's name and the time of the first start. A node that starts with a new database is
// a new origin, and it receives the changes of its old one.
//
// replog.Limits bound the log, the tombstones of deleted rows and the replaced versions. A node that was away for
// longer fetches a snapshot and adds the changes that only it has. If its own log no longer has all of these changes,
// it stays disconnected and reports the problem. Conflicts with changes older than the log may be missing in the count.
//
// A Node may be used by any number of goroutines. The methods of engine.Replicator need the write lock, as documented
// there. The order of calls is Open, Start, Abort, Stop.
package multiprimary

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"strings"
	"sync"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/engine"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// Node is one node of a multi-primary set.
type Node struct {
	engine.NoReplication // for IsReplica and Wait: clients may write, and a commit waits for no other node
	cfg                  replog.Config
	db                   *engine.DB
	logger               *slog.Logger
	clientsGone          <-chan struct{} // closed when the node stops and no client is connected
	self                 string          // the origin name of this database
	ledger               *ledger         // owned by the holder of the write lock

	roleMu     sync.Mutex    // held by ChangeRole and Stop
	rebuilding chan struct{} // full while a snapshot is fetched
	files      sync.RWMutex  // read-locked while a goroutine has its own connection; locked to replace the database

	mu         sync.Mutex
	knownEpoch int64 // the highest epoch that the node knows
	clock      Clock
	sealed     int64            // time of the entry of the open transaction; 0 = none
	durable    progress         // copy of ledger.now, for goroutines without the write lock
	watermarks map[string]int64 // by origin: all its changes up to this time are applied here
	pullers    []*puller
	senders    map[*sender]struct{}
	lag        time.Duration
	stopping   bool
	replaced   int64         // number of times that the database was replaced
	replacing  bool          // the database is being replaced, or could not be opened after that
	changed    chan struct{} // closed and replaced when a sender may have something to do
}

// Open opens the log of a database and creates it if it does not exist.
func Open(db *engine.DB, cfg replog.Config, logger *slog.Logger) (*Node, error) {
	n := &Node{
		cfg: cfg, db: db, logger: logger, clock: Clock{Wall: time.Now}, watermarks: map[string]int64{},
		senders: map[*sender]struct{}{}, lag: -1, changed: make(chan struct{}), rebuilding: make(chan struct{}, 1),
	}
	conn, err := db.Conn()
	if err == nil {
		n.knownEpoch, err = replog.RaiseEpoch(conn, cfg.State.Epoch)
	}
	if err == nil {
		n.ledger, err = openLedger(conn, cfg.Node, time.Now().UnixMicro(), cfg.Limits())
	}
	if err != nil {
		return nil, fmt.Errorf("multi-primary log: %w", err)
	}
	n.self = n.ledger.self
	n.loadProgress()
	return n, nil
}

// loadProgress takes durable and watermarks from the ledger.
func (n *Node) loadProgress() {
	n.durable = n.ledger.now.clone()
	clear(n.watermarks)
	for origin, m := range n.durable.heads {
		n.clock.Observe(m.atUS)
		n.watermarks[origin] = m.atUS
	}
}

// Start starts to receive changes. The caller closes clientsGone when the node stops and no client is connected.
func (n *Node) Start(clientsGone <-chan struct{}) {
	n.clientsGone = clientsGone
	n.follow(n.cfg.State.Origins)
}

// ChangeRole replaces the list of nodes from which this node receives changes. A role that the node must not take is
// replog.ErrRefused.
func (n *Node) ChangeRole(_ context.Context, to sut.Replication) error {
	n.roleMu.Lock()
	defer n.roleMu.Unlock()
	n.mu.Lock()
	known, stopping := n.knownEpoch, n.stopping
	n.mu.Unlock()
	switch {
	case stopping:
		return fmt.Errorf("%w: this node is stopping", replog.ErrRefused)
	case !to.MultiPrimary || to.Primary != nil:
		return fmt.Errorf("%w: this node is multi-primary: a running primary never becomes a replica", replog.ErrRefused)
	case to.Epoch < known:
		return fmt.Errorf("%w: epoch %d is too low: this node knows epoch %d", replog.ErrRefused, to.Epoch, known)
	}
	if err := n.cfg.CheckOrigins(to.Origins); err != nil {
		return err
	}
	if to.Epoch > known {
		if err := n.raiseEpoch(to.Epoch); err != nil {
			return err
		}
	}
	n.follow(to.Origins)
	return nil
}

// raiseEpoch stores a higher epoch than the known one.
func (n *Node) raiseEpoch(epoch int64) error {
	err := n.db.Exclusively(func(conn *sqlite.Conn) error {
		_, err := replog.RaiseEpoch(conn, epoch)
		return err
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.knownEpoch = epoch
	return nil
}

// follow replaces the pullers.
func (n *Node) follow(origins []sut.Peer) {
	n.mu.Lock()
	old := n.pullers
	stopping := n.stopping
	n.pullers = nil
	n.mu.Unlock()
	for _, p := range old {
		p.stop()
		<-p.done
	}
	if stopping {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, peer := range origins {
		n.pullers = append(n.pullers, n.startPuller(peer, len(origins) == 1))
	}
}

// Abort ends the sending to other nodes.
func (n *Node) Abort() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stopping = true
	n.notify()
}

// Stop ends the sending and receiving, and waits for the receiving goroutines.
func (n *Node) Stop() {
	n.Abort()
	n.roleMu.Lock()
	defer n.roleMu.Unlock()
	n.follow(nil)
}

// Status returns the status of the node's copy.
func (n *Node) Status() sut.ReplicationStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := sut.ReplicationStatus{
		Node: n.cfg.Node, Primary: true, Epoch: n.knownEpoch,
		Position: n.durable.Last,
		LagNS:    int64(n.lag), Rebuilds: n.replaced, Serves: !n.replacing,
		Applied: map[string]int64{}, Followers: map[string]int64{}, Connected: true,
	}
	s.Conflicts = n.durable.forks + n.durable.hidden
	s.Differences = n.durable.differences // publish replaces the map and never changes it
	for origin, m := range n.durable.heads {
		if origin != n.self {
			s.Applied[nodeOf(origin)] += m.seq
		}
	}
	for to := range n.senders {
		s.Followers[to.hello.Node] = max(s.Followers[to.hello.Node], to.acked)
	}
	var problems []string
	for _, p := range n.pullers {
		if _, known := s.Applied[p.peer.Node]; !known {
			s.Applied[p.peer.Node] = 0
		}
		s.Connected = s.Connected && p.connected
		if p.problem != "" {
			problems = append(problems, p.peer.Node+": "+p.problem)
		}
	}
	s.Problem = strings.Join(problems, "; ")
	return s
}

// LostChanges returns no changes: a multi-primary database has no failovers. Status counts what it discarded.
func (n *Node) LostChanges(context.Context, string) (sut.Lost, error) {
	return sut.Lost{}, errors.New("a multi-primary node keeps no old copies")
}

// DropCopy does nothing: a multi-primary node keeps no old copy.
func (n *Node) DropCopy(string) error { return nil }

// Allows returns an error if clients must not read or write now.
func (n *Node) Allows(bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.replacing {
		return wire.Errorf(wire.CannotConnectNow, "the database is being replaced: retry later")
	}
	return nil
}

// Begin starts to record a transaction that has just begun.
func (n *Node) Begin() error {
	// The database may have been replaced while the client waited for the write lock.
	if err := n.Allows(true); err != nil {
		return err
	}
	return n.ledger.Begin()
}

// Seal adds the transaction to the log before its commit. It returns the position of the entry, 0 if nothing changed.
func (n *Node) Seal() (position int64, err error) {
	changes, err := n.ledger.recorded()
	if err != nil || len(changes) == 0 {
		return 0, err
	}
	n.mu.Lock()
	atUS := n.clock.Next()
	n.sealed = atUS
	retain := n.retentionLocked()
	n.mu.Unlock()
	position, err = n.ledger.seal(changes, atUS, retain)
	if errors.Is(err, replog.ErrTooLarge) {
		err = wire.WithState(err, wire.LimitExceeded)
	}
	return position, err
}

// Committed is called after the commit of a sealed transaction.
func (n *Node) Committed() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.publish()
}

// publish updates durable after a commit. The write lock and n.mu are held.
func (n *Node) publish() {
	n.sealed = 0
	n.ledger.committed()
	if n.durable.Last != n.ledger.now.Last {
		n.durable = n.ledger.now.clone()
		n.notify()
	}
}

// Drop discards the record of a transaction that is or will be rolled back.
func (n *Node) Drop() {
	n.ledger.drop()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sealed = 0
}

// notify wakes all senders. The lock is held.
func (n *Node) notify() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// retentionLocked returns the data that the log must keep. The lock is held.
func (n *Node) retentionLocked() retention {
	k := retention{after: math.MaxInt64, tombstonesUS: math.MaxInt64}
	for s := range n.senders {
		k.after = min(k.after, s.sent)
	}
	// While an older change to a deleted row may still arrive, its tombstone must stay. Otherwise the change would bring
	// the row back.
	watermarks := map[string]int64{}
	for _, p := range n.pullers {
		watermarks[p.peer.Node] = 0
	}
	for origin, atUS := range n.watermarks {
		watermarks[nodeOf(origin)] = max(watermarks[nodeOf(origin)], atUS)
	}
	delete(watermarks, n.cfg.Node)
	for _, atUS := range watermarks {
		k.tombstonesUS = min(k.tombstonesUS, atUS)
	}
	return k
}

// currentWatermarks returns the watermark of each origin: all its changes up to this time are committed here. A sender
// must call it before it reads the log. Otherwise it could promise changes that it has not sent.
func (n *Node) currentWatermarks() map[string]int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	watermarks := maps.Clone(n.watermarks)
	watermarks[n.self] = n.clock.Next()
	if n.sealed > 0 {
		watermarks[n.self] = n.sealed - 1
	}
	return watermarks
}

// observeWatermarks records the watermarks of another node. The caller has applied everything that this node sent
// before.
func (n *Node) observeWatermarks(watermarks map[string]int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for origin, atUS := range watermarks {
		if origin == n.self {
			continue
		}
		n.clock.Observe(atUS)
		n.watermarks[origin] = max(n.watermarks[origin], atUS)
	}
}

// nodeOf returns the node of an origin name.
func nodeOf(origin string) string {
	node, _, _ := strings.Cut(origin, "#")
	return node
}
