// Package replog is the replication log of an embedded database: each
// transaction's changes as SQLite's session extension records them, in a table
// of the database that they change, so that no crash can part the two. It also
// has the messages by which a log travels.
//
// It opens no connection and begins no transaction: whoever holds the one
// connection that writes calls Begin, Seal and Committed around a transaction
// of clients, or Apply and Committed in one that repeats what another log has.
// Positions count entries from 1 on, times are microseconds since 1970. Schema
// changes are not logged: an entry knows the digest of the schema that it was
// made under, and is applied under no other.
//
// A Log is used by one goroutine at a time; the functions that take a
// connection need one of their own.
package replog

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"

	"zombiezen.com/go/sqlite"
)

// Entry is the changes of one transaction, or of a group that committed
// together.
type Entry struct {
	Position int64
	Epoch    int64  // of the primary that made it
	Schema   string // digest
	AtUS     int64  // when it was committed
	Changes  []byte // a changeset
}

// MaxChanges is the largest changeset in bytes: a transaction that changes more
// fails.
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

// Limits bound what a log keeps. When one is exceeded by an eighth the oldest
// entries go; the last one always stays. What Need protects stays until the log
// has grown to leeway times its limits.
type Limits struct {
	Entries int64
	Bytes   int64 // of changesets
}

// leeway is how much larger than its limits a log may grow for a replica that
// is fetching a snapshot: under many writes it would never catch up, if what
// follows the snapshot were gone when it has it.
const leeway = 8

// Log is the log of one database, through the connection that writes.
type Log struct {
	conn    *sqlite.Conn
	limits  Limits
	session *sqlite.Session // records the open transaction, or nil
	need    int64           // entries after this position stay

	// now is what is committed, next what the open transaction makes of it.
	now, next state

	schema  string // digest of the tables ...
	version int64  // ... at this version of SQLite's schema
}

// state is the extent of a log.
type state struct {
	first, last int64 // positions; 0 = there is none
	epoch, atUS int64 // of the last one
	bytes       int64
}

// Open makes the tables of the log where there are none.
func Open(conn *sqlite.Conn, limits Limits) (*Log, error) {
	l := &Log{conn: conn, limits: limits, version: -1, need: math.MaxInt64}
	for _, statement := range []string{
		`create table if not exists replication_log (position integer primary key, epoch integer not null, schema text not null, at_us integer not null, changes blob not null)`,
		`create table if not exists replication_state (id integer primary key check (id = 1), epoch integer not null)`,
		`insert or ignore into replication_state values (1, 0)`,
	} {
		if err := Run(conn, statement, nil, nil); err != nil {
			return nil, fmt.Errorf("replication log: %w", err)
		}
	}
	err := Run(conn, `select coalesce(min(position), 0), coalesce(max(position), 0), coalesce(sum(length(changes)), 0) from replication_log`, nil, func(row *sqlite.Stmt) {
		l.now.first, l.now.last, l.now.bytes = row.ColumnInt64(0), row.ColumnInt64(1), row.ColumnInt64(2)
	})
	if err == nil {
		err = Run(conn, `select epoch, at_us from replication_log where position = ?`, []any{l.now.last}, func(row *sqlite.Stmt) {
			l.now.epoch, l.now.atUS = row.ColumnInt64(0), row.ColumnInt64(1)
		})
	}
	if err != nil {
		return nil, fmt.Errorf("replication log: %w", err)
	}
	l.next = l.now
	return l, nil
}

// Last returns the position and epoch of the last committed entry; 0 and 0
// when there is none.
func (l *Log) Last() (position, epoch int64) { return l.now.last, l.now.epoch }

// Epoch returns the highest epoch that the database has known.
func (l *Log) Epoch() (epoch int64, err error) {
	err = Run(l.conn, `select epoch from replication_state`, nil, func(row *sqlite.Stmt) { epoch = row.ColumnInt64(0) })
	return epoch, err
}

// Know raises the highest known epoch.
func (l *Log) Know(epoch int64) error {
	return Run(l.conn, `update replication_state set epoch = max(epoch, ?)`, []any{epoch}, nil)
}

// Need keeps entries after a position.
func (l *Log) Need(position int64) { l.need = position }

// Begin starts to record a transaction that has just begun.
func (l *Log) Begin() (err error) {
	l.session, err = Record(l.conn)
	return err
}

// Seal ends the recording, before the transaction is committed, and adds what
// changed to the log. It returns nil when nothing did.
func (l *Log) Seal(epoch, nowUS int64) (*Entry, error) {
	changes, err := Recorded(l.session)
	l.session = nil
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
	e := &Entry{Position: l.next.last + 1, Epoch: epoch, Schema: schema, AtUS: max(nowUS, l.next.atUS), Changes: changes}
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
	if e.Position != l.next.last+1 {
		return fmt.Errorf("%w: entry %d after %d", ErrConflict, e.Position, l.next.last)
	}
	// Statistics of ANALYZE come with the template or a snapshot: a copy
	// without their table would take some changes and miss others.
	ours := func(table string) bool { return !strings.HasPrefix(table, "sqlite_") }
	var conflict error
	err = l.conn.ApplyChangeset(bytes.NewReader(e.Changes), ours, func(kind sqlite.ConflictType, at *sqlite.ChangesetIterator) sqlite.ConflictAction {
		table := "a table"
		if op, err := at.Operation(); err == nil {
			table = fmt.Sprintf("%v in table %s", op.Type, op.TableName)
		}
		conflict = fmt.Errorf("%w: entry %d: %v at %s", ErrConflict, e.Position, kind, table)
		return sqlite.ChangesetAbort
	})
	if conflict != nil {
		return conflict
	}
	if err != nil {
		return err
	}
	return l.add(e)
}

// Committed says that the transaction is durable.
func (l *Log) Committed() { l.now = l.next }

// Drop forgets a transaction that was taken back, or is about to be.
func (l *Log) Drop() {
	if l.session != nil {
		l.session.Delete()
		l.session = nil
	}
	l.next = l.now
	l.version = -1 // it may have been the one that changed the schema
}

// add inserts an entry, and now and then takes the oldest ones away.
func (l *Log) add(e *Entry) error {
	err := Run(l.conn, `insert into replication_log values (?, ?, ?, ?, ?)`, []any{e.Position, e.Epoch, e.Schema, e.AtUS, e.Changes}, nil)
	if err != nil {
		return err
	}
	n := &l.next
	if n.first == 0 {
		n.first = e.Position
	}
	n.last, n.epoch, n.atUS = e.Position, e.Epoch, e.AtUS
	n.bytes += int64(len(e.Changes))
	if n.last-n.first+1 <= l.limits.Entries+l.limits.Entries/8 && n.bytes <= l.limits.Bytes+l.limits.Bytes/8 {
		return nil
	}
	most := n.last - 1
	if n.last-n.first < leeway*l.limits.Entries && n.bytes < leeway*l.limits.Bytes {
		most = min(most, l.need)
	}
	return l.prune(most)
}

// prune takes away what exceeds the limits, but nothing after a position.
// Sizes are asked only of entries that go, for this happens between a client
// and its commit.
func (l *Log) prune(most int64) error {
	n := &l.next
	for upTo := n.last - l.limits.Entries; ; upTo = n.first - 1 + max(1, (n.last-n.first)/8) {
		if upTo = min(upTo, most); upTo >= n.first {
			var size int64
			err := Run(l.conn, `select sum(length(changes)) from replication_log where position <= ?`, []any{upTo}, func(row *sqlite.Stmt) { size = row.ColumnInt64(0) })
			if err == nil {
				err = Run(l.conn, `delete from replication_log where position <= ?`, []any{upTo}, nil)
			}
			if err != nil {
				return err
			}
			n.first, n.bytes = upTo+1, n.bytes-size
		}
		if n.bytes <= l.limits.Bytes || upTo == most {
			return nil
		}
	}
}

// Schema returns the digest of the tables and indexes, and ErrSchema when there
// is something in them that changesets do not carry.
func (l *Log) Schema() (string, error) {
	var version int64
	if err := Run(l.conn, `pragma schema_version`, nil, func(row *sqlite.Stmt) { version = row.ColumnInt64(0) }); err != nil {
		return "", err
	}
	if version != l.version {
		digest, err := Schema(l.conn)
		if err != nil {
			return "", err
		}
		l.schema, l.version = digest, version
	}
	return l.schema, nil
}

// Schema is the method of that name for any connection.
func Schema(conn *sqlite.Conn) (string, error) {
	sum := sha256.New()
	var tables, triggers []string
	err := Run(conn, `select type, name, coalesce(sql, '') from sqlite_schema where name not like 'sqlite\_%' escape '\' `+
		`and tbl_name not like 'replication\_%' escape '\' order by type, name`, nil, func(row *sqlite.Stmt) {
		for i := range 3 {
			fmt.Fprintf(sum, "%q\n", row.ColumnText(i))
		}
		switch row.ColumnText(0) {
		case "table":
			tables = append(tables, row.ColumnText(1))
		case "trigger":
			triggers = append(triggers, row.ColumnText(1))
		}
	})
	if err != nil {
		return "", err
	}
	if len(triggers) > 0 {
		return "", fmt.Errorf("%w: trigger %s would fire on each copy again", ErrSchema, triggers[0])
	}
	for _, table := range tables {
		keyed := false
		err := Run(conn, `select 1 from pragma_table_info(?) where pk > 0 and ("notnull" or upper(type) = 'INTEGER')`, []any{table}, func(*sqlite.Stmt) { keyed = true })
		if err != nil {
			return "", err
		}
		if !keyed {
			return "", fmt.Errorf("%w: changes of table %s cannot be recorded, for it has no primary key that is never null", ErrSchema, table)
		}
	}
	return hex.EncodeToString(sum.Sum(nil)[:8]), nil
}

// NoSchema is the digest of a database without tables.
func NoSchema() string { return hex.EncodeToString(sha256.New().Sum(nil)[:8]) }

// Position returns the position of the last entry.
func Position(conn *sqlite.Conn) (position int64, err error) {
	err = Run(conn, `select coalesce(max(position), 0) from replication_log`, nil, func(row *sqlite.Stmt) { position = row.ColumnInt64(0) })
	return position, err
}

// Holds reports whether the log has that entry, or begins right after it.
func Holds(conn *sqlite.Conn, position, epoch int64) (holds bool, err error) {
	if position == 0 {
		err = Run(conn, `select coalesce(min(position), 1) from replication_log`, nil, func(row *sqlite.Stmt) { holds = epoch == 0 && row.ColumnInt64(0) == 1 })
		return holds, err
	}
	err = Run(conn, `select epoch from replication_log where position = ?`, []any{position}, func(row *sqlite.Stmt) { holds = row.ColumnInt64(0) == epoch })
	return holds, err
}

// Entries returns entries after a position, as many as fit into about so many
// bytes, but one if there is any.
func Entries(conn *sqlite.Conn, after int64, bytes int) (entries []Entry, err error) {
	// The bound of positions keeps SQLite from reading blobs that nobody takes.
	err = Run(conn, `select position, epoch, schema, at_us, changes from replication_log where position > ? and position <= ? order by position`, []any{after, after + 256}, func(row *sqlite.Stmt) {
		if bytes <= 0 {
			return
		}
		e := Entry{Position: row.ColumnInt64(0), Epoch: row.ColumnInt64(1), Schema: row.ColumnText(2), AtUS: row.ColumnInt64(3), Changes: make([]byte, row.ColumnLen(4))}
		row.ColumnBytes(4, e.Changes)
		bytes -= len(e.Changes) + 1
		entries = append(entries, e)
	})
	return entries, err
}
