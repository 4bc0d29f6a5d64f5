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

// ledger is the replication state of a database: the log, the last known change of each origin, and the version of each
// changed row. The holder of the write lock owns it.
type ledger struct {
	*replog.Recorder
	conn   *sqlite.Conn
	limits replog.Limits
	self   string // the origin name of this database
	tables tables

	// now is the committed state. next includes the open transaction.
	now, next progress
}

// progress is the position of a database and its counters.
type progress struct {
	replog.Extent
	forks  int64 // changes whose base version another change had replaced already
	hidden int64 // rows that are hidden because another row has their UNIQUE key
	heads  map[string]head
	// differences are, by "table.column", what updates had added to an integer before another change won.
	differences map[string]int64
}

// head is the last known change of an origin.
type head struct{ seq, atUS int64 }

func (p progress) clone() progress {
	p.heads, p.differences = maps.Clone(p.heads), maps.Clone(p.differences)
	return p
}

// retention is the data that a log must keep.
type retention struct {
	after        int64 // entries after this position
	tombstonesUS int64 // deleted rows of this time and later ones
}

// errGap is returned for an entry that is not the next one of its origin.
var errGap = errors.New("changes are missing")

// openLedger creates missing tables and reads the state. A database without these tables becomes a new origin.
func openLedger(conn *sqlite.Conn, node string, nowUS int64, limits replog.Limits) (*ledger, error) {
	l := &ledger{
		Recorder: replog.NewRecorder(conn), conn: conn, limits: limits,
		now: progress{heads: map[string]head{}, differences: map[string]int64{}},
	}
	for _, statement := range []string{
		`create table if not exists replication_changes (position integer primary key, origin text not null, ` +
			`seq integer not null, at_us integer not null, schema text not null, changes blob not null)`,
		`create unique index if not exists replication_changes_seq on replication_changes (origin, seq)`,
		`create table if not exists replication_origins (origin text primary key, ` +
			`seq integer not null, at_us integer not null) without rowid`,
		// The highest version of each changed row. A deleted row stays here as a tombstone.
		`create table if not exists replication_rows ("table" text, key blob, ` +
			`at_us integer not null, origin text not null, deleted integer not null, primary key ("table", key)) without rowid`,
		// The versions that were replaced, with the time of the first replacement.
		`create table if not exists replication_bases ("table" text, key blob, ` +
			`at_us integer, origin text, replaced_us integer not null, primary key ("table", key, at_us, origin)) without rowid`,
		// The rows whose UNIQUE key a row of a higher version has.
		`create table if not exists replication_hidden ("table" text, key blob, ` +
			`"row" blob not null, primary key ("table", key)) without rowid`,
		`create table if not exists replication_self (id integer primary key check (id = 1), ` +
			`origin text not null, forks integer not null)`,
		`create table if not exists replication_differences ("column" text primary key, lost integer not null) without rowid`,
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
			p.heads[row.ColumnText(0)] = head{seq: row.ColumnInt64(1), atUS: row.ColumnInt64(2)}
		})
	}
	if err == nil {
		err = replog.Run(l.conn, `select "column", lost from replication_differences`, nil, func(row *sqlite.Stmt) {
			p.differences[row.ColumnText(0)] = row.ColumnInt64(1)
		})
	}
	if err != nil {
		return nil, err
	}
	l.next = p.clone()
	if nodeOf(l.self) != node {
		const text = "the database belongs to node %s, not to %s: use the directory of this node"
		return nil, fmt.Errorf(text, nodeOf(l.self), node)
	}
	return l, nil
}

// recorded ends the recording and returns the changes, without their base versions.
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
			continue // SQLite's own table of statistics
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
		if op.Type == sqlite.OpUpdate {
			if c.Added, err = added(rows, op.NumColumns); err != nil {
				return nil, err
			}
		}
		changes = append(changes, c)
	}
}

// added returns what the current update of a changeset has added to each integer.
func added(rows *sqlite.ChangesetIterator, columns int) ([]any, error) {
	all := make([]any, columns)
	for i := range all {
		old, err := rows.Old(i)
		if err != nil {
			return nil, err
		}
		now, err := rows.New(i)
		if err != nil {
			return nil, err
		}
		if old.Type() == sqlite.TypeInteger && now.Type() == sqlite.TypeInteger {
			all[i] = now.Int64() - old.Int64()
		}
	}
	return all, nil
}

// keyAt returns the primary key of the current row of a changeset.
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

// seal adds a transaction of this origin to the log before the commit.
func (l *ledger) seal(changes []Change, atUS int64, k retention) (position int64, err error) {
	e := &replog.Entry{Origin: l.self, Seq: l.next.heads[l.self].seq + 1, AtUS: atUS, Schema: l.tables.digest}
	version := Version{AtUS: atUS, Origin: l.self}
	touched := map[string]bool{}
	for i := range changes {
		c := &changes[i]
		if c.Base, err = l.version(c.Table, c.Key); err != nil {
			return 0, err
		}
		if err := l.recordVersion(c, version, true); err != nil {
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
			if err := l.deleteHidden(changes[i].Table, changes[i].Key); err != nil {
				return 0, err
			}
		}
		for name := range touched {
			if err := l.restoreHidden(l.tables.byName[name]); err != nil {
				return 0, err
			}
		}
	}
	return l.next.Last + 1, l.add(e, k)
}

// apply applies an entry of another origin in an open transaction. It ignores an entry that is known already.
func (l *ledger) apply(e *replog.Entry, k retention) error {
	known := l.next.heads[e.Origin].seq
	switch {
	case e.Seq <= known:
		return nil
	case e.Seq > known+1:
		return fmt.Errorf("%w: got change %d of %s after change %d", errGap, e.Seq, e.Origin, known)
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
		if t == nil || c.Row != nil && len(c.Row) != len(t.columns) || c.Added != nil && len(c.Added) != len(c.Row) {
			return fmt.Errorf("%w: change %d of %s does not fit table %q", replog.ErrSchema, e.Seq, e.Origin, c.Table)
		}
		last, err := l.version(c.Table, c.Key)
		if err != nil {
			return err
		}
		wins := version.Compare(last) > 0
		if err := l.recordVersion(c, version, wins); err != nil {
			return err
		}
		if c.Base != last {
			if err := l.countDifferences(t, c, wins); err != nil {
				return err
			}
		}
		if wins {
			if err := l.writeRow(t, c, version); err != nil {
				return fmt.Errorf("change %d of %s to table %s: %w", e.Seq, e.Origin, c.Table, err)
			}
		}
	}
	return l.add(e, k)
}

// version returns the highest version of a row. It is zero if no change is known.
func (l *ledger) version(table string, key []byte) (v Version, err error) {
	const highest = `select at_us, origin from replication_rows where "table" = ? and key = ?`
	err = replog.Run(l.conn, highest, []any{table, key}, func(row *sqlite.Stmt) {
		v = Version{AtUS: row.ColumnInt64(0), Origin: row.ColumnText(1)}
	})
	return v, err
}

// recordVersion records that a change has replaced its base version. If it wins, its version becomes the highest
// version of the row.
func (l *ledger) recordVersion(c *Change, version Version, wins bool) error {
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

// countDifferences counts what updates had added to integers and what the table lacks after the update c. The present
// row has another version than the base of c. When all nodes have all changes, they count the same: the sum of all
// additions, less the difference of the last and the first value.
func (l *ledger) countDifferences(t *table, c *Change, wins bool) error {
	key, err := parseValues(c.Key)
	if err != nil || c.Added == nil {
		return err
	}
	before, err := t.read(l.conn, key)
	if err != nil || before == nil {
		return err
	}
	for i, name := range t.columns {
		lost, _ := c.Added[i].(int64)
		old, wasNumber := before[i].(int64)
		now, isNumber := c.Row[i].(int64)
		if wins && wasNumber && isNumber {
			lost -= now - old
		}
		if lost == 0 {
			continue
		}
		column := t.name + "." + name
		l.next.differences[column] += lost
		const count = `insert into replication_differences values (?1, ?2) ` +
			`on conflict do update set lost = lost + ?2`
		if err := replog.Exec(l.conn, count, column, lost); err != nil {
			return err
		}
	}
	return nil
}

// committed is called after the commit of the open transaction.
func (l *ledger) committed() {
	if l.next.Last != l.now.Last {
		l.now = l.next.clone()
	}
}

// drop discards a transaction that is or will be rolled back.
func (l *ledger) drop() {
	l.Drop()
	l.next = l.now.clone()
}

// add appends an entry to the log and removes old entries, tombstones and base versions.
func (l *ledger) add(e *replog.Entry, k retention) error {
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
	n.heads[e.Origin] = head{seq: e.Seq, atUS: e.AtUS}
	pruned, err := n.Add(l.conn, "replication_changes", e, l.limits, k.after)
	if err != nil || !pruned {
		return err
	}
	// Base versions and tombstones from before the oldest entry are no longer needed.
	oldestUS, err := replog.Number(l.conn, `select min(at_us) from replication_changes`)
	if err == nil {
		err = replog.Exec(l.conn, `delete from replication_bases where replaced_us < ?`, oldestUS)
	}
	if err == nil {
		err = replog.Exec(l.conn, `delete from replication_rows where deleted and at_us < ?`, min(oldestUS, k.tombstonesUS))
	}
	return err
}
