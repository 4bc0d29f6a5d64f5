package engine

import (
	"container/list"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// writer is the one write connection, its lock, and the queue of writers. The lock is granted in order of arrival.
//
// Transactions that wait for the lock share commits. A transaction that ends while others wait does not commit: it
// passes the lock on inside the open SQLite transaction. The last member, or the one that fills the group, commits for
// all members with one wait for the disk. Until then no member is acknowledged. A member that fails rolls back to its
// savepoint and does not affect the others.
type writer struct {
	limit      int
	pages      int64 // maximum number of pages of the file for transactions of clients
	replicator Replicator

	// conn and group are guarded by the write lock.
	conn  *conn
	group *group // finished transactions that wait for a common commit; nil = none

	transactions, commits atomic.Int64

	mu    sync.Mutex
	busy  bool      // the write lock is held
	queue list.List // of *waiter
}

// waiter is one entry of the queue.
type waiter struct {
	ready     chan struct{}
	exclusive bool
}

// Replicator connects a database with its replication. The caller holds the write lock, except in Allows, IsReplica and
// Wait.
type Replicator interface {
	// Allows returns an error if a client must not read or write now.
	Allows(writes bool) error
	// IsReplica reports whether the node only applies changes of another node.
	IsReplica() bool
	// Begin starts to record a transaction that has just begun. Seal adds the record to the log before the commit. It
	// returns the position of the entry, 0 if nothing changed.
	Begin() error
	Seal() (position int64, err error)
	// Committed is called after the commit of a sealed transaction. Drop is called when a transaction is or will be rolled
	// back.
	Committed()
	Drop()
	// Wait returns when enough replicas have the entry.
	Wait(position int64) error
}

// NoReplication is the Replicator of a database without replication.
type NoReplication struct{}

func (NoReplication) Allows(bool) error    { return nil }
func (NoReplication) IsReplica() bool      { return false }
func (NoReplication) Begin() error         { return nil }
func (NoReplication) Seal() (int64, error) { return 0, nil }
func (NoReplication) Committed()           {}
func (NoReplication) Drop()                {}
func (NoReplication) Wait(int64) error     { return nil }

// group is a set of transactions that commit together.
type group struct {
	members  int
	done     chan struct{}
	position int64 // in the replication log, 0 = none; set before done is closed
	err      error // set before done is closed
}

// writeTx is a write transaction. It holds the write lock until commit or rollback.
type writeTx struct {
	w     *writer
	first bool // began the SQLite transaction; later members have a savepoint
}

// begin waits for the write lock and begins a transaction. An exclusive transaction never joins a group: it may stay
// open for long, and the other members would wait for its commit. The wait ends when the channel that cancel returns is
// closed.
func (w *writer) begin(cancel func() <-chan struct{}, exclusive bool) (*writeTx, error) {
	if err := w.lock(cancel, exclusive); err != nil {
		return nil, err
	}
	return w.beginLocked()
}

// lock waits for the write lock. If exclusive, no transaction is open when it returns nil; the holder may use the
// connection and must call unlock.
func (w *writer) lock(cancel func() <-chan struct{}, exclusive bool) error {
	w.mu.Lock()
	if !w.busy {
		w.busy = true
		w.mu.Unlock()
		return nil
	}
	me := &waiter{ready: make(chan struct{}), exclusive: exclusive}
	place := w.queue.PushBack(me)
	w.mu.Unlock()
	select {
	case <-me.ready:
		return nil
	case <-cancel():
	}
	w.mu.Lock()
	select {
	case <-me.ready:
		// The lock was granted at the same moment. The open group may hold the work of others, so it must be passed on.
		w.mu.Unlock()
		w.unlock()
	default:
		w.queue.Remove(place)
		w.mu.Unlock()
	}
	return errCancelled()
}

// beginLocked begins a transaction. It releases the write lock on an error.
func (w *writer) beginLocked() (*writeTx, error) {
	if w.conn == nil {
		w.unlock()
		return nil, wire.WithState(ErrNoDatabase, wire.CannotConnectNow)
	}
	t := &writeTx{w: w, first: w.group == nil}
	err := error(nil)
	if t.first {
		if err = w.conn.limit(w.pages); err == nil {
			err = w.conn.exec("begin immediate")
		}
	} else {
		err = w.conn.exec("savepoint member")
	}
	if err != nil {
		w.unlock()
		return nil, coded(err)
	}
	if t.first {
		if err := w.replicator.Begin(); err != nil {
			_ = w.conn.exec("rollback")
			w.unlock()
			return nil, coded(err)
		}
		w.group = &group{done: make(chan struct{})}
	}
	w.transactions.Add(1)
	return t, nil
}

// commit returns when the transaction is durable and enough replicas have it.
func (t *writeTx) commit() error {
	w := t.w
	if !t.first {
		if err := w.conn.exec("release member"); err != nil {
			t.rollback()
			return coded(err)
		}
	}
	g := w.group
	g.members++
	w.unlock()
	<-g.done
	if g.err != nil {
		return g.err
	}
	return w.replicator.Wait(g.position)
}

// rollback rolls back this transaction only.
func (t *writeTx) rollback() {
	w := t.w
	if t.first {
		w.replicator.Drop()
		// This fails if SQLite has already rolled back, after an I/O error for example.
		_ = w.conn.exec("rollback")
		w.group = nil
		w.unlock()
		return
	}
	err := w.conn.exec("rollback to member")
	if err == nil {
		err = w.conn.exec("release member")
	}
	if err != nil || w.conn.AutocommitEnabled() {
		w.replicator.Drop()
		_ = w.conn.exec("rollback")
		// SQLite rolled back the whole transaction. All members that wait for the commit must get the error.
		const text = "the group commit with this transaction was rolled back: retry the transaction"
		w.closeGroup(wire.Errorf(wire.SerializationFailure, text))
	}
	w.unlock()
}

// unlock passes the write lock on. If the next waiter can join the group, it gets the lock with the open group.
// Otherwise unlock commits the group first.
func (w *writer) unlock() {
	if w.passGroup() {
		return
	}
	if w.group != nil {
		if w.group.members < w.limit {
			// A commit blocks the node's thread until the disk has the data. Writers that are about to queue get a chance to do
			// so first, and passGroup this commit.
			runtime.Gosched()
			if w.passGroup() {
				return
			}
		}
		w.commitGroup()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if next := w.queue.Front(); next != nil {
		w.grant(next)
		return
	}
	w.busy = false
}

// passGroup passes the lock with the open group to the next waiter, if that waiter may join. It reports whether it did.
func (w *writer) passGroup() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := w.queue.Front()
	if w.group == nil || w.group.members >= w.limit || next == nil || next.Value.(*waiter).exclusive {
		return false
	}
	w.grant(next)
	return true
}

// grant gives the write lock to a waiter. The caller holds w.mu.
func (w *writer) grant(next *list.Element) {
	close(w.queue.Remove(next).(*waiter).ready)
}

func (w *writer) commitGroup() {
	// What the replicator writes is not limited: otherwise a full database would refuse changes that need no space.
	position, err := int64(0), w.conn.limit(maxPages)
	if err == nil {
		position, err = w.replicator.Seal()
	}
	if err == nil {
		err = w.conn.exec("commit")
	}
	if err != nil {
		w.replicator.Drop()
		if !w.conn.AutocommitEnabled() {
			_ = w.conn.exec("rollback")
		}
		w.closeGroup(coded(err))
		return
	}
	w.commits.Add(1)
	w.replicator.Committed()
	w.group.position = position
	w.closeGroup(nil)
}

func (w *writer) closeGroup(err error) {
	g := w.group
	w.group = nil
	g.err = err
	close(g.done)
}
