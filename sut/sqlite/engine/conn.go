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

// busyTimeout is how long SQLite waits for a lock of another process. Inside this process the write lock prevents
// conflicts.
const busyTimeout = 2 * time.Second

const (
	pageBytes = 4096      // SQLite's default
	maxPages  = 1<<32 - 2 // the largest file that SQLite permits
)

// cacheBytes is the total size of the page caches of all connections.
const cacheBytes = 32 << 20

// conn is one SQLite connection with its compiled statements. One goroutine at a time may use it. Another goroutine may
// call interrupt while it holds the session's mutex.
type conn struct {
	*sqlite.Conn
	compiled    []*compiled   // by index in the catalogue; nil = not compiled yet
	stop        chan struct{} // closed to interrupt the running statement
	interrupted bool
	pages       int64 // maximum number of pages of the file
}

// compiled is a prepared statement.
type compiled struct {
	*sqlite.Stmt
	// bound holds the integers that are bound now. An unchanged integer is not bound again, because binding a LIMIT makes
	// SQLite plan the statement again even if the value is the same.
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

// openConn opens a connection. The write connection must be opened first, because it creates the file.
func openConn(cfg Config, writes bool) (*conn, error) {
	flags := sqlite.OpenReadOnly
	// A negative cache size is in KiB. Each connection has its own cache.
	pragmas := []string{
		"pragma cache_size = -" + strconv.Itoa(max(cacheBytes/(cfg.ReadConns+1)>>10, 64)),
		"pragma temp_store = memory",
	}
	if writes {
		flags = sqlite.OpenReadWrite | sqlite.OpenCreate
		pragmas = append(pragmas,
			"pragma journal_mode = wal",
			"pragma synchronous = "+cfg.Synchronous,
			// With a limit, ANALYZE stores no samples of values. With samples SQLite would plan statements again for new values.
			"pragma analysis_limit = 1000")
	}
	path := cfg.path()
	c, err := sqlite.OpenConn(path, flags)
	if err != nil {
		return nil, err
	}
	opened := &conn{Conn: c, compiled: make([]*compiled, cfg.Statements), pages: maxPages}
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

// exec runs a statement without parameters and results. The connection caches the prepared statement.
func (c *conn) exec(sql string) error { return sqlitex.Execute(c.Conn, sql, nil) }

// limit sets the maximum number of pages of the file.
func (c *conn) limit(pages int64) error {
	if c.pages == pages {
		return nil
	}
	c.pages = pages
	return c.exec("pragma max_page_count = " + strconv.FormatInt(pages, 10))
}

// run binds the parameters, steps to the end and resets the statement. No snapshot of the database outlives the call.
// It appends the rows to out and returns the number of rows returned or changed.
func (c *conn) run(out []byte, s *wire.Command, with *pgproto3.Bind) (_ []byte, rows int, err error) {
	stmt, err := c.compile(s)
	if err != nil {
		return out, 0, coded(err)
	}
	if err := bind(stmt, s.Params, with); err != nil {
		return out, 0, err
	}
	// Reset returns the error of the last step again, so its error is ignored.
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

// compile returns the prepared statement. At the first call it compares the statement with its declaration.
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

// check compares a declaration with what SQLite found in the text. Parameters are bound by position.
func check(s *wire.Command, stmt *sqlite.Stmt, trailing int) error {
	wrong := func(format string, args ...any) error {
		return wire.Errorf(wire.InvalidDefinition, "catalogue: "+format+": %s", append(args, s.SQL)...)
	}
	if trailing > 0 {
		return wrong("more than one statement")
	}
	if n := stmt.BindParamCount(); n != len(s.Params) {
		return wrong("%d parameters declared, but the SQL text has %d", len(s.Params), n)
	}
	for i := range s.Params {
		if name := stmt.BindParamName(i + 1); name != "$"+strconv.Itoa(i+1) {
			return wrong("got parameter %s, want $%d: number them in order of appearance", name, i+1)
		}
	}
	if n := stmt.ColumnCount(); n != len(s.Columns) {
		return wrong("%d columns declared, but the SQL text has %d", len(s.Columns), n)
	}
	return nil
}

// interrupt ends the running statement at its next step.
func (c *conn) interrupt() {
	if !c.interrupted {
		c.interrupted = true
		close(c.stop)
	}
}

// rearm clears an interrupt. Otherwise the next statement would be interrupted too.
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
