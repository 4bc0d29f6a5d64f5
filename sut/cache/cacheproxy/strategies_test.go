package cacheproxy_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/memcached/memcachedtest"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/resp/resptest"
)

// engines lists the kinds of cache hosts.
func engines() []engine {
	return []engine{
		{name: "resp"},
		{name: "redis", native: func(t testing.TB) (string, func()) {
			address := resptest.Redis(t)
			return address, func() {
				c := resptest.Client(address)
				defer func() { _ = c.Close() }()
				_ = c.ShutdownNoSave(t.Context()) // which is answered by the end of the connection
			}
		}},
		{name: "memcached", protocol: cache.Memcached, native: func(t testing.TB) (string, func()) {
			p := memcachedtest.Start(t, 64<<20)
			return p.Address(), p.Kill
		}},
	}
}

// strategies lists all pairs of the knobs.
func strategies() (all []strategy) {
	for _, read := range []string{"look_aside", "read_through"} {
		for _, write := range []string{"write_around", "write_through", "write_back"} {
			all = append(all, strategy{read, write})
		}
	}
	return all
}

// What holds for all strategies on all engines.
func TestStrategies(t *testing.T) {
	t.Parallel()
	for _, e := range engines() {
		for _, s := range strategies() {
			for _, test := range []struct {
				name  string
				check func(*testing.T, options)
			}{
				{"what was written is read", written},
				{"users and their photos", users},
				{"errors are those of the records", refusals},
				{"values expire", expiring},
				{"lists of photos", lists},
				{"the records are down", recordsDown},
				{"the cache is down", cacheDown},
				{"one of two hosts is down", oneDown},
				{"1,000 operations by 8 clients", random},
			} {
				t.Run(e.name+"/"+s.read+" "+s.write+"/"+test.name, func(t *testing.T) {
					t.Parallel()
					test.check(t, options{engine: e, strategy: s})
				})
			}
		}
	}
}

// written: whoever reads after a write sees it, on another web host, too.
func written(t *testing.T, o options) {
	r := newRig(t, o)
	a, b := r.web(t), r.web(t)
	want := photo(t, a, 1)
	reads := func(what string) {
		t.Helper()
		for i, web := range []*cache.Tier{b, a, b} {
			got := photo(t, web, 1)
			if i == 2 && !got.Cached {
				t.Errorf("%s: the third read does not say that it is cached", what)
			}
			got.Cached = false
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, read %d (-want +got)\n%s", what, i, diff)
			}
		}
	}
	reads("at first")
	comment := photos.Comment{ID: 77, PhotoID: 1, UserID: 2, Text: "two\nlines", CreatedUS: 5}
	for i, write := range []func() (int64, error){
		func() (int64, error) { want.Likes++; return a.Like(t.Context(), 1, 2) },
		func() (int64, error) { want.Comments++; return b.Comment(t.Context(), comment) },
		func() (int64, error) { want.Title = "new"; return a.RenamePhoto(t.Context(), 1, 1, "new") },
		func() (int64, error) { want.Likes++; return b.Like(t.Context(), 1, 1) },
	} {
		version, err := write()
		if want.Version++; err != nil || version != want.Version {
			t.Errorf("write %d: version %d, want %d; %v", i, version, want.Version, err)
		}
		reads(fmt.Sprint("after write ", i))
	}

	r.flush(t)
	if diff := cmp.Diff(want, r.records.photo(1)); diff != "" {
		t.Errorf("the records (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]photos.Comment{comment}, r.records.of(1)); diff != "" {
		t.Errorf("the comments (-want +got)\n%s", diff)
	}
}

// users: a user's counts follow from what is written to photos.
func users(t *testing.T, o options) {
	r := newRig(t, o)
	a, b := r.web(t), r.web(t)
	user := func(web *cache.Tier, want int64) {
		t.Helper()
		u, err := web.User(t.Context(), 1)
		if err != nil || u.Photos != want || u.Password != "" {
			t.Errorf("%+v, %v, want %d photos and no password", u, err, want)
		}
	}
	user(b, 20)
	added := photos.Photo{ID: 100, UserID: 1, Title: "added", State: photos.StateReady, Width: 3, Version: 1}
	if err := a.AddPhoto(t.Context(), added); err != nil {
		t.Fatal(err)
	}
	user(b, 21)
	if got := photo(t, b, 100); got.Title != "added" || got.Width != 3 || got.Version != 1 {
		t.Errorf("added: %+v", got)
	}
	if err := b.DeletePhoto(t.Context(), 100, 1); err != nil {
		t.Fatal(err)
	}
	user(a, 20)
	if u, err := a.User(t.Context(), 1); err != nil || !u.Cached {
		t.Errorf("a user that was read before: %+v, %v", u, err)
	}
	for _, web := range []*cache.Tier{a, b} {
		if p, err := web.Photo(t.Context(), 100); !errors.Is(err, photos.ErrNotFound) {
			t.Errorf("deleted: %+v, %v", p, err)
		}
	}
	if err := a.Follow(t.Context(), photos.Follow{Follower: 2, Followee: 1}); err != nil {
		t.Fatal(err)
	}
	if u, err := b.User(t.Context(), 1); err != nil || u.Followers != 1 {
		t.Errorf("followed: %+v, %v", u, err)
	}
}

// refusals: what the records say no to changes nothing.
func refusals(t *testing.T, o options) {
	r := newRig(t, o)
	web, ctx := r.web(t), t.Context()
	before := photo(t, web, 1)
	version := func(_ int64, err error) error { return err }
	_, noPhoto := web.Photo(ctx, 99)
	_, noUser := web.User(ctx, 99)
	for i, test := range []struct{ got, want error }{
		{noPhoto, photos.ErrNotFound},
		{noUser, photos.ErrNotFound},
		{version(web.Like(ctx, 99, 1)), photos.ErrNotFound},
		{version(web.Comment(ctx, photos.Comment{ID: 5, PhotoID: 99, UserID: 1})), photos.ErrNotFound},
		{version(web.RenamePhoto(ctx, 99, 1, "x")), photos.ErrNotFound},
		{version(web.RenamePhoto(ctx, 1, 2, "x")), photos.ErrForbidden},
		{web.DeletePhoto(ctx, 99, 1), photos.ErrNotFound},
		{web.DeletePhoto(ctx, 1, 2), photos.ErrForbidden},
		{web.AddPhoto(ctx, photos.Photo{ID: 98, UserID: 99, Version: 1}), photos.ErrNotFound},
		{web.AddPhoto(ctx, photos.Photo{ID: 1, UserID: 1, Version: 1}), photos.ErrConflict},
	} {
		if !errors.Is(test.got, test.want) {
			t.Errorf("%d: %v, want %v", i, test.got, test.want)
		}
	}
	after := photo(t, web, 1)
	if after.Cached = before.Cached; after != before {
		t.Errorf("%+v became %+v", before, after)
	}
}

// expiring: what nobody writes is read anew when its time is over.
func expiring(t *testing.T, o options) {
	o.ttl = 30 * time.Millisecond
	r := newRig(t, o)
	web := r.web(t)
	eventually(t, "it is cached", func() bool { return photo(t, web, 1).Cached })
	// Nobody tells the cache of this.
	if _, err := r.records.Like(t.Context(), 1, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new value is read", func() bool { return photo(t, web, 1).Likes == 1 })
}

// lists: feeds and the newest photos are kept, or not.
func lists(t *testing.T, o options) {
	for _, kept := range []bool{true, false} {
		o.noLists = !kept
		r := newRig(t, o)
		a, b := r.web(t), r.web(t)
		for range 2 {
			for _, web := range []*cache.Tier{a, b} {
				feed, err := web.Feed(t.Context(), 2, 5)
				if err != nil || len(feed) != 5 || feed[0].ID != 20 {
					t.Errorf("feed: %+v, %v", feed, err)
				}
				newest, err := web.Newest(t.Context(), 3)
				if err != nil || len(newest) != 3 || newest[2].Title != "photo 18" {
					t.Errorf("newest: %+v, %v", newest, err)
				}
				if none, err := web.Feed(t.Context(), 1, 5); err != nil || len(none) != 0 {
					t.Errorf("a feed of nobody: %+v, %v", none, err)
				}
			}
		}
		want := map[bool][2]int{true: {2, 1}, false: {8, 4}}[kept]
		if got := [2]int{r.records.called("Feed"), r.records.called("Newest")}; got != want {
			t.Errorf("kept %t: feeds and newest were read %d times, want %d", kept, got, want)
		}
	}
}

// recordsDown: without records there is what the cache has.
func recordsDown(t *testing.T, o options) {
	r := newRig(t, o)
	web, ctx := r.web(t), t.Context()
	photo(t, web, 1)
	photo(t, web, 3)
	if _, err := web.User(ctx, 1); err != nil {
		t.Fatal(err)
	}
	r.records.set(fail(photos.ErrUnavailable), nil)
	if p := photo(t, web, 1); !p.Cached {
		t.Errorf("%+v", p)
	}
	if u, err := web.User(ctx, 1); err != nil || !u.Cached {
		t.Errorf("%+v, %v", u, err)
	}
	if _, err := web.Photo(ctx, 2); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("what is not cached: %v", err)
	}
	// Only who builds on the cache and writes later can go on.
	version, err := web.Like(ctx, 1, 1)
	if o.write == "write_back" {
		if p := photo(t, web, 1); err != nil || version != 2 || p.Likes != 1 {
			t.Errorf("like: version %d, %v; then %+v", version, err, p)
		}
	} else if !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("like: %v", err)
	}
	// A write that was done and not answered shows, too.
	r.records.set(nil, fail(photos.ErrUnavailable, "Like", "Comment", "RenamePhoto", "DeletePhoto", "AddPhoto"))
	_, err = web.RenamePhoto(ctx, 3, 1, "done")
	if (err == nil) != (o.write == "write_back") {
		t.Errorf("rename: %v", err)
	}
	if p := photo(t, web, 3); p.Title != "done" || p.Version != 2 {
		t.Errorf("%+v", p)
	}
	if err := web.DeletePhoto(ctx, 3, 1); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("delete: %v", err)
	}
	if _, err := web.Photo(ctx, 3); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("deleted and not answered: %v", err)
	}
}

// cacheDown: without a cache there are the records.
func cacheDown(t *testing.T, o options) {
	r := newRig(t, o)
	web, ctx := r.web(t), t.Context()
	photo(t, web, 1)
	must(t)(web.Like(ctx, 1, 1))
	r.down(t, 0)
	for i := range int64(3) {
		if version := must(t)(web.Like(ctx, 1, 1)); version != i+3 {
			t.Errorf("version %d, want %d", version, i+3)
		}
		if p := photo(t, web, 1); p.Likes != i+2 || p.Cached {
			t.Errorf("%+v", p)
		}
	}
	if u, err := web.User(ctx, 1); err != nil || u.Cached {
		t.Errorf("%+v, %v", u, err)
	}
	if list, err := web.Newest(ctx, 3); err != nil || len(list) != 3 {
		t.Errorf("%+v, %v", list, err)
	}
	if err := web.AddPhoto(ctx, photos.Photo{ID: 50, UserID: 1, Version: 1}); err != nil {
		t.Error(err)
	}
	if err := web.DeletePhoto(ctx, 50, 1); err != nil {
		t.Error(err)
	}
}

// must fails a test upon an error, and returns what came with it.
func must(t testing.TB) func(version int64, err error) int64 {
	return func(version int64, err error) int64 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return version
	}
}

// oneDown: the keys of a dead host are served all the same, by the next one where
// hosts load or write themselves, and both web hosts find the same one.
func oneDown(t *testing.T, o options) {
	o.hosts = 2
	r := newRig(t, o)
	a, b := r.web(t), r.web(t)
	r.down(t, 0)
	for id := photos.ID(1); id <= 20; id++ {
		if p := photo(t, a, id); p.Likes != 0 {
			t.Errorf("%+v", p)
		}
		if version := must(t)(a.Like(t.Context(), id, 1)); version != 2 {
			t.Errorf("photo %d: version %d", id, version)
		}
		if p := photo(t, b, id); p.Likes != 1 || p.Version != 2 {
			t.Errorf("%+v", p)
		}
		if version := must(t)(b.Like(t.Context(), id, 1)); version != 3 {
			t.Errorf("photo %d: version %d", id, version)
		}
		if p := photo(t, a, id); p.Likes != 2 {
			t.Errorf("%+v", p)
		}
		if p := photo(t, a, id); r.hasProxy() && !p.Cached {
			t.Errorf("photo %d is not cached by the next host", id)
		}
	}
	r.hosts[1].end(t)
	for id := photos.ID(1); id <= 20; id++ {
		if p := r.records.photo(id); p.Likes != 2 {
			t.Errorf("the records: %+v", p)
		}
	}
}

// model is what has to become of the photos.
type model struct {
	mu       sync.Mutex
	versions map[photos.ID][]int64 // that writes were acknowledged with
	titles   map[photos.ID]map[int64]string
	likes    map[photos.ID]int64
	comments map[photos.ID][]photos.ID
	newest   map[photos.ID]int64 // the highest of versions
}

// random: no write is lost and none is done twice, whoever reads and writes at the same
// time.
func random(t *testing.T, o options) {
	const clients, each, all = 8, 125, 20
	o.interval = 2 * time.Millisecond
	o.hosts = 2
	r := newRig(t, o)
	m := &model{
		versions: map[photos.ID][]int64{}, titles: map[photos.ID]map[int64]string{}, likes: map[photos.ID]int64{},
		comments: map[photos.ID][]photos.ID{}, newest: map[photos.ID]int64{},
	}
	var running sync.WaitGroup
	for c := range clients {
		web, random := r.web(t), rand.New(rand.NewPCG(1, uint64(c)))
		running.Go(func() {
			for i := range each {
				name, id := photos.ID(c*each+i+1000), photos.ID(random.IntN(all)+1)
				if err := m.one(t.Context(), web, random, name, id, o.read == "read_through"); err != nil {
					t.Errorf("client %d of seed 1, operation %d: %v", c, i, err)
					return
				}
			}
		})
	}
	running.Wait()
	r.flush(t)
	for id := photos.ID(1); id <= all; id++ {
		p, versions := r.records.photo(id), m.versions[id]
		slices.Sort(versions)
		for i, version := range versions {
			if version != int64(i)+2 {
				t.Fatalf("photo %d: acknowledged versions %v", id, versions)
			}
		}
		title := fmt.Sprint("photo ", id)
		for _, version := range versions {
			if text, renamed := m.titles[id][version]; renamed {
				title = text
			}
		}
		want := photos.Photo{
			ID: id, UserID: 1, Title: title, State: photos.StateReady, Likes: m.likes[id],
			Comments: int64(len(m.comments[id])), Version: int64(len(versions)) + 1,
		}
		if diff := cmp.Diff(want, p); diff != "" {
			t.Errorf("the records (-want +got)\n%s", diff)
		}
		var comments []photos.ID
		for _, c := range r.records.of(id) {
			comments = append(comments, c.ID)
		}
		slices.Sort(comments)
		slices.Sort(m.comments[id])
		if diff := cmp.Diff(m.comments[id], comments); diff != "" {
			t.Errorf("comments of photo %d (-want +got)\n%s", id, diff)
		}
	}
}

// one does something to a photo, and notes it. Reads are exact when they see all that
// was acknowledged before they began.
func (m *model) one(
	ctx context.Context, web *cache.Tier, random *rand.Rand, name, id photos.ID, exact bool,
) (err error) {
	var version int64
	var note func(*model)
	switch kind := random.IntN(10); {
	case kind < 5:
		m.mu.Lock()
		before := m.newest[id]
		m.mu.Unlock()
		p, err := web.Photo(ctx, id)
		if err == nil && exact && p.Version < before {
			return fmt.Errorf("photo %d: read version %d (cached %t), want at least %d, which was acknowledged before",
				id, p.Version, p.Cached, before)
		}
		return err
	case kind < 8:
		version, err = web.Like(ctx, id, name)
		note = func(m *model) { m.likes[id]++ }
	case kind < 9:
		version, err = web.Comment(ctx, photos.Comment{ID: name, PhotoID: id, UserID: 1, Text: "text"})
		note = func(m *model) { m.comments[id] = append(m.comments[id], name) }
	default:
		title := fmt.Sprint("title ", name)
		version, err = web.RenamePhoto(ctx, id, 1, title)
		note = func(m *model) {
			if m.titles[id] == nil {
				m.titles[id] = map[int64]string{}
			}
			m.titles[id][version] = title
		}
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.versions[id] = append(m.versions[id], version)
	m.newest[id] = max(m.newest[id], version)
	note(m)
	return nil
}
