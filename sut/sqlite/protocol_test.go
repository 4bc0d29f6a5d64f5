package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/stagebench/stagebench/sut/sqlite"
)

// The statements of a small database of notes, to say everything with.
const (
	create  = "create table if not exists notes (id bigint primary key, size int, text text)"
	insert  = "insert into notes (id, size, text) values ($1, $2, $3)"
	grow    = "update notes set size = size + $1 where id = $2 returning size"
	note    = "select id, size, text from notes where id = $1"
	all     = "select id, size, text from notes order by id"
	howMany = "select count(*) from notes"
	// These two are to be interrupted: by themselves they take many seconds.
	counting = "with recursive n (i) as (select 1 union all select i + 1 from n limit 20000000) select max(i) from n"
	lengthy  = "select (" + counting + ")"
	churning = "update notes set size = (" + counting + ")"
)

func notes() []sqlite.Statement {
	row := []sqlite.Column{{Name: "id", Type: sqlite.BigInt}, {Name: "size", Type: sqlite.Int}, {Name: "text", Type: sqlite.Text}}
	number := []sqlite.Column{{Name: "n", Type: sqlite.BigInt}}
	return []sqlite.Statement{
		{SQL: create, Local: "create table if not exists notes (id integer primary key, size int, text text)"},
		{SQL: insert, Params: []sqlite.Type{sqlite.BigInt, sqlite.Int, sqlite.Text}},
		{SQL: grow, Params: []sqlite.Type{sqlite.Int, sqlite.BigInt}, Columns: []sqlite.Column{{Name: "size", Type: sqlite.Int}}},
		{SQL: note, Params: []sqlite.Type{sqlite.BigInt}, Columns: row},
		{SQL: all, Columns: row},
		{SQL: howMany, Columns: number},
		{SQL: lengthy, Columns: number},
		{SQL: churning},
		{SQL: "insert into nowhere values ($1)", Params: []sqlite.Type{sqlite.Text}},
	}
}

// withNotes serves a database with one note.
func withNotes(t testing.TB, cfg sqlite.Config) *sqlite.Server {
	t.Helper()
	cfg.Statements = notes()
	s := serve(t, cfg)
	conn := connect(t, s)
	must(t, conn, create)
	must(t, conn, insert, 1, 10, "one")
	return s
}

func must(t testing.TB, conn *pgx.Conn, sql string, args ...any) pgconn.CommandTag {
	t.Helper()
	tag, err := conn.Exec(context.Background(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return tag
}

// countNotes is how many notes a client sees.
func countNotes(t testing.TB, conn *pgx.Conn) (n int64) {
	t.Helper()
	if err := conn.QueryRow(context.Background(), howMany).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// state is the SQLSTATE of an error, "" for none.
func state(err error) string {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return answer.Code
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func wantState(t testing.TB, what string, err error, want string) {
	t.Helper()
	if got := state(err); got != want {
		t.Errorf("%s: SQLSTATE %q (%v), want %q", what, got, err, want)
	}
}

func wantStatus(t testing.TB, conn *pgx.Conn, want byte) {
	t.Helper()
	if got := conn.PgConn().TxStatus(); got != want {
		t.Errorf("transaction status %c, want %c", got, want)
	}
}

func TestDescribesWhatIsDeclared(t *testing.T) {
	t.Parallel()
	conn := connect(t, withNotes(t, sqlite.Config{}))
	d, err := conn.Prepare(context.Background(), "note", note)
	if err != nil {
		t.Fatal(err)
	}
	if want := []uint32{pgtype.Int8OID}; !slices.Equal(d.ParamOIDs, want) {
		t.Errorf("parameters %v, want %v", d.ParamOIDs, want)
	}
	var got []string
	for _, f := range d.Fields {
		got = append(got, fmt.Sprint(f.Name, " ", f.DataTypeOID))
	}
	if want := []string{"id 20", "size 23", "text 25"}; !slices.Equal(got, want) {
		t.Errorf("columns %v, want %v", got, want)
	}
}

func TestValuesInBothFormats(t *testing.T) {
	t.Parallel()
	conn := connect(t, withNotes(t, sqlite.Config{}))
	must(t, conn, insert, int64(-1)<<63, -2147483648, "")
	must(t, conn, insert, int64(1)<<62, nil, nil)
	want := [][]string{{"-9223372036854775808", "-2147483648", ""}, {"1", "10", "one"}, {"4611686018427387904", "NULL", "NULL"}}
	for _, format := range []int16{pgx.TextFormatCode, pgx.BinaryFormatCode} {
		rows, err := conn.Query(context.Background(), all, pgx.QueryExecModeCacheStatement, pgx.QueryResultFormats{format})
		if err != nil {
			t.Fatal(err)
		}
		got, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) ([]string, error) {
			values, err := row.Values()
			var texts []string
			for _, v := range values {
				if v == nil {
					v = "NULL"
				}
				texts = append(texts, fmt.Sprint(v))
			}
			return texts, err
		})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(got, want, slices.Equal[[]string]) {
			t.Errorf("in format %d: %v, want %v", format, got, want)
		}
	}
	// The same as one simple query.
	results, err := conn.PgConn().Exec(context.Background(), all).ReadAll()
	if err != nil || len(results) != 1 || len(results[0].Rows) != 3 || string(results[0].Rows[1][2]) != "one" {
		t.Errorf("a simple query gave %v, %v", results, err)
	}
}

func TestRefusesWhatPostgreSQLRefuses(t *testing.T) {
	t.Parallel()
	conn := connect(t, withNotes(t, sqlite.Config{}))
	ctx := context.Background()
	for _, c := range []struct {
		what, sql string
		args      []any
		want      string
	}{
		{"a statement that is not in the catalogue", "select * from notes", []any{pgx.QueryExecModeCacheStatement}, "42601"},
		{"the same as a simple query", "drop table notes", nil, "42601"},
		{"two statements in one", "begin; commit", nil, "42601"},
		{"a taken key", insert, []any{1, 1, "x"}, "23505"},
		{"NUL", insert, []any{2, 1, "a\x00"}, "22021"},
		{"broken UTF-8", insert, []any{2, 1, "\xff"}, "22021"},
		{"a table that is not there", "insert into nowhere values ($1)", []any{"x"}, "XX000"},
		{"a savepoint", "savepoint a", nil, "0A000"},
		{"going back to one", "rollback to savepoint a", nil, "0A000"},
		{"a time-out that nobody keeps", "set statement_timeout = 5", nil, "0A000"},
		{"an unknown setting", "show nothing", nil, "42704"},
	} {
		_, err := conn.Exec(ctx, c.sql, c.args...)
		wantState(t, c.what, err, c.want)
		wantStatus(t, conn, 'I')
	}
	bind := func(values [][]byte, formats, results []int16) error {
		if _, err := conn.Prepare(ctx, "n", note); err != nil {
			t.Fatal(err)
		}
		return conn.PgConn().ExecPrepared(ctx, "n", values, formats, results).Read().Err
	}
	eight := make([]byte, 8)
	wantState(t, "no parameter", bind(nil, nil, nil), "08P01")
	wantState(t, "a short number", bind([][]byte{{1}}, []int16{1}, nil), "22P03")
	wantState(t, "a word for a number", bind([][]byte{[]byte("x")}, []int16{0}, nil), "22P02")
	wantState(t, "two formats for three columns", bind([][]byte{eight}, []int16{1}, []int16{1, 1}), "08P01")
	wantState(t, "an unknown format", bind([][]byte{eight}, []int16{1}, []int16{7}), "22023")
	wantState(t, "a statement that was never prepared", conn.PgConn().ExecPrepared(ctx, "nobody", nil, nil, nil).Read().Err, "26000")
	wantState(t, "nothing", bind([][]byte{eight}, []int16{1}, []int16{1}), "")
}

func TestWhatDriversSay(t *testing.T) {
	t.Parallel()
	conn := connect(t, withNotes(t, sqlite.Config{}))
	for sql, want := range map[string]string{
		"": "", " ; ": "", "-- ping": "", "-- a comment\n  -- another\nbegin;": "BEGIN",
		"begin isolation level serializable": "BEGIN", "START TRANSACTION": "BEGIN", "commit work": "COMMIT", "end": "COMMIT",
		"rollback": "ROLLBACK", "abort transaction": "ROLLBACK", "select 1": "SELECT 1",
		"set client_encoding to 'UTF8'": "SET", "SET SESSION TimeZone = 'UTC'": "SET", "show server_version": "SHOW",
		"show transaction isolation level": "SHOW", "deallocate all": "DEALLOCATE ALL", "DEALLOCATE nothing": "DEALLOCATE",
		all: "SELECT 1", create: "CREATE TABLE",
	} {
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeExec} {
			rows, err := conn.Query(context.Background(), sql, mode)
			if err == nil {
				rows.Close()
				err = rows.Err()
			}
			if err != nil && !errors.Is(err, pgx.ErrNoRows) || rows.CommandTag().String() != want {
				t.Errorf("%q: %q, %v, want %q", sql, rows.CommandTag(), err, want)
			}
			must(t, conn, "rollback")
		}
	}
	// After it prepared statements are gone, and pgx prepares them anew.
	must(t, conn, note, 1)
	must(t, conn, "discard all")
	if _, err := conn.Exec(context.Background(), note, 1); state(err) != "26000" {
		t.Errorf("a statement survived DISCARD ALL: %v", err)
	}
	must(t, conn, note, 1)
	must(t, conn, "begin")
	_, err := conn.Exec(context.Background(), "discard all")
	wantState(t, "DISCARD ALL in a transaction", err, "25001")
	wantStatus(t, conn, 'E')
}

// pipeline sends what comes up to one Sync and returns the SQLSTATE of each
// part and of the end.
func pipeline(t *testing.T, conn *pgx.Conn, fill func(*pgx.Batch)) []string {
	t.Helper()
	b := &pgx.Batch{}
	fill(b)
	results := conn.SendBatch(context.Background(), b)
	var states []string
	for range b.QueuedQueries {
		_, err := results.Exec()
		states = append(states, state(err))
	}
	return append(states, state(results.Close()))
}

func TestPipelineIsOneTransaction(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{})
	conn, other := connect(t, s), connect(t, s)

	got := pipeline(t, conn, func(b *pgx.Batch) {
		b.Queue(insert, 2, 0, "two")
		b.Queue(note, 2) // sees what was just written
		b.Queue(grow, 5, 2)
	})
	if want := []string{"", "", "", ""}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if n := countNotes(t, other); n != 2 {
		t.Errorf("%d notes, want 2", n)
	}

	got = pipeline(t, conn, func(b *pgx.Batch) {
		b.Queue(insert, 3, 0, "three")
		b.Queue(insert, 1, 0, "taken")
		b.Queue(insert, 4, 0, "skipped")
	})
	if want := []string{"", "23505", "23505", "23505"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	wantStatus(t, conn, 'I')
	if n := countNotes(t, other); n != 2 {
		t.Errorf("%d notes after a pipeline that failed, want 2", n)
	}

	// A statement that cannot be parsed fails what came before, too.
	pgConn := conn.PgConn()
	p := pgConn.StartPipeline(context.Background())
	p.SendQueryParams(insert, [][]byte{[]byte("5"), []byte("0"), []byte("five")}, nil, nil, nil)
	p.SendQueryParams("no such thing", nil, nil, nil, nil)
	if err := p.Sync(); err != nil {
		t.Fatal(err)
	}
	p.SendQueryParams(insert, [][]byte{[]byte("6"), []byte("0"), []byte("six")}, nil, nil, nil)
	if err := p.Sync(); err != nil {
		t.Fatal(err)
	}
	wantState(t, "the pipeline", p.Close(), "42601")
	if n := countNotes(t, other); n != 3 {
		t.Errorf("%d notes, want 3: the part after the next Sync is a transaction of its own", n)
	}
}

func TestPipelineWithBegin(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{})
	conn, other := connect(t, s), connect(t, s)
	// What comes before BEGIN becomes a part of the transaction.
	got := pipeline(t, conn, func(b *pgx.Batch) {
		b.Queue(insert, 2, 0, "two")
		b.Queue("begin")
		b.Queue(insert, 3, 0, "three")
	})
	if want := []string{"", "", "", ""}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	wantStatus(t, conn, 'T')
	if n := countNotes(t, other); n != 1 {
		t.Errorf("%d notes before the commit, want 1", n)
	}
	got = pipeline(t, conn, func(b *pgx.Batch) {
		b.Queue("commit")
		b.Queue(insert, 4, 0, "four")
		b.Queue(insert, 1, 0, "taken")
	})
	if want := []string{"", "", "23505", "23505"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if n := countNotes(t, other); n != 3 {
		t.Errorf("%d notes, want 3: what was committed stays", n)
	}
}

func TestTransaction(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{})
	conn, other := connect(t, s), connect(t, s)
	ctx := context.Background()

	must(t, conn, "begin")
	must(t, conn, insert, 2, 0, "two")
	wantStatus(t, conn, 'T')
	if mine, theirs := countNotes(t, conn), countNotes(t, other); mine != 2 || theirs != 1 {
		t.Errorf("the writer sees %d notes and others %d, want 2 and 1", mine, theirs)
	}
	_, err := conn.Exec(ctx, insert, 1, 0, "taken")
	wantState(t, "a taken key", err, "23505")
	wantStatus(t, conn, 'E')
	// Nobody waits for a client that has yet to notice.
	must(t, other, insert, 3, 0, "three")
	_, err = conn.Exec(ctx, "select 1")
	wantState(t, "a statement after the failure", err, "25P02")
	if tag := must(t, conn, "commit"); tag.String() != "ROLLBACK" {
		t.Errorf("committing a failed transaction: %s, want ROLLBACK", tag)
	}
	wantStatus(t, conn, 'I')
	if n := countNotes(t, conn); n != 2 {
		t.Errorf("%d notes, want 2", n)
	}

	must(t, conn, "begin")
	_, err = conn.Exec(ctx, "no such thing")
	wantState(t, "what cannot be parsed", err, "42601")
	wantStatus(t, conn, 'E')
	must(t, conn, "rollback")

	must(t, conn, "begin")
	must(t, conn, "begin") // a warning in PostgreSQL
	must(t, conn, grow, 7, 1)
	must(t, conn, "commit")
	must(t, conn, "commit") // outside of a transaction: a warning, too
	var size int
	if err := other.QueryRow(ctx, "select id, size, text from notes where id = $1", 1).Scan(nil, &size, nil); err != nil || size != 17 {
		t.Errorf("size %d, %v, want 17", size, err)
	}
}

func TestReadOnlyTransaction(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{ReadConns: 2})
	conn, other := connect(t, s), connect(t, s)
	must(t, conn, "begin read only")
	if n := countNotes(t, conn); n != 1 {
		t.Errorf("%d notes, want 1", n)
	}
	must(t, other, insert, 2, 0, "two") // does not wait
	if n := countNotes(t, conn); n != 1 {
		t.Errorf("%d notes, want still 1: one snapshot", n)
	}
	_, err := conn.Exec(context.Background(), insert, 3, 0, "three")
	wantState(t, "a write", err, "25006")
	must(t, conn, "rollback")
	for range 4 { // both connections are free again
		must(t, conn, "begin read only")
		if n := countNotes(t, conn); n != 2 {
			t.Errorf("%d notes, want 2", n)
		}
		must(t, conn, "commit")
	}
}

// TestPortalInParts fetches a result a row at a time, as drivers with cursors do.
func TestPortalInParts(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{})
	must(t, connect(t, s), insert, 2, 0, "two")
	must(t, connect(t, s), insert, 3, 0, "three")
	f := speak(t, s)
	f.SendParse(&pgproto3.Parse{Query: all})
	f.SendBind(&pgproto3.Bind{DestinationPortal: "p"})
	f.SendDescribe(&pgproto3.Describe{ObjectType: 'P', Name: "p"})
	f.SendExecute(&pgproto3.Execute{Portal: "p", MaxRows: 2})
	f.Send(&pgproto3.Flush{})
	f.SendExecute(&pgproto3.Execute{Portal: "p", MaxRows: 2})
	f.SendExecute(&pgproto3.Execute{Portal: "p", MaxRows: 2})
	f.SendSync(&pgproto3.Sync{})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	want := "ParseComplete BindComplete RowDescription DataRow DataRow PortalSuspended DataRow CommandComplete ErrorResponse ReadyForQuery"
	if got := f.until(t, "ReadyForQuery"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestSkipsToSync: after an error nothing but the Sync is answered, not even a simple query.
func TestSkipsToSync(t *testing.T) {
	t.Parallel()
	f := speak(t, withNotes(t, sqlite.Config{}))
	f.SendParse(&pgproto3.Parse{Query: "no such thing"})
	f.SendQuery(&pgproto3.Query{String: all})
	f.SendDescribe(&pgproto3.Describe{ObjectType: 'S'})
	f.SendSync(&pgproto3.Sync{})
	f.SendQuery(&pgproto3.Query{String: "begin"})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	got := f.until(t, "ReadyForQuery") + " " + f.until(t, "ReadyForQuery")
	if want := "ErrorResponse ReadyForQuery CommandComplete ReadyForQuery"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// raw is a client that speaks the protocol message by message.
type raw struct {
	*pgproto3.Frontend
	net.Conn
}

// speak connects and introduces itself.
func speak(t *testing.T, s *sqlite.Server) raw {
	t.Helper()
	f := dial(t, s)
	f.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "u"}})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	f.until(t, "ReadyForQuery")
	return f
}

// dial connects and says nothing.
func dial(t *testing.T, s *sqlite.Server) raw {
	t.Helper()
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return raw{Frontend: pgproto3.NewFrontend(c, c), Conn: c}
}

// until reads messages and returns their names, up to one of that name or to
// the end of the connection.
func (r raw) until(t *testing.T, last string) (names string) {
	t.Helper()
	for {
		m, err := r.Receive()
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			return names + "EOF"
		}
		if err != nil {
			return names + err.Error()
		}
		name := fmt.Sprintf("%T", m)[len("*pgproto3."):]
		if e, ok := m.(*pgproto3.ErrorResponse); ok && e.Severity == "FATAL" {
			name = "FATAL " + e.Code
		}
		names += name
		if name == last {
			return names
		}
		names += " "
	}
}
