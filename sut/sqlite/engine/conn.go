package engine

import (
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// busyTimeout is how long SQLite waits for a lock that somebody outside this process holds; inside, the line sees to
// it that nobody meets a lock.
const busyTimeout = 2 * time.Second

// cacheBytes bounds the page caches of all connections together.
const cacheBytes = 32 << 20

// conn is one SQLite connection with its compiled statements. One goroutine at a time may use it; interrupt may be
// called by another one, under the session's lock.
type conn struct {
	*sqlite.Conn
	compiled    []*compiled   // by the index of the statement; nil = not yet
	stop        chan struct{} // closed to interrupt what runs
	interrupted bool
}

// compiled is a statement as SQLite has prepared it.
type compiled struct {
	*sqlite.Stmt
	// bound are the integers that are bound. Binding a LIMIT makes SQLite plan the statement anew, even if the value
	// is the one that it had, so what has not changed is not bound again.
	bound []boundInteger
}

type boundInteger struct {
	value int64
	known bool
}

func (c *compiled) bindInteger(i int, n int64) {
	if now := (boundInteger{value: n, known: true}); c.bound[i] != now {
		c.bound[i] = now
		c.BindInt64(i+1, n)
	}
}

// openConn opens a connection. The one that writes comes first: it makes the file where there is none.
func openConn(cfg Config, writes bool) (*conn, error) {
	flags := sqlite.OpenReadOnly
	// Negative is in KiB. Each connection has a cache of its own.
	pragmas := []string{
		"pragma cache_size = -" + strconv.Itoa(max(cacheBytes/(cfg.ReadConns+1)>>10, 64)),
		"pragma temp_store = memory",
	}
	if writes {
		flags = sqlite.OpenReadWrite | sqlite.OpenCreate
		pragmas = append(pragmas,
			"pragma journal_mode = wal",
			"pragma synchronous = "+cfg.Synchronous,
			// With a limit ANALYZE keeps no samples of values, for which SQLite would plan statements anew.
			"pragma analysis_limit = 1000")
	}
	path := cfg.path()
	c, err := sqlite.OpenConn(path, flags)
	if err != nil {
		return nil, err
	}
	opened := &conn{Conn: c, compiled: make([]*compiled, cfg.Statements)}
	c.SetBusyTimeout(busyTimeout)
	opened.rearm()
	for _, p := range pragmas {
		if err := opened.exec(p); err != nil {
			c.Close()
			return nil, fmt.Errorf("%s: %s: %w", path, p, err)
		}
	}
	return opened, nil
}

// exec runs a statement without parameters and results. What SQLite prepared is kept.
func (c *conn) exec(sql string) error { return sqlitex.Execute(c.Conn, sql, nil) }

// run binds, steps to the end and resets: nothing of the statement is open afterwards, so that no snapshot of the
// database outlives it. It appends the rows to out and returns how many rows came back or were changed.
func (c *conn) run(out []byte, s *wire.Command, with *pgproto3.Bind) (_ []byte, rows int, err error) {
	stmt, err := c.compile(s)
	if err != nil {
		return out, 0, coded(err)
	}
	if err := bind(stmt, s.Params, with); err != nil {
		return out, 0, err
	}
	// Its error is that of the last step once more.
	defer stmt.Reset()
	for {
		more, err := stmt.Step()
		if err != nil {
			return out, 0, coded(err)
		}
		if !more {
			break
		}
		rows++
		out = appendRow(out, stmt, s.Columns, with.ResultFormatCodes)
	}
	if !s.Reads {
		rows = c.Changes()
	}
	return out, rows, nil
}

// compile returns what SQLite prepared of a statement. The first time it checks that against what was declared.
func (c *conn) compile(s *wire.Command) (*compiled, error) {
	if known := c.compiled[s.Index]; known != nil {
		return known, nil
	}
	stmt, trailing, err := c.PrepareTransient(s.Local)
	if err != nil {
		return nil, err
	}
	if err := check(s, stmt, trailing); err != nil {
		stmt.Finalize()
		return nil, err
	}
	c.compiled[s.Index] = &compiled{Stmt: stmt, bound: make([]boundInteger, len(s.Params))}
	return c.compiled[s.Index], nil
}

// check compares a declaration with SQLite's view of the text. Parameters are bound by position.
func check(s *wire.Command, stmt *sqlite.Stmt, trailing int) error {
	wrong := func(format string, args ...any) error {
		return wire.Errorf(wire.InvalidDefinition, "catalogue: "+format+": %s", append(args, s.SQL)...)
	}
	if trailing > 0 {
		return wrong("more than one statement")
	}
	if n := stmt.BindParamCount(); n != len(s.Params) {
		return wrong("%d parameters declared, the text has %d", len(s.Params), n)
	}
	for i := range s.Params {
		if name := stmt.BindParamName(i + 1); name != "$"+strconv.Itoa(i+1) {
			return wrong("parameter %s stands where $%d should", name, i+1)
		}
	}
	if n := stmt.ColumnCount(); n != len(s.Columns) {
		return wrong("%d columns declared, the text has %d", len(s.Columns), n)
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

func (c *conn) close() error {
	for _, stmt := range c.compiled {
		if stmt != nil {
			stmt.Finalize()
		}
	}
	return c.Close()
}
