package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// follower receives the log of a primary and applies it. One goroutine connects and receives, another one applies.
// Entries in the queue between them stay after a disconnect, and wait there for the artificial lag.
type follower struct {
	r       *Node
	primary sut.Peer

	receiving     context.Context
	stopReceiving context.CancelFunc
	applying      context.Context
	stopApplying  context.CancelFunc
	receiveDone   chan struct{} // closed when the receiving goroutine has ended
	applyDone     chan struct{} // closed when the applying goroutine has ended

	mu       sync.Mutex
	queue    []arrival // received, not yet applied
	bytes    int       // of the queue
	resets   int       // number of times that the queue was discarded
	draining bool      // apply the queue without lag, then end
	changed  chan struct{}
	link     *replog.Link // nil = not connected
	ackErr   error        // an acknowledgement of this link could not be sent
	failure  error        // replication has ended because of this error
}

// arrival is a received entry or heartbeat.
type arrival struct {
	entry    *replog.Entry // nil = a heartbeat
	position int64
	atUS     int64
}

// Limits of the queue and of a batch.
const (
	queueBytes   = 64 << 20 // received and not yet applied
	batchEntries = 64       // entries that are applied in one transaction
	batchBytes   = 1 << 20
)

// errPermanent marks an error after which a retry cannot succeed.
var errPermanent = errors.New("replication has stopped, fix the cause and restart this node")

// follow starts a follower.
func (r *Node) follow(primary sut.Peer) *follower {
	f := &follower{r: r, primary: primary, changed: make(chan struct{})}
	f.receiveDone, f.applyDone = make(chan struct{}), make(chan struct{})
	f.receiving, f.stopReceiving = context.WithCancel(context.Background())
	f.applying, f.stopApplying = context.WithCancel(context.Background())
	go f.receiveAll()
	go f.applyAll()
	return f
}

// stop ends the follower. It discards entries that are not applied yet.
func (f *follower) stop() {
	f.stopReceiving()
	f.stopApplying()
	<-f.receiveDone
	<-f.applyDone
}

// drain stops receiving, applies the queue without lag and ends the follower. It returns an error if the queue could
// not be applied.
func (f *follower) drain(ctx context.Context) error {
	f.stopReceiving()
	<-f.receiveDone
	f.mu.Lock()
	f.draining = true
	f.notify()
	f.mu.Unlock()
	select {
	case <-f.applyDone:
	case <-ctx.Done():
		f.stop()
		return ctx.Err()
	}
	f.stopApplying()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failure
}

// notify wakes both goroutines. The lock is held.
func (f *follower) notify() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// resetQueue discards the queue. The lock is held.
func (f *follower) resetQueue() {
	f.queue, f.bytes = nil, 0
	f.resets++
	f.notify()
}

// fail records that replication has ended.
func (f *follower) fail(err error) {
	f.mu.Lock()
	f.failure = err
	f.mu.Unlock()
	f.r.setDisconnected(err)
	f.r.logger.Error("replication stopped", "primary", f.primary.Node, "cause", err)
}

// receiveAll connects and receives until stopReceiving or a permanent error.
func (f *follower) receiveAll() {
	defer close(f.receiveDone)
	const shortest, longest = 50 * time.Millisecond, time.Second
	pause := shortest
	for {
		welcomed, err := f.receive()
		if f.receiving.Err() != nil {
			return
		}
		if errors.Is(err, errPermanent) {
			f.fail(err)
			return
		}
		f.r.setDisconnected(err)
		if welcomed {
			pause = shortest
		}
		if !replog.Pause(f.receiving, pause) {
			return
		}
		pause = min(2*pause, longest)
	}
}

// receive connects once and receives until an error. welcomed reports whether the primary accepted this replica.
func (f *follower) receive() (welcomed bool, err error) {
	hello, err := f.hello()
	if err != nil {
		return false, err
	}
	link, err := replog.Dial(f.receiving, f.primary.Address, f.r.cfg.Secret, replog.KindHello, hello)
	if err != nil {
		return false, err
	}
	defer link.Close()
	welcome, err := f.welcome(link)
	if err != nil {
		return false, err
	}
	last := hello.Position
	if welcome.Snapshot {
		if last, err = f.rebuild(link, welcome); err != nil {
			return true, err
		}
	}
	f.setLink(link)
	defer f.setLink(nil)
	f.r.setConnected(welcome.Position)
	return true, f.receiveEntries(link, last)
}

// fencePeriod is how long a promoted replica tries to reach the old primary.
const fencePeriod = 10 * time.Minute

// fenceOld notifies the old primary of the new epoch, so that it fences itself. The old primary may have been
// partitioned or frozen and may still take writes. fenceOld retries in the background until the returned function is
// called.
func (r *Node) fenceOld(old sut.Peer, epoch int64) (end func()) {
	ctx, cancel := context.WithTimeout(context.Background(), fencePeriod)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		for r.notifyEpoch(ctx, old, epoch) != nil && replog.Pause(ctx, time.Second) {
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// notifyEpoch sends an epoch to another node and waits for the answer.
func (r *Node) notifyEpoch(ctx context.Context, other sut.Peer, epoch int64) error {
	hello := &replog.Hello{Node: r.cfg.Node, To: other.Node, Epoch: epoch, Position: -1}
	link, err := replog.Dial(ctx, other.Address, r.cfg.Secret, replog.KindHello, hello)
	if err != nil {
		return err
	}
	defer link.Close()
	// This reads without a deadline: a frozen node answers when it runs again.
	_, _, err = replog.Read(link.Conn, replog.MaxBody)
	return err
}

func (f *follower) setLink(link *replog.Link) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.link, f.ackErr = link, nil
}

// hello returns the Hello of this replica. Its position includes entries that are received and not yet applied.
func (f *follower) hello() (*replog.Hello, error) {
	f.r.mu.Lock()
	h := &replog.Hello{
		Node: f.r.cfg.Node, To: f.primary.Node, Epoch: f.r.knownEpoch, Position: -1, Schema: replog.NoSchema(),
	}
	diverged := f.r.diverged
	f.r.mu.Unlock()
	if diverged {
		return h, nil // the copy must be replaced, and its file may not exist
	}
	err := f.r.db.Read(func(disk *sqlite.Conn) (err error) {
		h.Schema, err = replog.Schema(disk)
		return err
	})
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	h.Position, h.EntryEpoch = f.r.position, f.r.epoch
	for _, a := range f.queue {
		if a.entry != nil && a.position > h.Position {
			h.Position, h.EntryEpoch = a.position, a.entry.Epoch
		}
	}
	return h, nil
}

// welcome reads the answer to the Hello.
func (f *follower) welcome(link *replog.Link) (*replog.Welcome, error) {
	var w replog.Welcome
	var refusal replog.Refusal
	welcomed, err := link.Answer(&w, &refusal)
	if err != nil {
		return nil, err
	}
	if !welcomed {
		err := fmt.Errorf("node %s refused this replica: %s", f.primary.Node, refusal.Reason)
		if refusal.Schema {
			err = fmt.Errorf("%w: %w", errPermanent, err)
		}
		return nil, err
	}
	f.r.mu.Lock()
	known := f.r.knownEpoch
	f.r.mu.Unlock()
	if w.Epoch < known {
		return nil, fmt.Errorf("node %s is a primary of epoch %d, but this node knows epoch %d", w.Node, w.Epoch, known)
	}
	return &w, f.r.raiseEpoch(w.Epoch)
}

// receiveEntries receives entries and heartbeats until an error. last is the position before the first entry.
func (f *follower) receiveEntries(link *replog.Link, last int64) error {
	for {
		kind, body, err := link.Next()
		if err != nil {
			return err
		}
		var a arrival
		switch kind {
		case replog.KindEntry:
			if a.entry, err = replog.ParseEntry(body); err != nil {
				return err
			}
			a.position, a.atUS = a.entry.Position, a.entry.AtUS
			if last++; a.position != last {
				return fmt.Errorf("got entry %d, want entry %d", a.position, last)
			}
		case replog.KindHeartbeat:
			n, err := replog.Numbers(body, 2)
			if err != nil {
				return err
			}
			a.atUS, a.position = n[0], n[1]
			// The primary closes a connection without acknowledgements, so acknowledge also while the lag delays all entries.
			f.acknowledge(f.r.currentPosition())
		default:
			return fmt.Errorf("%w: got %q, want an entry or a heartbeat", replog.ErrMessage, kind)
		}
		if err := f.push(a); err != nil {
			return err
		}
	}
}

// acknowledge sends the applied position to the primary. If that fails, it closes the connection, and the receiving
// goroutine gets the error.
func (f *follower) acknowledge(position int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.link == nil || f.ackErr != nil {
		return
	}
	if f.ackErr = f.link.Acknowledge(position); f.ackErr != nil {
		_ = f.link.Close()
	}
}

// rebuild receives a snapshot, replaces the database with it and returns its position.
func (f *follower) rebuild(link *replog.Link, w *replog.Welcome) (int64, error) {
	r := f.r
	if !w.Behind {
		r.setDiverged("this copy has changes that the primary does not have")
	}
	if err := link.Snapshot(r.db.Incoming(), replog.KindHeartbeat); err != nil {
		return 0, err
	}
	unlock, err := r.db.LockWriter(f.receiving)
	if err != nil {
		return 0, err
	}
	defer unlock()
	// Reads stay refused until a snapshot is installed, also after an error below.
	r.setDiverged("the copy is being replaced")
	f.mu.Lock()
	f.resetQueue()
	f.mu.Unlock()
	if _, err := positionOf(r.db.Incoming()); err != nil {
		return 0, fmt.Errorf("snapshot: %w", err)
	}
	kept := int64(-1) // if the primary has all entries of the old file, the file is not kept
	if !w.Behind {
		_, kept = r.log.Last()
	}
	if err := errors.Join(r.db.Replace(kept), r.open(w.Epoch)); err != nil {
		return 0, fmt.Errorf("snapshot: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.diverged = false
	r.rebuilds++
	return r.position, nil
}

// positionOf returns the position of a database file that no other connection uses.
func positionOf(path string) (position int64, err error) {
	c, err := sqlite.OpenConn(path, sqlite.OpenReadOnly)
	if err != nil {
		return 0, err
	}
	position, err = replog.Position(c)
	return position, errors.Join(err, c.Close())
}
