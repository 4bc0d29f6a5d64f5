package engine

import (
	"container/list"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// writer is the one SQLite connection that writes, with the line in front of it. First come, first served.
//
// When others are waiting, a transaction that is done does not commit: it leaves its work to the next in line, and
// the last one, or the one that fills the group, commits for all of them with one wait for the disk. Until then none
// of them is told that it is done. A member that fails goes back to its savepoint and leaves the others as they are.
type writer struct {
	limit  int
	copies Copies

	// Only who holds the turn touches these.
	conn  *conn
	group *group // transactions that are done and wait for a common commit, or nil

	transactions, commits atomic.Int64

	mu   sync.Mutex
	busy bool      // somebody holds the turn
	line list.List // of *waiter
}

// waiter is somebody in line.
type waiter struct {
	ready chan struct{}
	alone bool
}

// Copies is the node's part in replication. The turn is held, except in Allows, Replica and Wait.
type Copies interface {
	// Allows says why a client may not read or write now.
	Allows(writes bool) error
	// Replica reports whether the node only repeats what another one does.
	Replica() bool
	// Begin records a transaction that has just begun, and Seal adds it to the log before its commit. Position is
	// that of its entry, 0 when nothing changed.
	Begin() error
	Seal() (position int64, err error)
	// Committed says that what was sealed is durable, Drop that the transaction is taken back.
	Committed()
	Drop()
	// Wait returns when as many copies have an entry as must.
	Wait(position int64) error
}

// Alone is the Copies of a database without copies.
type Alone struct{}

func (Alone) Allows(bool) error    { return nil }
func (Alone) Replica() bool        { return false }
func (Alone) Begin() error         { return nil }
func (Alone) Seal() (int64, error) { return 0, nil }
func (Alone) Committed()           {}
func (Alone) Drop()                {}
func (Alone) Wait(int64) error     { return nil }

// group is a number of transactions that commit together.
type group struct {
	members  int
	done     chan struct{}
	position int64 // in the replication log, 0 = nowhere; set before done is closed
	err      error // likewise
}

// turn is the right to write, from begin to commit or rollback.
type turn struct {
	w     *writer
	first bool // opened the SQLite transaction; later members have a savepoint
}

// acquire waits in line and begins a transaction. Alone, it never joins a group: what may stay open for long must not
// keep others from their commit. Cancel, when closed, ends the wait.
func (w *writer) acquire(cancel func() <-chan struct{}, alone bool) (*turn, error) {
	if err := w.await(cancel, alone); err != nil {
		return nil, err
	}
	return w.begin()
}

// await waits in line. Who was alone in that may use the connection outside of transactions, and must leave.
func (w *writer) await(cancel func() <-chan struct{}, alone bool) error {
	w.mu.Lock()
	if !w.busy {
		w.busy = true
		w.mu.Unlock()
		return nil
	}
	me := &waiter{ready: make(chan struct{}), alone: alone}
	place := w.line.PushBack(me)
	w.mu.Unlock()
	select {
	case <-me.ready:
		return nil
	case <-cancel():
	}
	w.mu.Lock()
	select {
	case <-me.ready:
		// The turn came in the same moment. It may hold the work of others, who must not wait for ever.
		w.mu.Unlock()
		w.leave()
	default:
		w.line.Remove(place)
		w.mu.Unlock()
	}
	return errCancelled()
}

func (w *writer) begin() (*turn, error) {
	if w.conn == nil {
		w.leave()
		return nil, wire.WithState(ErrNoDatabase, wire.CannotConnectNow)
	}
	t := &turn{w: w, first: w.group == nil}
	text := "savepoint member"
	if t.first {
		text = "begin immediate"
	}
	if err := w.conn.exec(text); err != nil {
		w.leave()
		return nil, coded(err)
	}
	if t.first {
		if err := w.copies.Begin(); err != nil {
			_ = w.conn.exec("rollback")
			w.leave()
			return nil, coded(err)
		}
		w.group = &group{done: make(chan struct{})}
	}
	w.transactions.Add(1)
	return t, nil
}

// commit returns when the transaction is as durable as the node promises, and as many replicas have it.
func (t *turn) commit() error {
	w := t.w
	if !t.first {
		if err := w.conn.exec("release member"); err != nil {
			t.rollback()
			return coded(err)
		}
	}
	g := w.group
	g.members++
	w.leave()
	<-g.done
	if g.err != nil {
		return g.err
	}
	return w.copies.Wait(g.position)
}

// rollback takes back what this turn did, and nothing else.
func (t *turn) rollback() {
	w := t.w
	if t.first {
		w.copies.Drop()
		// Fails where SQLite has rolled back by itself, after an I/O error for example.
		_ = w.conn.exec("rollback")
		w.group = nil
		w.leave()
		return
	}
	err := w.conn.exec("rollback to member")
	if err == nil {
		err = w.conn.exec("release member")
	}
	if err != nil || w.conn.AutocommitEnabled() {
		w.copies.Drop()
		_ = w.conn.exec("rollback")
		// SQLite took the whole transaction back: the members that wait for their commit must hear of it.
		w.finish(wire.Errorf(wire.SerializationFailure, "the commit that this transaction was a part of was rolled back"))
	}
	w.leave()
}

// leave hands the turn on: with the group while somebody can join it, else after committing it.
func (w *writer) leave() {
	if w.share() {
		return
	}
	if w.group != nil {
		if w.group.members < w.limit {
			// Waiting for the disk stops a node that has one thread. Those who are about to get in line do so first
			// and spare themselves a wait.
			runtime.Gosched()
			if w.share() {
				return
			}
		}
		w.settle()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if next := w.line.Front(); next != nil {
		w.pass(next)
		return
	}
	w.busy = false
}

// share hands the turn on with an open group, if somebody can join it.
func (w *writer) share() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := w.line.Front()
	if w.group == nil || w.group.members >= w.limit || next == nil || next.Value.(*waiter).alone {
		return false
	}
	w.pass(next)
	return true
}

// pass gives the turn to somebody in line; the lock is held.
func (w *writer) pass(next *list.Element) {
	close(w.line.Remove(next).(*waiter).ready)
}

func (w *writer) settle() {
	position, err := w.copies.Seal()
	if err == nil {
		err = w.conn.exec("commit")
	}
	if err != nil {
		w.copies.Drop()
		if !w.conn.AutocommitEnabled() {
			_ = w.conn.exec("rollback")
		}
		w.finish(coded(err))
		return
	}
	w.commits.Add(1)
	w.copies.Committed()
	w.group.position = position
	w.finish(nil)
}

func (w *writer) finish(err error) {
	g := w.group
	w.group = nil
	g.err = err
	close(g.done)
}
