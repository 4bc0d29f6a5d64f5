// Package replication keeps copies of a database: one node is the primary, which takes writes and logs them, and the
// others are its replicas, which repeat them. A replica becomes the primary of a higher epoch when it is told to; a
// primary that meets a higher epoch takes no more writes.
//
// Files: node.go is the node's role, sender.go a replica as its primary sees it, follower.go a primary as its replica
// sees it, apply.go the repeating of what it sends, and lost.go what an old primary had that its successor has not.
//
// A Node may be used by any number of goroutines, except that what engine.Replicator says belongs to the holder of the
// write lock. The order of calls is Open, Start, Cut, Stop.
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

// The rhythm of a connection between two nodes.
const (
	heartbeatInterval = 500 * time.Millisecond
	tailEntries       = 4096    // kept in memory for replicas that are up to date ...
	tailBytes         = 8 << 20 // ... and their bytes
)

// Node is a primary or a replica.
//
// The log belongs to the holder of the write lock. On a replica that is the follower alone, for no client gets one.
type Node struct {
	db     *engine.DB
	cfg    replog.Config
	logger *slog.Logger
	log    *replog.Log
	sealed *replog.Entry   // not committed yet
	left   <-chan struct{} // closed when the node stops and no client is there any more

	becoming sync.Mutex // held by Become and Stop

	mu       sync.Mutex
	primary  *sut.Peer // nil = this node
	fenced   bool      // a primary that has met a higher epoch
	ended    bool      // the node stops: waits for replicas end
	known    int64     // highest epoch
	position int64     // of the last entry that is committed, and its epoch
	epoch    int64
	follower *follower // of a replica
	deposed  func()    // ends what tells the one before; nil = nobody is told
	// changed is closed, and made anew, when there is something to look at.
	changed chan struct{}

	// Of a primary.
	tail      []replog.Entry // the last ones, without a gap
	tailBytes int
	followers map[string]*sender
	needs     map[*sender]int64 // the position after which each needs the log
	confirmed int64             // the highest position that SyncCopies replicas have had

	// Of a replica.
	serves    bool
	diverged  bool // the copy is no good, or is being replaced
	connected bool
	wanted    int64 // the position from which on it serves; -1 = not known yet
	lag       time.Duration
	rebuilds  int64
	problem   string
}

// Open opens the log of a database.
func Open(db *engine.DB, cfg replog.Config, logger *slog.Logger) (*Node, error) {
	r := &Node{
		db: db, cfg: cfg, logger: logger, changed: make(chan struct{}),
		followers: map[string]*sender{}, needs: map[*sender]int64{}, wanted: -1, lag: -1, primary: cfg.State.Primary,
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
			"%w: this database has known epoch %d, its node cannot be the primary of epoch %d",
			replog.ErrRefused, known, cfg.State.Epoch)
	}
	r.serves = r.primary == nil
	if err := r.open(cfg.State.Epoch); err != nil {
		return nil, err
	}
	_, err = r.log.Schema()
	return r, err
}

// open opens the log, at first and after a snapshot, and makes an epoch known. The write lock is held.
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
	r.known = max(r.known, known)
	return err
}

// Start begins to follow; a primary has nothing to start. When left is closed no client is there any more.
func (r *Node) Start(left <-chan struct{}) {
	r.left = left
	if r.primary != nil {
		r.follower = r.follow(*r.primary)
	}
}

// Status says how the node's copy is.
func (r *Node) Status() sut.ReplicationStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	status := sut.ReplicationStatus{
		Node: r.cfg.Node, Primary: r.primary == nil && !r.fenced, Epoch: r.known, HeldEpoch: r.epoch, Position: r.position,
		Serves: r.serves, Connected: r.connected, LagNS: int64(r.lag), Rebuilds: r.rebuilds, Problem: r.problem,
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

// Become makes a replica the primary, or lets it follow another one. It returns replog.ErrRefused for what the node
// must not be. What a replica has received it applies before it is the primary; should the context end before that,
// it goes on as a replica.
func (r *Node) Become(ctx context.Context, to sut.Replication) error {
	r.becoming.Lock()
	defer r.becoming.Unlock()
	r.mu.Lock()
	err := r.mayBecome(to)
	old := r.follower
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if to.Primary == nil {
		return r.promote(ctx, to.Epoch, old)
	}
	old.abandon()
	if err := r.know(to.Epoch); err != nil {
		return err
	}
	r.mu.Lock()
	r.primary, r.problem, r.connected, r.wanted = to.Primary, "", false, -1
	r.follower = r.follow(*to.Primary)
	r.mu.Unlock()
	return nil
}

// mayBecome says why not; the lock is held.
func (r *Node) mayBecome(to sut.Replication) error {
	switch {
	case r.ended:
		return fmt.Errorf("%w: this node is stopping", replog.ErrRefused)
	case to.Several:
		return fmt.Errorf("%w: this node is not one of several primaries, it must be started as one", replog.ErrRefused)
	case r.primary == nil:
		return fmt.Errorf("%w: this node is the primary of epoch %d; one does not step down", replog.ErrRefused, r.known)
	case to.Epoch < r.known || to.Epoch == r.known && to.Primary == nil:
		return fmt.Errorf("%w: epoch %d is not high enough, this node has known %d", replog.ErrRefused, to.Epoch, r.known)
	case to.Primary == nil && r.diverged:
		return fmt.Errorf("%w: this node's copy is being replaced: %s", replog.ErrRefused, r.problem)
	}
	return nil
}

func (r *Node) promote(ctx context.Context, epoch int64, old *follower) error {
	err := old.finish(ctx)
	r.mu.Lock()
	if err == nil && r.diverged { // found out meanwhile
		err = fmt.Errorf("%w: %s", replog.ErrRefused, r.problem)
	}
	r.mu.Unlock()
	if err == nil {
		err = r.know(epoch)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.follower = r.follow(*r.primary)
		return fmt.Errorf("promotion to epoch %d: %w", epoch, err)
	}
	r.deposed = r.depose(*r.primary, epoch)
	r.follower, r.primary, r.problem = nil, nil, ""
	r.serves, r.connected = true, false
	r.announce()
	return nil
}

func (r *Node) know(epoch int64) error {
	r.mu.Lock()
	known := r.known
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
	r.known = max(r.known, epoch)
	return nil
}

// Stop ends what goes on besides the clients.
func (r *Node) Stop() {
	r.becoming.Lock()
	defer r.becoming.Unlock()
	r.Cut()
	r.mu.Lock()
	f, deposed := r.follower, r.deposed
	r.mu.Unlock()
	if f != nil {
		f.abandon()
	}
	if deposed != nil {
		deposed()
	}
}

// Cut ends all waits for replicas.
func (r *Node) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	r.announce()
}

// Allows says why a client may not do that now.
func (r *Node) Allows(writes bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case writes && r.fenced:
		return r.errFenced()
	case writes && r.primary != nil:
		const text = "this node is a replica and takes no writes, the primary is %s at %s"
		return wire.Errorf(wire.ReadOnlyTransaction, text, r.primary.Node, r.primary.Address)
	case !r.serves:
		return wire.Errorf(wire.CannotConnectNow, "replica has not caught up yet")
	}
	return nil
}

// IsReplica reports whether the node only repeats what another one does.
func (r *Node) IsReplica() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.primary != nil
}

func (r *Node) errFenced() error {
	const text = "this node was the primary of an older epoch than %d and takes no more writes"
	return wire.Errorf(wire.ReadOnlyTransaction, text, r.known)
}

// fence ends a primary that meets a higher epoch.
func (r *Node) fence(epoch int64, by string) {
	r.mu.Lock()
	if r.fenced || r.primary != nil || epoch <= r.known {
		r.mu.Unlock()
		return
	}
	r.fenced = true
	r.problem = fmt.Sprintf("fenced: %s knows epoch %d", by, epoch)
	r.announce()
	r.mu.Unlock()
	r.logger.Warn("this primary is fenced", "by", by, "epoch", epoch)
	if err := r.know(epoch); err != nil {
		// In memory it is fenced; only a restart in the old role would forget.
		r.logger.Error("keeping the epoch", "cause", err)
	}
}

// announce wakes all who wait for a change; the lock is held.
func (r *Node) announce() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Begin records a transaction of clients that has just begun.
func (r *Node) Begin() error {
	// Asked here once more: who waited in line may have been let in before.
	if err := r.Allows(true); err != nil {
		return err
	}
	return r.log.Begin()
}

// Seal adds the transaction to the log before its commit. It returns its position, 0 when nothing changed.
func (r *Node) Seal() (position int64, err error) {
	r.mu.Lock()
	epoch, need := r.known, int64(math.MaxInt64)
	for _, position := range r.needs {
		need = min(need, position)
	}
	if r.fenced {
		err = r.errFenced()
	}
	r.mu.Unlock()
	if err != nil {
		return 0, err
	}
	r.log.Retain(need)
	r.sealed, err = r.log.Seal(epoch, time.Now().UnixMicro())
	switch {
	case errors.Is(err, replog.ErrTooLarge):
		return 0, wire.WithState(err, wire.LimitExceeded)
	case err != nil || r.sealed == nil:
		return 0, err
	}
	return r.sealed.Position, nil
}

// Drop forgets the transaction: it is taken back.
func (r *Node) Drop() {
	r.sealed = nil
	r.log.Drop()
}

// Committed hands what is durable now to the replicas.
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
	gone := 0
	for len(r.tail)-gone > tailEntries || r.tailBytes > tailBytes && len(r.tail)-gone > 1 {
		r.tailBytes -= len(r.tail[gone].Changes)
		r.tail[gone] = replog.Entry{} // the array stays for a while, its bytes need not
		gone++
	}
	r.tail = r.tail[gone:]
	r.announce()
}

// Wait waits until enough replicas have a transaction.
func (r *Node) Wait(position int64) error {
	if r.cfg.SyncCopies == 0 || position == 0 {
		return nil
	}
	late := time.NewTimer(r.cfg.SyncTimeout)
	defer late.Stop()
	for {
		r.mu.Lock()
		changed, confirmed, fenced, ended := r.changed, r.confirmed, r.fenced, r.ended
		r.mu.Unlock()
		unsure := func(why string) error {
			const text = "fewer than %d replicas have acknowledged this transaction, %s; it may have taken effect"
			return wire.Errorf(wire.QueryCanceled, text, r.cfg.SyncCopies, why)
		}
		switch {
		case confirmed >= position:
			return nil
		case fenced:
			return unsure("and this primary has been replaced")
		case ended:
			return unsure("and this node stops")
		}
		select {
		case <-changed:
		case <-late.C:
			return unsure("and the time to wait for more is over")
		}
	}
}
