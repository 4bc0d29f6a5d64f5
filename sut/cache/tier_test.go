package cache_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/resp/resptest"
)

// asked is what a fake front was asked, an entry for each command.
type asked struct {
	mu       sync.Mutex
	commands []string
}

func (a *asked) all() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.commands, "; ")
}

// serveFake starts a host that answers FETCH and APPLY as it is told.
func serveFake(t *testing.T, answer func(command, key string) any) (*resptest.Server, *asked) {
	t.Helper()
	a := &asked{}
	command := func(name string) resptest.Command {
		return resptest.Command{MinArgs: 1, MaxArgs: 2, Run: func(args [][]byte) any {
			a.mu.Lock()
			a.commands = append(a.commands, name+" "+string(args[0]))
			a.mu.Unlock()
			return answer(name, string(args[0]))
		}}
	}
	return resptest.ServeProxy(t, resptest.Config{}, func(*resptest.Server) map[string]resptest.Command {
		return map[string]resptest.Command{cache.FetchCommand: command("fetch"), cache.ApplyCommand: command("apply")}
	}), a
}

// What a host refuses comes to the caller as the error of the records that it was.
func TestRefusals(t *testing.T) {
	t.Parallel()
	known := []error{photos.ErrNotFound, photos.ErrForbidden, photos.ErrConflict, photos.ErrUnavailable}
	for _, sent := range append([]error{errors.New("strange"), errors.New("NOTFOUND is not what it begins with")}, known...) {
		s, _ := serveFake(t, func(string, string) any {
			return cache.EncodeError(fmt.Errorf("photo 1\r\nof\nlines: %w", sent))
		})
		c, _ := connect(t, cache.Config{FailOver: true, Hosts: []sut.Peer{peer(0, s.Addr().String())}})
		for range 2 { // the connection is not at odds afterwards
			_, _, fetched := c.Fetch(t.Context(), "photo:1")
			_, applied := c.Apply(t.Context(), "photo:1", cache.Write{Like: &cache.Like{Photo: 1}})
			for _, err := range []error{fetched, applied} {
				for _, one := range known {
					if errors.Is(err, one) != (one == sent) {
						t.Errorf("%v came as %v", sent, err)
					}
				}
				if err == nil || errors.Is(err, cache.ErrUnavailable) || !strings.Contains(err.Error(), "photo 1  of lines: ") {
					t.Errorf("%v came as %v", sent, err)
				}
			}
		}
	}
}

// Answers that are none are errors, not values.
func TestStrangeAnswers(t *testing.T) {
	t.Parallel()
	for _, strange := range []any{nil, int64(1), []byte("text"), []any{}, []any{int64(1)}, []any{[]byte("text"), int64(1)}, []any{int64(1), nil}, []any{int64(1), []byte("{}"), int64(1)}} {
		s, _ := serveFake(t, func(string, string) any { return strange })
		c, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, s.Addr().String())}})
		if value, hit, err := c.Fetch(t.Context(), "photo:1"); err == nil || hit || value != nil {
			t.Errorf("%v was taken for %q, %t", strange, value, hit)
		}
		// It is left alone for a second then, like one that does not answer.
		c, _ = connect(t, cache.Config{Hosts: []sut.Peer{peer(0, s.Addr().String())}})
		version, err := c.Apply(t.Context(), "photo:1", cache.Write{Like: &cache.Like{Photo: 1}})
		if _, number := strange.(int64); (err == nil) != number {
			t.Errorf("%v was taken for version %d, %v", strange, version, err)
		}
	}
}

// dying takes whatever is sent to it, and ends the connection instead of answering.
func dying(t *testing.T) (address string, taken *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken = new(atomic.Int64)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = conn.Close() }()
				text := make([]byte, 4096)
				for {
					n, err := conn.Read(text)
					if err != nil {
						return
					}
					if strings.Contains(strings.ToLower(string(text[:n])), "photo:") {
						taken.Add(1)
						return
					}
					if _, err := io.WriteString(conn, "-ERR unknown command\r\n"); err != nil { // to how a client greets
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	return l.Addr().String(), taken
}

// keyOf is a key that a host has of two.
func keyOf(t *testing.T, peers []sut.Peer, owner int) (key string, id photos.ID) {
	t.Helper()
	var hosts []*asked
	probes := make([]sut.Peer, len(peers))
	for i, p := range peers {
		s, a := serveFake(t, func(string, string) any { return int64(1) })
		probes[i], hosts = sut.Peer{Node: p.Node, Address: s.Addr().String()}, append(hosts, a)
	}
	c, _ := connect(t, cache.Config{Hosts: probes})
	for id := photos.ID(1); ; id++ {
		key := cache.PhotoKey(id).String()
		if _, err := c.Apply(t.Context(), key, cache.Write{Like: &cache.Like{Photo: id}}); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(hosts[owner].all(), key) {
			return key, id
		}
	}
}

// The next host is asked for what the first does not answer: reads always, writes when
// nothing was sent.
func TestFailOver(t *testing.T) {
	t.Parallel()
	answer := func(name, _ string) any {
		if name == "fetch" {
			return []any{int64(1), []byte(`{"id":1}`)}
		}
		return int64(5)
	}
	for _, test := range []struct {
		name         string
		sent         bool // the first host gets what is sent
		failOver     bool
		reads, wrote error
	}{
		{"refused connections", false, true, nil, nil},
		{"refused connections, no fail-over", false, false, cache.ErrUnavailable, cache.ErrUnavailable},
		{"it dies", true, true, nil, cache.ErrUnavailable},
		{"it dies, no fail-over", true, false, cache.ErrUnavailable, cache.ErrUnavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			next, asked := serveFake(t, answer)
			peers := []sut.Peer{peer(0, "127.0.0.1:1"), peer(1, next.Addr().String())}
			taken := new(atomic.Int64)
			if test.sent {
				peers[0].Address, taken = dying(t)
			}
			key, id := keyOf(t, peers, 0)
			for _, reading := range []bool{true, false} {
				// A new client, to which no host has been silent yet.
				c, _ := connect(t, cache.Config{FailOver: test.failOver, Hosts: peers})
				before := asked.all()
				var err error
				want := test.wrote
				if reading {
					_, _, err = c.Fetch(t.Context(), key)
					want = test.reads
				} else {
					_, err = c.Apply(t.Context(), key, cache.Write{Like: &cache.Like{Photo: id}})
				}
				if !errors.Is(err, want) {
					t.Errorf("reading %t: %v, want %v", reading, err, want)
				}
				if passed := asked.all() != before; passed != (want == nil) {
					t.Errorf("reading %t: the next host was asked: %t", reading, passed)
				}
				// From now on the first is known to be silent, and nothing is sent to it.
				sent := taken.Load()
				_, err = c.Apply(t.Context(), key, cache.Write{Like: &cache.Like{Photo: id}})
				if test.failOver && err != nil && taken.Load() == sent {
					t.Errorf("reading %t: a write after it: %v", reading, err)
				}
			}
			if test.sent && taken.Load() == 0 {
				t.Error("nothing was sent to the host that dies")
			}
		})
	}
}

// A host that hangs leaves its callers time to turn elsewhere: reads go to the next one,
// writes fail, as it may hold what nobody else has. That its values are slow says nothing
// of its work.
func TestHangingFront(t *testing.T) {
	t.Parallel()
	next, asked := serveFake(t, func(string, string) any { return []any{int64(1), []byte(`{"id":1}`)} })
	address, accepted := silent(t)
	peers := []sut.Peer{peer(0, address), peer(1, next.Addr().String())}
	key, id := keyOf(t, peers, 0)
	c, _ := connect(t, cache.Config{FailOver: true, Hosts: peers, Timeout: 10 * time.Millisecond, WorkTimeout: 100 * time.Millisecond})
	request, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, found, err := c.Get(request, key); found || err != nil {
		t.Errorf("a value of the next host: %t, %v", found, err)
	}
	if _, hit, err := c.Fetch(request, key); !hit || err != nil || asked.all() != "fetch "+key {
		t.Errorf("hit %t, %v; the next host was asked %q", hit, err, asked.all())
	}
	for deadline := time.Now().Add(patience); accepted.Load() < 2; { // one for each line
		if time.Now().After(deadline) {
			t.Fatal("a host whose values are slow was not asked to work")
		}
		runtime.Gosched()
	}
	for range 2 {
		if _, err := c.Apply(request, key, cache.Write{Like: &cache.Like{Photo: id}}); !errors.Is(err, cache.ErrUnavailable) || asked.all() != "fetch "+key {
			t.Errorf("%v; the next host was asked %q", err, asked.all())
		}
	}
}

// A value is not taken to a host that has just not answered when it was asked for one.
func TestHangingHostIsNotFilled(t *testing.T) {
	t.Parallel()
	address, _ := silent(t)
	c, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, address)}, Timeout: 10 * time.Millisecond, WorkTimeout: patience})
	request, cancel := context.WithTimeout(t.Context(), patience/2)
	defer cancel()
	if _, _, err := c.Get(request, "photo:1"); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if err := c.Set(request, "photo:1", nil, time.Minute); !errors.Is(err, cache.ErrUnavailable) || request.Err() != nil {
		t.Errorf("set: %v", err)
	}
}

// When no host answers, the error is that of a host.
func TestNoHostAnswers(t *testing.T) {
	t.Parallel()
	var peers []sut.Peer
	for i := range 3 {
		peers = append(peers, peer(i, "127.0.0.1:1"))
	}
	c, registry := connect(t, cache.Config{FailOver: true, Hosts: peers})
	if _, _, err := c.Fetch(t.Context(), "photo:1"); !errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	for i := range 3 {
		if n := figure(t, registry, "errors_total", peers[i].Node); n != 1 {
			t.Errorf("%s was asked %v times", peers[i].Node, n)
		}
	}
	c, _ = connect(t, cache.Config{FailOver: true, Hosts: peers})
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := c.Apply(ended, "photo:1", cache.Write{Like: &cache.Like{Photo: 1}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// tierOf is a tier that reads and writes through, before one host.
func tierOf(t *testing.T, r *records, address string) *cache.Tier {
	t.Helper()
	client, _ := connect(t, cache.Config{FailOver: true, Hosts: []sut.Peer{peer(0, address)}})
	tier, err := cache.NewTier(cache.TierConfig{
		AsideConfig: cache.AsideConfig{Records: r, Client: client, TTL: time.Minute, FeedTTL: time.Minute}, ReadThrough: true, Writes: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return tier
}

// A host that dies with a write leaves open whether it was done: it is not done again.
// One that was not reached did nothing, so that the web host writes.
func TestTierWritesOnce(t *testing.T) {
	t.Parallel()
	r := newRecords()
	address, taken := dying(t)
	tier := tierOf(t, r, address)
	if _, err := tier.Like(t.Context(), 1, 7); !errors.Is(err, photos.ErrUnavailable) || taken.Load() != 1 {
		t.Errorf("%v, sent %d times", err, taken.Load())
	}
	if p := r.photos[1]; p.Likes != 0 {
		t.Errorf("done by the web host, too: %+v", p)
	}
	if version, err := tierOf(t, r, "127.0.0.1:1").Like(t.Context(), 1, 7); err != nil || version != 2 {
		t.Errorf("without a host: version %d, %v", version, err)
	}
}

// A tier asks for each record by its key, and takes what comes.
func TestTierAsks(t *testing.T) {
	t.Parallel()
	s, asked := serveFake(t, func(name, key string) any {
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
	tier, ctx := tierOf(t, newRecords(), s.Addr().String()), t.Context()
	if p, err := tier.Photo(ctx, 1); err != nil || p.Version != 4 || !p.Cached {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := tier.Photo(ctx, 2); err == nil {
		t.Errorf("broken text is %+v", p)
	}
	if u, err := tier.User(ctx, 1); err != nil || u.Version != 4 || !u.Cached {
		t.Errorf("%+v, %v", u, err)
	}
	if list, err := tier.Feed(ctx, 7, 20); err != nil || len(list) != 1 || list[0].ID != 3 {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := tier.Newest(ctx, 30); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	_, commented := tier.Comment(ctx, photos.Comment{ID: 5, PhotoID: 6})
	_, renamed := tier.RenamePhoto(ctx, 8, 1, "x")
	for i, err := range []error{commented, renamed, tier.AddPhoto(ctx, photos.Photo{ID: 10, UserID: 1}), tier.DeletePhoto(ctx, 11, 1)} {
		if err != nil {
			t.Errorf("write %d: %v", i, err)
		}
	}
	want := "fetch photo:1; fetch photo:2; fetch user:1; fetch feed:7:20; fetch newest:30; apply photo:6; apply photo:8; apply photo:10; apply photo:11"
	if diff := cmp.Diff(want, asked.all()); diff != "" {
		t.Errorf("asked (-want +got)\n%s", diff)
	}
	if tier, err := cache.NewTier(cache.TierConfig{}); err == nil {
		t.Errorf("%+v was taken", tier)
	}
}
