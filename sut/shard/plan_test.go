package shard_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/shard"
)

// A commit may hold the rows of a bucket that moved and other rows, which alone are replayed. The same rows without the
// move are those of users.
func TestMovesAreNotReplayed(t *testing.T) {
	user, other := photos.ID(7), photos.ID(8)
	photo := func(owner photos.ID) string { return fmt.Sprint(int64(photos.BucketOf(owner))<<12 | 1<<22) }
	change := func(commit, table, key string) sut.LostChange {
		return sut.LostChange{Commit: commit, Table: table, Key: key}
	}
	all := []sut.LostChange{
		change("1", "photos", photo(user)),
		change("1", "owned", fmt.Sprint(photos.BucketOf(user))),
		change("1", "users", "7"),
		change("1", "follows", "8/7"),
		change("1", "names", "nobody"),
		change("1", "sessions", "a secret"),
		change("1", "photos", photo(other)),
		change("2", "photos", photo(user)),
	}
	want := []sut.LostChange{all[4], all[5], all[6], all[7]}
	if diff := cmp.Diff(want, shard.WithoutMoves(all, all)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := shard.WithoutMoves(all[:1], all); len(got) > 0 {
		t.Errorf("a part of the loss: %v are replayed", got)
	}
}
