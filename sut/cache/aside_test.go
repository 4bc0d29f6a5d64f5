package cache_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/resp/resptest"
)

// records counts what it is asked.
type records struct {
	photos.Records
	mu     sync.Mutex
	photos map[photos.ID]photos.Photo
	reads  map[string]int
	fails  error // of writes
	hold   chan struct{}
	held   atomic.Int64 // reads of photos that wait for hold
}

func newRecords() *records {
	return &records{photos: map[photos.ID]photos.Photo{1: {ID: 1, UserID: 7, Title: "one", Version: 1}}, reads: map[string]int{}}
}

func (r *records) asked(what string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reads[what]
}

func (r *records) Photo(_ context.Context, id photos.ID) (photos.Photo, error) {
	if r.hold != nil {
		r.held.Add(1)
		<-r.hold
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads["photo"]++
	if p, found := r.photos[id]; found {
		return p, nil
	}
	return photos.Photo{}, photos.ErrNotFound
}

func (r *records) User(_ context.Context, id photos.ID) (photos.User, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads["user"]++
	return photos.User{ID: id, Name: "seven", Photos: int64(len(r.photos)), Password: "secret"}, nil
}

func (r *records) Feed(context.Context, photos.ID, int) ([]photos.Photo, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads["feed"]++
	return []photos.Photo{r.photos[1]}, nil
}

func (r *records) Like(_ context.Context, id, _ photos.ID) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.photos[id]
	if p.ID == 0 {
		return 0, photos.ErrNotFound
	}
	p.Likes, p.Version = p.Likes+1, p.Version+1
	r.photos[id] = p
	return p.Version, r.fails
}

func (r *records) AddPhoto(_ context.Context, p photos.Photo) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.photos[p.ID] = p
	return r.fails
}

// aside puts a cache host in front of records.
func aside(t *testing.T, r *records, change func(*cache.AsideConfig)) (*cache.Tier, *cache.Client) {
	t.Helper()
	client, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, resptest.Serve(t, resptest.Config{}).Addr().String())}})
	config := cache.AsideConfig{Records: r, Client: client, TTL: time.Minute, FeedTTL: time.Minute, SingleFlight: true}
	if change != nil {
		change(&config)
	}
	a, err := cache.NewTier(cache.TierConfig{AsideConfig: config})
	if err != nil {
		t.Fatal(err)
	}
	return a, client
}

func TestAsideReadsOnce(t *testing.T) {
	r := newRecords()
	a, _ := aside(t, r, nil)
	for i := range 3 {
		if p, err := a.Photo(t.Context(), 1); err != nil || p.Title != "one" || p.Cached != (i > 0) {
			t.Fatalf("%d: %+v, %v", i, p, err)
		}
		if u, err := a.User(t.Context(), 7); err != nil || u.Name != "seven" || u.Cached != (i > 0) {
			t.Fatalf("%d: %+v, %v", i, u, err)
		}
		if list, err := a.Feed(t.Context(), 7, 20); err != nil || len(list) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
	}
	for _, what := range []string{"photo", "user", "feed"} {
		if n := r.asked(what); n != 1 {
			t.Errorf("%s was read %d times, want once", what, n)
		}
	}
	// What is not there is asked for each time: nothing says when it comes.
	for range 2 {
		if _, err := a.Photo(t.Context(), 2); !errors.Is(err, photos.ErrNotFound) {
			t.Errorf("a photo that does not exist: %v", err)
		}
	}
	if n := r.asked("photo"); n != 3 {
		t.Errorf("read %d times", n)
	}
}

func TestAsideWritesAround(t *testing.T) {
	for _, fails := range []error{nil, photos.ErrUnavailable} { // one that may have happened counts
		r := newRecords()
		r.fails = fails
		a, _ := aside(t, r, nil)
		read := func() photos.Photo {
			p, err := a.Photo(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		read()
		if _, err := a.User(t.Context(), 7); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Like(t.Context(), 1, 7); !errors.Is(err, fails) {
			t.Errorf("like: %v", err)
		}
		if p := read(); p.Likes != 1 || p.Version != 2 {
			t.Errorf("after a like that ended with %v: %+v", fails, p)
		}
		if err := a.AddPhoto(t.Context(), photos.Photo{ID: 3, UserID: 7}); !errors.Is(err, fails) {
			t.Errorf("upload: %v", err)
		}
		if u, err := a.User(t.Context(), 7); err != nil || u.Photos != 2 {
			t.Errorf("after an upload: %+v, %v", u, err)
		}
	}
}

// A write that changed nothing leaves the cache alone.
func TestAsideForgetsNothingInVain(t *testing.T) {
	r := newRecords()
	a, client := aside(t, r, nil)
	if err := client.Set(t.Context(), "photo:9", []byte(`{"id":9,"title":"kept"}`), time.Minute); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Like(t.Context(), 9, 1); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("like: %v", err)
	}
	if p, err := a.Photo(t.Context(), 9); err != nil || p.Title != "kept" || !p.Cached {
		t.Errorf("%+v, %v", p, err)
	}
}

// Without a cache host all is read from the records, and nothing fails.
func TestAsideWithoutACache(t *testing.T) {
	r := newRecords()
	client, _ := connect(t, cache.Config{Timeout: time.Second, Hosts: []sut.Peer{peer(0, "127.0.0.1:1")}})
	a, err := cache.NewTier(cache.TierConfig{AsideConfig: cache.AsideConfig{Records: r, Client: client, TTL: time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := a.Like(t.Context(), 1, 7); err != nil {
			t.Fatal(err)
		}
		if p, err := a.Photo(t.Context(), 1); err != nil || p.Likes != int64(i)+1 || p.Cached {
			t.Errorf("%+v, %v", p, err)
		}
	}
}

// Of many who miss a key at a time one reads it, or each of them.
func TestAsideSingleFlight(t *testing.T) {
	const readers = 50
	for _, single := range []bool{true, false} {
		r := newRecords()
		r.hold = make(chan struct{})
		a, _ := aside(t, r, func(c *cache.AsideConfig) { c.SingleFlight = single })
		var all sync.WaitGroup
		for range readers {
			all.Go(func() {
				if p, err := a.Photo(t.Context(), 1); err != nil || p.Title != "one" {
					t.Errorf("%+v, %v", p, err)
				}
			})
		}
		// One reads for all, who wait for it or come later and hit; or all of them do.
		want := map[bool]int{true: 1, false: readers}[single]
		for r.held.Load() < int64(want) {
			<-time.After(time.Millisecond)
		}
		close(r.hold)
		all.Wait()
		// One who had missed before it was filled may come to read after that.
		if n := r.asked("photo"); n < want || single && n > 5 {
			t.Errorf("single flight %t: read %d times for %d readers, want %d", single, n, readers, want)
		}
	}
}

func TestBadAside(t *testing.T) {
	r := newRecords()
	_, client := aside(t, r, nil)
	for _, c := range []cache.AsideConfig{{}, {Records: r}, {Client: client}, {Records: r, Client: client}, {Records: r, Client: client, TTL: time.Second, FeedTTL: -1}} {
		if _, err := cache.NewTier(cache.TierConfig{AsideConfig: c}); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}
