package replog

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"zombiezen.com/go/sqlite"
)

// Op is what was done to a row.
type Op string

// The operations of a Change.
const (
	Insert Op = "insert"
	Update Op = "update"
	Delete Op = "delete"
)

// Change is one row's change. Values are int64, float64, string, []byte or nil,
// in the order of the table's columns.
type Change struct {
	Position int64 // of the entry
	AtUS     int64
	Table    string
	Op       Op
	Columns  []string // names
	Key      []bool   // which columns are the primary key
	// Changed says which columns an update has changed; nil otherwise.
	Changed []bool
	// Old is the row before: of an update the key and the columns that were
	// changed, of an insert nil.
	Old []any
	// New is the row afterwards: of an update the columns that were changed, of
	// a delete nil.
	New []any
}

// Counts is how many rows of a table were changed in which way.
type Counts struct {
	Inserts, Updates, Deletes int
}

// Lost is what a database has after a position: of an old primary, what the
// one that took its place did not get.
type Lost struct {
	Entries         int
	FirstUS, LastUS int64 // when the first and the last were committed; 0 = none
	Tables          map[string]Counts
	Changes         []Change // in order
}

// Surplus reads what the log of a database file has after a position. The file
// may be in use by nobody else.
func Surplus(ctx context.Context, path string, after int64) (_ *Lost, err error) {
	conn, err := sqlite.OpenConn(path, sqlite.OpenReadOnly)
	if err != nil {
		return nil, fmt.Errorf("surplus: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	conn.SetInterrupt(ctx.Done())
	lost := &Lost{Tables: map[string]Counts{}}
	columns := map[string][]string{}
	for {
		entries, err := Entries(conn, after, 1<<20)
		if err != nil {
			return nil, fmt.Errorf("surplus of %s: %w", path, err)
		}
		if len(entries) == 0 {
			return lost, nil
		}
		for i := range entries {
			e := &entries[i]
			if lost.Entries++; lost.Entries == 1 {
				lost.FirstUS = e.AtUS
			}
			lost.LastUS = e.AtUS
			if err := lost.add(conn, columns, e); err != nil {
				return nil, fmt.Errorf("surplus of %s: entry %d: %w", path, e.Position, err)
			}
			after = e.Position
		}
	}
}

// add takes an entry apart.
func (l *Lost) add(conn *sqlite.Conn, columns map[string][]string, e *Entry) (err error) {
	rows, err := sqlite.NewChangesetIterator(bytes.NewReader(e.Changes))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for {
		more, err := rows.Next()
		if err != nil || !more {
			return err
		}
		c, err := change(rows)
		if err != nil {
			return err
		}
		c.Position, c.AtUS = e.Position, e.AtUS
		if columns[c.Table] == nil {
			err := Run(conn, `select name from pragma_table_info(?) order by cid`, []any{c.Table}, func(row *sqlite.Stmt) {
				columns[c.Table] = append(columns[c.Table], row.ColumnText(0))
			})
			if err != nil {
				return err
			}
		}
		c.Columns = columns[c.Table]
		counts := l.Tables[c.Table]
		switch c.Op {
		case Insert:
			counts.Inserts++
		case Update:
			counts.Updates++
		case Delete:
			counts.Deletes++
		}
		l.Tables[c.Table] = counts
		l.Changes = append(l.Changes, *c)
	}
}

// change reads the change at which the iterator is.
func change(rows *sqlite.ChangesetIterator) (*Change, error) {
	op, err := rows.Operation()
	if err != nil {
		return nil, err
	}
	c := &Change{Table: op.TableName}
	if c.Key, err = rows.PrimaryKey(); err != nil {
		return nil, err
	}
	switch op.Type {
	case sqlite.OpInsert:
		c.Op = Insert
	case sqlite.OpUpdate:
		c.Op = Update
		c.Changed = make([]bool, op.NumColumns)
	case sqlite.OpDelete:
		c.Op = Delete
	default:
		return nil, fmt.Errorf("unknown operation %v", op.Type)
	}
	for i := range op.NumColumns {
		if c.Op != Insert {
			old, err := rows.Old(i)
			if err != nil {
				return nil, err
			}
			c.Old = append(c.Old, Plain(old))
		}
		if c.Op != Delete {
			now, err := rows.New(i)
			if err != nil {
				return nil, err
			}
			// What an update has left alone is null on both sides, and so is
			// the new side of the key, which no update changes.
			if c.Changed != nil {
				c.Changed[i] = !c.Key[i] && (c.Old[i] != nil || now.Type() != sqlite.TypeNull)
			}
			c.New = append(c.New, Plain(now))
		}
	}
	return c, nil
}
