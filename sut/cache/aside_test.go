package cache_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/resp/resptest"
)

// records is a database in memory that counts reads.
type records struct {
	photos.Records
	mu       sync.Mutex
	photos   map[photos.ID]photos.Photo
	reads    map[string]int
	writeErr error         // each write is stored and then returns this error
	hold     chan struct{} // reads of photos wait until it is closed; nil = they do not wait
}

// newRecords returns a database with photo 1 of user 7.
func newRecords() *records {
	one := photos.Photo{ID: 1, UserID: 7, Title: "one", Version: 1}
	return &records{photos: map[photos.ID]photos.Photo{1: one}, reads: map[string]int{}}
}

// readCount returns how often a kind of record was read.
func (r *records) readCount(kind string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reads[kind]
}

func (r *records) Photo(_ context.Context, id photos.ID) (photos.Photo, error) {
	if r.hold != nil {
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
	return p.Version, r.writeErr
}

func (r *records) AddPhoto(_ context.Context, p photos.Photo) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.photos[p.ID] = p
	return r.writeErr
}

// newAside returns a look-aside tier with single flight and one cache host.
func newAside(t *testing.T, r *records) (*cache.Tier, *cache.Client) {
	t.Helper()
	address := resptest.Serve(t, resptest.Config{}).Addr().String()
	client, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, address)}})
	return newTier(t, cache.TierConfig{AsideConfig: cache.AsideConfig{
		Records: r, Client: client, TTL: time.Minute, FeedTTL: time.Minute, SingleFlight: true,
	}}), client
}

func newTier(t *testing.T, c cache.TierConfig) *cache.Tier {
	t.Helper()
	tier, err := cache.NewTier(c)
	if err != nil {
		t.Fatal(err)
	}
	return tier
}

func TestAsideReadsOnce(t *testing.T) {
	r := newRecords()
	tier, _ := newAside(t, r)
	for i := range 3 {
		if p, err := tier.Photo(t.Context(), 1); err != nil || p.Title != "one" || p.Cached != (i > 0) {
			t.Fatalf("read %d: %+v, %v", i, p, err)
		}
		if u, err := tier.User(t.Context(), 7); err != nil || u.Name != "seven" || u.Cached != (i > 0) {
			t.Fatalf("read %d: %+v, %v", i, u, err)
		}
		if list, err := tier.Feed(t.Context(), 7, 20); err != nil || len(list) != 1 {
			t.Fatalf("read %d: %+v, %v", i, list, err)
		}
	}
	for _, kind := range []string{"photo", "user", "feed"} {
		if n := r.readCount(kind); n != 1 {
			t.Errorf("%s was read %d times from the database, want 1", kind, n)
		}
	}
	// The tier does not cache that a record is missing.
	for range 2 {
		if _, err := tier.Photo(t.Context(), 2); !errors.Is(err, photos.ErrNotFound) {
			t.Errorf("missing photo: got %v", err)
		}
	}
	if n := r.readCount("photo"); n != 3 {
		t.Errorf("photos were read %d times, want 3", n)
	}
}

// A request that wants no cached value gets that of the database, and leaves the cache as it is.
func TestFreshRead(t *testing.T) {
	for name, through := range map[string]bool{"aside": false, "read-through": true} {
		t.Run(name, func(t *testing.T) {
			r := newRecords()
			client, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, "in memory")}})
			cache.UseMemory(client)
			tier := newTier(t, cache.TierConfig{
				AsideConfig: cache.AsideConfig{Records: r, Client: client, TTL: time.Minute}, ReadThrough: through,
			})
			old := []byte(`{"id":1,"title":"old","version":1}`)
			if err := client.Set(t.Context(), cache.PhotoKey(1).String(), old, time.Minute); err != nil {
				t.Fatal(err)
			}
			ctx, notes := requestContext(t)
			notes.Fresh = true
			if p, err := tier.Photo(ctx, 1); err != nil || p.Title != "one" || p.Cached {
				t.Errorf("got %+v, %v", p, err)
			}
			if cached, _ := notes.Noted(); cached {
				t.Error("noted as cached")
			}
			if through {
				return // the memory of the test does not load records
			}
			if p, err := tier.Photo(t.Context(), 1); err != nil || p.Title != "old" || !p.Cached {
				t.Errorf("then got %+v, %v", p, err)
			}
		})
	}
}

// TestAsideInvalidates: after a write, reads return the new record. This is also true
// when the write returned an error but was stored.
func TestAsideInvalidates(t *testing.T) {
	for _, writeErr := range []error{nil, photos.ErrUnavailable} {
		r := newRecords()
		r.writeErr = writeErr
		tier, _ := newAside(t, r)
		read := func() photos.Photo {
			p, err := tier.Photo(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		read()
		if _, err := tier.User(t.Context(), 7); err != nil {
			t.Fatal(err)
		}
		if _, err := tier.Like(t.Context(), 1, 7); !errors.Is(err, writeErr) {
			t.Errorf("like: got %v, want %v", err, writeErr)
		}
		if p := read(); p.Likes != 1 || p.Version != 2 {
			t.Errorf("after a like with error %v: %+v", writeErr, p)
		}
		if err := tier.AddPhoto(t.Context(), photos.Photo{ID: 3, UserID: 7}); !errors.Is(err, writeErr) {
			t.Errorf("upload: got %v, want %v", err, writeErr)
		}
		if u, err := tier.User(t.Context(), 7); err != nil || u.Photos != 2 {
			t.Errorf("after an upload with error %v: %+v, %v", writeErr, u, err)
		}
	}
}

// TestAsideKeepsUnchanged: a write that changed nothing does not delete the cached value.
func TestAsideKeepsUnchanged(t *testing.T) {
	tier, client := newAside(t, newRecords())
	if err := client.Set(t.Context(), "photo:9", []byte(`{"id":9,"title":"kept"}`), time.Minute); err != nil {
		t.Fatal(err)
	}
	if _, err := tier.Like(t.Context(), 9, 1); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("like: got %v", err)
	}
	if p, err := tier.Photo(t.Context(), 9); err != nil || p.Title != "kept" || !p.Cached {
		t.Errorf("after the refused like: %+v, %v", p, err)
	}
}

// TestAsideWithoutHosts: when the cache host is down, requests use the database and
// succeed.
func TestAsideWithoutHosts(t *testing.T) {
	client, _ := connect(t, cache.Config{Timeout: time.Second, Hosts: []sut.Peer{peer(0, "127.0.0.1:1")}})
	tier := newTier(t, cache.TierConfig{AsideConfig: cache.AsideConfig{
		Records: newRecords(), Client: client, TTL: time.Minute,
	}})
	for i := range int64(3) {
		write, writeNotes := requestContext(t)
		if _, err := tier.Like(write, 1, 7); err != nil {
			t.Fatal(err)
		}
		read, readNotes := requestContext(t)
		if p, err := tier.Photo(read, 1); err != nil || p.Likes != i+1 || p.Cached {
			t.Errorf("after like %d: %+v, %v", i+1, p, err)
		}
		for _, notes := range []*sut.Served{writeNotes, readNotes} {
			if cached, without := notes.Noted(); cached || !slices.Equal(without, []sut.Role{sut.Cache}) {
				t.Errorf("cached: %t, answered without %v, want the cache", cached, without)
			}
		}
	}
}

// requestContext returns a context that collects how a request is answered.
func requestContext(t *testing.T) (context.Context, *sut.Served) {
	s := &sut.Served{}
	return context.WithValue(t.Context(), sut.ServedKey{}, s), s
}

// TestAsideSingleFlight: many readers miss the same key at the same time. With single
// flight they share one read of the database. Without it each of them reads.
func TestAsideSingleFlight(t *testing.T) {
	const readers = 50
	for singleFlight, want := range map[bool]int{true: 1, false: readers} {
		t.Run(fmt.Sprint(singleFlight), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRecords()
				r.hold = make(chan struct{})
				client, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, "in memory")}})
				cache.UseMemory(client)
				tier := newTier(t, cache.TierConfig{AsideConfig: cache.AsideConfig{
					Records: r, Client: client, TTL: time.Minute, SingleFlight: singleFlight,
				}})
				var all sync.WaitGroup
				for range readers {
					all.Go(func() {
						if p, err := tier.Photo(t.Context(), 1); err != nil || p.Title != "one" || p.Cached {
							t.Errorf("got %+v, %v", p, err)
						}
					})
				}
				synctest.Wait() // each reader has missed and waits for a read of the database
				close(r.hold)
				all.Wait()
				if n := r.readCount("photo"); n != want {
					t.Errorf("%d reads of the database for %d readers, want %d", n, readers, want)
				}
			})
		})
	}
}

func TestBadTierConfig(t *testing.T) {
	r := newRecords()
	_, client := newAside(t, r)
	for _, c := range []cache.AsideConfig{
		{},
		{Records: r, TTL: time.Second},
		{Client: client, TTL: time.Second},
		{Records: r, Client: client},
		{Records: r, Client: client, TTL: time.Second, FeedTTL: -1},
	} {
		if _, err := cache.NewTier(cache.TierConfig{AsideConfig: c}); err == nil {
			t.Errorf("NewTier accepted %+v", c)
		}
	}
}
