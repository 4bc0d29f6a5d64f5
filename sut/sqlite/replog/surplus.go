package replog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut"
)

// Surplus reads what the log of a database file has after a position: of an old primary, what the one that took its
// place did not get. It returns the number of entries and their changes in order. The file may be in use by nobody
// else.
func Surplus(ctx context.Context, path string, after int64) (count int, changes []sut.LostChange, err error) {
	conn, err := sqlite.OpenConn(path, sqlite.OpenReadOnly)
	if err != nil {
		return 0, nil, fmt.Errorf("surplus: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	conn.SetInterrupt(ctx.Done())
	changes = []sut.LostChange{}
	for {
		entries, err := Entries(conn, after, 1<<20)
		if err != nil {
			return 0, nil, fmt.Errorf("surplus of %s: %w", path, err)
		}
		if len(entries) == 0 {
			return count, changes, nil
		}
		for i := range entries {
			if changes, err = appendChanges(changes, conn, &entries[i]); err != nil {
				return 0, nil, fmt.Errorf("surplus of %s: entry %d: %w", path, entries[i].Position, err)
			}
		}
		count += len(entries)
		after = entries[len(entries)-1].Position
	}
}

func appendChanges(to []sut.LostChange, conn *sqlite.Conn, e *Entry) (_ []sut.LostChange, err error) {
	rows, err := sqlite.NewChangesetIterator(bytes.NewReader(e.Changes))
	if err != nil {
		return to, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for {
		more, err := rows.Next()
		if err != nil || !more {
			return to, err
		}
		c, err := change(conn, rows)
		if err != nil {
			return to, err
		}
		c.AtUS = e.AtUS
		to = append(to, c)
	}
}

func change(conn *sqlite.Conn, rows *sqlite.ChangesetIterator) (c sut.LostChange, err error) {
	op, err := rows.Operation()
	if err != nil {
		return c, err
	}
	c.Table = op.TableName
	keys, err := rows.PrimaryKey()
	if err != nil {
		return c, err
	}
	var columns []string
	err = Run(conn, `select name from pragma_table_info(?) order by cid`, []any{c.Table}, func(row *sqlite.Stmt) {
		columns = append(columns, row.ColumnText(0))
	})
	if err != nil || len(columns) < op.NumColumns {
		return c, errors.Join(err, fmt.Errorf("table %s has %d columns, its change %d", c.Table, len(columns), op.NumColumns))
	}
	switch op.Type {
	case sqlite.OpInsert:
		c.Op, c.New = sut.Inserted, map[string]any{}
	case sqlite.OpUpdate:
		c.Op, c.Old, c.New = sut.Updated, map[string]any{}, map[string]any{}
	default:
		c.Op, c.Old = sut.Deleted, map[string]any{}
	}
	var key []string
	for i := range op.NumColumns {
		var old, now sqlite.Value
		if c.Old != nil {
			if old, err = rows.Old(i); err != nil {
				return c, err
			}
		}
		if c.New != nil {
			if now, err = rows.New(i); err != nil {
				return c, err
			}
		}
		if keys[i] {
			value := old
			if c.Old == nil {
				value = now
			}
			key = append(key, fmt.Sprint(Plain(value)))
		}
		// What an update has left alone is null on both sides; the key is on the old side only.
		if c.Op == sut.Updated && (keys[i] || old.Type() == sqlite.TypeNull && now.Type() == sqlite.TypeNull) {
			continue
		}
		if c.Old != nil {
			c.Old[columns[i]] = Plain(old)
		}
		if c.New != nil {
			c.New[columns[i]] = Plain(now)
		}
	}
	c.Key = strings.Join(key, "/")
	return c, nil
}

// Fork is the last position of a log whose entry is of that epoch or an earlier one: up to there it is the same as
// any other log of that epoch that was left behind. It is 0 where a later epoch began with an empty log. whole is
// false when the log has been pruned beyond it, so that nobody knows.
func Fork(conn *sqlite.Conn, epoch int64) (fork int64, whole bool, err error) {
	fork, err = Number(conn, `select coalesce(max(position), 0) from replication_log where epoch <= ?`, epoch)
	if err != nil || fork > 0 {
		return fork, true, err
	}
	oldest, err := Number(conn, `select coalesce(min(position), 0) from replication_log`)
	return 0, oldest <= 1, err
}
