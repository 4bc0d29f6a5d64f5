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

// engines returns all kinds of cache hosts.
func engines() []engine {
	return []engine{
		{name: "resp"},
		{name: "redis", native: func(t testing.TB) (string, func()) {
			address := resptest.Redis(t)
			return address, func() {
				c := resptest.Client(address)
				defer func() { _ = c.Close() }()
				_ = c.ShutdownNoSave(t.Context()) // Redis closes the connection instead of a reply
			}
		}},
		{name: "memcached", protocol: cache.Memcached, native: func(t testing.TB) (string, func()) {
			p := memcachedtest.Start(t, 64<<20, "")
			return p.Address(), p.Kill
		}},
	}
}

// strategies returns all pairs of values of the knobs. The last three are read-through.
func strategies() (all []strategy) {
	for _, read := range []string{"look_aside", "read_through"} {
		for _, write := range []string{"write_around", "write_through", "write_back"} {
			all = append(all, strategy{read, write})
		}
	}
	return all
}

// TestStrategies checks what all strategies have in common, on all engines.
func TestStrategies(t *testing.T) {
	t.Parallel()
	for _, e := range engines() {
		for _, s := range strategies() {
			for _, test := range []struct {
				name  string
				check func(*testing.T, options)
			}{
				{"reads after writes", readsAfterWrites},
				{"user counts", userCounts},
				{"errors of the database", databaseErrors},
				{"expiry", expiry},
				{"lists of photos", lists},
				{"the database is down", databaseDown},
				{"the cache is down", cacheDown},
				{"one of two hosts is down", oneHostDown},
				{"1,000 operations by 8 clients", randomOperations},
			} {
				t.Run(e.name+"/"+s.read+" "+s.write+"/"+test.name, func(t *testing.T) {
					t.Parallel()
					test.check(t, options{engine: e, strategy: s})
				})
			}
		}
	}
}

// readsAfterWrites: a read after a write returns the new value, on all web hosts.
func readsAfterWrites(t *testing.T, o options) {
	r := newRig(t, o)
	a, b := r.web(t), r.web(t)
	want := photo(t, a, 1)
	checkReads := func(when string) {
		t.Helper()
		for i, web := range []*cache.Tier{b, a, b} {
			got := photo(t, web, 1)
			if i == 2 && !got.Cached {
				t.Errorf("%s: got Cached false from the third read, want true", when)
			}
			got.Cached = false
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, read %d (-want +got):\n%s", when, i, diff)
			}
		}
	}
	checkReads("before the writes")
	comment := photos.Comment{ID: 77, PhotoID: 1, UserID: 2, Text: "two\nlines", CreatedUS: 5}
	for i, write := range []func() (int64, error){
		func() (int64, error) { want.Likes++; return a.Like(t.Context(), 1, 2) },
		func() (int64, error) { want.Comments++; return b.Comment(t.Context(), comment) },
		func() (int64, error) { want.Title = "new"; return a.RenamePhoto(t.Context(), 1, 1, "new") },
		func() (int64, error) { want.Likes++; return b.Like(t.Context(), 1, 1) },
	} {
		version, err := write()
		if want.Version++; err != nil || version != want.Version {
			t.Errorf("write %d: got version %d, %v, want version %d", i, version, err, want.Version)
		}
		checkReads(fmt.Sprint("after write ", i))
	}

	r.stopHosts(t)
	if diff := cmp.Diff(want, r.records.photo(1)); diff != "" {
		t.Errorf("photo in the database (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]photos.Comment{comment}, r.records.commentsOf(1)); diff != "" {
		t.Errorf("comments in the database (-want +got):\n%s", diff)
	}
}

// userCounts: the photo count and the follower count of a user are current after each
// write.
func userCounts(t *testing.T, o options) {
	r := newRig(t, o)
	a, b := r.web(t), r.web(t)
	checkUser := func(web *cache.Tier, want int64) {
		t.Helper()
		u, err := web.User(t.Context(), 1)
		if err != nil || u.Photos != want || u.Password != "" {
			t.Errorf("got %+v, %v, want %d photos and no password", u, err, want)
		}
	}
	checkUser(b, 20)
	added := photos.Photo{ID: 100, UserID: 1, Title: "added", State: photos.StateReady, Width: 3, Version: 1}
	if err := a.AddPhoto(t.Context(), added); err != nil {
		t.Fatal(err)
	}
	checkUser(b, 21)
	if got := photo(t, b, 100); got.Title != "added" || got.Width != 3 || got.Version != 1 {
		t.Errorf("after AddPhoto: got %+v, want %+v", got, added)
	}
	if err := b.DeletePhoto(t.Context(), 100, 1); err != nil {
		t.Fatal(err)
	}
	checkUser(a, 20)
	if u, err := a.User(t.Context(), 1); err != nil || !u.Cached {
		t.Errorf("second read of the user: got %+v, %v, want Cached true", u, err)
	}
	for _, web := range []*cache.Tier{a, b} {
		if p, err := web.Photo(t.Context(), 100); !errors.Is(err, photos.ErrNotFound) {
			t.Errorf("after DeletePhoto: got %+v, %v, want %v", p, err, photos.ErrNotFound)
		}
	}
	if err := a.Follow(t.Context(), photos.Follow{Follower: 2, Followee: 1}); err != nil {
		t.Fatal(err)
	}
	if u, err := b.User(t.Context(), 1); err != nil || u.Followers != 1 {
		t.Errorf("after Follow: got %+v, %v, want 1 follower", u, err)
	}
}

// databaseErrors: web hosts get the errors of the database. A write that the database
// refuses changes nothing.
func databaseErrors(t *testing.T, o options) {
	r := newRig(t, o)
	web, ctx := r.web(t), t.Context()
	before := photo(t, web, 1)
	errorOf := func(_ int64, err error) error { return err }
	_, noPhoto := web.Photo(ctx, 99)
	_, noUser := web.User(ctx, 99)
	for i, test := range []struct{ got, want error }{
		{noPhoto, photos.ErrNotFound},
		{noUser, photos.ErrNotFound},
		{errorOf(web.Like(ctx, 99, 1)), photos.ErrNotFound},
		{errorOf(web.Comment(ctx, photos.Comment{ID: 5, PhotoID: 99, UserID: 1})), photos.ErrNotFound},
		{errorOf(web.RenamePhoto(ctx, 99, 1, "x")), photos.ErrNotFound},
		{errorOf(web.RenamePhoto(ctx, 1, 2, "x")), photos.ErrForbidden},
		{web.DeletePhoto(ctx, 99, 1), photos.ErrNotFound},
		{web.DeletePhoto(ctx, 1, 2), photos.ErrForbidden},
		{web.AddPhoto(ctx, photos.Photo{ID: 98, UserID: 99, Version: 1}), photos.ErrNotFound},
		{web.AddPhoto(ctx, photos.Photo{ID: 1, UserID: 1, Version: 1}), photos.ErrConflict},
	} {
		if !errors.Is(test.got, test.want) {
			t.Errorf("case %d: got %v, want %v", i, test.got, test.want)
		}
	}
	after := photo(t, web, 1)
	if after.Cached = before.Cached; after != before {
		t.Errorf("after refused writes: got %+v, want %+v", after, before)
	}
}

// expiry: an expired value is loaded again.
func expiry(t *testing.T, o options) {
	o.ttl = 30 * time.Millisecond
	r := newRig(t, o)
	web := r.web(t)
	eventually(t, "the photo is cached", func() bool { return photo(t, web, 1).Cached })
	// The cache does not know of this write.
	if _, err := r.records.Like(t.Context(), 1, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new value is read", func() bool { return photo(t, web, 1).Likes == 1 })
}

// lists: feeds and the newest photos are cached unless FeedTTL is 0.
func lists(t *testing.T, o options) {
	for _, cached := range []bool{true, false} {
		o.noLists = !cached
		r := newRig(t, o)
		a, b := r.web(t), r.web(t)
		for range 2 {
			for _, web := range []*cache.Tier{a, b} {
				feed, err := web.Feed(t.Context(), 2, 5)
				if err != nil || len(feed) != 5 || feed[0].ID != 20 {
					t.Errorf("Feed: got %+v, %v, want photos 20 to 16", feed, err)
				}
				newest, err := web.Newest(t.Context(), 3)
				if err != nil || len(newest) != 3 || newest[2].Title != "photo 18" {
					t.Errorf("Newest: got %+v, %v, want photos 20 to 18", newest, err)
				}
				if none, err := web.Feed(t.Context(), 1, 5); err != nil || len(none) != 0 {
					t.Errorf("Feed of the only owner of photos: got %+v, %v, want no photos", none, err)
				}
			}
		}
		want := map[bool][2]int{true: {2, 1}, false: {8, 4}}[cached]
		if got := [2]int{r.records.callCount("Feed"), r.records.callCount("Newest")}; got != want {
			t.Errorf("lists cached %t: got %d database reads of Feed and Newest, want %d", cached, got, want)
		}
	}
}

// databaseDown: while the database is unavailable, the cache serves the records that it
// has. When the database stores a write and its response is lost, reads return the new
// value.
func databaseDown(t *testing.T, o options) {
	r := newRig(t, o)
	web, ctx := r.web(t), t.Context()
	photo(t, web, 1)
	photo(t, web, 3)
	if _, err := web.User(ctx, 1); err != nil {
		t.Fatal(err)
	}
	r.records.setHooks(fail(photos.ErrUnavailable), nil)
	if p := photo(t, web, 1); !p.Cached {
		t.Errorf("photo 1: got %+v, want Cached true", p)
	}
	if u, err := web.User(ctx, 1); err != nil || !u.Cached {
		t.Errorf("user 1: got %+v, %v, want Cached true", u, err)
	}
	if _, err := web.Photo(ctx, 2); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("photo that is not cached: got %v, want %v", err, photos.ErrUnavailable)
	}
	// Only write-back acknowledges a write now: it needs only the cached record.
	version, err := web.Like(ctx, 1, 1)
	if o.write == "write_back" {
		if p := photo(t, web, 1); err != nil || version != 2 || p.Likes != 1 {
			t.Errorf("Like: got version %d, %v, then %+v, want version 2 and 1 like", version, err, p)
		}
	} else if !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("Like: got %v, want %v", err, photos.ErrUnavailable)
	}
	// The database stores writes, but their responses are lost.
	r.records.setHooks(nil, fail(photos.ErrUnavailable, "Like", "Comment", "RenamePhoto", "DeletePhoto", "AddPhoto"))
	_, err = web.RenamePhoto(ctx, 3, 1, "done")
	if (err == nil) != (o.write == "write_back") {
		t.Errorf("RenamePhoto: got %v, want an error unless writes are written back", err)
	}
	if p := photo(t, web, 3); p.Title != "done" || p.Version != 2 {
		t.Errorf("photo 3: got %+v, want title \"done\" at version 2", p)
	}
	if err := web.DeletePhoto(ctx, 3, 1); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("DeletePhoto: got %v, want %v", err, photos.ErrUnavailable)
	}
	if _, err := web.Photo(ctx, 3); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("photo after a deletion without a response: got %v, want %v", err, photos.ErrNotFound)
	}
}

// cacheDown: without a cache host, the web hosts read and write the database.
func cacheDown(t *testing.T, o options) {
	r := newRig(t, o)
	web, ctx := r.web(t), t.Context()
	photo(t, web, 1)
	must(t)(web.Like(ctx, 1, 1))
	r.stopHost(t, 0)
	for i := range int64(3) {
		if version := must(t)(web.Like(ctx, 1, 1)); version != i+3 {
			t.Errorf("Like: got version %d, want %d", version, i+3)
		}
		if p := photo(t, web, 1); p.Likes != i+2 || p.Cached {
			t.Errorf("photo 1: got %+v, want %d likes and Cached false", p, i+2)
		}
	}
	if u, err := web.User(ctx, 1); err != nil || u.Cached {
		t.Errorf("user 1: got %+v, %v, want Cached false", u, err)
	}
	if list, err := web.Newest(ctx, 3); err != nil || len(list) != 3 {
		t.Errorf("Newest: got %+v, %v, want 3 photos", list, err)
	}
	if err := web.AddPhoto(ctx, photos.Photo{ID: 50, UserID: 1, Version: 1}); err != nil {
		t.Error(err)
	}
	if err := web.DeletePhoto(ctx, 50, 1); err != nil {
		t.Error(err)
	}
}

// must returns a function that returns its version, and fails the test on an error.
func must(t testing.TB) func(version int64, err error) int64 {
	return func(version int64, err error) int64 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return version
	}
}

// oneHostDown: reads and writes of the keys of a dead host still work. With a proxy, the
// next host serves these keys, and all web hosts use the same next host.
func oneHostDown(t *testing.T, o options) {
	o.hosts = 2
	r := newRig(t, o)
	a, b := r.web(t), r.web(t)
	r.stopHost(t, 0)
	for id := photos.ID(1); id <= 20; id++ {
		if p := photo(t, a, id); p.Likes != 0 {
			t.Errorf("first read: got %+v, want 0 likes", p)
		}
		if version := must(t)(a.Like(t.Context(), id, 1)); version != 2 {
			t.Errorf("photo %d: got version %d, want 2", id, version)
		}
		if p := photo(t, b, id); p.Likes != 1 || p.Version != 2 {
			t.Errorf("read by the other web host: got %+v, want 1 like at version 2", p)
		}
		if version := must(t)(b.Like(t.Context(), id, 1)); version != 3 {
			t.Errorf("photo %d: got version %d, want 3", id, version)
		}
		if p := photo(t, a, id); p.Likes != 2 {
			t.Errorf("last read: got %+v, want 2 likes", p)
		}
		if p := photo(t, a, id); r.hasProxy() && !p.Cached {
			t.Errorf("photo %d: got Cached false, want the next host to cache it", id)
		}
	}
	r.hosts[1].stop(t)
	for id := photos.ID(1); id <= 20; id++ {
		if p := r.records.photo(id); p.Likes != 2 {
			t.Errorf("in the database: got %+v, want 2 likes", p)
		}
	}
}

// model records the acknowledged writes of all photos.
type model struct {
	mu       sync.Mutex
	versions map[photos.ID][]int64          // the versions of the acknowledged writes
	titles   map[photos.ID]map[int64]string // by photo and version
	likes    map[photos.ID]int64
	comments map[photos.ID][]photos.ID
	newest   map[photos.ID]int64 // the highest acknowledged version
}

// randomOperations: each write of concurrent clients is stored exactly once.
func randomOperations(t *testing.T, o options) {
	const clients, operations, photoCount = 8, 125, 20
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
			for i := range operations {
				newID, id := photos.ID(c*operations+i+1000), photos.ID(random.IntN(photoCount)+1)
				if err := m.run(t.Context(), web, random, newID, id, o.read == "read_through"); err != nil {
					t.Errorf("client %d of seed 1, operation %d: got %v, want no error", c, i, err)
					return
				}
			}
		})
	}
	running.Wait()
	r.stopHosts(t)
	for id := photos.ID(1); id <= photoCount; id++ {
		p, versions := r.records.photo(id), m.versions[id]
		slices.Sort(versions)
		for i, version := range versions {
			if version != int64(i)+2 {
				t.Fatalf("photo %d: got acknowledged versions %v, want 2, 3, 4 and so on", id, versions)
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
			t.Errorf("photo in the database (-want +got):\n%s", diff)
		}
		var comments []photos.ID
		for _, c := range r.records.commentsOf(id) {
			comments = append(comments, c.ID)
		}
		slices.Sort(comments)
		slices.Sort(m.comments[id])
		if diff := cmp.Diff(m.comments[id], comments); diff != "" {
			t.Errorf("comments of photo %d (-want +got):\n%s", id, diff)
		}
	}
}

// run performs a random operation on a photo and records it. newID is the id of a new
// comment or the user of a new like, and it makes titles unique. With noStaleReads, run
// returns an error when a read misses a write that was acknowledged before the read began.
func (m *model) run(
	ctx context.Context, web *cache.Tier, random *rand.Rand, newID, id photos.ID, noStaleReads bool,
) (err error) {
	var version int64
	var record func(*model)
	switch kind := random.IntN(10); {
	case kind < 5:
		m.mu.Lock()
		acknowledged := m.newest[id]
		m.mu.Unlock()
		p, err := web.Photo(ctx, id)
		if err == nil && noStaleReads && p.Version < acknowledged {
			return fmt.Errorf("photo %d: got version %d (cached %t), want at least the acknowledged version %d",
				id, p.Version, p.Cached, acknowledged)
		}
		return err
	case kind < 8:
		version, err = web.Like(ctx, id, newID)
		record = func(m *model) { m.likes[id]++ }
	case kind < 9:
		version, err = web.Comment(ctx, photos.Comment{ID: newID, PhotoID: id, UserID: 1, Text: "text"})
		record = func(m *model) { m.comments[id] = append(m.comments[id], newID) }
	default:
		title := fmt.Sprint("title ", newID)
		version, err = web.RenamePhoto(ctx, id, 1, title)
		record = func(m *model) {
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
	record(m)
	return nil
}
