package sqlite

import (
	"strconv"
	"sync"

	wire "github.com/jeroenrinzema/psql-wire"
	"github.com/jeroenrinzema/psql-wire/pkg/types"
)

// The transaction status of a session, as ReadyForQuery reports it.
const (
	idle   types.ServerStatus = types.ServerIdle              // between transactions, or in an implicit one
	open   types.ServerStatus = types.ServerTransactionBlock  // after BEGIN
	failed types.ServerStatus = types.ServerTransactionFailed // after BEGIN and an error
)

// session is what one client has going on. Its goroutine is the connection's;
// only cancel comes from elsewhere.
//
// A statement that writes takes a turn of the writer and keeps it until the
// Sync (an implicit transaction) or until COMMIT or ROLLBACK (after BEGIN).
// Reads go to a read-only connection, unless the session holds a turn: then
// they must see what the transaction has written.
type session struct {
	server *Server
	guard  *guard
	key    backendKey
	names  map[string]*statement // prepared by the client
	asked  *statement            // what psql-wire has parsed or looked up last

	status types.ServerStatus
	turn   *turn // of the transaction that is open, if it writes
	pinned *conn // of BEGIN READ ONLY

	mu        sync.Mutex
	active    bool          // a statement is under way: there is something to cancel
	cancelled bool          // and it was asked for
	waiting   chan struct{} // closed by cancel; made by who waits
	running   *conn         // interrupted by cancel
}

// run runs one statement, leaves its rows in the answer and returns its tag. A
// simple query is a transaction of its own, so it commits before its client
// hears of success.
func (s *session) run(st *statement, params []wire.Parameter, formats []wire.FormatCode, simple bool) (tag string, err error) {
	s.begins()
	defer s.ends()
	mark := len(s.guard.out)
	tag, err = s.execute(st, params, formats)
	if err == nil && simple {
		err = s.sync(false)
	}
	if err != nil {
		s.guard.out = s.guard.out[:mark]
		s.fail()
	}
	return tag, err
}

func (s *session) execute(st *statement, params []wire.Parameter, formats []wire.FormatCode) (tag string, err error) {
	if s.status == failed && st.command != commit && st.command != rollback && st.command != "" {
		return "", errAborted()
	}
	if st.kind == control {
		tag := st.command
		if tag == commit && s.status == failed {
			tag = rollback // as which it ends
		}
		if len(st.Columns) > 0 {
			s.guard.out = appendText(s.guard.out, st.value)
		}
		return tag, st.act(s)
	}
	if err := checkFormats(formats, len(st.Columns)); err != nil {
		return "", err
	}
	rows, err := s.query(st, params, formats)
	if err != nil || !st.counts {
		return st.command, err
	}
	return st.command + " " + strconv.Itoa(rows), nil
}

// query runs a statement of the catalogue on the connection where it belongs.
func (s *session) query(st *statement, params []wire.Parameter, formats []wire.FormatCode) (rows int, err error) {
	if err := s.server.replication.allows(st.kind == write); err != nil {
		return 0, err
	}
	if s.turn == nil && (st.kind == read || s.pinned != nil) {
		c := s.pinned
		if c == nil {
			if c, err = s.server.readers.acquire(s.wait); err != nil {
				return 0, err
			}
			defer s.server.readers.release(c)
		}
		s.server.reads.Add(1)
		return s.on(c, true, st, params, formats)
	}
	if s.turn == nil {
		if s.turn, err = s.server.writer.acquire(s.wait, false); err != nil {
			return 0, err
		}
	}
	// A statement that is interrupted takes the whole SQLite transaction back,
	// which may be the work of others, too. Only a transaction that began alone
	// may be.
	return s.on(s.turn.w.conn, s.status == open, st, params, formats)
}

// on runs a statement on a connection, interruptible by cancel or not, and
// clears the interrupt: the next user of the connection would meet it.
func (s *session) on(c *conn, interruptible bool, st *statement, params []wire.Parameter, formats []wire.FormatCode) (rows int, err error) {
	if interruptible {
		s.mu.Lock()
		if s.cancelled {
			s.mu.Unlock()
			return 0, errCancelled()
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
	s.guard.out, rows, err = c.run(s.guard.out, st, params, formats)
	return rows, err
}

// begin starts a transaction that lasts over round trips.
func (s *session) begin(readOnly bool) (err error) {
	switch {
	case s.status == open:
		// PostgreSQL warns and goes on.
	case s.turn != nil:
		// What the pipeline wrote before becomes a part of the transaction.
	case readOnly || s.server.replication.replica():
		if err := s.server.replication.allows(false); err != nil {
			return err
		}
		c, err := s.server.readers.acquire(s.wait)
		if err != nil {
			return err
		}
		if err := c.exec("begin"); err != nil {
			s.server.readers.release(c)
			return coded(err)
		}
		s.pinned = c
	default:
		if err := s.server.replication.allows(true); err != nil {
			return err
		}
		if s.turn, err = s.server.writer.acquire(s.wait, true); err != nil {
			return err
		}
	}
	s.status = open
	return nil
}

// commit ends a transaction; one that has failed was rolled back already.
func (s *session) commit() error {
	s.status = idle
	return s.close(true)
}

func (s *session) rollback() error {
	s.status = idle
	return s.close(false)
}

// close gives back what the session holds of the database, with its work
// committed or not.
func (s *session) close(commit bool) (err error) {
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
		s.server.readers.release(c)
	}
	return err
}

// fail takes the transaction back at once, so that nobody waits for a client
// that has yet to notice. After BEGIN the client must still end it.
func (s *session) fail() {
	if s.status == open {
		s.status = failed
	}
	_ = s.close(false)
}

// sync ends what a series of messages did outside of BEGIN and COMMIT.
func (s *session) sync(broke bool) error {
	if broke {
		s.fail()
		return nil
	}
	if s.status != idle {
		return nil
	}
	return s.close(true)
}

// holding reports whether others may be waiting for this client.
func (s *session) holding() bool { return s.turn != nil || s.pinned != nil }

// begins marks the start of a statement.
func (s *session) begins() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active, s.cancelled = true, s.server.ended.Load()
}

// ends marks its end: what is cancelled from now on is too late.
func (s *session) ends() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active, s.waiting = false, nil
}

// cancel ends the statement under way, if there is one: its wait in line, or
// its work. An interrupt that comes after the library has looked for one, and before
// SQLite takes the statement's first step, is lost (sqlite3_interrupt is for what runs):
// the statement then goes on to its end, as if the request had come too late.
func (s *session) cancel() {
	s.mu.Lock()
	defer s.mu.Unlock()
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
