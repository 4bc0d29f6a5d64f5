package storetest

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/sut/photos"
)

// concurrently calls do concurrently, with i from 0 to times-1.
func concurrently(t *testing.T, times int, do func(i int) error) {
	t.Helper()
	var g errgroup.Group
	start := make(chan struct{})
	for i := range times {
		g.Go(func() error {
			<-start
			return do(i)
		})
	}
	close(start)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// Concurrent writes get consecutive versions, each once, and all are counted.
func writers(t *testing.T, k kit) {
	const times = 200
	ctx := within(t)
	p := k.newPhoto(t, 113)
	owner := k.user(t, 113)
	var mu sync.Mutex
	var versions []int64
	concurrently(t, times, func(i int) (err error) {
		var version int64
		switch i % 4 {
		case 0, 1:
			version, err = k.Like(ctx, p.ID, photos.ID(i))
		case 2:
			c := photos.Comment{ID: k.ids.next(), PhotoID: p.ID, UserID: photos.ID(i), Text: "at once"}
			version, err = k.Comment(ctx, c)
		case 3:
			if version, err = k.RenamePhoto(ctx, p.ID, 113, "at once"); err == nil {
				err = k.AddPhoto(ctx, photos.Photo{ID: k.ids.photo(113), UserID: 113, State: photos.StateReady, Version: 1})
			}
		}
		mu.Lock()
		defer mu.Unlock()
		versions = append(versions, version)
		return err
	})
	slices.Sort(versions)
	for i, v := range versions {
		if want := p.Version + int64(i) + 1; v != want {
			t.Fatalf("the versions are %v, want each from %d to %d once", versions, p.Version+1, p.Version+times)
		}
	}
	p.Likes, p.Comments, p.Version, p.Title = times/2, times/4, p.Version+times, "at once"
	same(t, "the photo", k.photo(t, p.ID), p)
	owner.Photos += times / 4
	owner.Version += times / 4
	same(t, "its owner", k.user(t, 113), owner)
}

func mutualFollows(t *testing.T, k kit) {
	ctx := within(t)
	a, b := k.user(t, 114), k.user(t, 115)
	concurrently(t, 40, func(i int) error {
		f := photos.Follow{Follower: a.ID, Followee: b.ID, CreatedUS: int64(i)}
		if i%2 == 0 {
			f.Follower, f.Followee = f.Followee, f.Follower
		}
		return k.Follow(ctx, f)
	})
	k.relay(t)
	for _, u := range []*photos.User{&a, &b} {
		u.Following++
		u.Followers++
		u.Version += 2
	}
	same(t, "the first user", k.user(t, a.ID), a)
	same(t, "the second user", k.user(t, b.ID), b)
}

func deletedOnce(t *testing.T, k kit) {
	ctx := within(t)
	before := k.user(t, 116)
	p := k.newPhoto(t, 116)
	var mu sync.Mutex
	var successes int
	concurrently(t, 20, func(int) error {
		err := k.DeletePhoto(ctx, p.ID, 116)
		if errors.Is(err, photos.ErrNotFound) {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		successes++
		return err
	})
	same(t, "successes", successes, 1)
	before.Version += 2
	same(t, "the owner", k.user(t, 116), before)
}

// A comment that is written while its photo is deleted is deleted, too, or refused. All
// ids of the comments must be free afterwards.
func deletedWithComments(t *testing.T, k kit) {
	ctx := within(t)
	p, other := k.newPhoto(t, 117), k.newPhoto(t, 117)
	var comments []photos.Comment
	for range 40 {
		comments = append(comments, photos.Comment{ID: k.ids.next(), PhotoID: p.ID, UserID: 1, Text: "on a deleted photo"})
	}
	concurrently(t, len(comments), func(i int) error {
		if i == len(comments)/2 {
			return k.DeletePhoto(ctx, p.ID, 117)
		}
		_, err := k.Comment(ctx, comments[i])
		if errors.Is(err, photos.ErrNotFound) {
			return nil
		}
		return err
	})
	for _, c := range comments {
		c.PhotoID = other.ID
		if _, err := k.Comment(ctx, c); err != nil {
			t.Fatalf("a comment of the deleted photo still exists: %v", err)
		}
	}
	same(t, "comments of the other photo", k.photo(t, other.ID).Comments, int64(len(comments)))
}
