package replication

import (
	"context"
	"errors"
	"fmt"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/engine"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// LostChanges returns the changes that a kept copy has and the current copy does not have. These are the entries of the
// kept log after the last position that both logs share.
func (r *Node) LostChanges(ctx context.Context, name string) (sut.Lost, error) {
	kept, err := r.db.Kept()
	for _, k := range kept {
		if k.Name == name {
			return r.lostIn(ctx, k), nil
		}
	}
	return sut.Lost{}, errors.Join(err, fmt.Errorf("there is no old copy %q", name))
}

// DropCopy removes a kept copy.
func (r *Node) DropCopy(name string) error { return r.db.Drop(name) }

func (r *Node) lostIn(ctx context.Context, k engine.Kept) sut.Lost {
	lost := sut.Lost{Node: r.cfg.Node, Copy: k.Name, Epoch: k.Epoch, Changes: []sut.LostChange{}}
	if k.Empty {
		lost.Unknown, lost.Partial = true, sut.NotKept
		return lost
	}
	var fork int64    // the last position that both logs share
	var complete bool // the logs are long enough to know the fork
	err := r.db.Read(func(disk *sqlite.Conn) (err error) {
		fork, complete, err = replog.Fork(k.Path, disk)
		return err
	})
	if err == nil && !complete {
		lost.Unknown = true
		lost.Partial = "the logs no longer have the position at which the copies diverged"
		return lost
	}
	if err == nil {
		lost.Commits, lost.Changes, err = replog.LostChanges(ctx, k.Path, fork)
	}
	if err != nil {
		lost.Unknown, lost.Unread, lost.Partial = true, true, fmt.Sprintf("the old copy could not be read: %v", err)
	}
	return lost
}
