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

// LostChanges reads the entries after a position from the log of a database file. The file belongs to an old primary,
// and the new primary never received these entries. It returns the number of entries and their changes in order. No
// other process or connection may use the file.
func LostChanges(ctx context.Context, path string, after int64) (count int, changes []sut.LostChange, err error) {
	conn, err := sqlite.OpenConn(path, sqlite.OpenReadOnly)
	if err != nil {
		return 0, nil, fmt.Errorf("lost changes: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	conn.SetInterrupt(ctx.Done())
	changes = []sut.LostChange{}
	for {
		entries, err := Entries(conn, after, 1<<20)
		if err != nil {
			return 0, nil, fmt.Errorf("lost changes in %s: %w", path, err)
		}
		if len(entries) == 0 {
			return count, changes, nil
		}
		for i := range entries {
			if changes, err = appendChanges(changes, conn, &entries[i]); err != nil {
				return 0, nil, fmt.Errorf("lost changes in %s: entry %d: %w", path, entries[i].Position, err)
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
		const text = "table %s has %d columns, but its change has %d"
		return c, errors.Join(err, fmt.Errorf(text, c.Table, len(columns), op.NumColumns))
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
			key = append(key, fmt.Sprint(GoValue(value)))
		}
		// A column that an update did not change is null on both sides. The key is on the old side only.
		if c.Op == sut.Updated && (keys[i] || old.Type() == sqlite.TypeNull && now.Type() == sqlite.TypeNull) {
			continue
		}
		if c.Old != nil {
			c.Old[columns[i]] = GoValue(old)
		}
		if c.New != nil {
			c.New[columns[i]] = GoValue(now)
		}
	}
	c.Key = strings.Join(key, "/")
	return c, nil
}

// Fork returns the position at which the log diverged from the logs of an older epoch: the last position with an entry
// of that epoch or an earlier one. Up to this position both logs are equal. It returns 0 if all entries have a later
// epoch. complete is false if the log was pruned beyond the fork, so the fork is unknown.
func Fork(conn *sqlite.Conn, epoch int64) (fork int64, complete bool, err error) {
	fork, err = Number(conn, `select coalesce(max(position), 0) from replication_log where epoch <= ?`, epoch)
	if err != nil || fork > 0 {
		return fork, true, err
	}
	oldest, err := Number(conn, `select coalesce(min(position), 0) from replication_log`)
	return 0, oldest <= 1, err
}
