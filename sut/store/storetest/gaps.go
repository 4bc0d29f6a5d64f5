package storetest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

// pause is how long a check waits for something that must not happen.
const pause = 150 * time.Millisecond

// home returns the shard that a bucket has first.
func home(b photos.Bucket) int { return 1 + int(b)%2 }

// goHome moves a bucket back to the shard that it had first.
func (k kit) goHome(t *testing.T, b photos.Bucket) {
	t.Helper()
	from, to := k.shardOf(t, b), home(b)
	if from == to {
		return
	}
	if err := errors.Join(k.move(within(t), b, from, to, nil), k.clean(within(t), b, from, to)); err != nil {
		t.Fatal(err)
	}
}

// has returns how many rows of a table with this key are at a shard, also those that it does not own.
func (k kit) has(t *testing.T, shard int, table, key string) (rows int) {
	t.Helper()
	if err := k.shards[shard-1].Rows(t.Context(), table, func(r store.Row) error {
		if r.Key == key {
			rows++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return rows
}

// heldBack writes a row of a bucket before its fence, behind it, and after its lease has ended.
func heldBack(t *testing.T, k kit) {
	ctx := within(t)
	p, b, from := k.placedPhoto(t, 13)
	like := func() error {
		_, err := k.Like(ctx, p.ID, 1)
		p.Likes++
		p.Version++
		return err
	}
	early, late := make(chan error, 1), make(chan error, 1)
	err := k.move(ctx, b, from, 3, func(step string) {
		switch step {
		case "fence": // the copy does not have this one
			early <- like()
		case "release":
			go func() { late <- like() }()
			select {
			case err := <-late:
				t.Errorf("a fence did not hold a write back: %v", err)
				late <- err
			case <-time.After(pause):
			}
		}
	})
	if err := errors.Join(err, <-early, <-late); err != nil {
		t.Fatal(err)
	}
	same(t, "the photo at its new shard", k.photo(t, p.ID), p)
	if k.has(t, from, "photos", fmt.Sprint(int64(p.ID))) != 1 {
		t.Error("the old shard has not kept its rows")
	}
	k.goHome(t, b)
	_, err = k.MoveBucket(ctx, store.BucketMove{
		Bucket: b, From: from, To: 3, Epoch: k.ids.last.Add(2), Lease: pause, OnStep: func(step string) {
			if step == "release" {
				time.Sleep(pause)
				early <- like()
			}
		},
	})
	if err == nil {
		t.Error("a bucket was released after the lease of its fence had ended")
	}
	if err := <-early; err != nil {
		t.Fatal(err)
	}
	same(t, "the photo after the lease", k.photo(t, p.ID), p)
	k.goHome(t, b)
}

// ownerless lists photos while a bucket has no owner. The list must wait, because it would not be complete.
func ownerless(t *testing.T, k kit) {
	ctx := within(t)
	_, b, from := k.placedPhoto(t, 13)
	before, err := k.Newest(ctx, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var mover sync.WaitGroup
	mover.Go(func() {
		_ = k.move(ctx, b, from, 3, func(step string) {
			if step == "take" {
				runtime.Goexit()
			}
		})
	})
	mover.Wait()
	limited, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	if list, err := k.Newest(limited, 1000); err == nil {
		t.Errorf("a list of %d photos instead of %d while a bucket has no owner", len(list), len(before))
	} else {
		wants(t, "a list while a bucket has no owner", err, photos.ErrUnavailable)
	}
	if err := k.move(ctx, b, from, 3, nil); err != nil {
		t.Fatal(err)
	}
	after, err := k.Newest(ctx, 1000)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the list after the move", after, before)
	k.goHome(t, b)
}

// leftovers changes rows after a move. The rows that the old shard still has must not be found, and must not take the
// place of other rows in a list that is cut.
func leftovers(t *testing.T, k kit) {
	ctx := within(t)
	const reader, mover, other = 61, 15, 16
	if k.shardOf(t, photos.BucketOf(mover)) != k.shardOf(t, photos.BucketOf(other)) {
		k.goHome(t, photos.BucketOf(mover))
	}
	var moved, rest []photos.Photo
	from := k.shardOf(t, photos.BucketOf(mover))
	stays := photos.ID(other)
	for photos.BucketOf(stays) == photos.BucketOf(mover) || k.shardOf(t, photos.BucketOf(stays)) != from {
		stays++
	}
	for i := range int64(3) {
		moved = append(moved, k.newPhotoAt(t, mover, 1_900_000_000_000_000-i))
		rest = append(rest, k.newPhotoAt(t, stays, 1_800_000_000_000_000-i))
	}
	for _, user := range []photos.ID{mover, stays} {
		if err := k.Follow(ctx, photos.Follow{Follower: reader, Followee: user, CreatedUS: 1}); err != nil {
			t.Fatal(err)
		}
	}
	k.relay(t)
	lists := func(what string, want []photos.Photo) {
		t.Helper()
		newest, err := k.Newest(ctx, len(want))
		feed, further := k.Feed(ctx, reader, len(want))
		if err := errors.Join(err, further); err != nil {
			t.Fatal(err)
		}
		same(t, "newest "+what, newest, want)
		same(t, "feed "+what, feed, want)
	}
	processing := func(what string, want int) {
		t.Helper()
		ids, err := k.Processing(ctx, 2_000_000_000_000_000, 10_000)
		if err != nil {
			t.Fatal(err)
		}
		got := len(slices.DeleteFunc(ids, func(id photos.ID) bool { return id != moved[0].ID }))
		same(t, "times that a photo is in processing "+what, got, want)
	}
	b := photos.BucketOf(mover)
	if err := k.move(ctx, b, from, 3, nil); err != nil {
		t.Fatal(err)
	}
	lists("after the move", moved)
	processing("after the move", 1)
	for _, p := range moved {
		if err := k.DeletePhoto(ctx, p.ID, mover); err != nil {
			t.Fatal(err)
		}
	}
	lists("after the photos were deleted", rest)
	processing("after the photos were deleted", 0)
	if err := k.clean(ctx, b, from, 3); err != nil {
		t.Fatal(err)
	}
	lists("after the old shard was cleaned", rest)
	for _, p := range rest {
		if err := k.DeletePhoto(ctx, p.ID, stays); err != nil {
			t.Fatal(err)
		}
	}
	k.goHome(t, b)
}

// newPhotoAt adds a photo of a user, in processing, that was created at a time in microseconds.
func (k kit) newPhotoAt(t *testing.T, user photos.ID, createdUS int64) photos.Photo {
	t.Helper()
	p := photos.Photo{
		ID: k.ids.photo(user), UserID: user, Title: "the newest", State: photos.StateProcessing, Width: 1, Height: 1,
		CreatedUS: createdUS, Version: 1,
	}
	if err := k.AddPhoto(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	return p
}

// followedElsewhere follows a user with a store that does not know yet that the user has moved to another shard.
func followedElsewhere(t *testing.T, k kit) {
	ctx := within(t)
	follower, followee := photos.ID(107), photos.ID(108)
	for photos.BucketOf(followee) == photos.BucketOf(follower) ||
		k.shardOf(t, photos.BucketOf(followee)) != k.shardOf(t, photos.BucketOf(follower)) {
		followee++
	}
	b := photos.BucketOf(followee)
	from := k.shardOf(t, b)
	stale := k.open(t, k.peers())
	want, err := stale.User(ctx, followee)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.move(ctx, b, from, 3, nil); err != nil {
		t.Fatal(err)
	}
	if err := stale.Follow(ctx, photos.Follow{Follower: follower, Followee: followee, CreatedUS: 1}); err != nil {
		t.Fatal(err)
	}
	k.relay(t)
	want.Followers++
	want.Version++
	same(t, "the followee", k.user(t, followee), want)
	if err := k.clean(ctx, b, from, 3); err != nil {
		t.Fatal(err)
	}
	k.goHome(t, b)
	same(t, "the followee at the first shard", k.user(t, followee), want)
}

// changedMeanwhile lists photos, and a shard loses a bucket after it has said what it owns and before it runs the
// query.
func changedMeanwhile(t *testing.T, k kit) {
	ctx := within(t)
	_, b, from := k.placedPhoto(t, 13)
	before, err := k.Newest(ctx, 1000)
	if err != nil {
		t.Fatal(err)
	}
	conn, _ := k.dial(t, from)
	listed := make(chan error, 1)
	var after []photos.Photo
	err = k.move(ctx, b, from, 3, func(step string) {
		if step != "release" {
			return
		}
		if _, err := conn.Exec(ctx, "begin"); err != nil {
			t.Error(err)
		}
		if _, err := conn.Exec(ctx, "lock table photos in access exclusive mode"); err != nil {
			listed <- nil // the embedded engine has no locks of tables, and one snapshot for all statements
			return
		}
		go func() {
			var err error
			after, err = k.Newest(ctx, 1000)
			listed <- err
		}()
		time.Sleep(pause)
	})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Exec(ctx, "rollback")
	if err := <-listed; err != nil {
		t.Fatal(err)
	}
	if after != nil {
		same(t, "the list", after, before)
	}
	k.goHome(t, b)
}
