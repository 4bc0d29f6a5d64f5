package engine

import (
	"sync"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// session is what one client has going on in the database.
//
// A statement that writes takes a turn of the writer and keeps it until the Sync (an implicit transaction) or until
// COMMIT or ROLLBACK (after BEGIN). Reads go to a read-only connection, unless the session holds a turn: then they
// must see what the transaction has written.
type session struct {
	db     *DB
	turn   *turn // of the transaction that is open, if it writes
	pinned *conn // of BEGIN READ ONLY
	alone  bool  // the turn is alone in its group

	mu        sync.Mutex
	ended     bool          // whatever begins now is cancelled
	active    bool          // a statement is under way: there is something to cancel
	cancelled bool          // and it was asked for
	waiting   chan struct{} // closed by Cancel; made by who waits
	running   *conn         // interrupted by Cancel
}

// NewSession returns the session of a new client.
func (db *DB) NewSession() wire.Session { return &session{db: db} }

// Run runs a statement on the connection where it belongs.
func (s *session) Run(out []byte, st *wire.Command, with *pgproto3.Bind) (_ []byte, rows int, err error) {
	s.begins()
	defer s.ends()
	if err := s.db.writer.copies.Allows(!st.Reads); err != nil {
		return out, 0, err
	}
	if s.turn == nil && (st.Reads || s.pinned != nil) {
		c := s.pinned
		if c == nil {
			if c, err = s.db.reader(s.wait); err != nil {
				return out, 0, err
			}
			defer func() { s.db.free <- c }()
		}
		s.db.reads.Add(1)
		return s.on(c, true, out, st, with)
	}
	if s.turn == nil {
		if s.turn, err = s.db.writer.acquire(s.wait, false); err != nil {
			return out, 0, err
		}
	}
	// A statement that is interrupted takes the whole SQLite transaction back, which may be the work of others, too.
	// Only a transaction that began alone may be.
	return s.on(s.turn.w.conn, s.alone, out, st, with)
}

// on runs a statement on a connection, interruptible by Cancel or not, and clears the interrupt.
func (s *session) on(
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

// Begin starts a transaction that lasts over round trips. What the pipeline wrote before becomes a part of it.
func (s *session) Begin(readOnly bool) (err error) {
	s.begins()
	defer s.ends()
	if s.turn != nil {
		return nil
	}
	if readOnly || s.db.writer.copies.Replica() {
		if err := s.db.writer.copies.Allows(false); err != nil {
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
	if err := s.db.writer.copies.Allows(true); err != nil {
		return err
	}
	s.turn, err = s.db.writer.acquire(s.wait, true)
	s.alone = err == nil
	return err
}

// End gives back what the session holds of the database.
func (s *session) End(commit bool) (err error) {
	s.alone = false
	if t := s.turn; t != nil {
		s.turn = nil
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

// Holding reports whether others may be waiting for this client.
func (s *session) Holding() bool { return s.turn != nil || s.pinned != nil }

func (s *session) begins() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active, s.cancelled = true, s.ended
}

// ends marks its end: what is cancelled from now on is too late.
func (s *session) ends() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active, s.waiting = false, nil
}

// Cancel ends the statement under way, if there is one: its wait in line, or its work. An interrupt that comes after
// the library has looked for one, and before SQLite takes the statement's first step, is lost (sqlite3_interrupt is
// for what runs): the statement then goes on to its end, as if the request had come too late.
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
