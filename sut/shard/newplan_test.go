package shard_test

import (
	"fmt"
	"maps"
	"testing"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/shard"
)

// states is what shards know of one bucket, by shard.
type states map[int]sut.ShardBucket

func in(state sut.BucketState, epoch int64) sut.ShardBucket {
	return sut.ShardBucket{Bucket: 5, State: state, Epoch: epoch}
}

// A plan leads to the wanted map from whatever an interrupted one has left: afterwards the bucket has one owner, the
// wanted one, and no other shard has rows of it.
func TestPlanOfABucket(t *testing.T) {
	const owned, fenced, copied, released, gone = sut.BucketOwned, sut.BucketFenced, sut.BucketCopied, sut.BucketReleased,
		sut.BucketGone
	for _, c := range []struct {
		name  string
		known states
		want  uint8
		moves string // FROM-TO ...
	}{
		{"nothing to do", states{1: in(owned, 1)}, 1, ""},
		{"fresh move", states{1: in(owned, 1)}, 2, "1-2"},
		{"back to a shard that had it", states{1: in(gone, 5), 2: in(owned, 5)}, 1, "2-1"},
		{"shrink", states{1: in(gone, 5), 3: in(owned, 5)}, 2, "3-2"},
		{"interrupted in the copy", states{1: in(owned, 1), 2: in(copied, 5)}, 2, "1-2"},
		{"interrupted behind the fence", states{1: in(fenced, 1), 2: in(copied, 5)}, 2, "1-2"},
		{"interrupted before take", states{1: in(released, 5), 2: in(copied, 5)}, 2, "1-2"},
		{"interrupted before take, to a third shard", states{1: in(released, 5), 2: in(copied, 5)}, 3, "1-2 2-3"},
		{"an older copy does not count", states{1: in(released, 5), 2: in(copied, 4)}, 2, "1-2"},
		{"copy lost", states{1: in(released, 5)}, 2, "1-2"},
		{"rows to delete", states{1: in(released, 5), 2: in(owned, 5)}, 2, ""},
		{"two owners, the newer one is wanted", states{1: in(owned, 1), 2: in(owned, 5)}, 2, "1-2"},
		{"two owners, a third one is wanted", states{1: in(owned, 1), 2: in(owned, 5)}, 3, "1-2 2-3"},
		// What follows is undone: the old number of shards is wanted again.
		{"undone: interrupted before take", states{1: in(released, 5), 2: in(copied, 5)}, 1, "1-2 2-1"},
		{"undone: two owners", states{1: in(owned, 1), 2: in(owned, 5)}, 1, "1-2 2-1"},
		{"undone: copy lost", states{1: in(released, 5), 2: in(copied, 4)}, 1, "*"},
		{"undone: rows to delete", states{1: in(released, 5), 2: in(owned, 5)}, 1, "2-1"},
		{"rows to delete, a third shard is wanted", states{1: in(released, 5), 2: in(owned, 5)}, 3, "2-3"},
		{"undone: interrupted in the copy", states{1: in(owned, 1), 2: in(copied, 5)}, 1, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			want, err := shard.Fill(shard.Range, 3)
			if err != nil {
				t.Fatal(err)
			}
			want.Owners[5] = c.want
			known := map[int][]sut.ShardBucket{}
			for b, owner := range want.Owners {
				if b != 5 {
					known[int(owner)] = append(known[int(owner)], sut.ShardBucket{Bucket: b, Epoch: 1, State: owned})
				}
			}
			for number, s := range c.known {
				known[number] = append(known[number], s)
			}
			plan := shard.NewPlan(known, want)
			var moves string
			for i, m := range plan.Moves {
				if i > 0 {
					moves += " "
				}
				moves += fmt.Sprintf("%d-%d", m.From, m.To)
			}
			if moves != c.moves && c.moves != "*" {
				t.Errorf("moves %q, want %q", moves, c.moves)
			}
			carryOut(t, plan, maps.Clone(c.known), int(c.want))
		})
	}
}

// carryOut is a model of what targets/local, Store.MoveBucket and Store.CleanBucket do with a plan.
func carryOut(t *testing.T, plan shard.Plan, now states, want int) {
	t.Helper()
	epoch := plan.Epoch
	for _, m := range plan.Moves {
		epoch += 2
		for attempt := 0; !moveModel(now, m, epoch); epoch += 2 {
			if attempt++; attempt > 3 {
				t.Fatalf("the move %d-%d fails for ever: %v", m.From, m.To, now)
			}
		}
	}
	for _, m := range plan.Clean {
		source, target := now[m.From], now[m.To]
		if !target.Owned() || source.Owned() {
			t.Errorf("shard %d cannot be cleaned: it is %q, and shard %d is %q", m.From, source.State, m.To, target.State)
		} else if source.State != "" {
			source.State = sut.BucketGone
			now[m.From] = source
		}
	}
	for number, s := range now {
		if s.Owned() != (number == want) || number != want && s.State != sut.BucketGone {
			t.Errorf("at the end, shard %d is %q", number, s.State)
		}
	}
	if !now[want].Owned() {
		t.Errorf("at the end, shard %d does not own the bucket", want)
	}
}

func moveModel(now states, m sut.BucketMove, epoch int64) (done bool) {
	source, target := now[m.From], now[m.To]
	left := source.State == sut.BucketReleased || source.State == sut.BucketGone
	switch {
	case m.From == m.To:
		now[m.To] = in(sut.BucketOwned, epoch)
	case target.Owned() && !source.Owned():
	case target.Owned() && target.Epoch > source.Epoch:
		now[m.From] = in(sut.BucketReleased, epoch)
	case left && target.State == sut.BucketCopied && target.Epoch == source.Epoch:
		now[m.To] = in(sut.BucketOwned, epoch+1)
	case source.State == sut.BucketReleased:
		now[m.From] = in(sut.BucketOwned, epoch)
		return false
	case source.Owned():
		now[m.From], now[m.To] = in(sut.BucketReleased, epoch), in(sut.BucketOwned, epoch+1)
	default:
		return false
	}
	return true
}

// A bucket that no shard owns, and that none has released, has lost its rows or has them in a copy. A plan must not
// pass over it in silence.
func TestPlanWithoutRows(t *testing.T) {
	want, err := shard.Fill(shard.Range, 2)
	if err != nil {
		t.Fatal(err)
	}
	known := map[int][]sut.ShardBucket{}
	for b := range photos.Buckets {
		owner := want.Owner(photos.Bucket(b))
		s := sut.ShardBucket{Bucket: b, Epoch: 1, State: sut.BucketOwned}
		if b == 5 { // the target has forgotten that it took the bucket, and the source has deleted its rows
			known[2] = append(known[2], in(sut.BucketGone, 5))
			s = in(sut.BucketCopied, 5)
		}
		known[owner] = append(known[owner], s)
	}
	if plan := shard.NewPlan(known, want); len(plan.Moves) == 0 {
		t.Error("the plan is empty, and bucket 5 has no owner")
	}
}
