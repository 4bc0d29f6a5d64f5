package replication

import (
	"context"
	"errors"
	"fmt"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// LostChanges is what the copy that the last snapshot has replaced held, and the primary of the epoch after it did
// not: the entries of its log behind the last one that both have.
func (r *Node) LostChanges(ctx context.Context) (sut.Lost, error) {
	lost := sut.Lost{Changes: []sut.LostChange{}}
	lost.Node = r.cfg.Node
	kept, epoch, err := r.db.Kept()
	if err != nil || kept == "" {
		return lost, err
	}
	lost.Epoch = epoch
	fork, whole, err := r.forkOf(epoch)
	if err != nil {
		return lost, fmt.Errorf("where the logs part: %w", err)
	}
	if !whole {
		lost.Partial = "the log does not reach back to where the copies parted: what was lost cannot be told any more"
		return lost, nil
	}
	lost.Commits, lost.Changes, err = replog.Surplus(ctx, kept, fork)
	return lost, err
}

// forkOf is the last position that both copies have; whole is false when the log begins after it.
func (r *Node) forkOf(epoch int64) (fork int64, whole bool, err error) {
	c, err := r.db.OpenReader()
	if err != nil {
		return 0, false, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return replog.Fork(c, epoch)
}
