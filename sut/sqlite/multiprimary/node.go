// Package multiprimary makes an embedded database one of several primaries: every node takes writes, each change
// reaches every node, and of two changes to one row the later one wins everywhere, so that all copies are equal when
// writes have stopped and all have met.
//
// What travels is whole rows. A change carries the version of its row, which is the time of its commit and the
// origin, and the version that it replaced there. A row's winner is the change of the highest version, in whatever
// order changes come. Were only the changed columns sent, as SQLite's own changesets do, two concurrent updates of
// different columns would leave a mixture that depends on their order.
//
// A conflict is a version that two changes have replaced, neither knowing the other: one is lost. That is a property
// of the set of changes, so every node counts the same. A secondary UNIQUE key is settled in the same way: of the
// rows that want the same value the one of the highest version is in the table. The others are hidden, each of them a
// conflict for as long as it is, and come back when the value is free. A table may have one such key: with more the
// outcome could depend on the order.
//
// Times are microseconds since 1970 of a hybrid logical clock, see Clock. Each node logs what it commits and what it
// gets, in the order in which it does, and knows of each origin how far it is: the entry, what it changes and that
// mark are one transaction, so that nothing is lost or repeated. A database is an origin by its node's name and the
// time of its first start: one that begins anew under an old name is another origin, and gets the changes of the
// former.
//
// The log is bounded by replog.Limits, and with it the memory for deleted rows and replaced versions. A node that is
// away for longer fetches the whole database and adds what it alone has; when its own log does not reach back to
// that, it stays away and says so. Conflicts with changes older than the log may be counted too low.
//
// A Node may be used by any number of goroutines, except that what engine.Replicator says belongs to the holder of the
// write lock. The order of calls is Open, Start, Cut, Stop.
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

// Node is a database that is one of several primaries.
type Node struct {
	engine.NoReplication // clients may write, and a commit waits for no replica
	cfg                  replog.Config
	db                   *engine.DB
	logger               *slog.Logger
	left                 <-chan struct{} // closed when the node stops and no client is there any more
	self                 string          // the origin that this database is
	ledger               *ledger         // belongs to the holder of the write lock

	becoming   sync.Mutex    // held by Become and Stop
	rebuilding chan struct{} // holds a value while a snapshot is fetched
	files      sync.RWMutex  // held by who has a connection of its own to the database; locked to replace it

	mu        sync.Mutex
	known     int64 // highest epoch
	clock     Clock
	sealed    int64 // the time of an entry that is not committed yet; 0 = there is none
	seen      progress
	heard     map[string]int64 // by origin: all its changes up to that time are here
	pulls     []*pull
	links     map[*link]struct{}
	lag       time.Duration
	ended     bool
	replaced  int64 // times that the database was
	replacing bool
	changed   chan struct{} // closed, and made anew, when there is something to send
}

// Open makes the tables where there are none.
func Open(db *engine.DB, cfg replog.Config, logger *slog.Logger) (*Node, error) {
	n := &Node{
		cfg: cfg, db: db, logger: logger, clock: Clock{Wall: time.Now}, heard: map[string]int64{},
		links: map[*link]struct{}{}, lag: -1, changed: make(chan struct{}), rebuilding: make(chan struct{}, 1),
	}
	conn, err := db.Conn()
	if err == nil {
		n.known, err = replog.RaiseEpoch(conn, cfg.State.Epoch)
	}
	if err == nil {
		n.ledger, err = openLedger(conn, cfg.Node, time.Now().UnixMicro(), cfg.Limits())
	}
	if err != nil {
		return nil, fmt.Errorf("log of several primaries: %w", err)
	}
	n.self = n.ledger.self
	n.opened()
	return n, nil
}

func (n *Node) opened() {
	n.seen = n.ledger.now.clone()
	clear(n.heard)
	for origin, m := range n.seen.marks {
		n.clock.Observe(m.atUS)
		n.heard[origin] = m.atUS
	}
}

// Start begins to get changes. When left is closed no client is there any more.
func (n *Node) Start(left <-chan struct{}) {
	n.left = left
	n.follow(n.cfg.State.Origins)
}

// Become makes the node get its changes from other nodes. It returns replog.ErrRefused for what it must not be.
func (n *Node) ChangeRole(_ context.Context, to sut.Replication) error {
	n.becoming.Lock()
	defer n.becoming.Unlock()
	n.mu.Lock()
	known, ended := n.known, n.ended
	n.mu.Unlock()
	switch {
	case ended:
		return fmt.Errorf("%w: this node is stopping", replog.ErrRefused)
	case !to.Several || to.Primary != nil:
		return fmt.Errorf("%w: this node is one of several primaries; one does not step down", replog.ErrRefused)
	case to.Epoch < known:
		return fmt.Errorf("%w: epoch %d is not high enough, this node has known %d", replog.ErrRefused, to.Epoch, known)
	}
	if err := n.cfg.CheckOrigins(to.Origins); err != nil {
		return err
	}
	if to.Epoch > known {
		if err := n.know(to.Epoch); err != nil {
			return err
		}
	}
	n.follow(to.Origins)
	return nil
}

func (n *Node) know(epoch int64) error {
	err := n.db.Exclusively(func(conn *sqlite.Conn) error {
		_, err := replog.RaiseEpoch(conn, epoch)
		return err
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.known = epoch
	return nil
}

func (n *Node) follow(origins []sut.Peer) {
	n.mu.Lock()
	old := n.pulls
	ended := n.ended
	n.pulls = nil
	n.mu.Unlock()
	for _, p := range old {
		p.stop()
		<-p.done
	}
	if ended {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, peer := range origins {
		n.pulls = append(n.pulls, n.pull(peer, len(origins) == 1))
	}
}

// Cut ends what is going on with other nodes now.
func (n *Node) Abort() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ended = true
	n.announce()
}

// Stop ends all that the node does by itself.
func (n *Node) Stop() {
	n.Abort()
	n.becoming.Lock()
	defer n.becoming.Unlock()
	n.follow(nil)
}

// Status says how the node's copy is.
func (n *Node) Status() sut.ReplicationStatus {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := sut.ReplicationStatus{
		Node: n.cfg.Node, Primary: true, Epoch: n.known, Position: n.seen.Last, Conflicts: n.seen.forks + n.seen.hidden,
		LagNS: int64(n.lag), Rebuilds: n.replaced, Serves: !n.replacing,
		Applied: map[string]int64{}, Followers: map[string]int64{}, Connected: true,
	}
	for origin, m := range n.seen.marks {
		if origin != n.self {
			s.Applied[nodeOf(origin)] += m.seq
		}
	}
	for l := range n.links {
		s.Followers[l.hello.Node] = max(s.Followers[l.hello.Node], l.acked)
	}
	var problems []string
	for _, p := range n.pulls {
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

// LostChanges says that nothing was lost: one of several primaries keeps what it has.
func (n *Node) LostChanges(context.Context) (sut.Lost, error) {
	return sut.Lost{Node: n.cfg.Node, Changes: []sut.LostChange{}}, nil
}

// Allows says why clients may not read or write now.
func (n *Node) Allows(bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.replacing {
		return wire.Errorf(wire.CannotConnectNow, "the database is being replaced")
	}
	return nil
}

// Begin records a transaction of clients that has just begun.
func (n *Node) Begin() error {
	// Asked here once more: who waited in line may have been let in before.
	if err := n.Allows(true); err != nil {
		return err
	}
	return n.ledger.Begin()
}

// Seal adds a transaction to the log before its commit. It returns its position, 0 when nothing changed.
func (n *Node) Seal() (position int64, err error) {
	changes, err := n.ledger.recorded()
	if err != nil || len(changes) == 0 {
		return 0, err
	}
	n.mu.Lock()
	atUS := n.clock.Next()
	n.sealed = atUS
	keep := n.keep()
	n.mu.Unlock()
	position, err = n.ledger.seal(changes, atUS, keep)
	if errors.Is(err, replog.ErrTooLarge) {
		err = wire.WithState(err, wire.LimitExceeded)
	}
	return position, err
}

// Committed says that what was sealed is durable.
func (n *Node) Committed() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.advance()
}

// advance lets all see what is durable now; the write lock and n.mu are held.
func (n *Node) advance() {
	n.sealed = 0
	n.ledger.committed()
	if n.seen.Last != n.ledger.now.Last {
		n.seen = n.ledger.now.clone()
		n.announce()
	}
}

// Drop forgets a transaction that was taken back, or is about to be.
func (n *Node) Drop() {
	n.ledger.drop()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sealed = 0
}

// announce wakes all who send; the lock is held.
func (n *Node) announce() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// keep says what the log must keep; the lock is held.
func (n *Node) keep() keep {
	k := keep{after: math.MaxInt64, horizonUS: math.MaxInt64}
	for l := range n.links {
		k.after = min(k.after, l.sent)
	}
	// A deleted row must be remembered while an older change to it may come.
	heard := map[string]int64{}
	for _, p := range n.pulls {
		heard[p.peer.Node] = 0
	}
	for origin, atUS := range n.heard {
		heard[nodeOf(origin)] = max(heard[nodeOf(origin)], atUS)
	}
	delete(heard, n.cfg.Node)
	for _, atUS := range heard {
		k.horizonUS = min(k.horizonUS, atUS)
	}
	return k
}

// upTo says of each origin up to which time all its changes are committed here. It must be asked before the log is.
func (n *Node) upTo() map[string]int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	heard := maps.Clone(n.heard)
	heard[n.self] = n.clock.Next()
	if n.sealed > 0 {
		heard[n.self] = n.sealed - 1
	}
	return heard
}

// hears takes in what another node says of that kind, once all that it sent before is applied.
func (n *Node) hears(heard map[string]int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for origin, atUS := range heard {
		if origin == n.self {
			continue
		}
		n.clock.Observe(atUS)
		n.heard[origin] = max(n.heard[origin], atUS)
	}
}

func nodeOf(origin string) string {
	node, _, _ := strings.Cut(origin, "#")
	return node
}
