package cache_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/photos"
)

func likeOf(id photos.ID) cache.Write { return cache.Write{Like: &cache.Like{Photo: id, User: 7}} }

// TestRecordErrors: an error of the database reaches the caller through the protocol as
// the same error of package photos.
func TestRecordErrors(t *testing.T) {
	t.Parallel()
	known := []error{photos.ErrNotFound, photos.ErrForbidden, photos.ErrConflict, photos.ErrUnavailable}
	unknown := []error{errors.New("unknown"), errors.New("NOTFOUND at the beginning of a text")}
	for _, sent := range append(unknown, known...) {
		s, _ := serveFake(t, func(string, string) any {
			return cache.EncodeError(fmt.Errorf("photo 1\r\nof\nlines: %w", sent))
		})
		c, _ := connect(t, cache.Config{FailOver: true, Hosts: []sut.Peer{peer(0, s.Addr().String())}})
		for range 2 { // the second time the connection is reused
			_, _, fetchErr := c.Fetch(t.Context(), "photo:1")
			_, applyErr := c.Apply(t.Context(), "photo:1", likeOf(1))
			for _, err := range []error{fetchErr, applyErr} {
				for _, one := range known {
					if errors.Is(err, one) != (one == sent) {
						t.Errorf("the host sent %q, the caller got %v", sent, err)
					}
				}
				if err == nil || errors.Is(err, cache.ErrUnavailable) ||
					!strings.Contains(err.Error(), "photo 1  of lines: ") {
					t.Errorf("the host sent %q, the caller got %v", sent, err)
				}
			}
		}
	}
}

// TestBadReplies: replies of unexpected types are errors.
func TestBadReplies(t *testing.T) {
	t.Parallel()
	for _, reply := range []any{
		nil, int64(1), []byte("text"),
		[]any{},
		[]any{int64(1)},
		[]any{[]byte("text"), int64(1)},
		[]any{int64(1), nil},
		[]any{int64(1), []byte("{}"), int64(1)},
	} {
		s, _ := serveFake(t, func(string, string) any { return reply })
		c, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, s.Addr().String())}})
		if value, hit, err := c.Fetch(t.Context(), "photo:1"); err == nil || hit || value != nil {
			t.Errorf("Fetch accepted the reply %v as %q, hit %t", reply, value, hit)
		}
		version, err := c.Apply(t.Context(), "photo:1", likeOf(1))
		if _, valid := reply.(int64); (err == nil) != valid {
			t.Errorf("Apply with the reply %v: got version %d, %v", reply, version, err)
		}
	}
}

// TestFailOver: when a host does not answer, reads go to the next host. A write goes
// there only when it was not sent to the first host.
func TestFailOver(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name               string
		crashes            bool // the first host receives the request and crashes
		failOver           bool
		fetchErr, applyErr error
	}{
		{name: "connection refused", failOver: true},
		{
			name:     "connection refused, without failover",
			fetchErr: cache.ErrUnavailable, applyErr: cache.ErrUnavailable,
		},
		{name: "crash", crashes: true, failOver: true, applyErr: cache.ErrUnavailable},
		{
			name: "crash, without failover", crashes: true,
			fetchErr: cache.ErrUnavailable, applyErr: cache.ErrUnavailable,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			next, log := serveFake(t, func(name, _ string) any {
				if name == "fetch" {
					return []any{int64(1), []byte(`{"id":1}`)}
				}
				return int64(5)
			})
			peers := []sut.Peer{peer(0, "127.0.0.1:1"), peer(1, next.Addr().String())}
			received := new(atomic.Int64)
			if test.crashes {
				peers[0].Address, received = crashingHost(t)
			}
			key, id := keyOwnedBy("cache-1", peers)
			fetch := func(c *cache.Client) error { _, _, err := c.Fetch(t.Context(), key); return err }
			apply := func(c *cache.Client) error { _, err := c.Apply(t.Context(), key, likeOf(id)); return err }
			for _, first := range []struct {
				name string
				send func(*cache.Client) error
				want error
			}{{"Fetch", fetch, test.fetchErr}, {"Apply", apply, test.applyErr}} {
				// For a new client all hosts are healthy.
				c, _ := connect(t, cache.Config{FailOver: test.failOver, Hosts: peers})
				before := log.String()
				err := first.send(c)
				if !errors.Is(err, first.want) {
					t.Errorf("%s: got %v, want %v", first.name, err, first.want)
				}
				if failedOver := log.String() != before; failedOver != (first.want == nil) {
					t.Errorf("%s: sent to the next host: %t", first.name, failedOver)
				}
				// The client now knows that the first host is down. It does not send the write
				// there, so the write can fail over. On a slow machine the write may be a probe.
				receivedBefore := received.Load()
				if err := apply(c); test.failOver && err != nil && received.Load() == receivedBefore {
					t.Errorf("Apply after %s: got %v", first.name, err)
				}
			}
			if test.crashes && received.Load() == 0 {
				t.Error("the first host received no request")
			}
		})
	}
}

// TestFailOverFromHangingHost: reads fail over from a host that hangs. Writes fail,
// because the host may hold unflushed writes. Slow values of a host do not mark the pool
// for work as down.
func TestFailOverFromHangingHost(t *testing.T) {
	t.Parallel()
	next, log := serveFake(t, func(string, string) any { return []any{int64(1), []byte(`{"id":1}`)} })
	host := hangingHost(t)
	peers := []sut.Peer{peer(0, host.address()), peer(1, next.Addr().String())}
	key, id := keyOwnedBy("cache-1", peers)
	c, _ := connect(t, cache.Config{
		FailOver: true, Hosts: peers, Timeout: 10 * time.Millisecond, WorkTimeout: 100 * time.Millisecond,
	})
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if _, found, err := c.Get(ctx, key); found || err != nil {
		t.Errorf("Get from the next host: got %t, %v", found, err)
	}
	want := "fetch " + key
	if _, hit, err := c.Fetch(ctx, key); !hit || err != nil || log.String() != want {
		t.Errorf("Fetch: got hit %t, %v; the next host received %q", hit, err, log)
	}
	eventually(t, "one connection of each pool", func() bool { return host.accepted.Load() >= 2 })
	for range 2 {
		_, err := c.Apply(ctx, key, likeOf(id))
		if !errors.Is(err, cache.ErrUnavailable) || log.String() != want {
			t.Errorf("Apply: got %v; the next host received %q", err, log)
		}
	}
}

// TestFillAfterTimeout: when Get found the host down, Set fails at once.
func TestFillAfterTimeout(t *testing.T) {
	t.Parallel()
	c, _ := connect(t, cache.Config{
		Hosts:   []sut.Peer{peer(0, hangingHost(t).address())},
		Timeout: 10 * time.Millisecond, WorkTimeout: testTimeout,
	})
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout/2)
	defer cancel()
	if _, _, err := c.Get(ctx, "photo:1"); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("Get: got %v", err)
	}
	err := c.Set(ctx, "photo:1", nil, time.Minute)
	if !errors.Is(err, cache.ErrUnavailable) || ctx.Err() != nil {
		t.Errorf("Set: got %v", err)
	}
}

// TestAllHostsDown: a request tries each host once.
func TestAllHostsDown(t *testing.T) {
	t.Parallel()
	var peers []sut.Peer
	for i := range 3 {
		peers = append(peers, peer(i, "127.0.0.1:1"))
	}
	c, registry := connect(t, cache.Config{FailOver: true, Hosts: peers})
	if _, _, err := c.Fetch(t.Context(), "photo:1"); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("Fetch: got %v", err)
	}
	for _, p := range peers {
		if n := counter(t, registry, "errors_total", p.Node); n != 1 {
			t.Errorf("%s: %v requests, want 1", p.Node, n)
		}
	}
	c, _ = connect(t, cache.Config{FailOver: true, Hosts: peers})
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Apply(canceled, "photo:1", likeOf(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply with a canceled context: got %v", err)
	}
}

// newReadWriteThrough returns a tier with one cache host that loads and writes records.
func newReadWriteThrough(t *testing.T, r *records, address string) *cache.Tier {
	t.Helper()
	client, _ := connect(t, cache.Config{FailOver: true, Hosts: []sut.Peer{peer(0, address)}})
	return newTier(t, cache.TierConfig{
		AsideConfig: cache.AsideConfig{Records: r, Client: client, TTL: time.Minute, FeedTTL: time.Minute},
		ReadThrough: true, Writes: true,
	})
}

// TestTierWritesOnce: when a host crashes during a write, the result is unknown. The web
// host must not write again. When the write was not sent, the web host writes itself.
func TestTierWritesOnce(t *testing.T) {
	t.Parallel()
	r := newRecords()
	address, received := crashingHost(t)
	tier := newReadWriteThrough(t, r, address)
	_, err := tier.Like(t.Context(), 1, 7)
	if !errors.Is(err, photos.ErrUnavailable) || received.Load() != 1 {
		t.Errorf("host crashes: got %v, sent %d times", err, received.Load())
	}
	if p := r.photos[1]; p.Likes != 0 {
		t.Errorf("the web host wrote too: %+v", p)
	}
	version, err := newReadWriteThrough(t, r, "127.0.0.1:1").Like(t.Context(), 1, 7)
	if err != nil || version != 2 {
		t.Errorf("host down: got version %d, %v", version, err)
	}
}

// TestTierCommands: a tier sends each read and write to the cache host, under the key of
// the record.
func TestTierCommands(t *testing.T) {
	t.Parallel()
	s, log := serveFake(t, func(name, key string) any {
		switch {
		case name == "apply":
			return int64(9)
		case key == "photo:2":
			return []any{int64(1), []byte("{")}
		case strings.HasPrefix(key, "feed"), strings.HasPrefix(key, "newest"):
			return []any{int64(1), []byte(`[{"id":3}]`)}
		}
		return []any{int64(1), []byte(`{"id":1,"version":4}`)}
	})
	tier, ctx := newReadWriteThrough(t, newRecords(), s.Addr().String()), t.Context()
	if p, err := tier.Photo(ctx, 1); err != nil || p.Version != 4 || !p.Cached {
		t.Errorf("Photo: got %+v, %v", p, err)
	}
	if p, err := tier.Photo(ctx, 2); err == nil {
		t.Errorf("Photo accepted invalid JSON as %+v", p)
	}
	if u, err := tier.User(ctx, 1); err != nil || u.Version != 4 || !u.Cached {
		t.Errorf("User: got %+v, %v", u, err)
	}
	if list, err := tier.Feed(ctx, 7, 20); err != nil || len(list) != 1 || list[0].ID != 3 {
		t.Errorf("Feed: got %+v, %v", list, err)
	}
	if list, err := tier.Newest(ctx, 30); err != nil || len(list) != 1 {
		t.Errorf("Newest: got %+v, %v", list, err)
	}
	_, commentErr := tier.Comment(ctx, photos.Comment{ID: 5, PhotoID: 6})
	_, renameErr := tier.RenamePhoto(ctx, 8, 1, "x")
	addErr := tier.AddPhoto(ctx, photos.Photo{ID: 10, UserID: 1})
	deleteErr := tier.DeletePhoto(ctx, 11, 1)
	for i, err := range []error{commentErr, renameErr, addErr, deleteErr} {
		if err != nil {
			t.Errorf("write %d: %v", i, err)
		}
	}
	want := "fetch photo:1; fetch photo:2; fetch user:1; fetch feed:7:20; fetch newest:30; " +
		"apply photo:6; apply photo:8; apply photo:10; apply photo:11"
	if diff := cmp.Diff(want, log.String()); diff != "" {
		t.Errorf("commands (-want +got)\n%s", diff)
	}
}
