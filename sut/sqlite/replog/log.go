// Package replog is the replication log of an embedded database: each transaction's changes as SQLite's session
// extension records them, in a table of the database that they change, so that no crash can part the two. It also has
// the messages by which a log travels.
//
// Whoever holds the one connection that writes calls Begin, Seal and Committed around a transaction of clients, or
// Apply and Committed in one that repeats what another log has. Positions count entries from 1 on, times are
// microseconds since 1970. Schema changes are not logged: an entry knows the digest of the schema that it was made
// under, and is applied under no other. What logs of one primary and of several have in common is here: entries and
// their bounds, the Recorder, snapshots, and the two ends of a connection, Link and Feed.
//
// A Log is used by one goroutine at a time; the functions that take a connection need one of their own.
package replog

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"strings"

	"zombiezen.com/go/sqlite"
)

// Entry is the changes of one transaction, or of a group that committed together.
type Entry struct {
	Position int64  // in the log
	Epoch    int64  // of the primary that made it, where there is one
	Origin   string // of several primaries: the database that made it ...
	Seq      int64  // ... and its index among the entries of that, from 1
	AtUS     int64  // when it was committed
	Schema   string // digest
	Changes  []byte // a changeset; of several primaries, rows
}

// MaxChanges is the largest changeset in bytes: a transaction that changes more fails.
const MaxChanges = 64 << 20

// Why an entry was not made or applied.
var (
	// ErrConflict: the database is not the one that the changes were made to.
	ErrConflict = errors.New("changes do not fit this copy")
	// ErrSchema: its tables are others.
	ErrSchema = errors.New("schema differs")
	// ErrTooLarge: the changes exceed MaxChanges.
	ErrTooLarge = errors.New("transaction changes too much to be replicated")
)

// Log is the log of one database, through the connection that writes.
type Log struct {
	*Recorder
	limits Limits
	need   int64 // entries after this position stay

	// now is what is committed, next what the open transaction makes of it.
	now, next state
}

// state is the extent of a log.
type state struct {
	Extent
	epoch, atUS int64 // of the last one
}

// Open makes the tables of the log where there are none.
func Open(conn *sqlite.Conn, limits Limits) (*Log, error) {
	l := &Log{Recorder: NewRecorder(conn), limits: limits, need: math.MaxInt64}
	err := Exec(conn, `create table if not exists replication_log (position integer primary key, epoch integer not null, `+
		`schema text not null, at_us integer not null, changes blob not null)`)
	if err == nil {
		l.now.Extent, err = Measure(conn, "replication_log")
	}
	if err == nil {
		const last = `select epoch, at_us from replication_log where position = ?`
		err = Run(conn, last, []any{l.now.Last}, func(row *sqlite.Stmt) {
			l.now.epoch, l.now.atUS = row.ColumnInt64(0), row.ColumnInt64(1)
		})
	}
	if err != nil {
		return nil, fmt.Errorf("replication log: %w", err)
	}
	l.next = l.now
	return l, nil
}

// Last returns the position and epoch of the last committed entry; 0 and 0 when there is none.
func (l *Log) Last() (position, epoch int64) { return l.now.Last, l.now.epoch }

// Know raises the highest epoch that a database has known, and returns it.
func Know(conn *sqlite.Conn, epoch int64) (known int64, err error) {
	const table = `create table if not exists replication_state ` +
		`(id integer primary key check (id = 1), epoch integer not null)`
	if err := Exec(conn, table); err != nil {
		return 0, err
	}
	const raise = `insert into replication_state values (1, ?1) ` +
		`on conflict do update set epoch = max(epoch, ?1) returning epoch`
	return Number(conn, raise, epoch)
}

// Need keeps entries after a position.
func (l *Log) Need(position int64) { l.need = position }

// Seal ends the recording and adds it to the log, before the commit. It returns nil when nothing changed.
func (l *Log) Seal(epoch, nowUS int64) (*Entry, error) {
	changes, err := l.Recorded()
	switch {
	case err != nil:
		return nil, err
	case len(changes) == 0:
		return nil, nil
	case len(changes) > MaxChanges:
		return nil, ErrTooLarge
	}
	schema, err := l.Schema()
	if err != nil {
		return nil, err
	}
	// A clock that is set back must not make later changes look older.
	e := &Entry{Position: l.next.Last + 1, Epoch: epoch, Schema: schema, AtUS: max(nowUS, l.next.atUS), Changes: changes}
	return e, l.add(e)
}

// Apply repeats an entry, in an open transaction, and adds it to the log.
func (l *Log) Apply(e *Entry) error {
	schema, err := l.Schema()
	if err != nil {
		return err
	}
	if e.Schema != schema {
		return fmt.Errorf("%w: entry %d was made under %s, this copy has %s", ErrSchema, e.Position, e.Schema, schema)
	}
	if e.Position != l.next.Last+1 {
		return fmt.Errorf("%w: entry %d after %d", ErrConflict, e.Position, l.next.Last)
	}
	// Statistics of ANALYZE are not applied: a copy without their table would take some and miss others.
	ours := func(table string) bool { return !strings.HasPrefix(table, "sqlite_") }
	var conflict error
	report := func(kind sqlite.ConflictType, at *sqlite.ChangesetIterator) sqlite.ConflictAction {
		table := "a table"
		if op, err := at.Operation(); err == nil {
			table = fmt.Sprintf("%v in table %s", op.Type, op.TableName)
		}
		conflict = fmt.Errorf("%w: entry %d: %v at %s", ErrConflict, e.Position, kind, table)
		return sqlite.ChangesetAbort
	}
	err = l.conn.ApplyChangeset(bytes.NewReader(e.Changes), ours, report)
	if err = cmp.Or(conflict, err); err != nil {
		return err
	}
	return l.add(e)
}

// Committed says that the transaction is durable.
func (l *Log) Committed() { l.now = l.next }

// Drop forgets a transaction that was taken back, or is about to be.
func (l *Log) Drop() {
	l.Recorder.Drop()
	l.next = l.now
}

func (l *Log) add(e *Entry) error {
	const insert = `insert into replication_log values (?, ?, ?, ?, ?)`
	err := Exec(l.conn, insert, e.Position, e.Epoch, e.Schema, e.AtUS, e.Changes)
	if err != nil {
		return err
	}
	l.next.epoch, l.next.atUS = e.Epoch, e.AtUS
	_, err = l.next.Add(l.conn, "replication_log", e, l.limits, l.need)
	return err
}

// Position returns the position of the last entry.
func Position(conn *sqlite.Conn) (int64, error) {
	return Number(conn, `select coalesce(max(position), 0) from replication_log`)
}

// Holds reports whether the log has that entry, or begins right after it.
func Holds(conn *sqlite.Conn, position, epoch int64) (bool, error) {
	if position == 0 {
		first, err := Number(conn, `select coalesce(min(position), 1) from replication_log`)
		return epoch == 0 && first == 1, err
	}
	held, err := Number(conn, `select epoch from replication_log where position = ?`, position)
	return held > 0 && held == epoch, err
}

// Entries returns entries after a position, as many as fit into about so many bytes, but one if there is any.
func Entries(conn *sqlite.Conn, after int64, bytes int) (entries []Entry, err error) {
	// The bound of positions keeps SQLite from reading blobs that nobody takes.
	const rows = `select position, epoch, schema, at_us, changes from replication_log ` +
		`where position > ? and position <= ? order by position`
	err = Run(conn, rows, []any{after, after + 256}, func(row *sqlite.Stmt) {
		if bytes <= 0 {
			return
		}
		e := Entry{Position: row.ColumnInt64(0), Epoch: row.ColumnInt64(1), Schema: row.ColumnText(2)}
		e.AtUS, e.Changes = row.ColumnInt64(3), Blob(row, 4)
		bytes -= len(e.Changes) + 1
		entries = append(entries, e)
	})
	return entries, err
}
