package sqlite

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
	"github.com/stagebench/stagebench/sut/sqlite/several"
	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// Replication makes a node one of several with the same database: the primary,
// which takes writes and logs them, or a replica, which repeats them.
type Replication struct {
	// Node is the name of this node, by which its primary knows it.
	Node string
	// State is what the node is at birth: the primary of an epoch, one that
	// follows it, or one of several primaries.
	State sut.Replication
	// SyncCopies is how many replicas must have applied a transaction before
	// it is acknowledged; 0 = it waits for none.
	SyncCopies int
	// SyncTimeout is how long it waits for them at most; 0 = 2 s. The client
	// gets SQLSTATE 57014 then, and the transaction stays in effect here.
	SyncTimeout time.Duration
	// Lag is how long after its commit at the primary a change is applied, and
	// not before; 0 = at once.
	Lag time.Duration
	// KeepEntries and KeepBytes bound the log, and so how far a replica may
	// fall behind without fetching the whole database; 0 = 10,000 and 64 MiB,
	// or 100,000 and 256 MiB of one of several primaries.
	KeepEntries int
	KeepBytes   int64
}

// ErrRefused is returned by Become for what the node must not do: an epoch that
// is not high enough, or anything for a primary, which never steps down. New
// returns it for a primary whose database has known a higher epoch.
var ErrRefused = errors.New("refused")

// The rhythm of a connection between two nodes.
const (
	beatInterval  = 500 * time.Millisecond
	silence       = 2 * time.Second  // after which a primary is taken for dead
	patience      = 30 * time.Second // with a replica that takes or acknowledges nothing
	tailEntries   = 4096             // kept in memory for replicas that are up to date ...
	tailBytes     = 8 << 20          // ... and their bytes
	followerHello = 4 << 10          // largest message of a replica
)

// replication is a node's part in it. A nil one is a node without copies: what
// its methods do then costs nothing.
//
// The log belongs to who holds the writer's turn. On a replica that is the
// follower alone, for no client gets one.
type replication struct {
	server  *Server
	cfg     Replication
	log     *replog.Log
	several *several.Node // of one of several primaries; nil = there is one

	becoming sync.Mutex // held by Become and by the shutdown

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

// openReplication opens the log on the connection that writes.
func (s *Server) openReplication() error {
	if s.cfg.Replication == nil {
		return nil
	}
	r := &replication{
		server: s, cfg: *s.cfg.Replication, changed: make(chan struct{}), followers: map[string]*sender{}, needs: map[*sender]int64{},
		wanted: -1, lag: -1, primary: s.cfg.Replication.State.Primary,
	}
	if err := r.open(); err != nil {
		return err
	}
	known, err := r.log.Epoch()
	if err == nil {
		_, err = r.log.Schema()
	}
	if err != nil {
		return err
	}
	if r.primary == nil && !r.cfg.State.Several && known > r.cfg.State.Epoch {
		return fmt.Errorf("%w: this database has known epoch %d, its node cannot be the primary of epoch %d", ErrRefused, known, r.cfg.State.Epoch)
	}
	r.known = max(known, r.cfg.State.Epoch)
	if err := r.log.Know(r.known); err != nil {
		return err
	}
	r.serves = r.primary == nil
	s.replication, s.writer.replication = r, r
	return r.openSeveral()
}

// open opens the log on the writer's connection, at birth and after a snapshot.
func (r *replication) open() (err error) {
	r.log, err = replog.Open(r.server.writer.conn.Conn, replog.Limits{Entries: int64(r.cfg.KeepEntries), Bytes: r.cfg.KeepBytes})
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.position, r.epoch = r.log.Last()
	return nil
}

// start begins to follow; a primary has nothing to start.
func (r *replication) start() {
	switch {
	case r == nil:
	case r.several != nil:
		r.several.Start()
	case r.primary != nil:
		r.follower = r.follow(*r.primary)
	}
}

// ReplicationStatus says how the node's copy is. It is that of a lone primary
// without Config.Replication.
func (s *Server) ReplicationStatus() sut.ReplicationStatus {
	r := s.replication
	if r == nil {
		return sut.ReplicationStatus{Primary: true, Serves: true, LagNS: -1}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	status := sut.ReplicationStatus{
		Node: r.cfg.Node, Primary: r.primary == nil && !r.fenced, Epoch: r.known, HeldEpoch: r.epoch, Position: r.position,
		Serves: r.serves, Connected: r.connected, LagNS: int64(r.lag), Rebuilds: r.rebuilds, Problem: r.problem,
	}
	switch {
	case r.several != nil:
		r.several.Status(&status)
	case r.primary == nil:
		status.LagNS = -1
		status.Followers = map[string]int64{}
		for name, f := range r.followers {
			status.Followers[name] = f.acked
		}
	default:
		status.Following = r.primary.Node
	}
	return status
}

// Become makes a replica the primary, or lets it follow another one. It
// returns ErrRefused as sut.Replication says. What a replica has received it
// applies before it is the primary; should the context end before that, it
// goes on as a replica. One of several primaries gets its changes from others.
func (s *Server) Become(ctx context.Context, to sut.Replication) error {
	r := s.replication
	if r == nil {
		return fmt.Errorf("%w: this database has no copies", ErrRefused)
	}
	r.becoming.Lock()
	defer r.becoming.Unlock()
	r.mu.Lock()
	err := r.mayBecome(to)
	old := r.follower
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if r.several != nil {
		return r.becomeOneOf(to)
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
func (r *replication) mayBecome(to sut.Replication) error {
	switch {
	case r.ended:
		return fmt.Errorf("%w: this node is stopping", ErrRefused)
	case r.several != nil:
		return r.mayBecomeOneOf(to)
	case to.Several:
		return fmt.Errorf("%w: this node is not one of several primaries, it must be started as one", ErrRefused)
	case r.primary == nil:
		return fmt.Errorf("%w: this node is the primary of epoch %d; one does not step down", ErrRefused, r.known)
	case to.Epoch < r.known || to.Epoch == r.known && to.Primary == nil:
		return fmt.Errorf("%w: epoch %d is not high enough, this node has known %d", ErrRefused, to.Epoch, r.known)
	case to.Primary == nil && r.diverged:
		return fmt.Errorf("%w: this node's copy is being replaced: %s", ErrRefused, r.problem)
	}
	return nil
}

func (r *replication) promote(ctx context.Context, epoch int64, old *follower) error {
	err := old.finish(ctx)
	r.mu.Lock()
	if err == nil && r.diverged { // found out meanwhile
		err = fmt.Errorf("%w: %s", ErrRefused, r.problem)
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

// know makes a higher epoch durable.
func (r *replication) know(epoch int64) error {
	r.mu.Lock()
	known := r.known
	r.mu.Unlock()
	if epoch <= known {
		return nil
	}
	w := r.server.writer
	if err := w.await(func() <-chan struct{} { return nil }, true); err != nil {
		return err
	}
	defer w.leave()
	if w.conn == nil {
		return errNoDatabase
	}
	if err := r.log.Know(epoch); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known = max(r.known, epoch)
	return nil
}

// stop ends what goes on besides the clients.
func (r *replication) stop() {
	if r == nil {
		return
	}
	r.becoming.Lock()
	defer r.becoming.Unlock()
	r.cut()
	r.mu.Lock()
	f, deposed := r.follower, r.deposed
	r.mu.Unlock()
	if f != nil {
		f.abandon()
	}
	if deposed != nil {
		deposed()
	}
	if r.several != nil {
		r.several.Stop()
	}
}

// cut ends all waits for replicas.
func (r *replication) cut() {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	r.announce()
	if r.several != nil {
		r.several.Cut()
	}
}

// allows says whether a client may do that now.
func (r *replication) allows(writes bool) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case writes && r.fenced:
		return r.errFenced()
	case writes && r.primary != nil:
		return wire.NewError(wire.ReadOnlyTransaction, fmt.Sprintf("this node is a replica and takes no writes, the primary is %s at %s", r.primary.Node, r.primary.Address))
	case !r.serves:
		return wire.NewError(wire.CannotConnectNow, "replica has not caught up yet")
	}
	return nil
}

// replica reports whether the node only repeats what another one does.
func (r *replication) replica() bool {
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.primary != nil
}

func (r *replication) errFenced() error {
	return wire.NewError(wire.ReadOnlyTransaction, fmt.Sprintf("this node was the primary of an older epoch than %d and takes no more writes", r.known))
}

// fence ends a primary that has met a higher epoch.
func (r *replication) fence(epoch int64, by string) {
	r.mu.Lock()
	if r.fenced {
		r.mu.Unlock()
		return
	}
	r.fenced = true
	r.problem = fmt.Sprintf("fenced: %s knows epoch %d", by, epoch)
	r.announce()
	r.mu.Unlock()
	r.server.cfg.Log.Warn("this primary is fenced", "by", by, "epoch", epoch)
	if err := r.know(epoch); err != nil {
		// In memory it is fenced; only a restart in the old role would forget.
		r.server.cfg.Log.Error("keeping the epoch", "cause", err)
	}
}

// announce wakes all who wait for a change; the lock is held.
func (r *replication) announce() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// begin records a transaction of clients that has just begun.
func (r *replication) begin() error {
	if r == nil {
		return nil
	}
	// Asked here once more: who waited in line may have been let in before.
	if err := r.allows(true); err != nil {
		return err
	}
	if r.several != nil {
		return r.several.Begin()
	}
	return r.log.Begin()
}

// seal adds the transaction to the log before its commit. It returns its
// entry, or nil when nothing changed.
func (r *replication) seal() (*replog.Entry, error) {
	if r == nil {
		return nil, nil
	}
	if r.several != nil {
		return r.sealSeveral()
	}
	r.mu.Lock()
	epoch, need := r.known, int64(math.MaxInt64)
	for _, position := range r.needs {
		need = min(need, position)
	}
	var err error
	if r.fenced {
		err = r.errFenced()
	}
	r.mu.Unlock()
	if err != nil {
		return nil, err
	}
	r.log.Need(need)
	entry, err := r.log.Seal(epoch, time.Now().UnixMicro())
	if errors.Is(err, replog.ErrTooLarge) {
		err = wire.NewError(wire.LimitExceeded, err.Error())
	}
	return entry, err
}

// drop forgets the transaction: it is taken back.
func (r *replication) drop() {
	if r == nil {
		return
	}
	r.log.Drop()
	if r.several != nil {
		r.several.Drop()
	}
}

// committed hands what is durable now to the replicas.
func (r *replication) committed(e *replog.Entry) {
	if r == nil {
		return
	}
	if r.several != nil {
		r.several.Committed()
		return
	}
	r.log.Committed()
	if e == nil {
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

// replicated waits until enough replicas have a transaction.
func (r *replication) replicated(position int64) error {
	if r == nil || r.cfg.SyncCopies == 0 || position == 0 {
		return nil
	}
	late := time.NewTimer(r.cfg.SyncTimeout)
	defer late.Stop()
	for {
		r.mu.Lock()
		changed, confirmed, fenced, ended := r.changed, r.confirmed, r.fenced, r.ended
		r.mu.Unlock()
		unsure := func(why string) error {
			return wire.NewError(wire.QueryCanceled, fmt.Sprintf("fewer than %d replicas have acknowledged this transaction, %s; it may have taken effect", r.cfg.SyncCopies, why))
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
