package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

// listed is the length of the lists that users read meanwhile.
const listed = 100

// usage is what users do while buckets move, and what they must find.
type usage struct {
	kit
	t       *testing.T
	photos  []photos.Photo // of the first users; their owners get no more photos
	feeds   map[photos.ID][]photos.ID
	newest  []photos.ID
	likes   map[photos.ID]*atomic.Int64
	comment sync.Map // photos.ID of an acknowledged comment -> photos.ID of its photo
	follow  sync.Map // photos.Follow that was acknowledged
	upload  sync.Map // photos.ID that was acknowledged
	before  map[photos.ID]photos.User

	lists, writes atomic.Int64
}

func newUsage(t *testing.T, k kit) *usage {
	t.Helper()
	k.relay(t)
	u := &usage{
		kit: k, t: t, feeds: map[photos.ID][]photos.ID{}, likes: map[photos.ID]*atomic.Int64{},
		before: map[photos.ID]photos.User{},
	}
	for id := photos.ID(20); id < 60; id++ {
		u.before[id] = k.user(t, id)
		u.photos = append(u.photos, k.newPhoto(t, id))
		u.likes[u.photos[len(u.photos)-1].ID] = new(atomic.Int64)
	}
	for _, reader := range readers() {
		for _, owner := range uploaders() {
			if err := k.Follow(t.Context(), photos.Follow{Follower: reader, Followee: owner, CreatedUS: 1}); err != nil {
				t.Fatal(err)
			}
		}
	}
	k.relay(t)
	for _, id := range []photos.ID{1, 2, 9, 13, 17} { // users who follow nobody else meanwhile
		u.feeds[id] = u.list(k.Feed(t.Context(), id, listed))
	}
	u.newest = u.list(k.Newest(t.Context(), listed))
	return u
}

// list returns the ids of a list, as they are.
func (u *usage) list(list []photos.Photo, err error) (ids []photos.ID) {
	if err != nil {
		u.t.Error(err)
	}
	for _, p := range list {
		ids = append(ids, p.ID)
	}
	return ids
}

// use reads lists and writes until stop is closed.
func (u *usage) use(ctx context.Context, seed uint64, stop <-chan struct{}) {
	random := rand.New(rand.NewPCG(seed, 1))
	for ctx.Err() == nil {
		select {
		case <-stop:
			return
		default:
		}
		p := u.photos[random.IntN(len(u.photos))]
		var err error
		switch random.IntN(8) {
		case 0:
			_, err = u.Like(ctx, p.ID, 1)
			u.likes[p.ID].Add(1)
		case 1:
			c := photos.Comment{ID: photoID(int(1<<19+u.ids.last.Add(1)), p.UserID), PhotoID: p.ID, UserID: 1, Text: "moves"}
			if _, err = u.Comment(ctx, c); err == nil {
				u.comment.Store(c.ID, p.ID)
			}
		case 2:
			f := photos.Follow{
				Follower: photos.ID(20 + random.IntN(40)), Followee: photos.ID(20 + random.IntN(40)), CreatedUS: 1,
			}
			if err = u.Follow(ctx, f); err == nil {
				u.follow.Store(f, true)
			}
			_, relayed := u.RelayFollows(ctx, 5)
			err = errors.Join(err, relayed)
		case 3:
			if got := u.list(u.Newest(ctx, listed)); !slices.Equal(got, u.newest) {
				err = fmt.Errorf("the list of newest photos has %d rows instead of %d", len(got), len(u.newest))
			}
			u.lists.Add(1)
		case 4:
			for id, want := range u.feeds {
				if got := u.list(u.Feed(ctx, id, listed)); !slices.Equal(got, want) {
					err = fmt.Errorf("the feed of user %d has %d rows instead of %d", id, len(got), len(want))
				}
				u.lists.Add(1)
			}
		case 5:
			_, err = u.Photo(ctx, p.ID)
		case 6:
			owner := uploaders()[random.IntN(len(uploaders()))]
			p := photos.Photo{ID: u.ids.photo(owner), UserID: owner, State: photos.StateReady, CreatedUS: 1, Version: 1}
			if err = u.AddPhoto(ctx, p); err == nil {
				u.upload.Store(p.ID, true)
			}
			_, relayed := u.RelayPhotos(ctx, 5)
			err = errors.Join(err, relayed)
		case 7:
			_, err = u.Feed(ctx, readers()[random.IntN(len(readers()))], listed)
		}
		if err != nil {
			u.t.Error(err)
			return
		}
		u.writes.Add(1)
	}
}

// readers follow uploaders, who add photos that are older than all others.
func readers() []photos.ID   { return []photos.ID{62, 63, 64, 65} }
func uploaders() []photos.ID { return []photos.ID{111, 112, 113, 114} }

// check compares what is there with what was acknowledged.
func (u *usage) check(t *testing.T) {
	t.Helper()
	u.relay(t)
	comments := map[photos.ID]int64{}
	at := map[photos.ID]int{}
	for _, part := range u.shards {
		if err := part.Rows(t.Context(), "comments", func(r store.Row) error {
			at[photos.ID(r.Values["id"].(int64))]++
			comments[photos.ID(r.Values["photo_id"].(int64))]++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for id, times := range at {
		if times != 1 {
			t.Errorf("comment %d is there %d times", id, times)
		}
	}
	u.comment.Range(func(id, photo any) bool {
		if at[id.(photos.ID)] != 1 {
			t.Errorf("comment %d on photo %d is there %d times", id, photo, at[id.(photos.ID)])
		}
		return true
	})
	for _, p := range u.photos {
		p.Likes, p.Comments = u.likes[p.ID].Load(), comments[p.ID]
		p.Version += p.Likes + p.Comments
		same(t, "a photo", u.photo(t, p.ID), p)
	}
	for _, reader := range readers() {
		there := map[photos.ID]bool{}
		for _, id := range u.list(u.Feed(t.Context(), reader, 10_000)) {
			if there[id] {
				t.Errorf("the feed of user %d has photo %d twice", reader, id)
			}
			there[id] = true
		}
		u.upload.Range(func(id, _ any) bool {
			if !there[id.(photos.ID)] {
				t.Errorf("photo %d is not in the feed of user %d", id, reader)
			}
			return true
		})
	}
	followers, following := map[photos.ID]int64{}, map[photos.ID]int64{}
	u.follow.Range(func(follow, _ any) bool {
		f := follow.(photos.Follow)
		for _, loaded := range u.data.follows {
			if loaded.Follower == f.Follower && loaded.Followee == f.Followee {
				return true
			}
		}
		followers[f.Followee]++
		following[f.Follower]++
		return true
	})
	for id, before := range u.before {
		now := u.user(t, id)
		if now.Followers-before.Followers != followers[id] || now.Following-before.Following != following[id] {
			t.Errorf("user %d has %d and %d more followers and followed users, want %d and %d", id,
				now.Followers-before.Followers, now.Following-before.Following, followers[id], following[id])
		}
	}
}
