package engine

import (
	"sync"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// session is the state of one client in the database.
//
// A statement that writes takes the write lock. It keeps the lock until the Sync (implicit transaction) or until COMMIT
// or ROLLBACK (after BEGIN). Reads use a read-only connection, unless the session holds the write lock: then they must
// see the transaction's own writes.
type session struct {
	db        *DB
	tx        *writeTx // the open transaction if it writes; nil = none
	pinned    *conn    // connection of BEGIN READ ONLY; nil = none
	exclusive bool     // the transaction shares its commit with no other one

	mu        sync.Mutex
	ended     bool          // every later statement is cancelled
	active    bool          // a statement runs: Cancel has something to cancel
	cancelled bool          // Cancel was called for the running statement
	waiting   chan struct{} // closed by Cancel; made by the waiting goroutine
	running   *conn         // interrupted by Cancel
}

// NewSession returns the session of a new client.
func (db *DB) NewSession() wire.Session { return &session{db: db} }

// Run runs a statement on the write connection or runOn a read connection.
func (s *session) Run(out []byte, st *wire.Command, with *pgproto3.Bind) (_ []byte, rows int, err error) {
	s.begin()
	defer s.end()
	if err := s.db.writer.replicator.Allows(!st.Reads); err != nil {
		return out, 0, err
	}
	if s.tx == nil && (st.Reads || s.pinned != nil) {
		c := s.pinned
		if c == nil {
			if c, err = s.db.reader(s.wait); err != nil {
				return out, 0, err
			}
			defer func() { s.db.free <- c }()
		}
		s.db.reads.Add(1)
		return s.runOn(c, true, out, st, with)
	}
	if s.tx == nil {
		if s.tx, err = s.db.writer.begin(s.wait, false); err != nil {
			return out, 0, err
		}
	}
	// An interrupt makes SQLite roll back the whole SQLite transaction, including the work of other members of the group.
	// So only a transaction that is exclusive is interruptible.
	return s.runOn(s.tx.w.conn, s.exclusive, out, st, with)
}

// runOn runs a statement on a connection. If interruptible, Cancel can interrupt it.
func (s *session) runOn(
	c *conn, interruptible bool, out []byte, st *wire.Command, with *pgproto3.Bind,
) (_ []byte, rows int, err error) {
	if interruptible {
		s.mu.Lock()
		if s.cancelled {
			s.mu.Unlock()
			return out, 0, errCancelled()
		}
		s.running = c
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.running = nil
			if c.interrupted {
				c.rearm()
			}
		}()
	}
	return c.run(out, st, with)
}

// Begin starts a transaction that may span round trips. If the pipeline has written before, the transaction includes
// these writes.
func (s *session) Begin(readOnly bool) (err error) {
	s.begin()
	defer s.end()
	if s.tx != nil {
		return nil
	}
	if readOnly || s.db.writer.replicator.IsReplica() {
		if err := s.db.writer.replicator.Allows(false); err != nil {
			return err
		}
		c, err := s.db.reader(s.wait)
		if err != nil {
			return err
		}
		if err := c.exec("begin"); err != nil {
			s.db.free <- c
			return coded(err)
		}
		s.pinned = c
		return nil
	}
	if err := s.db.writer.replicator.Allows(true); err != nil {
		return err
	}
	s.tx, err = s.db.writer.begin(s.wait, true)
	s.exclusive = err == nil
	return err
}

// End ends the transaction and releases the connections and locks of the session.
func (s *session) End(commit bool) (err error) {
	s.exclusive = false
	if t := s.tx; t != nil {
		s.tx = nil
		if commit {
			err = t.commit()
		} else {
			t.rollback()
		}
	}
	if c := s.pinned; c != nil {
		s.pinned = nil
		err = coded(c.exec("rollback"))
		s.db.free <- c
	}
	return err
}

// HoldsResources reports whether other clients may be waiting for this one.
func (s *session) HoldsResources() bool { return s.tx != nil || s.pinned != nil }

// begin marks the start of a statement. Cancel now has something to cancel.
func (s *session) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active, s.cancelled = true, s.ended
}

// end marks the end of a statement. A later Cancel has no effect on it.
func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active, s.waiting = false, nil
}

// Cancel cancels the running statement, or its wait for a lock. forGood also cancels every later one. An interrupt can
// be lost: it arrives after the library has checked for one and before SQLite takes the first step, and
// sqlite3_interrupt affects only a running statement. Then the statement runs to its end, as if the request had come
// too late.
func (s *session) Cancel(forGood bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = s.ended || forGood
	if !s.active || s.cancelled {
		return
	}
	s.cancelled = true
	if s.waiting != nil {
		close(s.waiting)
	}
	if s.running != nil {
		s.running.interrupt()
	}
}

// wait returns a channel that is closed when the statement is cancelled.
func (s *session) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = make(chan struct{})
	if s.cancelled {
		close(s.waiting)
	}
	return s.waiting
}
