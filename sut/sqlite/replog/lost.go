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
		c.AtUS, c.Commit = e.AtUS, fmt.Sprintf("%d/%d", e.Epoch, e.Position)
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

// Fork returns the last position up to which the log of a kept database file and the log of another database are
// equal. An epoch has one primary, so two logs that have an entry with the same position and epoch are equal up to it.
// complete is false if the logs were pruned beyond the fork, so the fork is unknown. No other process or connection may
// use the file.
func Fork(path string, now *sqlite.Conn) (fork int64, complete bool, err error) {
	kept, err := sqlite.OpenConn(path, sqlite.OpenReadOnly)
	if err != nil {
		return 0, false, err
	}
	defer func() { err = errors.Join(err, kept.Close()) }()
	old, err := spans(kept)
	if err != nil {
		return 0, false, err
	}
	current, err := spans(now)
	if err != nil {
		return 0, false, err
	}
	whole := func(log map[int64]Extent) bool { // the log still starts at its first entry
		for _, e := range log {
			if e.First == 1 {
				return true
			}
		}
		return len(log) == 0
	}
	complete = whole(old) && whole(current)
	for epoch, o := range old {
		c, common := current[epoch]
		if last := min(o.Last, c.Last); common && last >= max(o.First, c.First) {
			fork, complete = max(fork, last), true
		}
	}
	return fork, complete, nil
}

// spans returns the first and the last position of each epoch of a log.
func spans(conn *sqlite.Conn) (map[int64]Extent, error) {
	all := map[int64]Extent{}
	const epochs = `select epoch, min(position), max(position) from replication_log group by epoch`
	err := Run(conn, epochs, nil, func(row *sqlite.Stmt) {
		all[row.ColumnInt64(0)] = Extent{First: row.ColumnInt64(1), Last: row.ColumnInt64(2)}
	})
	return all, err
}
