package replog

import (
	"bytes"
	"errors"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"zombiezen.com/go/sqlite"
)

const table = "create table notes (id integer primary key, text text)"

// database returns a new database with a log.
func database(t *testing.T, limits Limits, statements ...string) (*sqlite.Conn, *Log) {
	t.Helper()
	conn, err := sqlite.OpenConn(filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, s := range statements {
		exec(t, conn, s)
	}
	l, err := Open(conn, limits)
	if err != nil {
		t.Fatal(err)
	}
	return conn, l
}

func exec(t *testing.T, conn *sqlite.Conn, sql string, params ...any) {
	t.Helper()
	if err := Exec(conn, sql, params...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// transact runs one recorded transaction and returns its entry.
func transact(t *testing.T, conn *sqlite.Conn, l *Log, statements ...string) *Entry {
	t.Helper()
	exec(t, conn, "begin immediate")
	if err := l.Begin(); err != nil {
		t.Fatal(err)
	}
	for _, s := range statements {
		exec(t, conn, s)
	}
	e, err := l.Seal(1, 1000)
	if err != nil {
		t.Fatal(err)
	}
	exec(t, conn, "commit")
	l.Committed()
	return e
}

func wide() Limits { return Limits{Entries: 1000, Bytes: 1 << 30} }

func TestRecordsAndRepeats(t *testing.T) {
	t.Parallel()
	from, primary := database(t, wide(), table)
	to, replica := database(t, wide(), table)
	var entries []*Entry
	for _, s := range []string{
		"insert into notes values (1, 'a'), (2, 'b')",
		"update notes set text = 'c' where id = 1",
		"delete from notes where id = 2",
		"update notes set text = null",
	} {
		entries = append(entries, transact(t, from, primary, s))
	}
	if e := transact(t, from, primary, "update notes set text = text", "delete from notes where id = 9"); e != nil {
		t.Errorf("an entry without changes: %+v", e)
	}
	for i, e := range entries {
		if e.Position != int64(i+1) || e.AtUS != 1000 || e.Epoch != 1 {
			t.Errorf("entry %d is %+v", i, e)
		}
	}
	exec(t, to, "begin immediate")
	for _, e := range entries {
		if err := replica.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	exec(t, to, "commit")
	replica.Committed()
	if p, e := replica.Last(); p != 4 || e != 1 {
		t.Errorf("the replica is at %d, %d", p, e)
	}
	again, err := Entries(to, 1, 1<<20)
	if err != nil || len(again) != 3 || !bytes.Equal(again[2].Changes, entries[3].Changes) ||
		again[2].Schema != entries[3].Schema {
		t.Errorf("the replica's log has %+v, %v", again, err)
	}
	for _, c := range []struct {
		position, epoch int64
		want            bool
	}{{0, 0, true}, {4, 1, true}, {4, 2, false}, {5, 1, false}, {0, 1, false}, {-1, 0, false}} {
		if got, err := Holds(to, c.position, c.epoch); got != c.want || err != nil {
			t.Errorf("Holds(%d, %d) is %v, %v", c.position, c.epoch, got, err)
		}
	}
}

// TestApplyRefuses checks that a refused entry changes nothing.
func TestApplyRefuses(t *testing.T) {
	t.Parallel()
	from, primary := database(t, wide(), table)
	good := transact(t, from, primary, "insert into notes values (1, 'a'), (2, 'b')")
	const trigger = "create trigger t after insert on notes begin select 1; end"
	for name, c := range map[string]struct {
		statements []string
		change     func(*Entry)
		want       error
	}{
		"row exists":        {[]string{table, "insert into notes values (2, 'other')"}, nil, ErrConflict},
		"gap":               {[]string{table}, func(e *Entry) { e.Position = 2 }, ErrConflict},
		"schema differs":    {[]string{table, "create index i on notes (text)"}, nil, ErrSchema},
		"no table":          {nil, nil, ErrSchema},
		"trigger":           {[]string{table, trigger}, nil, ErrSchema},
		"table without key": {[]string{table, "create table free (x int)"}, nil, ErrSchema},
		"nullable key":      {[]string{table, "create table free (x text primary key)"}, nil, ErrSchema},
		"not a changeset":   {[]string{table}, func(e *Entry) { e.Changes = []byte("nonsense") }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, l := database(t, wide(), c.statements...)
			e := *good
			if c.change != nil {
				c.change(&e)
			}
			exec(t, conn, "begin immediate")
			err := l.Apply(&e)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			l.Drop()
			exec(t, conn, "rollback")
			if p, _ := l.Last(); p != 0 {
				t.Errorf("the log is at %d", p)
			}
		})
	}
}

func TestRolledBack(t *testing.T) {
	t.Parallel()
	conn, l := database(t, wide(), table)
	exec(t, conn, "begin immediate")
	if err := l.Begin(); err != nil {
		t.Fatal(err)
	}
	exec(t, conn, "insert into notes values (1, 'a')")
	l.Drop()
	exec(t, conn, "rollback")
	e := transact(t, conn, l,
		"savepoint s", "insert into notes values (1, 'a')", "rollback to s", "release s", "insert into notes values (2, 'b')")
	if e.Position != 1 {
		t.Errorf("got %+v", e)
	}
	_, lost, err := LostChanges(t.Context(), fileOf(t, conn), 0)
	if err != nil || len(lost) != 1 || lost[0].Key != "2" || lost[0].New["text"] != "b" {
		t.Errorf("the log has %+v, %v", lost, err)
	}
}

func fileOf(t *testing.T, conn *sqlite.Conn) (path string) {
	t.Helper()
	err := Run(conn, "select file from pragma_database_list", nil, func(row *sqlite.Stmt) { path = row.ColumnText(0) })
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPrunes(t *testing.T) {
	t.Parallel()
	grow := func(t *testing.T, limits Limits, retain int64, count int, text string) *Log {
		t.Helper()
		conn, l := database(t, limits, table)
		l.Retain(retain)
		for range count {
			transact(t, conn, l, "insert into notes (text) values ('"+text+"')")
		}
		opened, err := Open(conn, limits)
		if err != nil || opened.now != l.now {
			t.Errorf("the reopened log is %+v, was %+v, %v", opened.now, l.now, err)
		}
		return l
	}
	l := grow(t, Limits{Entries: 16, Bytes: 1 << 30}, math.MaxInt64, 100, "a")
	if kept := l.now.Last - l.now.First + 1; kept < 16 || kept > 18 {
		t.Errorf("16 entries: %+v", l.now)
	}
	l = grow(t, Limits{Entries: 1000, Bytes: 10_000}, math.MaxInt64, 100, strings.Repeat("a", 1000))
	if l.now.Bytes > 11_250 || l.now.Bytes < 8_000 {
		t.Errorf("10,000 bytes: %+v", l.now)
	}
	if l := grow(t, Limits{Entries: 1000, Bytes: 1}, math.MaxInt64, 3, "a"); l.now.First != 3 {
		t.Errorf("the last entry must stay: %+v", l.now)
	}
	if l := grow(t, Limits{Entries: 16, Bytes: 1 << 30}, 10, 100, "a"); l.now.First != 11 {
		t.Errorf("entries after 10 must stay: %+v", l.now)
	}
	if l := grow(t, Limits{Entries: 10, Bytes: 1 << 30}, 10, 100, "a"); l.now.First <= 11 {
		t.Errorf("entries after 10 must go when the log is 8 times too large: %+v", l.now)
	}
}

func TestNoSchema(t *testing.T) {
	t.Parallel()
	conn, _ := database(t, wide())
	if got, err := Schema(conn); got != NoSchema() || err != nil {
		t.Errorf("an empty database has schema %s, %v", got, err)
	}
}

func TestMessages(t *testing.T) {
	t.Parallel()
	if _, _, err := Read(strings.NewReader("E\xff\xff\xff\xff"), MaxBody); err == nil {
		t.Error("a message of 4 GB was accepted")
	}
	if _, _, err := Read(strings.NewReader("E\x00\x00\x00\x05abc"), MaxBody); err == nil {
		t.Error("a truncated message was accepted")
	}
	if _, err := Numbers(make([]byte, 15), 2); err == nil {
		t.Error("15 bytes were parsed as two numbers")
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 34))
	f.Add(append(make([]byte, 32), "\x02db\x03abcrest"...))
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := ParseEntry(body)
		if err == nil && 34+len(e.Origin)+len(e.Schema)+len(e.Changes) != len(body) {
			t.Errorf("%q became %+v", body, e)
		}
	})
}

// Messages keep their kind and their body, and no input makes a reader take more memory than the input has.
func FuzzMessages(f *testing.F) {
	f.Add([]byte("E\x00\x00\x00\x03abcW\x00\x00\x00\x00"))
	f.Add([]byte("E\xff\xff\xff\xff"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, input []byte) {
		in := bytes.NewReader(input)
		var again bytes.Buffer
		for {
			kind, body, err := Read(in, MaxBody)
			if err != nil {
				break
			}
			if err := Write(&again, kind, body); err != nil {
				t.Fatal(err)
			}
			if numbers, err := Numbers(body, len(body)/8); err == nil && !bytes.Equal(appendNumbers(nil, numbers...), body) {
				t.Errorf("%q became the numbers %v", body, numbers)
			}
		}
		if !bytes.HasPrefix(input, again.Bytes()) {
			t.Errorf("%q was read as %q", input, again.Bytes())
		}
	})
}
