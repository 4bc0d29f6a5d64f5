// Package replog is the replication log of an embedded database. An entry of the log holds the changes of a transaction
// as SQLite's session extension records them. The log is a table of the same database, so a crash cannot separate a
// change from its entry. The package also defines the messages that carry a log to other nodes.
//
// The owner of the write connection calls Begin, Seal and Committed around a transaction of clients. A replica calls
// Apply and Committed for an entry of another log. Positions count entries from 1. Times are microseconds since 1970.
// Schema changes are not logged: an entry carries the digest of the schema under which it was made, and a database with
// another schema refuses it.
//
// Single-primary and multi-primary replication share these parts: entries and their limits, the Recorder, snapshots,
// and the two ends of a connection, Link and Feed.
//
// A Log is not safe for concurrent use. A function that takes a connection needs exclusive use of it.
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

// Entry holds the changes of one transaction, or of a group of transactions with one commit.
type Entry struct {
	Position int64  // in the log
	Epoch    int64  // of the primary that made the entry; 0 in a multi-primary set
	Origin   string // multi-primary: the database that made the entry
	Seq      int64  // multi-primary: index among the entries of Origin, from 1
	AtUS     int64  // time of the commit
	Schema   string // digest of the schema
	Changes  []byte // single primary: a changeset; multi-primary: whole rows
}

// MaxChanges is the largest changeset in bytes. A transaction that changes more fails.
const MaxChanges = 64 << 20

// Errors of making and applying entries.
var (
	// ErrConflict: the entry was made on a different content of the database.
	ErrConflict = errors.New("changes do not fit the content of this copy")
	// ErrSchema: the schemas differ, or changesets do not support this schema.
	ErrSchema = errors.New("schema differs")
	// ErrTooLarge: the changes exceed MaxChanges.
	ErrTooLarge = errors.New("the changes of the transaction are too large to replicate: split the transaction")
)

// Log is the log of one database. It uses the write connection.
type Log struct {
	*Recorder
	limits Limits
	retain int64 // entries after this position stay in the log

	// now is the committed state. next includes the open transaction.
	now, next state
}

// state is the extent of a log and the last entry's epoch and commit time.
type state struct {
	Extent
	epoch, atUS int64 // of the last entry
}

// Open opens the log and creates its tables if they do not exist.
func Open(conn *sqlite.Conn, limits Limits) (*Log, error) {
	l := &Log{Recorder: NewRecorder(conn), limits: limits, retain: math.MaxInt64}
	err := Exec(conn, `create table if not exists replication_log (position integer primary key, `+
		`epoch integer not null, schema text not null, at_us integer not null, changes blob not null)`)
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

// Last returns the position and epoch of the last committed entry. Both are 0 if the log is empty.
func (l *Log) Last() (position, epoch int64) { return l.now.Last, l.now.epoch }

// RaiseEpoch stores the epoch if it is higher than the stored one. It returns the stored epoch.
func RaiseEpoch(conn *sqlite.Conn, epoch int64) (known int64, err error) {
	const table = `create table if not exists replication_state ` +
		`(id integer primary key check (id = 1), epoch integer not null)`
	if err := Exec(conn, table); err != nil {
		return 0, err
	}
	const raise = `insert into replication_state values (1, ?1) ` +
		`on conflict do update set epoch = max(epoch, ?1) returning epoch`
	return Number(conn, raise, epoch)
}

// Retain keeps the entries after a position in the log, within the bound that Limits describes.
func (l *Log) Retain(position int64) { l.retain = position }

// Seal ends the recording and adds an entry to the log, before the commit. It returns nil if nothing changed.
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
	// If the clock is set back, later changes must not get older times.
	atUS := max(nowUS, l.next.atUS)
	e := &Entry{Position: l.next.Last + 1, Epoch: epoch, Schema: schema, AtUS: atUS, Changes: changes}
	return e, l.add(e)
}

// Apply applies an entry of another log in the open transaction and adds it to this log.
func (l *Log) Apply(e *Entry) error {
	schema, err := l.Schema()
	if err != nil {
		return err
	}
	if e.Schema != schema {
		return fmt.Errorf("%w: entry %d has schema %s, this copy has %s", ErrSchema, e.Position, e.Schema, schema)
	}
	if e.Position != l.next.Last+1 {
		return fmt.Errorf("%w: entry %d follows entry %d", ErrConflict, e.Position, l.next.Last)
	}
	// Statistics of ANALYZE are not applied. A replica without their table would apply some of these changes and miss
	// others.
	replicated := func(table string) bool { return !strings.HasPrefix(table, "sqlite_") }
	var conflict error
	report := func(kind sqlite.ConflictType, at *sqlite.ChangesetIterator) sqlite.ConflictAction {
		table := "a table"
		if op, err := at.Operation(); err == nil {
			table = fmt.Sprintf("%v in table %s", op.Type, op.TableName)
		}
		conflict = fmt.Errorf("%w: entry %d: %v on %s", ErrConflict, e.Position, kind, table)
		return sqlite.ChangesetAbort
	}
	err = l.conn.ApplyChangeset(bytes.NewReader(e.Changes), replicated, report)
	if err = cmp.Or(conflict, err); err != nil {
		return err
	}
	return l.add(e)
}

// Committed notes that the transaction was committed.
func (l *Log) Committed() { l.now = l.next }

// Drop discards the recording of a transaction that is or will be rolled back.
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
	_, err = l.next.Add(l.conn, "replication_log", e, l.limits, l.retain)
	return err
}

// Position returns the position of the last entry, 0 if there is none.
func Position(conn *sqlite.Conn) (int64, error) {
	return Number(conn, `select coalesce(max(position), 0) from replication_log`)
}

// Holds reports whether the log contains an entry with this position and epoch. For position and epoch 0 it reports
// whether the log still starts at its first entry.
func Holds(conn *sqlite.Conn, position, epoch int64) (bool, error) {
	if position == 0 {
		first, err := Number(conn, `select coalesce(min(position), 1) from replication_log`)
		return epoch == 0 && first == 1, err
	}
	held, err := Number(conn, `select epoch from replication_log where position = ?`, position)
	return held > 0 && held == epoch, err
}

// Entries returns the entries after a position, in order, up to about the given size in bytes. It returns at least one
// entry if there is one.
func Entries(conn *sqlite.Conn, after int64, bytes int) (entries []Entry, err error) {
	// The upper bound keeps SQLite from reading blobs that are not returned.
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
