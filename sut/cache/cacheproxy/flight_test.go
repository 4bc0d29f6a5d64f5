package cacheproxy_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/cache/cacheproxy"
	"github.com/stagebench/stagebench/sut/photos"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// values stores cached values in memory. They do not expire.
type values struct {
	mu      sync.Mutex
	entries map[string][]byte
	before  hook // runs before each method; its error prevents the change
}

func newValues() *values { return &values{entries: map[string][]byte{}} }

// setHook sets the hook of all methods; nil = no hook.
func (v *values) setHook(before hook) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.before = before
}

// do performs one call of a method, with its hook.
func (v *values) do(ctx context.Context, call string, effect func()) error {
	v.mu.Lock()
	before := v.before
	v.mu.Unlock()
	if before != nil {
		if err := before(ctx, call); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	effect()
	return nil
}

func (v *values) Get(ctx context.Context, key string) (value []byte, found bool, err error) {
	err = v.do(ctx, "Get", func() { value, found = v.entries[key] })
	return value, found, err
}

func (v *values) Set(ctx context.Context, key string, value []byte, _ time.Duration) error {
	return v.do(ctx, "Set", func() { v.entries[key] = value })
}

func (v *values) Delete(ctx context.Context, key string) error {
	return v.do(ctx, "Delete", func() { delete(v.entries, key) })
}

// barrier delays the first n calls of Get until all n have looked up their value.
type barrier struct {
	cacheproxy.Values
	n    int64
	gets atomic.Int64
	all  chan struct{} // closed by the call with number n
}

func (b *barrier) Get(ctx context.Context, key string) (value []byte, found bool, err error) {
	value, found, err = b.Values.Get(ctx, key)
	switch i := b.gets.Add(1); {
	case i == b.n:
		close(b.all)
	case i < b.n:
		select {
		case <-b.all:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
	return value, found, err
}

// newProxyRig returns a rig with one proxy, without servers. The proxy keeps its cached
// values in memory.
func newProxyRig(t testing.TB, o options) (*rig, *host, *values) {
	t.Helper()
	if o.interval == 0 {
		o.interval = never
	}
	o.ttl = time.Minute
	r, v := &rig{options: o, records: newRecords(20)}, newValues()
	h := &host{registry: prometheus.NewRegistry()}
	h.proxy = r.newProxy(t, v, h.registry)
	return r, h, v
}

// pausedCall is a hook that blocks the first call of one method, until release is closed
// or the context of the call ends. started is closed when that call blocks.
type pausedCall struct {
	call             string
	paused           atomic.Bool // the first call has come
	started, release chan struct{}
}

// pauseFirst returns a pausedCall for the named method.
func pauseFirst(call string) *pausedCall {
	return &pausedCall{call: call, started: make(chan struct{}), release: make(chan struct{})}
}

func (c *pausedCall) hook(ctx context.Context, call string) error {
	if call != c.call || c.paused.Swap(true) {
		return nil
	}
	close(c.started)
	select {
	case <-c.release:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", photos.ErrUnavailable, ctx.Err())
	}
}

// TestSingleFlight: requests of several web hosts miss the same key at the same time.
// With single flight they share one load. Without it each of them loads.
func TestSingleFlight(t *testing.T) {
	t.Parallel()
	const clients, each = 4, 25
	for singleFlight, want := range map[bool]int{true: 1, false: clients * each} {
		o := writeBackOptions()
		o.write, o.noSingleFlight = "write_through", !singleFlight
		r := newRig(t, withChange(o, func(c *cacheproxy.Config) {
			c.Values = &barrier{Values: c.Values, n: clients * each, all: make(chan struct{})}
		}))
		var all sync.WaitGroup
		for range clients {
			client := r.client(t)
			for range each {
				all.Go(func() {
					value, hit, err := client.Fetch(t.Context(), "photo:1")
					if err != nil || len(value) == 0 || hit {
						t.Errorf("got %s, hit %t, %v", value, hit, err)
					}
				})
			}
		}
		all.Wait()
		loads, metric := r.records.callCount("Photo"), r.hosts[0].metric(t, "loads_total")
		if loads != want || int(metric) != want {
			t.Errorf("single flight %t: got %d loads, %v in the metrics, want %d", singleFlight, loads, metric, want)
		}
	}
}

// TestLoadBeforeWrite: a load reads the old record before a write. The proxy must not cache
// that record after the write, and a read after the write must not get it.
func TestLoadBeforeWrite(t *testing.T) {
	t.Parallel()
	for _, s := range strategies()[3:] {
		for _, noSingleFlight := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v no single flight %t", s, noSingleFlight), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, options{engine: engine{name: "resp"}, strategy: s, noSingleFlight: noSingleFlight})
				web, other := r.web(t), r.web(t)
				load := pauseFirst("Photo")
				r.records.setHooks(nil, load.hook) // pauses after the read of the old record
				slow := make(chan photos.Photo, 1)
				go func() {
					p, _ := other.Photo(t.Context(), 1)
					slow <- p
				}()
				waitClosed(t, "the load has read the old record", load.started)
				if version := like(t, web, 1, 1); version != 2 {
					t.Errorf("Like: got version %d, want 2", version)
				}
				got := make(chan photos.Photo, 1)
				go func() {
					p, _ := web.Photo(t.Context(), 1)
					got <- p
				}()
				select {
				case p := <-got:
					if p.Version != 2 {
						t.Errorf("read after the write: got %+v, want version 2", p)
					}
				case <-time.After(testTimeout):
					t.Error("timed out waiting until a read after the write returns: it must not share the older load")
				}
				close(load.release)
				<-slow
				if p := photo(t, web, 1); p.Version != 2 || p.Likes != 1 {
					t.Errorf("read after the load: got %+v, want 1 like at version 2", p)
				}
			})
		}
	}
}

// TestWriteAndFlushDuringLoad: between the miss and the end of a load, a write is added to
// the backlog and flushed. The load must not replace the flushed record with the older one
// that it has read.
func TestWriteAndFlushDuringLoad(t *testing.T) {
	t.Parallel()
	o := writeBackOptions()
	o.noSingleFlight = true // single flight looks up the key twice, which hides most of the race
	r, h, v := newProxyRig(t, o)
	proxy, ctx := h.proxy, t.Context()
	lookup, load := pauseFirst("Get"), pauseFirst("Photo")
	v.setHook(lookup.hook)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _, _ = proxy.Fetch(ctx, "photo:1")
	}()
	waitClosed(t, "the fetch looks up the key", lookup.started)
	if _, err := proxy.Apply(ctx, "photo:1", cache.Write{Like: &cache.Like{Photo: 1, User: 1}}); err != nil {
		t.Fatal(err)
	}
	r.records.setHooks(nil, load.hook)
	close(lookup.release) // the lookup misses
	select {
	case <-load.started:
		// The load has read the old record. Close flushes the new one.
		_ = proxy.Close(ctx)
		close(load.release)
		<-done
	case <-done:
		_ = proxy.Close(ctx)
	}
	if p := r.records.photo(1); p.Version != 2 {
		t.Fatalf("in the database: got %+v, want version 2", p)
	}
	if text, _, err := proxy.Fetch(ctx, "photo:1"); err != nil || string(text) != string(marshal(t, r.records.photo(1))) {
		t.Errorf("Fetch: got %s, %v, want %s", text, err, marshal(t, r.records.photo(1)))
	}
}

// TestContextEndsDuringWrite: the context of a write-through ends after the database has
// stored the write. The cached value must change all the same.
func TestContextEndsDuringWrite(t *testing.T) {
	t.Parallel()
	for _, writeErr := range []error{nil, photos.ErrUnavailable} {
		o := writeBackOptions()
		o.write = "write_through"
		r, h, _ := newProxyRig(t, o)
		proxy := h.proxy
		if _, _, err := proxy.Fetch(t.Context(), "photo:1"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		r.records.setHooks(nil, func(_ context.Context, call string) error {
			if call == "Like" {
				cancel()
				return writeErr
			}
			return nil
		})
		w := cache.Write{Like: &cache.Like{Photo: 1, User: 1}}
		if _, err := proxy.Apply(ctx, "photo:1", w); !errors.Is(err, writeErr) {
			t.Errorf("Apply: got %v, want %v", err, writeErr)
		}
		text, _, err := proxy.Fetch(t.Context(), "photo:1")
		if err != nil || string(text) != string(marshal(t, r.records.photo(1))) {
			t.Errorf("Fetch after a write with error %v: got %s, %v, want %s",
				writeErr, text, err, marshal(t, r.records.photo(1)))
		}
	}
}

// TestWriteThroughAfterAnotherWriter: another writer has changed the record since it was
// cached. The proxy must not compute the new cached value from that stale value.
func TestWriteThroughAfterAnotherWriter(t *testing.T) {
	t.Parallel()
	o := writeBackOptions()
	o.write = "write_through"
	r := newRig(t, o)
	web := r.web(t)
	photo(t, web, 1)
	like(t, r.records, 1, 1)
	if version := like(t, web, 1, 1); version != 3 {
		t.Errorf("Like: got version %d, want 3", version)
	}
	if p := photo(t, web, 1); p.Version != 3 || p.Likes != 2 {
		t.Errorf("after the other writer: got %+v, want 2 likes at version 3", p)
	}
	// The cached value is current now, so the next write needs no database read.
	reads := r.records.callCount("Photo")
	like(t, web, 1, 1)
	if p := photo(t, web, 1); p.Version != 4 || p.Likes != 3 || !p.Cached || r.records.callCount("Photo") != reads {
		t.Errorf("got %+v after %d database reads, want 3 likes, version 4, Cached true, 0 reads",
			p, r.records.callCount("Photo")-reads)
	}
}

// TestCachedValuesFail: when the store of cached values fails, reads and writes still work,
// and the proxy counts the errors.
func TestCachedValuesFail(t *testing.T) {
	t.Parallel()
	for _, s := range strategies()[3:] {
		r, h, v := newProxyRig(t, options{engine: engine{name: "resp"}, strategy: s})
		proxy, ctx := h.proxy, t.Context()
		v.setHook(fail(errors.New("full")))
		for i := range int64(3) {
			if s.write != "write_around" {
				version, err := proxy.Apply(ctx, "photo:1", cache.Write{Like: &cache.Like{Photo: 1, User: 1}})
				if err != nil || version != i+2 {
					t.Errorf("%v: Apply: got version %d, %v, want version %d", s, version, err, i+2)
				}
			}
			_, hit, err := proxy.Fetch(ctx, "photo:1")
			if err != nil || hit != (s.write == "write_back") {
				t.Errorf("%v: Fetch: got hit %t, %v, want a hit only with write-back", s, hit, err)
			}
		}
		if n := h.metric(t, "value_errors_total"); n == 0 && s.write != "write_back" {
			t.Errorf("%v: got 0 value errors in the metrics, want more", s)
		}
		v.setHook(nil)
		if err := proxy.Close(ctx); err != nil {
			t.Error(err)
		}
		if text, _, err := proxy.Fetch(ctx, "photo:1"); err != nil || string(text) != string(marshal(t, r.records.photo(1))) {
			t.Errorf("%v: Fetch: got %s, %v, want %s", s, text, err, marshal(t, r.records.photo(1)))
		}
	}
}
