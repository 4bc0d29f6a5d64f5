package sqlite

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// LostChanges is what the copy that the last snapshot has replaced held, and the primary
// of the epoch after it did not: the entries of its log behind the last one that
// both have.
func (s *Server) LostChanges(ctx context.Context) (sut.Lost, error) {
	lost := sut.Lost{Changes: []sut.LostChange{}}
	if s.replication == nil {
		return lost, nil
	}
	lost.Node = s.replication.cfg.Node
	current := filepath.Join(s.cfg.Dir, fileName)
	kept, epoch, err := keptCopy(s.cfg.Dir)
	if err != nil || kept == "" {
		return lost, err
	}
	lost.Epoch = epoch
	fork, whole, err := forkOf(current, epoch)
	if err != nil {
		return lost, fmt.Errorf("where the logs part: %w", err)
	}
	if !whole {
		lost.Partial = "the log does not reach back to where the copies parted: what was lost cannot be told any more"
		return lost, nil
	}
	surplus, err := replog.Surplus(ctx, kept, fork)
	if err != nil {
		return lost, err
	}
	lost.Commits = surplus.Entries
	for _, c := range surplus.Changes {
		lost.Changes = append(lost.Changes, plainChange(c))
	}
	return lost, nil
}

// keptCopy is the file of the copy that was replaced last, "" if there is none.
func keptCopy(dir string) (path string, epoch int64, err error) {
	all, err := filepath.Glob(filepath.Join(dir, replacedName+"*"))
	if err != nil {
		return "", 0, err
	}
	for _, candidate := range all {
		if n, err := strconv.ParseInt(strings.TrimPrefix(filepath.Base(candidate), replacedName), 10, 64); err == nil && n >= epoch {
			path, epoch = candidate, n
		}
	}
	return path, epoch, nil
}

// forkOf is the last position that a copy of that epoch and this database have in
// common; whole is false when the log begins after it.
func forkOf(current string, epoch int64) (fork int64, whole bool, err error) {
	c, err := sqlite.OpenConn(current, sqlite.OpenReadOnly)
	if err != nil {
		return 0, false, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return replog.Fork(c, epoch)
}

// plainChange is a change by column.
func plainChange(c replog.Change) sut.LostChange {
	change := sut.LostChange{Table: c.Table, Op: sut.Change(c.Op), AtUS: c.AtUS}
	var key []string
	for i, name := range c.Columns {
		shown := c.Changed == nil || c.Changed[i]
		if c.Old != nil && shown {
			if change.Old == nil {
				change.Old = map[string]any{}
			}
			change.Old[name] = c.Old[i]
		}
		if c.New != nil && shown {
			if change.New == nil {
				change.New = map[string]any{}
			}
			change.New[name] = c.New[i]
		}
		if c.Key[i] {
			value := any(nil)
			if c.Old != nil {
				value = c.Old[i]
			} else {
				value = c.New[i]
			}
			key = append(key, fmt.Sprint(value))
		}
	}
	change.Key = strings.Join(key, "/")
	return change
}
