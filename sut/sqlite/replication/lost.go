package replication

import (
	"context"
	"fmt"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// LostChanges is what the copy that the last snapshot has replaced held, and the primary of the epoch after it did
// not: the entries of its log behind the last one that both have.
func (r *Node) LostChanges(ctx context.Context) (sut.Lost, error) {
	lost := sut.Lost{Changes: []sut.LostChange{}}
	lost.Node = r.cfg.Node
	kept, epoch, err := r.db.KeptFile()
	if err != nil || kept == "" {
		return lost, err
	}
	lost.Epoch = epoch
	var fork int64 // the last position that both copies have
	var whole bool // the log does not begin after it
	err = r.db.Read(func(disk *sqlite.Conn) (err error) {
		fork, whole, err = replog.Fork(disk, epoch)
		return err
	})
	if err != nil {
		return lost, fmt.Errorf("where the logs part: %w", err)
	}
	if !whole {
		lost.Partial = "the log does not reach back to where the copies parted: what was lost cannot be told any more"
		return lost, nil
	}
	lost.Commits, lost.Changes, err = replog.LostChanges(ctx, kept, fork)
	return lost, err
}
