package replication

import (
	"context"
	"fmt"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// LostChanges returns the changes that the last replaced copy had and the current copy does not have. These are the
// entries of the replaced log after the last position that both logs share. The result is empty if no copy with such
// changes was replaced.
func (r *Node) LostChanges(ctx context.Context) (sut.Lost, error) {
	lost := sut.Lost{Changes: []sut.LostChange{}}
	lost.Node = r.cfg.Node
	kept, epoch, err := r.db.KeptFile()
	if err != nil || kept == "" {
		return lost, err
	}
	lost.Epoch = epoch
	var fork int64    // the last position that both logs share
	var complete bool // the log is long enough to know the fork
	err = r.db.Read(func(disk *sqlite.Conn) (err error) {
		fork, complete, err = replog.Fork(disk, epoch)
		return err
	})
	if err != nil {
		return lost, fmt.Errorf("finding the last common position of the logs: %w", err)
	}
	if !complete {
		lost.Partial = "the log no longer has the position at which the copies diverged: the lost changes are unknown"
		return lost, nil
	}
	lost.Commits, lost.Changes, err = replog.LostChanges(ctx, kept, fork)
	return lost, err
}
