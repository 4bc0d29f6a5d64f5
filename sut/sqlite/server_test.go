package sqlite_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
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

// later runs something in the background and returns where its error comes.
func later(do func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	return done
}

// cancelUntil asks to cancel until something ends: the request may come before
// the statement that it is meant for.
func cancelUntil(t *testing.T, conn *pgx.Conn, done <-chan error) error {
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

// cancelled cancels a statement. SQLite may lose an interrupt that comes in the moment in
// which the statement begins (see session.cancel): then it ends by itself, and has another
// try.
func cancelled(t *testing.T, conn *pgx.Conn, statement func() error) error {
	t.Helper()
	var err error
	for range 3 {
		if err = cancelUntil(t, conn, later(statement)); err != nil {
			break
		}
	}
	return err
}

func TestCancel(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{ReadConns: 1})
	conn, other := connect(t, s), connect(t, s)
	ctx := context.Background()
	query := func(sql string, args ...any) func() error {
		return func() error {
			_, err := conn.Exec(ctx, sql, append([]any{pgx.QueryExecModeExec}, args...)...)
			return err
		}
	}

	reader := make(chan error, 1)
	wantState(t, "reading", cancelled(t, conn, func() error {
		before := s.Stats().Reads
		reading := later(query(lengthy))
		for s.Stats().Reads == before { // until it has the only reader
			runtime.Gosched()
		}
		// Somebody in line for it is cancelled, and the reader is not.
		waiting := later(func() error { return other.QueryRow(ctx, howMany).Scan(new(int64)) })
		reader <- cancelUntil(t, other, waiting)
		return <-reading
	}), "57014")
	// The interrupt is cleared: the next ones do not meet it.
	for range 3 {
		if n := countNotes(t, other); n != 1 {
			t.Errorf("%d notes", n)
		}
	}

	must(t, conn, "begin")
	wantState(t, "writing", cancelUntil(t, conn, later(query(churning))), "57014")
	wantStatus(t, conn, 'E')
	must(t, conn, "rollback")

	must(t, other, "begin")
	wantState(t, "waiting in the line of writers", cancelUntil(t, conn, later(query(insert, 5, 0, "x"))), "57014")
	wantState(t, "waiting with BEGIN", cancelUntil(t, conn, later(query("begin"))), "57014")
	wantStatus(t, conn, 'I')
	must(t, other, "rollback")
	must(t, conn, insert, 2, 0, "two")

	// With a wrong key nothing happens.
	f := dial(t, s)
	f.Send(&pgproto3.CancelRequest{ProcessID: conn.PgConn().PID(), SecretKey: []byte{1, 2, 3, 4}})
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	f.until(t, "")
	must(t, conn, insert, 3, 0, "three")
}

func TestIdleInTransaction(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{IdleInTransaction: 50 * time.Millisecond})
	other := connect(t, s)
	for _, begin := range []string{"begin", "begin read only"} {
		f := speak(t, s)
		f.Send(&pgproto3.Query{String: begin})
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
		want := "CommandComplete ReadyForQuery FATAL 25P03 EOF"
		if got := f.until(t, ""); got != want {
			t.Errorf("%s: got %s, want %s", begin, got, want)
		}
		must(t, other, grow, 1, 1)
	}
	// Between transactions a client may say nothing for as long as it likes;
	// this one has been silent all the time.
	if n := countNotes(t, other); n != 1 {
		t.Errorf("%d notes", n)
	}
}

func TestHandshakeTimeout(t *testing.T) {
	t.Parallel()
	s := serve(t, sqlite.Config{HandshakeTimeout: 50 * time.Millisecond})
	if got := dial(t, s).until(t, ""); got != "FATAL 08P01 EOF" {
		t.Errorf("got %s", got)
	}
}

func TestTooManyClients(t *testing.T) {
	t.Parallel()
	s := serve(t, sqlite.Config{MaxConns: 2})
	address := "postgres://u@" + s.Addr().String() + "/d?sslmode=disable"
	first := connect(t, s)
	connect(t, s)
	_, err := pgx.Connect(context.Background(), address)
	wantState(t, "the third client", err, "53300")
	first.Close(context.Background())
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for { // until the node has noticed
		c, err := pgx.Connect(ctx, address)
		if err == nil {
			c.Close(ctx)
			return
		}
		if state(err) != "53300" {
			t.Fatal(err)
		}
	}
}

// TestAsksForTLS: a client that would rather have TLS is told that there is
// none and goes on.
func TestAsksForTLS(t *testing.T) {
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
	quiet, busy := speak(t, s), connect(t, s)
	must(t, busy, "begin")
	must(t, busy, insert, 2, 0, "two")
	ended := later(func() error { return s.Shutdown(context.Background()) })
	if got := quiet.until(t, ""); got != "FATAL 57P01 EOF" {
		t.Errorf("a quiet client got %s", got)
	}
	if c, err := net.Dial("tcp", s.Addr().String()); err == nil {
		c.Close()
		t.Error("a new client was let in")
	}
	must(t, busy, insert, 3, 0, "three")
	must(t, busy, "commit")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := s.Serve(context.Background()); err == nil {
		t.Error("Serve after Shutdown did not fail")
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 || files[0].Name() != "stagebench.db" {
		t.Errorf("in the directory are %v, %v: want the database alone", files, err)
	}
	again := serve(t, sqlite.Config{Dir: dir, Statements: notes()})
	if n := countNotes(t, connect(t, again)); n != 3 {
		t.Errorf("%d notes, want 3", n)
	}
}

// What is cut off is not there, unless it was done just before; and what is
// acknowledged is there.
func TestShutdownCuts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := withNotes(t, sqlite.Config{Dir: dir})
	holder, writer, reader, busy := connect(t, s), connect(t, s), connect(t, s), connect(t, s)
	must(t, holder, "begin")
	must(t, holder, insert, 2, 0, "two")
	must(t, busy, "begin read only")
	ctx := context.Background()
	wrote := later(func() error { _, err := writer.Exec(ctx, insert, 3, 0, "three"); return err })
	read := later(func() error { _, err := reader.Exec(ctx, lengthy, pgx.QueryExecModeExec); return err })
	limited, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(limited); err != nil {
		t.Error(err)
	}
	if err := <-read; err == nil {
		t.Error("a statement without an end succeeded")
	}
	// The writer waited for the holder, and has its turn when that one is cut off first.
	acknowledged := <-wrote == nil
	conn := connect(t, serve(t, sqlite.Config{Dir: dir, Statements: notes()}))
	there := func(id int64) bool { return must(t, conn, note, id).RowsAffected() > 0 }
	if n := countNotes(t, conn); !there(1) || there(2) || acknowledged && !there(3) || n > 2 {
		t.Errorf("%d notes: the first %t, that of an open transaction %t, the last %t, which was acknowledged: %t", n, there(1), there(2), there(3), acknowledged)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s, err := sqlite.New(sqlite.Config{Dir: t.TempDir(), Statements: notes()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := later(func() error { return s.Serve(ctx) })
	conn := connect(t, s)
	must(t, conn, "begin")
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
	s, err := sqlite.New(sqlite.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Errorf("the second time: %v", err)
	}
	l := awaitUntil(t, "the port is free", func() net.Listener { // an outgoing connection may have had it
		l, _ := net.Listen("tcp", s.Addr().String())
		return l
	}, func(l net.Listener) bool { return l != nil })
	l.Close()
}

func TestBadConfigurations(t *testing.T) {
	t.Parallel()
	id := []sqlite.Type{sqlite.BigInt}
	for want, cfg := range map[string]sqlite.Config{
		"no directory":                 {Statements: notes()},
		"must not be negative":         {Dir: t.TempDir(), MaxConns: -1},
		`durability "maybe"`:           {Dir: t.TempDir(), Durability: "maybe"},
		"not a loopback address":       {Dir: t.TempDir(), Address: "0.0.0.0:0"},
		"unable to open":               {Dir: filepath.Join(t.TempDir(), "nowhere")},
		"in the catalogue twice":       {Dir: t.TempDir(), Statements: append(notes(), notes()...)},
		"is empty":                     {Dir: t.TempDir(), Statements: []sqlite.Statement{{}}},
		`unknown type "date"`:          {Dir: t.TempDir(), Statements: []sqlite.Statement{{SQL: "select $1", Params: []sqlite.Type{"date"}}}},
		`column n: unknown type "xml"`: {Dir: t.TempDir(), Statements: []sqlite.Statement{{SQL: "select $1", Params: id, Columns: []sqlite.Column{{Name: "n", Type: "xml"}}}}},
	} {
		_, err := sqlite.New(cfg)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestWrongDeclarations: a declaration that does not fit its text is found
// before it can swap two values.
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
		wantState(t, st.SQL, err, "42P14")
	}
}

// TestSettings asks SQLite itself for what the configuration has become.
func TestSettings(t *testing.T) {
	t.Parallel()
	for durability, want := range map[sqlite.Durability]int64{"": 2, sqlite.Full: 2, sqlite.Normal: 1} {
		var pragmas []sqlite.Statement
		for _, sql := range []string{"pragma synchronous", "pragma journal_mode", "pragma cache_size"} {
			pragmas = append(pragmas, sqlite.Statement{SQL: sql, Columns: []sqlite.Column{{Name: "value", Type: sqlite.Text}}})
		}
		conn := connect(t, serve(t, sqlite.Config{Statements: pragmas, Durability: durability, ReadConns: 7}))
		for i, want := range []string{string(rune('0' + want)), "wal", "-4096"} {
			var got string
			if err := conn.QueryRow(context.Background(), pragmas[i].SQL).Scan(&got); err != nil || got != want {
				t.Errorf("durability %q: %s is %q, %v, want %q", durability, pragmas[i].SQL, got, err, want)
			}
		}
	}
}

// TestLogKeepsSecrets: even a log of everything shows no parameters.
func TestLogKeepsSecrets(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	s := withNotes(t, sqlite.Config{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	must(t, connect(t, s), insert, 2, 0, "a secret digest")
	if err := s.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(log.String(), "secret") {
		t.Errorf("the log says\n%s", log.String())
	}
}

// frame is a message of any kind with any length.
func frame(kind byte, size int, body string) []byte {
	var b []byte
	if kind != 0 {
		b = append(b, kind)
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(size)), body...)
}

func TestMalformedMessages(t *testing.T) {
	t.Parallel()
	s := withNotes(t, sqlite.Config{})
	conn := connect(t, s)
	start := frame(0, 10, "\x00\x03\x00\x00u\x00") // without the end of the list
	ssl := frame(0, 8, "\x04\xd2\x16\x2f")
	for name, c := range map[string]struct {
		started bool
		bytes   []byte
		want    string
	}{
		"a negative start":             {false, frame(0, -1, ""), "FATAL 54000 EOF"},
		"an empty start":               {false, frame(0, 4, ""), "FATAL 08P01 EOF"},
		"a start without an end":       {false, start, "EOF"},
		"a start of another protocol":  {false, frame(0, 8, "\x00\x02\x00\x00"), "FATAL 0A000 EOF"},
		"a huge start":                 {false, frame(0, 1<<30, "xxxx"), "FATAL 54000 EOF"},
		"GSS for ever":                 {false, bytes.Repeat(frame(0, 8, "\x04\xd2\x16\x30"), 1000), ""},
		"HTTP":                         {false, []byte("GET / HTTP/1.1\r\n\r\n"), "FATAL 54000 EOF"},
		"a short cancellation":         {false, frame(0, 8, "\x04\xd2\x16\x2e"), "EOF"},
		"half a message":               {false, append(bytes.Clone(ssl), 0, 0), ""},
		"a length that is too small":   {true, frame('Q', 3, ""), "FATAL 08P01 EOF"},
		"a length of -1":               {true, frame('Q', -1, ""), "FATAL 54000 EOF"},
		"a message that is too large":  {true, frame('Q', 64<<10, ""), "FATAL 54000 EOF"},
		"a query without an end":       {true, frame('Q', 8, "abcd"), "FATAL 08P01 EOF"},
		"a query with something more":  {true, frame('Q', 8, "a\x00cd"), "FATAL 08P01 EOF"},
		"an unknown message":           {true, frame('?', 4, ""), "FATAL 08003 EOF"},
		"a function call":              {true, frame('F', 4, ""), "FATAL 08003 EOF"},
		"a parse of too many types":    {true, frame('P', 8, "\x00\x00\xff\xff"), "FATAL 08P01 EOF"},
		"a bind of a negative length":  {true, frame('B', 16, "\x00\x00\x00\x00\x00\x01\xff\xff\xff\xf0\x00\x00"), "FATAL 08P01 EOF"},
		"a bind of a huge length":      {true, frame('B', 16, "\x00\x00\x00\x00\x00\x01\x7f\xff\xff\xff\x00\x00"), "FATAL 08P01 EOF"},
		"a bind of many nothings":      {true, frame('B', 10, "\x00\x00\x00\x00\xff\xff"), "FATAL 08P01 EOF"},
		"a describe of nothing":        {true, frame('D', 4, ""), "FATAL 08P01 EOF"},
		"an execute of nothing":        {true, frame('E', 4, ""), "FATAL 08P01 EOF"},
		"a sync with something more":   {true, frame('S', 5, "x"), "FATAL 08P01 EOF"},
		"an end":                       {true, frame('X', 4, ""), "EOF"},
		"a copy that nobody asked for": {true, append(frame('d', 5, "x"), frame('X', 4, "")...), "EOF"},
	} {
		f := dial(t, s)
		if c.started {
			f = speak(t, s)
		}
		if _, err := f.Write(c.bytes); err != nil {
			t.Fatal(err)
		}
		if c.want == "" { // nothing that a client could read: it is enough that the node survives
			f.Close()
			continue
		}
		if got := f.until(t, ""); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
	if n := countNotes(t, conn); n != 1 {
		t.Errorf("%d notes", n)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if n := s.Stats().Connections; n != 0 {
		t.Errorf("%d clients are left", n)
	}
}

// FuzzServer sends any bytes, as the start or after it. The node must end the
// connection or wait for more, and go on serving others.
func FuzzServer(f *testing.F) {
	encode := func(messages ...pgproto3.FrontendMessage) (b []byte) {
		for _, m := range messages {
			var err error
			if b, err = m.Encode(b); err != nil {
				f.Fatal(err)
			}
		}
		return b
	}
	f.Add(false, encode(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "u"}}))
	f.Add(false, encode(&pgproto3.SSLRequest{}, &pgproto3.GSSEncRequest{}))
	f.Add(true, encode(&pgproto3.Query{String: all}, &pgproto3.Terminate{}))
	f.Add(true, encode(&pgproto3.Query{String: "begin"}, &pgproto3.Query{String: create}, &pgproto3.Query{String: "show server_version"}))
	f.Add(true, encode(
		&pgproto3.Parse{Name: "n", Query: note, ParameterOIDs: []uint32{20}},
		&pgproto3.Describe{ObjectType: 'S', Name: "n"},
		&pgproto3.Bind{PreparedStatement: "n", Parameters: [][]byte{[]byte("1")}, ResultFormatCodes: []int16{1}},
		&pgproto3.Describe{ObjectType: 'P'},
		&pgproto3.Execute{MaxRows: 1},
		&pgproto3.Close{ObjectType: 'S', Name: "n"},
		&pgproto3.Flush{}, &pgproto3.Sync{},
	))
	f.Add(true, encode(
		&pgproto3.Parse{Query: insert},
		&pgproto3.Bind{Parameters: [][]byte{[]byte("2"), nil, []byte("x")}, ParameterFormatCodes: []int16{0, 1, 0}},
		&pgproto3.Execute{}, &pgproto3.Execute{}, &pgproto3.Sync{},
	))
	s := withNotes(f, sqlite.Config{HandshakeTimeout: 20 * time.Second})
	f.Fuzz(func(t *testing.T, started bool, message []byte) {
		c := dial(t, s)
		if started {
			c = speak(t, s)
		}
		if _, err := c.Write(message); err != nil {
			return // the node has ended it already
		}
		if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil && !errors.Is(err, net.ErrClosed) {
			return
		}
		// What comes back may be no message, the answer to a wish for TLS for
		// example; only silence is wrong.
		if got := c.until(t, ""); strings.Contains(got, "i/o timeout") {
			t.Errorf("the connection did not end: %s", got)
		}
	})
}
