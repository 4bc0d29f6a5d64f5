package sqlite_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/stagebench/stagebench/sut/sqlite"
)

// inBackground calls a function in a new goroutine. The channel gets its error.
func inBackground(do func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	return done
}

// cancelUntilDone sends requests to cancel until done gets an error, because a request may arrive before its statement.
func cancelUntilDone(t *testing.T, conn *pgx.Conn, done <-chan error) error {
	t.Helper()
	for deadline := time.Now().Add(5 * patience); time.Now().Before(deadline); {
		if err := conn.PgConn().CancelRequest(context.Background()); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Fatal("the statement did not end")
	return nil
}

// cancelled runs a statement and cancels it. SQLite may lose an interrupt at the start of a statement, see Cancel of
// the engine's session. Then the statement runs to its end, and cancelled tries again.
func cancelled(t *testing.T, conn *pgx.Conn, statement func() error) error {
	t.Helper()
	var err error
	for range 3 {
		if err = cancelUntilDone(t, conn, inBackground(statement)); err != nil {
			break
		}
	}
	return err
}

func TestCancel(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{}.Adjust(func(e *sqlite.EngineConfig, _ *sqlite.WireConfig) { e.ReadConns = 1 }))
	conn, other := connect(t, s), connect(t, s)
	ctx := context.Background()
	query := func(sql string, args ...any) func() error {
		return func() error {
			_, err := conn.Exec(ctx, sql, append([]any{pgx.QueryExecModeExec}, args...)...)
			return err
		}
	}

	reader := make(chan error, 1)
	wantSQLState(t, "reading", cancelled(t, conn, func() error {
		before := s.Stats().Reads
		reading := inBackground(query(slowRead))
		for s.Stats().Reads == before { // until it uses the only read connection
			runtime.Gosched()
		}
		// A statement that waits for the read connection can be cancelled. That does not affect the running one.
		waiting := inBackground(func() error { return other.QueryRow(ctx, countAll).Scan(new(int64)) })
		reader <- cancelUntilDone(t, other, waiting)
		return <-reading
	}), "57014")
	// The interrupt does not affect later statements.
	for range 3 {
		if n := countNotes(t, other); n != 1 {
			t.Errorf("%d notes", n)
		}
	}

	run(t, conn, "begin")
	wantSQLState(t, "writing", cancelUntilDone(t, conn, inBackground(query(slowWrite))), "57014")
	wantStatus(t, conn, 'E')
	run(t, conn, "rollback")

	run(t, other, "begin")
	waiting := inBackground(query(insert, 5, 0, "x"))
	wantSQLState(t, "waiting for the write lock", cancelUntilDone(t, conn, waiting), "57014")
	wantSQLState(t, "BEGIN that waits for the write lock", cancelUntilDone(t, conn, inBackground(query("begin"))), "57014")
	wantStatus(t, conn, 'I')
	run(t, other, "rollback")
	run(t, conn, insert, 2, 0, "two")

	// A request with a wrong key has no effect.
	f := dial(t, s)
	f.Send(&pgproto3.CancelRequest{ProcessID: conn.PgConn().PID(), SecretKey: []byte{1, 2, 3, 4}})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	f.readUntil(t, "")
	run(t, conn, insert, 3, 0, "three")
}

func TestIdleInTransaction(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{}.Adjust(func(_ *sqlite.EngineConfig, w *sqlite.WireConfig) {
		w.IdleInTransaction = 50 * time.Millisecond
	}))
	other := connect(t, s)
	for _, begin := range []string{"begin", "begin read only"} {
		f := startSession(t, s)
		f.Send(&pgproto3.Query{String: begin})
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
		want := "CommandComplete ReadyForQuery FATAL 25P03 EOF"
		if got := f.readUntil(t, ""); got != want {
			t.Errorf("%s: got %s, want %s", begin, got, want)
		}
		run(t, other, grow, 1, 1)
	}
	// Outside transactions a client may be silent for any time, as this one was.
	if n := countNotes(t, other); n != 1 {
		t.Errorf("%d notes", n)
	}
}

func TestHandshakeTimeout(t *testing.T) {
	t.Parallel()
	s := serve(t, sqlite.Config{}.Adjust(func(_ *sqlite.EngineConfig, w *sqlite.WireConfig) {
		w.HandshakeTimeout = 50 * time.Millisecond
	}))
	if got := dial(t, s).readUntil(t, ""); got != "FATAL 08P01 EOF" {
		t.Errorf("got %s", got)
	}
}

func TestTooManyClients(t *testing.T) {
	t.Parallel()
	s := serve(t, sqlite.Config{}.Adjust(func(_ *sqlite.EngineConfig, w *sqlite.WireConfig) { w.MaxConns = 2 }))
	address := "postgres://u@" + s.Addr().String() + "/d?sslmode=disable"
	first := connect(t, s)
	connect(t, s)
	_, err := pgx.Connect(context.Background(), address)
	wantSQLState(t, "the third client", err, "53300")
	first.Close(context.Background())
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for { // until the node has detected the end of the first client
		c, err := pgx.Connect(ctx, address)
		if err == nil {
			c.Close(ctx)
			return
		}
		if sqlState(err) != "53300" {
			t.Fatal(err)
		}
	}
}

// Connections without a session have a limit of their own: each holds a buffer, and needs no password for that.
func TestTooManyStarts(t *testing.T) {
	t.Parallel()
	s := serve(t, sqlite.Config{}.Adjust(func(_ *sqlite.EngineConfig, w *sqlite.WireConfig) {
		w.MaxStarting, w.HandshakeTimeout = 2, time.Minute
	}))
	earlier := connect(t, s)
	first := dial(t, s)
	dial(t, s)
	third := dial(t, s)
	if got := third.readUntil(t, ""); got != "FATAL 53300EOF" && got != "FATAL 53300 EOF" {
		t.Errorf("the third connection without a session got %q", got)
	}
	if err := earlier.Ping(t.Context()); err != nil {
		t.Errorf("a client with a session: %v", err)
	}
	_ = first.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for { // until the node has detected the end of the first connection
		c, err := pgx.Connect(ctx, "postgres://u@"+s.Addr().String()+"/d?sslmode=disable")
		if err == nil {
			c.Close(ctx)
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// TestWithoutTLS: a client that prefers TLS connects without it.
func TestWithoutTLS(t *testing.T) {
	t.Parallel()
	s := serve(t, sqlite.Config{})
	conn, err := pgx.Connect(context.Background(), "postgres://u@"+s.Addr().String()+"/d?sslmode=prefer")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.Ping(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestShutdownDrains(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := withNotes(t, sqlite.Config{Dir: dir})
	quiet, busy := startSession(t, s), connect(t, s)
	run(t, busy, "begin")
	run(t, busy, insert, 2, 0, "two")
	ended := inBackground(func() error { return s.Shutdown(context.Background()) })
	if got := quiet.readUntil(t, ""); got != "FATAL 57P01 EOF" {
		t.Errorf("an idle client got %s", got)
	}
	if c, err := net.Dial("tcp", s.Addr().String()); err == nil {
		c.Close()
		t.Error("a new client was accepted")
	}
	run(t, busy, insert, 3, 0, "three")
	run(t, busy, "commit")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := s.Serve(context.Background()); err == nil {
		t.Error("Serve after Shutdown did not fail")
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 || files[0].Name() != "stagebench.db" {
		t.Errorf("the directory has %v, %v: want only the database", files, err)
	}
	again := serve(t, sqlite.Config{Dir: dir, Statements: notes()})
	if n := countNotes(t, connect(t, again)); n != 3 {
		t.Errorf("%d notes, want 3", n)
	}
}

// TestShutdownAborts: at the end of its context, Shutdown rolls back open transactions. Acknowledged writes stay.
func TestShutdownAborts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := withNotes(t, sqlite.Config{Dir: dir})
	holder, writer, reader, busy := connect(t, s), connect(t, s), connect(t, s), connect(t, s)
	run(t, holder, "begin")
	run(t, holder, insert, 2, 0, "two")
	run(t, busy, "begin read only")
	ctx := context.Background()
	wrote := inBackground(func() error { _, err := writer.Exec(ctx, insert, 3, 0, "three"); return err })
	read := inBackground(func() error { _, err := reader.Exec(ctx, slowRead, pgx.QueryExecModeExec); return err })
	limited, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(limited); err != nil {
		t.Error(err)
	}
	if err := <-read; err == nil {
		t.Error("a very slow statement succeeded")
	}
	// The writer waits for the holder of the write lock. It may commit if the holder is disconnected first.
	acknowledged := <-wrote == nil
	conn := connect(t, serve(t, sqlite.Config{Dir: dir, Statements: notes()}))
	exists := func(id int64) bool { return run(t, conn, note, id).RowsAffected() > 0 }
	if n := countNotes(t, conn); !exists(1) || exists(2) || acknowledged && !exists(3) || n > 2 {
		const text = "%d notes: the first %t, that of the open transaction %t, the last %t (acknowledged: %t)"
		t.Errorf(text, n, exists(1), exists(2), exists(3), acknowledged)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s, err := sqlite.New(sqlite.Config{Listener: listen(t), Dir: t.TempDir(), Statements: notes()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := inBackground(func() error { return s.Serve(ctx) })
	conn := connect(t, s)
	run(t, conn, "begin")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := conn.Ping(context.Background()); err == nil {
		t.Error("a client is still served")
	}
}

func TestShutdownWithoutServe(t *testing.T) {
	t.Parallel()
	s, err := sqlite.New(sqlite.Config{Listener: listen(t), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Errorf("the second time: %v", err)
	}
	l := eventually(t, "the port is free", func() net.Listener { // an outgoing connection may use it for a moment
		l, _ := net.Listen("tcp", s.Addr().String())
		return l
	}, func(l net.Listener) bool { return l != nil })
	l.Close()
}

func TestBadConfigurations(t *testing.T) {
	t.Parallel()
	id := []sqlite.Type{sqlite.BigInt}
	everywhere, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer everywhere.Close()
	for want, cfg := range map[string]sqlite.Config{
		"no directory":           {Statements: notes()},
		"no listener":            {Dir: t.TempDir(), Listener: nil},
		"not a loopback address": {Dir: t.TempDir(), Listener: everywhere},
		"unable to open":         {Dir: filepath.Join(t.TempDir(), "nowhere")},
		"in the catalogue twice": {Dir: t.TempDir(), Statements: append(notes(), notes()...)},
		"is empty":               {Dir: t.TempDir(), Statements: []sqlite.Statement{{}}},
		`unknown type "date"`: {Dir: t.TempDir(), Statements: []sqlite.Statement{
			{SQL: "select $1", Params: []sqlite.Type{"date"}},
		}},
		`column n: unknown type "xml"`: {Dir: t.TempDir(), Statements: []sqlite.Statement{
			{SQL: "select $1", Params: id, Columns: []sqlite.Column{{Name: "n", Type: "xml"}}},
		}},
	} {
		if cfg.Listener == nil && want != "no listener" {
			cfg.Listener = listen(t)
		}
		_, err := sqlite.New(cfg)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestWrongDeclarations: a declaration that does not match its SQL is an error. Otherwise two parameters could be
// swapped.
func TestWrongDeclarations(t *testing.T) {
	t.Parallel()
	two := []sqlite.Type{sqlite.BigInt, sqlite.BigInt}
	one := []sqlite.Column{{Name: "n", Type: sqlite.BigInt}}
	wrong := []sqlite.Statement{
		{SQL: "select $2 - $1", Params: two, Columns: one},
		{SQL: "select $1", Params: two, Columns: one},
		{SQL: "select $1 + $2", Params: two},
		{SQL: "select ?", Params: two[:1], Columns: one},
		{SQL: "select 2; select 3", Columns: one},
	}
	conn := connect(t, serve(t, sqlite.Config{Statements: wrong}))
	for _, st := range wrong {
		args := []any{1, 2}[:len(st.Params)]
		_, err := conn.Exec(context.Background(), st.SQL, append([]any{pgx.QueryExecModeExec}, args...)...)
		wantSQLState(t, st.SQL, err, "42P14")
	}
}

// TestSettings reads the settings back from SQLite.
func TestSettings(t *testing.T) {
	t.Parallel()
	var pragmas []sqlite.Statement
	for _, sql := range []string{"pragma synchronous", "pragma journal_mode", "pragma cache_size"} {
		value := []sqlite.Column{{Name: "value", Type: sqlite.Text}}
		pragmas = append(pragmas, sqlite.Statement{SQL: sql, Columns: value})
	}
	conn := connect(t, serve(t, sqlite.Config{Statements: pragmas}))
	for i, want := range []string{"2", "wal", "-6553"} { // 2 is full; the cache is 32 MiB for five connections
		var got string
		if err := conn.QueryRow(context.Background(), pragmas[i].SQL).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q, %v, want %q", pragmas[i].SQL, got, err, want)
		}
	}
}

// TestLogKeepsSecrets: the log contains no parameters, even at the lowest level.
func TestLogKeepsSecrets(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	handler := slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})
	s := withNotes(t, sqlite.Config{Log: slog.New(handler)})
	run(t, connect(t, s), insert, 2, 0, "a secret digest")
	if err := s.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(log.String(), "secret") {
		t.Errorf("the log is\n%s", log.String())
	}
}
