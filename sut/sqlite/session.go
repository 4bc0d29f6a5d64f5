package sqlite

import (
	"context"
	"errors"
	"strconv"
	"sync"

	wire "github.com/jeroenrinzema/psql-wire"
	"github.com/jeroenrinzema/psql-wire/codes"
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
	key    backendKey
	wire   *wire.Session // set with the first statement

	status types.ServerStatus
	turn   *turn // of the transaction that is open, if it writes
	pinned *conn // of BEGIN READ ONLY

	mu        sync.Mutex
	active    bool          // a statement is under way: there is something to cancel
	cancelled bool          // and it was asked for
	waiting   chan struct{} // closed by cancel; made by who waits
	running   *conn         // interrupted by cancel
}

// handler returns the function that psql-wire calls to run the statement.
func (st *statement) handler(simple bool) wire.PreparedStatementFn {
	return func(ctx context.Context, w wire.DataWriter, params []wire.Parameter) error {
		s := sessionOf(ctx)
		if s.wire == nil {
			s.wire, _ = wire.GetSession(ctx)
		}
		s.begins()
		defer s.ends()
		err := s.execute(st, w, params, simple)
		// A client may drop an answer half way: that is no failure.
		if err != nil && !errors.Is(err, wire.ErrSuspendedHandlerClosed) {
			s.fail()
		}
		return err
	}
}

// execute runs one statement and writes its answer. A simple query is a
// transaction of its own, so it commits before its client hears of success.
func (s *session) execute(st *statement, w wire.DataWriter, params []wire.Parameter, simple bool) error {
	if st.kind == unbacked {
		return fault(codes.UndefinedPreparedStatement, "prepared statement does not exist")
	}
	if st.kind == control {
		if s.status == failed && st.command != "COMMIT" && st.command != "ROLLBACK" {
			return errAborted()
		}
		return st.run(s, w)
	}
	if s.status == failed {
		return errAborted()
	}
	r, err := s.query(st, params)
	if err == nil && simple {
		err = s.sync(false)
	}
	if err != nil {
		return err
	}
	if err := wire.WriteRows(w, r.rows); err != nil {
		return err
	}
	if !st.counts {
		return w.Complete(st.command)
	}
	return w.Complete(st.command + " " + strconv.Itoa(r.changed))
}

// query runs a statement of the catalogue on the connection where it belongs.
func (s *session) query(st *statement, params []wire.Parameter) (result, error) {
	if s.turn == nil && (st.kind == read || s.pinned != nil) {
		return s.read(st, params)
	}
	if s.turn == nil {
		turn, err := s.server.writer.acquire(s.wait, false)
		if err != nil {
			return result{}, err
		}
		s.turn = turn
	}
	// A statement that is interrupted takes the whole SQLite transaction back,
	// which may be the work of others: see turn. Only a transaction that began
	// alone may be.
	c := s.turn.w.conn
	if s.status == open {
		return s.interruptible(c, func() (result, error) { return c.run(st, params) })
	}
	return c.run(st, params)
}

func (s *session) read(st *statement, params []wire.Parameter) (result, error) {
	c := s.pinned
	if c == nil {
		var err error
		if c, err = s.server.readers.acquire(s.wait); err != nil {
			return result{}, err
		}
		defer s.server.readers.release(c)
	}
	s.server.reads.Add(1)
	return s.interruptible(c, func() (result, error) { return c.run(st, params) })
}

// begin starts a transaction that lasts over round trips.
func (s *session) begin(w wire.DataWriter, readOnly bool) error {
	switch {
	case s.status == open:
		// PostgreSQL warns and goes on.
	case readOnly && s.turn == nil:
		c, err := s.server.readers.acquire(s.wait)
		if err != nil {
			return err
		}
		if err := c.exec("begin"); err != nil {
			s.server.readers.release(c)
			return coded(err)
		}
		s.pinned, s.status = c, open
	case s.turn != nil:
		s.status = open // what the pipeline wrote before becomes a part of it
	default:
		turn, err := s.server.writer.acquire(s.wait, true)
		if err != nil {
			return err
		}
		s.turn, s.status = turn, open
	}
	return w.Complete("BEGIN")
}

// commit ends a transaction; a failed one is rolled back and says so.
func (s *session) commit(w wire.DataWriter) error {
	if s.status == failed {
		return s.rollback(w)
	}
	s.status = idle
	if err := s.close(true); err != nil {
		return err
	}
	return w.Complete("COMMIT")
}

func (s *session) rollback(w wire.DataWriter) error {
	s.status = idle
	if err := s.close(false); err != nil {
		return err
	}
	return w.Complete("ROLLBACK")
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

// forget drops one prepared statement of the client, or all.
func (s *session) forget(name string) {
	if name == "all" {
		s.wire.Statements.Close()
		return
	}
	_ = s.wire.Statements.Delete(context.Background(), name)
}

// begins marks the start of a statement.
func (s *session) begins() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active, s.cancelled = true, false
}

// ends marks its end: what is cancelled from now on is too late.
func (s *session) ends() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active, s.waiting = false, nil
}

// cancel ends the statement under way, if there is one: its wait in line, or
// its work.
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

// interruptible runs something on a connection such that cancel interrupts it,
// and clears the interrupt: the next user of the connection would meet it.
func (s *session) interruptible(c *conn, run func() (result, error)) (result, error) {
	s.mu.Lock()
	if s.cancelled {
		s.mu.Unlock()
		return result{}, errCancelled()
	}
	s.running = c
	s.mu.Unlock()
	r, err := run()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = nil
	if c.interrupted {
		c.rearm()
	}
	return r, err
}
