// Package replication replicates a database from one primary to its replicas. The primary takes writes and logs them.
// The replicas apply the log. A replica can be promoted to primary of a higher epoch. A primary that learns of a higher
// epoch is fenced: it takes no more writes.
//
// Files: node.go has the roles and the primary's side of a commit. sender.go sends the log to one replica. follower.go
// receives the log from the primary, and apply.go applies it. lost.go finds the changes of an old primary that the new
// one does not have.
//
// A Node may be used by any number of goroutines. The methods of engine.Replicator need the write lock, as documented
// there. The order of calls is Open, Start, Abort, Stop.
package replication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/engine"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// Constants of a primary.
const (
	heartbeatInterval = 500 * time.Millisecond
	tailEntries       = 4096    // maximum number of entries in Node.tail
	tailBytes         = 8 << 20 // maximum size of Node.tail
)

// Node is a primary or a replica.
//
// The holder of the write lock owns log and sealed. On a replica only the follower takes the write lock.
type Node struct {
	db          *engine.DB
	cfg         replog.Config
	logger      *slog.Logger
	log         *replog.Log
	sealed      *replog.Entry   // the entry of the open transaction; nil = none
	clientsGone <-chan struct{} // closed when the node stops and no client is connected

	roleMu sync.Mutex // held by ChangeRole and Stop

	mu          sync.Mutex
	primary     *sut.Peer // nil = this node is a primary
	fenced      bool      // this primary has learned of a higher epoch
	stopping    bool      // the node stops: waits for replicas end
	knownEpoch  int64     // the highest epoch that the node knows
	position    int64     // of the last committed entry
	epoch       int64     // of the last committed entry
	follower    *follower // receives from the primary; nil = this node is a primary
	stopFencing func()    // ends the attempts to fence the old primary; nil = there are none
	// changed is closed and replaced at every change that a goroutine may be waiting for.
	changed chan struct{}

	// Primary only.
	tail      []replog.Entry // the last committed entries, without a gap
	tailBytes int
	followers map[string]*sender
	retain    map[*sender]int64 // the log keeps the entries after these positions
	confirmed int64             // the highest position that SyncCopies replicas have acknowledged

	// Replica only, except serves and problem.
	serves    bool // clients may read
	diverged  bool // the copy does not match the primary, or is being replaced
	connected bool
	catchUpTo int64 // the node serves reads from this position on; -1 = not known yet
	lag       time.Duration
	rebuilds  int64
	problem   string
}

// Open opens the log of a database and creates it if it does not exist. It returns replog.ErrRefused if the node must
// be a primary and the database knows a higher epoch.
func Open(db *engine.DB, cfg replog.Config, logger *slog.Logger) (*Node, error) {
	r := &Node{
		db: db, cfg: cfg, logger: logger, changed: make(chan struct{}),
		followers: map[string]*sender{}, retain: map[*sender]int64{}, catchUpTo: -1, lag: -1, primary: cfg.State.Primary,
	}
	conn, err := db.Conn()
	if err != nil {
		return nil, err
	}
	known, err := replog.RaiseEpoch(conn, 0)
	switch {
	case err != nil:
		return nil, err
	case r.primary == nil && known > cfg.State.Epoch:
		return nil, fmt.Errorf(
			"%w: the database knows epoch %d, so its node cannot be the primary of epoch %d",
			replog.ErrRefused, known, cfg.State.Epoch)
	}
	r.serves = r.primary == nil
	if err := r.open(cfg.State.Epoch); err != nil {
		return nil, err
	}
	_, err = r.log.Schema()
	return r, err
}

// open opens the log and raises the known epoch. Open and an installed snapshot call it. The write lock is held.
func (r *Node) open(epoch int64) error {
	conn, err := r.db.Conn()
	if err != nil {
		return err
	}
	opened, err := replog.Open(conn, r.cfg.Limits())
	if err != nil {
		return err
	}
	known, err := replog.RaiseEpoch(conn, epoch)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = opened
	r.position, r.epoch = r.log.Last()
	r.knownEpoch = max(r.knownEpoch, known)
	return err
}

// Start starts to receive changes if the node is a replica. The caller closes clientsGone when the node stops and no
// client is connected.
func (r *Node) Start(clientsGone <-chan struct{}) {
	r.clientsGone = clientsGone
	if r.primary != nil {
		r.follower = r.follow(*r.primary)
	}
}

// Status returns the status of the node's copy.
func (r *Node) Status() sut.ReplicationStatus {
	kept, _ := r.db.Kept() // an error shows in LostChanges
	r.mu.Lock()
	defer r.mu.Unlock()
	status := sut.ReplicationStatus{
		Node: r.cfg.Node, Primary: r.primary == nil && !r.fenced, Epoch: r.knownEpoch,
		HeldEpoch: r.epoch, Position: r.position, Serves: r.serves, Connected: r.connected,
		CatchingUp: r.primary != nil && !r.serves && !r.diverged, LagNS: int64(r.lag), Rebuilds: r.rebuilds,
		Problem: r.problem,
	}
	for _, k := range kept {
		status.Kept = append(status.Kept, k.Name)
	}
	if r.primary == nil {
		status.LagNS = -1
		status.Followers = map[string]int64{}
		for name, f := range r.followers {
			status.Followers[name] = f.acked
		}
	} else {
		status.Following = r.primary.Node
	}
	return status
}

// ChangeRole promotes a replica to primary, or makes it follow another primary. A role that the node must not take is
// replog.ErrRefused. Before a promotion the replica applies all changes that it has received. If the context ends
// first, the node stays a replica.
func (r *Node) ChangeRole(ctx context.Context, to sut.Replication) error {
	r.roleMu.Lock()
	defer r.roleMu.Unlock()
	r.mu.Lock()
	err := r.checkRole(to)
	old := r.follower
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if to.Primary == nil {
		return r.promote(ctx, to.Epoch, old)
	}
	old.stop()
	if err := r.raiseEpoch(to.Epoch); err != nil {
		return err
	}
	r.mu.Lock()
	r.primary, r.problem, r.connected, r.catchUpTo = to.Primary, "", false, -1
	r.follower = r.follow(*to.Primary)
	r.mu.Unlock()
	return nil
}

// checkRole returns an error if the node must not take a role. The lock is held.
func (r *Node) checkRole(to sut.Replication) error {
	switch {
	case r.stopping:
		return fmt.Errorf("%w: this node is stopping", replog.ErrRefused)
	case to.MultiPrimary:
		return fmt.Errorf("%w: this node is not multi-primary: restart it as multi-primary", replog.ErrRefused)
	case r.primary == nil:
		const text = "%w: this node is the primary of epoch %d: a running primary never becomes a replica"
		return fmt.Errorf(text, replog.ErrRefused, r.knownEpoch)
	case to.Epoch < r.knownEpoch || to.Epoch == r.knownEpoch && to.Primary == nil:
		return fmt.Errorf("%w: epoch %d is too low: this node knows epoch %d", replog.ErrRefused, to.Epoch, r.knownEpoch)
	case to.Primary == nil && r.diverged:
		return fmt.Errorf("%w: the copy of this node must be replaced: %s", replog.ErrRefused, r.problem)
	}
	return nil
}

// promote drains the follower and makes the node the primary. After an error the node follows its old primary again.
func (r *Node) promote(ctx context.Context, epoch int64, old *follower) error {
	err := old.drain(ctx)
	r.mu.Lock()
	if err == nil && r.diverged { // drain may have found a conflict
		err = fmt.Errorf("%w: %s", replog.ErrRefused, r.problem)
	}
	r.mu.Unlock()
	if err == nil {
		err = r.raiseEpoch(epoch)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.follower = r.follow(*r.primary)
		return fmt.Errorf("promotion to epoch %d: %w", epoch, err)
	}
	r.stopFencing = r.fenceOld(*r.primary, epoch)
	r.follower, r.primary, r.problem = nil, nil, ""
	r.serves, r.connected = true, false
	r.notify()
	return nil
}

// raiseEpoch stores an epoch if it is higher than the known one.
func (r *Node) raiseEpoch(epoch int64) error {
	r.mu.Lock()
	known := r.knownEpoch
	r.mu.Unlock()
	if epoch <= known {
		return nil
	}
	err := r.db.Exclusively(func(conn *sqlite.Conn) error {
		_, err := replog.RaiseEpoch(conn, epoch)
		return err
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.knownEpoch = max(r.knownEpoch, epoch)
	return nil
}

// Stop ends all goroutines of the node and waits for them.
func (r *Node) Stop() {
	r.roleMu.Lock()
	defer r.roleMu.Unlock()
	r.Abort()
	r.mu.Lock()
	f, stopFencing := r.follower, r.stopFencing
	r.mu.Unlock()
	if f != nil {
		f.stop()
	}
	if stopFencing != nil {
		stopFencing()
	}
}

// Abort ends all waits for replicas and the sending to them.
func (r *Node) Abort() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopping = true
	r.notify()
}

// Allows returns an error if a client must not read or write now.
func (r *Node) Allows(writes bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case writes && r.fenced:
		return r.errFenced()
	case writes && r.primary != nil:
		const text = "this node is a replica and takes no writes: write to the primary %s at %s"
		return wire.Errorf(wire.ReadOnlyTransaction, text, r.primary.Node, r.primary.Address)
	case !r.serves:
		return wire.Errorf(wire.CannotConnectNow, "the replica has not caught up yet: retry later or read from another node")
	}
	return nil
}

// IsReplica reports whether the node only applies the changes of a primary.
func (r *Node) IsReplica() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.primary != nil
}

func (r *Node) errFenced() error {
	const text = "this node is fenced and takes no writes: there is a primary of epoch %d"
	return wire.Errorf(wire.ReadOnlyTransaction, text, r.knownEpoch)
}

// fence makes a primary take no more writes if epoch is higher than its own. by is the node that knows this epoch.
func (r *Node) fence(epoch int64, by string) {
	r.mu.Lock()
	if r.fenced || r.primary != nil || epoch <= r.knownEpoch {
		r.mu.Unlock()
		return
	}
	r.fenced = true
	r.problem = fmt.Sprintf("fenced: node %s knows epoch %d", by, epoch)
	r.notify()
	r.mu.Unlock()
	r.logger.Warn("this primary is fenced and takes no more writes", "by", by, "epoch", epoch)
	if err := r.raiseEpoch(epoch); err != nil {
		// The node stays fenced until a restart. If it is restarted as the primary of its old epoch, it takes writes again.
		r.logger.Error("storing the higher epoch: do not restart this node as a primary", "epoch", epoch, "cause", err)
	}
}

// notify wakes all goroutines that wait for a change. The lock is held.
func (r *Node) notify() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Begin starts to record a transaction that has just begun.
func (r *Node) Begin() error {
	// The node may have been fenced while the client waited for the write lock.
	if err := r.Allows(true); err != nil {
		return err
	}
	return r.log.Begin()
}

// Seal adds the transaction to the log before its commit. It returns the position of the entry, 0 if nothing changed.
func (r *Node) Seal() (position int64, err error) {
	r.mu.Lock()
	epoch, retain := r.knownEpoch, int64(math.MaxInt64)
	for _, position := range r.retain {
		retain = min(retain, position)
	}
	if r.fenced {
		err = r.errFenced()
	}
	r.mu.Unlock()
	if err != nil {
		return 0, err
	}
	r.log.Retain(retain)
	r.sealed, err = r.log.Seal(epoch, time.Now().UnixMicro())
	switch {
	case errors.Is(err, replog.ErrTooLarge):
		return 0, wire.WithState(err, wire.LimitExceeded)
	case err != nil || r.sealed == nil:
		return 0, err
	}
	return r.sealed.Position, nil
}

// Drop discards the record of a transaction that is or will be rolled back.
func (r *Node) Drop() {
	r.sealed = nil
	r.log.Drop()
}

// Committed passes the committed entry to the senders.
func (r *Node) Committed() {
	r.log.Committed()
	e := r.sealed
	if r.sealed = nil; e == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.position, r.epoch = e.Position, e.Epoch
	r.tail = append(r.tail, *e)
	r.tailBytes += len(e.Changes)
	removed := 0
	for len(r.tail)-removed > tailEntries || r.tailBytes > tailBytes && len(r.tail)-removed > 1 {
		r.tailBytes -= len(r.tail[removed].Changes)
		r.tail[removed] = replog.Entry{} // the array still has this element, but must not keep its changes in memory
		removed++
	}
	r.tail = r.tail[removed:]
	r.notify()
}

// Wait returns when SyncCopies replicas have acknowledged an entry. It returns an error after SyncTimeout, or if the
// node is fenced or stops. The entry stays committed on this node.
func (r *Node) Wait(position int64) error {
	if r.cfg.SyncCopies == 0 || position == 0 {
		return nil
	}
	late := time.NewTimer(r.cfg.SyncTimeout)
	defer late.Stop()
	for {
		r.mu.Lock()
		changed, confirmed, fenced, stopping := r.changed, r.confirmed, r.fenced, r.stopping
		r.mu.Unlock()
		unsure := func(why string) error {
			const text = "the transaction is committed here, but fewer than %d replicas have acknowledged it: %s"
			return wire.Errorf(wire.QueryCanceled, text, r.cfg.SyncCopies, why)
		}
		switch {
		case confirmed >= position:
			return nil
		case fenced:
			return unsure("the primary is fenced")
		case stopping:
			return unsure("the node stops")
		}
		select {
		case <-changed:
		case <-late.C:
			return unsure("timeout after " + r.cfg.SyncTimeout.String())
		}
	}
}
