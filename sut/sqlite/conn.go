package sqlite

import (
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	wire "github.com/jeroenrinzema/psql-wire"
	"github.com/jeroenrinzema/psql-wire/codes"
	"zombiezen.com/go/sqlite"
)

// fileName is the database in its directory.
const fileName = "stagebench.db"

// busyTimeout is how long SQLite waits for a lock that somebody outside this
// process holds; inside, the queue sees to it that nobody meets a lock.
const busyTimeout = 2 * time.Second

// conn is one SQLite connection with its prepared statements. One goroutine
// at a time may use it; interrupt may be called by another one, under the
// session's lock.
type conn struct {
	*sqlite.Conn
	prepared    []*prepared   // by the index of the statement; nil = not yet
	stop        chan struct{} // closed to interrupt what runs
	interrupted bool
}

// openConn opens a connection; the one that writes comes first and makes the
// file where there is none.
func openConn(cfg Config, statements int, writes bool) (*conn, error) {
	flags := sqlite.OpenReadWrite | sqlite.OpenCreate
	if !writes {
		flags = sqlite.OpenReadOnly
	}
	path := filepath.Join(cfg.Dir, fileName)
	c, err := sqlite.OpenConn(path, flags)
	if err != nil {
		return nil, err
	}
	opened := &conn{Conn: c, prepared: make([]*prepared, statements)}
	c.SetBusyTimeout(busyTimeout)
	opened.rearm()
	cache := cfg.CacheBytes / int64(cfg.ReadConns+1)
	pragmas := []string{
		"pragma cache_size = -" + strconv.FormatInt(max(cache>>10, 64), 10), // negative: KiB
		"pragma temp_store = memory",
	}
	if writes {
		// With a limit ANALYZE keeps no samples of values; with them SQLite
		// would plan a statement anew for every value that is bound.
		pragmas = append(pragmas, "pragma journal_mode = wal", "pragma synchronous = "+string(cfg.Durability), "pragma analysis_limit = 1000")
	}
	for _, p := range pragmas {
		if err := opened.exec(p); err != nil {
			c.Close()
			return nil, fmt.Errorf("%s: %s: %w", path, p, err)
		}
	}
	return opened, nil
}

// exec runs a statement without parameters and results. Its prepared form is
// kept.
func (c *conn) exec(sql string) error {
	stmt, err := c.Prepare(sql)
	if err != nil {
		return err
	}
	for {
		more, err := stmt.Step()
		if err != nil || !more {
			return err
		}
	}
}

// prepared is a statement in its prepared form.
type prepared struct {
	*sqlite.Stmt
	// bound are the integers that are bound, nil for anything else. Binding a
	// LIMIT, be it to the value that it has, makes SQLite plan the statement
	// anew, so what has not changed is not bound again.
	bound []*int64
}

func (p *prepared) bindInt(i int, n int64) {
	if p.bound[i] == nil {
		p.bound[i] = new(int64)
	} else if *p.bound[i] == n {
		return
	}
	*p.bound[i] = n
	p.BindInt64(i+1, n)
}

// result is what a statement came to.
type result struct {
	rows    [][]any
	changed int
}

// run binds, steps to the end and resets: nothing of the statement is open
// afterwards, so that no snapshot of the database outlives it.
func (c *conn) run(s *statement, params []wire.Parameter) (r result, err error) {
	stmt, err := c.statement(s)
	if err != nil {
		return r, coded(err)
	}
	defer stmt.Reset() // returns the error of the step once more, if any
	if err := bind(stmt, s.Params, params); err != nil {
		return r, err
	}
	for {
		more, err := stmt.Step()
		if err != nil {
			return result{}, coded(err)
		}
		if !more {
			break
		}
		r.rows = append(r.rows, row(stmt.Stmt, s.Columns))
	}
	r.changed = len(r.rows)
	if s.kind == write {
		r.changed = c.Changes()
	}
	return r, nil
}

// statement returns the prepared form, and checks it against what was declared
// the first time.
func (c *conn) statement(s *statement) (*prepared, error) {
	if stmt := c.prepared[s.index]; stmt != nil {
		return stmt, nil
	}
	stmt, trailing, err := c.PrepareTransient(s.Local)
	if err != nil {
		return nil, err
	}
	if err := s.check(stmt, trailing); err != nil {
		stmt.Finalize()
		return nil, err
	}
	c.prepared[s.index] = &prepared{Stmt: stmt, bound: make([]*int64, len(s.Params))}
	return c.prepared[s.index], nil
}

// check compares a declaration with what SQLite makes of the text. Parameters
// are bound by position: $2 before $1 would silently swap them.
func (s *statement) check(stmt *sqlite.Stmt, trailing int) error {
	wrong := func(format string, args ...any) error {
		return fault(codes.InvalidPreparedStatementDefinition, fmt.Sprintf(format, args...)+": "+s.SQL)
	}
	if trailing > 0 {
		return wrong("catalogue: more than one statement")
	}
	if n := stmt.BindParamCount(); n != len(s.Params) {
		return wrong("catalogue: %d parameters declared, the text has %d", len(s.Params), n)
	}
	for i := range s.Params {
		if name := stmt.BindParamName(i + 1); name != "$"+strconv.Itoa(i+1) {
			return wrong("catalogue: parameter %s stands where $%d should", name, i+1)
		}
	}
	if n := stmt.ColumnCount(); n != len(s.Columns) {
		return wrong("catalogue: %d columns declared, the text has %d", len(s.Columns), n)
	}
	return nil
}

// interrupt ends what runs on the connection, now or at its next step.
func (c *conn) interrupt() {
	if !c.interrupted {
		c.interrupted = true
		close(c.stop)
	}
}

// rearm clears an interrupt: the next statement would meet it otherwise.
func (c *conn) rearm() {
	c.stop, c.interrupted = make(chan struct{}), false
	c.SetInterrupt(c.stop)
}

// close finalizes the statements and closes the connection.
func (c *conn) close() error {
	for _, stmt := range c.prepared {
		if stmt != nil {
			stmt.Finalize()
		}
	}
	return c.Close()
}
