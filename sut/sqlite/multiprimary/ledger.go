package multiprimary

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strconv"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// ledger is what a database knows of all changes: the log, how far each origin is, and the version of each row that
// was changed. It belongs to the holder of the write lock.
type ledger struct {
	*replog.Recorder
	conn   *sqlite.Conn
	limits replog.Limits
	self   string // the origin that this database is
	tables tables

	// now is what is committed, next what the open transaction makes of it.
	now, next progress
}

// progress is how far a database is.
type progress struct {
	replog.Extent
	forks  int64 // versions that were replaced more than once, and how often more
	hidden int64 // rows whose UNIQUE key another one has
	marks  map[string]mark
}

// mark is the last change of an origin that is known.
type mark struct{ seq, atUS int64 }

func (p progress) clone() progress {
	p.marks = maps.Clone(p.marks)
	return p
}

// keep is what a log must keep.
type keep struct {
	after     int64 // entries after this position
	horizonUS int64 // deleted rows of this time and later ones
}

// errGap is met when an entry is not the next one of its origin.
var errGap = errors.New("changes are missing")

// openLedger makes the tables where there are none. A database without them is a new origin.
func openLedger(conn *sqlite.Conn, node string, nowUS int64, limits replog.Limits) (*ledger, error) {
	l := &ledger{Recorder: replog.NewRecorder(conn), conn: conn, limits: limits, now: progress{marks: map[string]mark{}}}
	for _, statement := range []string{
		`create table if not exists replication_changes (position integer primary key, origin text not null, ` +
			`seq integer not null, at_us integer not null, schema text not null, changes blob not null)`,
		`create unique index if not exists replication_changes_seq on replication_changes (origin, seq)`,
		`create table if not exists replication_origins (origin text primary key, ` +
			`seq integer not null, at_us integer not null) without rowid`,
		// The highest version of each row that any primary of several has changed.
		`create table if not exists replication_rows ("table" text, key blob, ` +
			`at_us integer not null, origin text not null, deleted integer not null, primary key ("table", key)) without rowid`,
		// The versions that were replaced, and when first.
		`create table if not exists replication_bases ("table" text, key blob, ` +
			`at_us integer, origin text, replaced_us integer not null, primary key ("table", key, at_us, origin)) without rowid`,
		`create table if not exists replication_hidden ("table" text, key blob, ` +
			`"row" blob not null, primary key ("table", key)) without rowid`,
		`create table if not exists replication_self (id integer primary key check (id = 1), ` +
			`origin text not null, forks integer not null)`,
	} {
		if err := replog.Exec(conn, statement); err != nil {
			return nil, err
		}
	}
	origin := node + "#" + strconv.FormatInt(nowUS, 36)
	err := replog.Exec(conn, `insert or ignore into replication_self values (1, ?, 0)`, origin)
	if err != nil {
		return nil, err
	}
	p := &l.now
	const self = `select origin, forks, (select count(*) from replication_hidden) from replication_self`
	err = replog.Run(l.conn, self, nil, func(row *sqlite.Stmt) {
		l.self, p.forks, p.hidden = row.ColumnText(0), row.ColumnInt64(1), row.ColumnInt64(2)
	})
	if err == nil {
		p.Extent, err = replog.Measure(l.conn, "replication_changes")
	}
	if err == nil {
		err = replog.Run(l.conn, `select origin, seq, at_us from replication_origins`, nil, func(row *sqlite.Stmt) {
			p.marks[row.ColumnText(0)] = mark{seq: row.ColumnInt64(1), atUS: row.ColumnInt64(2)}
		})
	}
	if err != nil {
		return nil, err
	}
	l.next = p.clone()
	if nodeOf(l.self) != node {
		return nil, fmt.Errorf("this database is that of node %s, not %s", nodeOf(l.self), node)
	}
	return l, nil
}

// recorded ends the recording and returns what changed, without versions.
func (l *ledger) recorded() (changes []Change, err error) {
	set, err := l.Recorded()
	if err != nil || len(set) == 0 {
		return nil, err
	}
	if err := l.refresh(); err != nil {
		return nil, err
	}
	rows, err := sqlite.NewChangesetIterator(bytes.NewReader(set))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for {
		more, err := rows.Next()
		if err != nil || !more {
			return changes, err
		}
		op, err := rows.Operation()
		if err != nil {
			return nil, err
		}
		t := l.tables.byName[op.TableName]
		if t == nil {
			continue // statistics of SQLite
		}
		key, err := keyAt(rows, op.Type, t)
		if err != nil {
			return nil, err
		}
		c := Change{Table: t.name, Key: appendValues(nil, key)}
		if op.Type != sqlite.OpDelete {
			if c.Row, err = t.read(l.conn, key); err != nil {
				return nil, err
			}
		}
		changes = append(changes, c)
	}
}

func keyAt(rows *sqlite.ChangesetIterator, op sqlite.OpType, t *table) ([]any, error) {
	var key []any
	for _, i := range t.key {
		get := rows.Old
		if op == sqlite.OpInsert {
			get = rows.New
		}
		v, err := get(i)
		if err != nil {
			return nil, err
		}
		key = append(key, replog.GoValue(v))
	}
	return key, nil
}

// seal adds a transaction of this origin to the log, before it is committed.
func (l *ledger) seal(changes []Change, atUS int64, k keep) (position int64, err error) {
	e := &replog.Entry{Origin: l.self, Seq: l.next.marks[l.self].seq + 1, AtUS: atUS, Schema: l.tables.digest}
	version := Version{AtUS: atUS, Origin: l.self}
	touched := map[string]bool{}
	for i := range changes {
		c := &changes[i]
		if c.Base, err = l.version(c.Table, c.Key); err != nil {
			return 0, err
		}
		if err := l.remember(c, version, true); err != nil {
			return 0, err
		}
		touched[c.Table] = true
		e.Changes = appendChange(e.Changes, c)
	}
	if len(e.Changes) > replog.MaxChanges {
		return 0, replog.ErrTooLarge
	}
	if l.next.hidden > 0 {
		for i := range changes {
			if err := l.unhide(changes[i].Table, changes[i].Key); err != nil {
				return 0, err
			}
		}
		for name := range touched {
			if err := l.reveal(l.tables.byName[name]); err != nil {
				return 0, err
			}
		}
	}
	return l.next.Last + 1, l.add(e, k)
}

// apply repeats an entry of another origin in an open transaction. One that is known already changes nothing.
func (l *ledger) apply(e *replog.Entry, k keep) error {
	known := l.next.marks[e.Origin].seq
	switch {
	case e.Seq <= known:
		return nil
	case e.Seq > known+1:
		return fmt.Errorf("%w: change %d of %s after %d", errGap, e.Seq, e.Origin, known)
	}
	if err := l.refresh(); err != nil {
		return err
	}
	if e.Schema != l.tables.digest {
		const text = "%w: change %d of %s has schema %s, this node has %s"
		return fmt.Errorf(text, replog.ErrSchema, e.Seq, e.Origin, e.Schema, l.tables.digest)
	}
	changes, err := parseChanges(e.Changes)
	if err != nil {
		return err
	}
	version := Version{AtUS: e.AtUS, Origin: e.Origin}
	for i := range changes {
		c := &changes[i]
		t := l.tables.byName[c.Table]
		if t == nil || c.Row != nil && len(c.Row) != len(t.columns) {
			return fmt.Errorf("%w: change %d of %s is of another table %q", replog.ErrSchema, e.Seq, e.Origin, c.Table)
		}
		last, err := l.version(c.Table, c.Key)
		if err != nil {
			return err
		}
		wins := version.Compare(last) > 0
		if err := l.remember(c, version, wins); err != nil {
			return err
		}
		if wins {
			if err := l.put(t, c, version); err != nil {
				return fmt.Errorf("change %d of %s to table %s: %w", e.Seq, e.Origin, c.Table, err)
			}
		}
	}
	return l.add(e, k)
}

func (l *ledger) version(table string, key []byte) (v Version, err error) {
	const highest = `select at_us, origin from replication_rows where "table" = ? and key = ?`
	err = replog.Run(l.conn, highest, []any{table, key}, func(row *sqlite.Stmt) {
		v = Version{AtUS: row.ColumnInt64(0), Origin: row.ColumnText(1)}
	})
	return v, err
}

// remember notes which version a change has replaced, and its own when it is the highest one.
func (l *ledger) remember(c *Change, version Version, wins bool) error {
	const base = `insert or ignore into replication_bases values (?, ?, ?, ?, ?)`
	err := replog.Exec(l.conn, base, c.Table, c.Key, c.Base.AtUS, c.Base.Origin, version.AtUS)
	if err != nil {
		return err
	}
	if l.conn.Changes() == 0 {
		l.next.forks++
	}
	if !wins {
		return nil
	}
	deleted := int64(0)
	if c.Row == nil {
		deleted = 1
	}
	const highest = `insert or replace into replication_rows values (?, ?, ?, ?, ?)`
	return replog.Exec(l.conn, highest, c.Table, c.Key, version.AtUS, version.Origin, deleted)
}

func (l *ledger) committed() {
	if l.next.Last != l.now.Last {
		l.now = l.next.clone()
	}
}

// drop forgets a transaction that was taken back, or is about to be.
func (l *ledger) drop() {
	l.Drop()
	l.next = l.now.clone()
}

func (l *ledger) add(e *replog.Entry, k keep) error {
	n := &l.next
	e.Position = n.Last + 1
	const insert = `insert into replication_changes values (?, ?, ?, ?, ?, ?)`
	err := replog.Exec(l.conn, insert, e.Position, e.Origin, e.Seq, e.AtUS, e.Schema, e.Changes)
	if err == nil {
		err = replog.Exec(l.conn, `insert or replace into replication_origins values (?, ?, ?)`, e.Origin, e.Seq, e.AtUS)
	}
	if err == nil && n.forks != l.now.forks {
		err = replog.Exec(l.conn, `update replication_self set forks = ?`, n.forks)
	}
	if err != nil {
		return err
	}
	n.marks[e.Origin] = mark{seq: e.Seq, atUS: e.AtUS}
	pruned, err := n.Add(l.conn, "replication_changes", e, l.limits, k.after)
	if err != nil || !pruned {
		return err
	}
	// The memory for rows that was of use for the entries that went.
	reachUS, err := replog.Number(l.conn, `select min(at_us) from replication_changes`)
	if err == nil {
		err = replog.Exec(l.conn, `delete from replication_bases where replaced_us < ?`, reachUS)
	}
	if err == nil {
		err = replog.Exec(l.conn, `delete from replication_rows where deleted and at_us < ?`, min(reachUS, k.horizonUS))
	}
	return err
}
