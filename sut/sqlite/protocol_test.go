package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/stagebench/stagebench/sut/sqlite"
)

// The statements of a small database of notes.
const (
	create   = "create table if not exists notes (id bigint primary key, size int, text text)"
	insert   = "insert into notes (id, size, text) values ($1, $2, $3)"
	grow     = "update notes set size = size + $1 where id = $2 returning size"
	note     = "select id, size, text from notes where id = $1"
	all      = "select id, size, text from notes order by id"
	countAll = "select count(*) from notes"
	// The next two statements take many seconds. Tests interrupt them.
	slowCount = "with recursive n (i) as (select 1 union all select i + 1 from n limit 20000000) select max(i) from n"
	slowRead  = "select (" + slowCount + ")"
	slowWrite = "update notes set size = (" + slowCount + ")"
)

func notes() []sqlite.Statement {
	row := []sqlite.Column{
		{Name: "id", Type: sqlite.BigInt}, {Name: "size", Type: sqlite.Int}, {Name: "text", Type: sqlite.Text},
	}
	number := []sqlite.Column{{Name: "n", Type: sqlite.BigInt}}
	size := []sqlite.Column{{Name: "size", Type: sqlite.Int}}
	return []sqlite.Statement{
		{SQL: create, Local: "create table if not exists notes (id integer primary key, size int, text text)"},
		{SQL: insert, Params: []sqlite.Type{sqlite.BigInt, sqlite.Int, sqlite.Text}},
		{SQL: grow, Params: []sqlite.Type{sqlite.Int, sqlite.BigInt}, Columns: size},
		{SQL: note, Params: []sqlite.Type{sqlite.BigInt}, Columns: row},
		{SQL: all, Columns: row},
		{SQL: countAll, Columns: number},
		{SQL: slowRead, Columns: number},
		{SQL: slowWrite},
		{SQL: "insert into nowhere values ($1)", Params: []sqlite.Type{sqlite.Text}},
	}
}

// withNotes serves a database with one note until the end of the test.
func withNotes(t testing.TB, cfg sqlite.Config) *sqlite.Server {
	t.Helper()
	cfg.Statements = notes()
	s := serve(t, cfg)
	conn := connect(t, s)
	run(t, conn, create)
	run(t, conn, insert, 1, 10, "one")
	return s
}

// run runs a statement, which must succeed.
func run(t testing.TB, conn *pgx.Conn, sql string, args ...any) pgconn.CommandTag {
	t.Helper()
	tag, err := conn.Exec(context.Background(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return tag
}

// countNotes returns the number of notes that a client sees.
func countNotes(t testing.TB, conn *pgx.Conn) (n int64) {
	t.Helper()
	if err := conn.QueryRow(context.Background(), countAll).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// sqlState returns the SQLSTATE of an error, "" for nil. For an error without SQLSTATE it returns the text.
func sqlState(err error) string {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return answer.Code
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func wantSQLState(t testing.TB, what string, err error, want string) {
	t.Helper()
	if got := sqlState(err); got != want {
		t.Errorf("%s: SQLSTATE %q (%v), want %q", what, got, err, want)
	}
}

func wantStatus(t testing.TB, conn *pgx.Conn, want byte) {
	t.Helper()
	if got := conn.PgConn().TxStatus(); got != want {
		t.Errorf("transaction status %c, want %c", got, want)
	}
}

func TestDescribesDeclaredTypes(t *testing.T) {
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
	run(t, conn, insert, int64(-1)<<63, -2147483648, "")
	run(t, conn, insert, int64(1)<<62, nil, nil)
	want := [][]string{
		{"-9223372036854775808", "-2147483648", ""}, {"1", "10", "one"}, {"4611686018427387904", "NULL", "NULL"},
	}
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
	// A simple query returns the same rows.
	results, err := conn.PgConn().Exec(context.Background(), all).ReadAll()
	if err != nil || len(results) != 1 || len(results[0].Rows) != 3 || string(results[0].Rows[1][2]) != "one" {
		t.Errorf("a simple query gave %v, %v", results, err)
	}
}

func TestRefusedStatements(t *testing.T) {
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
		{"an existing key", insert, []any{1, 1, "x"}, "23505"},
		{"NUL", insert, []any{2, 1, "a\x00"}, "22021"},
		{"broken UTF-8", insert, []any{2, 1, "\xff"}, "22021"},
		{"a missing table", "insert into nowhere values ($1)", []any{"x"}, "XX000"},
		{"a savepoint", "savepoint a", nil, "0A000"},
		{"a rollback to a savepoint", "rollback to savepoint a", nil, "0A000"},
		{"a setting that has no effect here", "set statement_timeout = 5", nil, "0A000"},
		{"an unknown setting", "show nothing", nil, "42704"},
	} {
		_, err := conn.Exec(ctx, c.sql, c.args...)
		wantSQLState(t, c.what, err, c.want)
		wantStatus(t, conn, 'I')
	}
	bind := func(values [][]byte, formats, results []int16) error {
		if _, err := conn.Prepare(ctx, "n", note); err != nil {
			t.Fatal(err)
		}
		return conn.PgConn().ExecPrepared(ctx, "n", values, formats, results).Read().Err
	}
	eight := make([]byte, 8)
	wantSQLState(t, "no parameter", bind(nil, nil, nil), "08P01")
	wantSQLState(t, "a short number", bind([][]byte{{1}}, []int16{1}, nil), "22P03")
	wantSQLState(t, "a word for a number", bind([][]byte{[]byte("x")}, []int16{0}, nil), "22P02")
	wantSQLState(t, "two formats for three columns", bind([][]byte{eight}, []int16{1}, []int16{1, 1}), "08P01")
	wantSQLState(t, "an unknown format", bind([][]byte{eight}, []int16{1}, []int16{7}), "22023")
	err := conn.PgConn().ExecPrepared(ctx, "nobody", nil, nil, nil).Read().Err
	wantSQLState(t, "a statement that was never prepared", err, "26000")
	wantSQLState(t, "a valid bind", bind([][]byte{eight}, []int16{1}, []int16{1}), "")
}

func TestDriverStatements(t *testing.T) {
	t.Parallel()
	conn := connect(t, withNotes(t, sqlite.Config{}))
	for sql, want := range map[string]string{
		"": "", " ; ": "", "-- ping": "", "-- a comment\n  -- another\nbegin;": "BEGIN",
		"begin isolation level serializable": "BEGIN", "START TRANSACTION": "BEGIN",
		"commit work": "COMMIT", "end": "COMMIT", "rollback": "ROLLBACK", "abort transaction": "ROLLBACK",
		"select 1":                      "SELECT 1",
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
			run(t, conn, "rollback")
		}
	}
	// DISCARD ALL removes prepared statements. After the error pgx prepares the statement again.
	run(t, conn, note, 1)
	run(t, conn, "discard all")
	if _, err := conn.Exec(context.Background(), note, 1); sqlState(err) != "26000" {
		t.Errorf("a statement survived DISCARD ALL: %v", err)
	}
	run(t, conn, note, 1)
	run(t, conn, "begin")
	_, err := conn.Exec(context.Background(), "discard all")
	wantSQLState(t, "DISCARD ALL in a transaction", err, "25001")
	wantStatus(t, conn, 'E')
}

// pipeline sends statements with one Sync at the end. It returns the SQLSTATE of each statement and of the end.
func pipeline(t *testing.T, conn *pgx.Conn, fill func(*pgx.Batch)) []string {
	t.Helper()
	b := &pgx.Batch{}
	fill(b)
	results := conn.SendBatch(context.Background(), b)
	var states []string
	for range b.QueuedQueries {
		_, err := results.Exec()
		states = append(states, sqlState(err))
	}
	return append(states, sqlState(results.Close()))
}

func TestPipelineIsOneTransaction(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{})
	conn, other := connect(t, s), connect(t, s)

	got := pipeline(t, conn, func(b *pgx.Batch) {
		b.Queue(insert, 2, 0, "two")
		b.Queue(note, 2) // sees the new note
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

	// A statement that cannot be parsed rolls back the earlier statements of the pipeline, too.
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
	wantSQLState(t, "the pipeline", p.Close(), "42601")
	if n := countNotes(t, other); n != 3 {
		t.Errorf("%d notes, want 3: the statements after the Sync are another transaction", n)
	}
}

func TestPipelineWithBegin(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{})
	conn, other := connect(t, s), connect(t, s)
	// The statements before BEGIN become a part of the transaction.
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
		t.Errorf("%d notes, want 3: committed notes stay", n)
	}
}

func TestTransaction(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{})
	conn, other := connect(t, s), connect(t, s)
	ctx := context.Background()

	run(t, conn, "begin")
	run(t, conn, insert, 2, 0, "two")
	wantStatus(t, conn, 'T')
	if mine, theirs := countNotes(t, conn), countNotes(t, other); mine != 2 || theirs != 1 {
		t.Errorf("the writer sees %d notes and others %d, want 2 and 1", mine, theirs)
	}
	_, err := conn.Exec(ctx, insert, 1, 0, "taken")
	wantSQLState(t, "a taken key", err, "23505")
	wantStatus(t, conn, 'E')
	// Other writers need not wait until the client has read the error.
	run(t, other, insert, 3, 0, "three")
	_, err = conn.Exec(ctx, "select 1")
	wantSQLState(t, "a statement after the failure", err, "25P02")
	if tag := run(t, conn, "commit"); tag.String() != "ROLLBACK" {
		t.Errorf("committing a failed transaction: %s, want ROLLBACK", tag)
	}
	wantStatus(t, conn, 'I')
	if n := countNotes(t, conn); n != 2 {
		t.Errorf("%d notes, want 2", n)
	}

	run(t, conn, "begin")
	_, err = conn.Exec(ctx, "no such thing")
	wantSQLState(t, "a statement that cannot be parsed", err, "42601")
	wantStatus(t, conn, 'E')
	run(t, conn, "rollback")

	run(t, conn, "begin")
	run(t, conn, "begin") // a warning in PostgreSQL
	run(t, conn, grow, 7, 1)
	run(t, conn, "commit")
	run(t, conn, "commit") // outside a transaction: a warning in PostgreSQL
	var size int
	if err := other.QueryRow(ctx, note, 1).Scan(nil, &size, nil); err != nil || size != 17 {
		t.Errorf("size %d, %v, want 17", size, err)
	}
}

func TestReadOnlyTransaction(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{})
	conn, other := connect(t, s), connect(t, s)
	run(t, conn, "begin read only")
	if n := countNotes(t, conn); n != 1 {
		t.Errorf("%d notes, want 1", n)
	}
	run(t, other, insert, 2, 0, "two") // does not wait
	if n := countNotes(t, conn); n != 1 {
		t.Errorf("%d notes, want 1: the transaction sees one snapshot", n)
	}
	_, err := conn.Exec(context.Background(), insert, 3, 0, "three")
	wantSQLState(t, "a write", err, "25006")
	run(t, conn, "rollback")
	for range 5 { // all read connections are free again
		run(t, conn, "begin read only")
		if n := countNotes(t, conn); n != 2 {
			t.Errorf("%d notes, want 2", n)
		}
		run(t, conn, "commit")
	}
}

// TestPortalInParts fetches a result in parts, as drivers with cursors do.
func TestPortalInParts(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{})
	run(t, connect(t, s), insert, 2, 0, "two")
	run(t, connect(t, s), insert, 3, 0, "three")
	f := startSession(t, s)
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
	want := "ParseComplete BindComplete RowDescription DataRow DataRow PortalSuspended " +
		"DataRow CommandComplete ErrorResponse ReadyForQuery"
	if got := f.readUntil(t, "ReadyForQuery"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestSkipsToSync: after an error only the Sync is answered, not even a simple query.
func TestSkipsToSync(t *testing.T) {
	t.Parallel()
	f := startSession(t, withNotes(t, sqlite.Config{}))
	f.SendParse(&pgproto3.Parse{Query: "no such thing"})
	f.SendQuery(&pgproto3.Query{String: all})
	f.SendDescribe(&pgproto3.Describe{ObjectType: 'S'})
	f.SendSync(&pgproto3.Sync{})
	f.SendQuery(&pgproto3.Query{String: "begin"})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	got := f.readUntil(t, "ReadyForQuery") + " " + f.readUntil(t, "ReadyForQuery")
	if want := "ErrorResponse ReadyForQuery CommandComplete ReadyForQuery"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
