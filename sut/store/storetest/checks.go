package storetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

// No user has the id nobody, and no photo has the id nothing.
const (
	nobody  photos.ID = 1 << 60
	nothing photos.ID = 1<<60 + 1
)

func loaded(t *testing.T, k kit) {
	for _, want := range k.data.users {
		same(t, "user by id", k.user(t, want.ID), want)
		got, err := k.UserByLogin(t.Context(), want.Login)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "user by login", got, want)
	}
	for _, want := range k.data.photos {
		same(t, "photo", k.photo(t, want.ID), want)
	}
}

// Rows reads every row of every table. The digest changes with the data.
func rows(t *testing.T, k kit) {
	if k.shards != nil {
		return // Rows reads one database; see placed
	}
	counts := map[string]int{
		"users": len(k.data.users), "photos": len(k.data.photos),
		"comments": len(k.data.comments), "follows": len(k.data.follows),
	}
	for _, table := range []string{"users", "photos", "comments", "follows"} {
		seen := map[string]bool{}
		if err := k.Rows(t.Context(), table, func(r store.Row) error {
			seen[r.Key] = true
			if want := k.data.photos[0]; table == "photos" && r.Key == fmt.Sprint(want.ID) &&
				(r.Values["title"] != want.Title || r.Values["bytes"] != want.Bytes || r.Values["width"] != int64(want.Width)) {
				t.Errorf("photo %s is %v", r.Key, r.Values)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if len(seen) != counts[table] {
			t.Errorf("%d rows of %s, want %d", len(seen), table, counts[table])
		}
	}
	first, err := k.Digest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k.newPhoto(t, 120)
	if second, err := k.Digest(t.Context()); err != nil || second == first {
		t.Errorf("digest %s, %v after a change", second, err)
	}
}

func feed(t *testing.T, k kit) {
	follows := map[photos.ID][]photos.ID{}
	for _, f := range k.data.follows {
		follows[f.Follower] = append(follows[f.Follower], f.Followee)
	}
	for _, user := range []photos.ID{1, 2, 9, 27, 60, 61, 120, nobody} {
		for _, limit := range []int{-1, 0, 1, 7, 20, 1000} {
			got, err := k.Feed(t.Context(), user, limit)
			if err != nil {
				t.Fatal(err)
			}
			followed := func(p photos.Photo) bool { return slices.Contains(follows[user], p.UserID) }
			want := newestFirst(k.data.photos, limit, followed)
			same(t, fmt.Sprintf("feed of %d, at most %d", user, limit), got, want)
		}
	}
}

func newest(t *testing.T, k kit) {
	for _, limit := range []int{-1, 0, 1, 20, 300} {
		got, err := k.Newest(t.Context(), limit)
		if err != nil {
			t.Fatal(err)
		}
		want := newestFirst(k.data.photos, limit, func(photos.Photo) bool { return true })
		same(t, fmt.Sprintf("newest, at most %d", limit), got, want)
	}
}

func notFound(t *testing.T, k kit) {
	ctx := t.Context()
	_, err := k.User(ctx, nobody)
	wants(t, "User", err, photos.ErrNotFound)
	_, err = k.UserByLogin(ctx, "nobody")
	wants(t, "UserByLogin", err, photos.ErrNotFound)
	_, err = k.UserByLogin(ctx, "USER-1")
	wants(t, "UserByLogin in upper case", err, photos.ErrNotFound)
	_, err = k.Photo(ctx, nothing)
	wants(t, "Photo", err, photos.ErrNotFound)
	_, err = k.RenamePhoto(ctx, nothing, 1, "title")
	wants(t, "RenamePhoto", err, photos.ErrNotFound)
	_, err = k.FinishPhoto(ctx, photos.Processed{Photo: nothing, State: photos.StateReady, DoneUS: 1})
	wants(t, "FinishPhoto", err, photos.ErrNotFound)
	wants(t, "DeletePhoto", k.DeletePhoto(ctx, nothing, 1), photos.ErrNotFound)
	_, err = k.Like(ctx, nothing, 1)
	wants(t, "Like", err, photos.ErrNotFound)
	_, err = k.Comment(ctx, photos.Comment{ID: k.ids.next(), PhotoID: nothing, UserID: 1, Text: "?"})
	wants(t, "Comment", err, photos.ErrNotFound)

	orphan := photos.Photo{ID: k.ids.photo(nobody), UserID: nobody, State: photos.StateReady, Version: 1}
	wants(t, "AddPhoto", k.AddPhoto(ctx, orphan), photos.ErrNotFound)
	_, err = k.Photo(ctx, orphan.ID)
	wants(t, "the photo of a user who does not exist", err, photos.ErrNotFound)

	before := k.user(t, 1)
	wants(t, "Follow of nobody", k.Follow(ctx, photos.Follow{Follower: 1, Followee: nobody}), photos.ErrNotFound)
	wants(t, "Follow by nobody", k.Follow(ctx, photos.Follow{Follower: nobody, Followee: 1}), photos.ErrNotFound)
	same(t, "the user after failed follows", k.user(t, 1), before)
}

func forbidden(t *testing.T, k kit) {
	p := k.newPhoto(t, 1)
	_, err := k.RenamePhoto(t.Context(), p.ID, 2, "mine now")
	wants(t, "RenamePhoto", err, photos.ErrForbidden)
	_, err = k.RenamePhoto(t.Context(), p.ID, nobody, "mine now")
	wants(t, "RenamePhoto by nobody", err, photos.ErrForbidden)
	owners := []photos.User{k.user(t, 1), k.user(t, 2)}
	wants(t, "DeletePhoto", k.DeletePhoto(t.Context(), p.ID, 2), photos.ErrForbidden)
	same(t, "the photo", k.photo(t, p.ID), p)
	same(t, "both users", []photos.User{k.user(t, 1), k.user(t, 2)}, owners)
}

func conflict(t *testing.T, k kit) {
	ctx := t.Context()
	p := k.newPhoto(t, 1)
	before := k.user(t, 1)
	again := p
	again.Title = "another"
	wants(t, "AddPhoto", k.AddPhoto(ctx, again), photos.ErrConflict)
	same(t, "the photo", k.photo(t, p.ID), p)
	same(t, "its user", k.user(t, 1), before)

	// The counter is incremented before the insert fails. Both must be rolled back.
	c := photos.Comment{ID: k.data.comments[0].ID, PhotoID: p.ID, UserID: 1, Text: "twice"}
	_, err := k.Comment(ctx, c)
	wants(t, "Comment", err, photos.ErrConflict)
	same(t, "the photo after a failed comment", k.photo(t, p.ID), p)

	if k.shards != nil {
		return // a login name is unique in its bucket, and all of them are loaded at once
	}
	taken := k.data.users[3]
	taken.ID = 4711
	err = k.Load(ctx, &data{users: []photos.User{{ID: 4710, Login: "free"}, taken}})
	wants(t, "Load of a login name", err, photos.ErrConflict)
	for _, id := range []photos.ID{4710, 4711} {
		_, err = k.User(ctx, id)
		wants(t, "a user of that load", err, photos.ErrNotFound)
	}
}

func lifecycle(t *testing.T, k kit) {
	ctx := t.Context()
	before := k.user(t, 111)
	p := k.newPhoto(t, 111)
	same(t, "the new photo", k.photo(t, p.ID), p)
	version, err := k.RenamePhoto(ctx, p.ID, 111, "renamed")
	if err != nil {
		t.Fatal(err)
	}
	p.Title, p.Version = "renamed", 2
	same(t, "version", version, p.Version)
	same(t, "the renamed photo", k.photo(t, p.ID), p)
	counted := before
	counted.Photos++
	counted.Version++
	same(t, "the user after the upload", k.user(t, 111), counted)
	if err := k.DeletePhoto(ctx, p.ID, 111); err != nil {
		t.Fatal(err)
	}
	_, err = k.Photo(ctx, p.ID)
	wants(t, "the deleted photo", err, photos.ErrNotFound)
	before.Version += 2
	same(t, "the user after the deletion", k.user(t, 111), before)
	wants(t, "deleting it again", k.DeletePhoto(ctx, p.ID, 111), photos.ErrNotFound)
}

// processing finishes photos that were added in processing. They are listed, the oldest first, until they are finished.
func processing(t *testing.T, k kit) {
	ctx := t.Context()
	listed := func(before int64, limit int) []photos.ID {
		t.Helper()
		ids, err := k.Processing(ctx, before, limit)
		if err != nil {
			t.Fatal(err)
		}
		return ids
	}
	others, first := len(listed(1000, 1000)), k.newPhoto(t, 1)
	second := first
	second.ID, second.CreatedUS = k.ids.photo(1), first.CreatedUS-1
	if err := k.AddPhoto(ctx, second); err != nil {
		t.Fatal(err)
	}
	same(t, "photos in processing", len(listed(first.CreatedUS+1, 1000)), others+2)
	same(t, "the oldest photo in processing", listed(first.CreatedUS, 1), []photos.ID{second.ID})
	same(t, "photos in processing before the first one", len(listed(second.CreatedUS, 1000)), 0)
	for state, p := range map[string]photos.Photo{photos.StateReady: first, photos.StateFailed: second} {
		version, err := k.FinishPhoto(ctx, photos.Processed{Photo: p.ID, State: state, DoneUS: 77})
		if err != nil {
			t.Fatal(err)
		}
		p.State, p.DoneUS, p.Version = state, 77, p.Version+1
		same(t, "version", version, p.Version)
		same(t, "the photo", k.photo(t, p.ID), p)
		_, err = k.FinishPhoto(ctx, photos.Processed{Photo: p.ID, State: photos.StateReady, DoneUS: 78})
		wants(t, "finishing it again", err, photos.ErrConflict)
		same(t, "the photo after that", k.photo(t, p.ID), p)
	}
	same(t, "photos in processing at the end", len(listed(first.CreatedUS+1, 1000)), others)
}

func counting(t *testing.T, k kit) {
	p := k.newPhoto(t, 1)
	for range 3 {
		version, err := k.Like(t.Context(), p.ID, 2)
		if err != nil {
			t.Fatal(err)
		}
		p.Likes++
		p.Version++
		same(t, "version after a like", version, p.Version)
	}
	for range 2 {
		c := photos.Comment{ID: k.ids.next(), PhotoID: p.ID, UserID: 2, Text: "well", CreatedUS: 1}
		version, err := k.Comment(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		p.Comments++
		p.Version++
		same(t, "version after a comment", version, p.Version)
	}
	same(t, "the photo", k.photo(t, p.ID), p)
}

func follows(t *testing.T, k kit) {
	a, b := k.user(t, 112), k.user(t, 1)
	for i := range 3 {
		// The first repetition has the same time, the second another time.
		f := photos.Follow{Follower: a.ID, Followee: b.ID, CreatedUS: int64(5 + i/2)}
		if err := k.Follow(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	k.relay(t)
	a.Following++
	a.Version++
	b.Followers++
	b.Version++
	same(t, "the follower", k.user(t, a.ID), a)
	same(t, "the followee", k.user(t, b.ID), b)
	got, err := k.Feed(t.Context(), a.ID, 1)
	if err != nil {
		t.Fatal(err)
	}
	want := newestFirst(k.data.photos, 1, func(p photos.Photo) bool { return p.UserID == b.ID })
	same(t, "the follower's feed", got, want)
}

func text(t *testing.T, k kit) {
	p := k.newPhoto(t, 1)
	for name, title := range map[string]string{
		"empty":              "",
		"spaces":             " \t\r\n ",
		"quotes":             `it's "quoted" \ and $1 $$ ? :name @x`,
		"SQL":                "'; drop table users; --",
		"comment":            "/* */ -- x",
		"many scripts":       "日本語 עברית العربية हिन्दी ไทย",
		"beyond the BMP":     "👩‍👩‍👧‍👦 𝒳 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
		"combining":          "e\u0301 is not é",
		"marks":              "\ufeff\u200b\u202e\ufffd\ufffe",
		"control characters": "\x01\x07\x1b[31m\x7f\u0085",
		"large":              strings.Repeat("ÿ'", 10_000),
	} {
		version, err := k.RenamePhoto(t.Context(), p.ID, 1, title)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		p.Title, p.Version = title, version
		same(t, name, k.photo(t, p.ID), p)
		_, err = k.UserByLogin(t.Context(), title)
		wants(t, name+" as a login name", err, photos.ErrNotFound)
		c := photos.Comment{ID: k.ids.next(), PhotoID: p.ID, UserID: 1, Text: title}
		if _, err := k.Comment(t.Context(), c); err != nil {
			t.Fatalf("%s as a comment: %v", name, err)
		}
		p = k.photo(t, p.ID)
	}
}

func badText(t *testing.T, k kit) {
	p := k.newPhoto(t, 1)
	for name, title := range map[string]string{
		"NUL":         "a\x00b",
		"broken":      "a\xffb",
		"surrogate":   "\xed\xa0\x80",
		"overlong":    "\xc0\xaf",
		"half a rune": "a\xe2\x82",
	} {
		_, err := k.RenamePhoto(t.Context(), p.ID, 1, title)
		if err == nil {
			t.Errorf("%s: stored", name)
		}
		wants(t, name, err, nil)
		_, err = k.Comment(t.Context(), photos.Comment{ID: k.ids.next(), PhotoID: p.ID, UserID: 1, Text: title})
		if err == nil {
			t.Errorf("%s: stored as a comment", name)
		}
	}
	same(t, "the photo after these attempts", k.photo(t, p.ID), p)
}

func cancelled(t *testing.T, k kit) {
	p := k.newPhoto(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := k.Photo(ctx, p.ID)
	wants(t, "a read", err, nil)
	if err == nil {
		t.Error("a read with a cancelled context succeeded")
	}
	if _, err = k.Like(ctx, p.ID, 1); err == nil {
		t.Error("a write with a cancelled context succeeded")
	}
	late, cancel := context.WithTimeout(t.Context(), -1)
	defer cancel()
	_, err = k.Photo(late, p.ID)
	wants(t, "a read after its deadline", err, photos.ErrUnavailable)
	same(t, "the photo", k.photo(t, p.ID), p)
}
