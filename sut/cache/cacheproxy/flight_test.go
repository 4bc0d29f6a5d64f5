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

// values are values in memory that do not expire.
type values struct {
	mu     sync.Mutex
	texts  map[string][]byte
	before hook // by method
}

func newValues() *values { return &values{texts: map[string][]byte{}} }

func (v *values) set(before hook) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.before = before
}

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
	err = v.do(ctx, "Get", func() { value, found = v.texts[key] })
	return value, found, err
}

func (v *values) Set(ctx context.Context, key string, value []byte, _ time.Duration) error {
	return v.do(ctx, "Set", func() { v.texts[key] = value })
}

func (v *values) Delete(ctx context.Context, key string) error {
	return v.do(ctx, "Delete", func() { delete(v.texts, key) })
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

// plain returns a rig without servers, with a proxy before values in memory.
func plain(t testing.TB, o options) (*rig, *host, *values) {
	t.Helper()
	o.interval = max(o.interval, 1)
	if o.interval == 1 {
		o.interval = never
	}
	o.ttl = time.Minute
	r, v := &rig{options: o, records: newRecords(20)}, newValues()
	h := &host{registry: prometheus.NewRegistry()}
	h.proxy = r.newProxy(t, v, h.registry)
	return r, h, v
}

// once waits the first time that a call is made, after it was done or before.
type once struct {
	call            string
	first           atomic.Bool
	begun, released chan struct{}
}

func newOnce(call string) *once {
	return &once{call: call, begun: make(chan struct{}), released: make(chan struct{})}
}

func (o *once) hook(ctx context.Context, call string) error {
	if call != o.call || o.first.Swap(true) {
		return nil
	}
	close(o.begun)
	select {
	case <-o.released:
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
		o := back()
		o.write, o.many = "write_through", !singleFlight
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
		loads, counted := r.records.called("Photo"), r.hosts[0].figure(t, "loads_total")
		if loads != want || int(counted) != want {
			t.Errorf("single flight %t: %d loads, %v in the metrics, want %d", singleFlight, loads, counted, want)
		}
	}
}

// What was read before a write is neither stored after it nor given to those who ask
// after it.
func TestLoadBeforeAWrite(t *testing.T) {
	t.Parallel()
	for _, s := range strategies()[3:] {
		for _, many := range []bool{false, true} {
			t.Run(fmt.Sprint(s, many), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, options{engine: engine{name: "resp"}, strategy: s, many: many})
				web, other := r.web(t), r.web(t)
				reading := newOnce("Photo")
				r.records.set(nil, reading.hook) // the old value has been read
				slow := make(chan photos.Photo, 1)
				go func() {
					p, _ := other.Photo(t.Context(), 1)
					slow <- p
				}()
				wait(t, "it is read", reading.begun)
				if version := like(t, web, 1, 1); version != 2 {
					t.Errorf("version %d", version)
				}
				got := make(chan photos.Photo, 1)
				go func() {
					p, _ := web.Photo(t.Context(), 1)
					got <- p
				}()
				select {
				case p := <-got:
					if p.Version != 2 {
						t.Errorf("read after the write: %+v", p)
					}
				case <-time.After(patience):
					t.Error("who reads after the write waits for a read from before it")
				}
				close(reading.released)
				<-slow
				if p := photo(t, web, 1); p.Version != 2 || p.Likes != 1 {
					t.Errorf("read after all: %+v", p)
				}
			})
		}
	}
}

// A write that came and was flushed while somebody was about to load the record is not
// covered by what the records had before.
func TestLoadAroundAFlush(t *testing.T) {
	t.Parallel()
	o := back()
	o.many = true // with single flight it is looked for twice, and the gap is narrower
	r, h, v := plain(t, o)
	f, ctx := h.proxy, t.Context()
	missing, reading := newOnce("Get"), newOnce("Photo")
	v.set(missing.hook)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _, _ = f.Fetch(ctx, "photo:1")
	}()
	wait(t, "it is looked for", missing.begun)
	if _, err := f.Apply(ctx, "photo:1", cache.Write{Like: &cache.Like{Photo: 1, User: 1}}); err != nil {
		t.Fatal(err)
	}
	r.records.set(nil, reading.hook)
	close(missing.released) // and is not there
	select {
	case <-reading.begun:
		// The old record has been read. Now the new one comes.
		_ = f.Close(ctx)
		close(reading.released)
		<-done
	case <-done:
		_ = f.Close(ctx)
	}
	if p := r.records.photo(1); p.Version != 2 {
		t.Fatalf("the records: %+v", p)
	}
	if text, _, err := f.Fetch(ctx, "photo:1"); err != nil || string(text) != string(marshal(t, r.records.photo(1))) {
		t.Errorf("%s, %v", text, err)
	}
}

// A write whose time ends when it is done is seen all the same.
func TestWriteWithoutTime(t *testing.T) {
	t.Parallel()
	for _, failing := range []error{nil, photos.ErrUnavailable} {
		o := back()
		o.write = "write_through"
		r, h, _ := plain(t, o)
		f := h.proxy
		if _, _, err := f.Fetch(t.Context(), "photo:1"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		r.records.set(nil, func(_ context.Context, call string) error {
			if call == "Like" {
				cancel()
				return failing
			}
			return nil
		})
		if _, err := f.Apply(ctx, "photo:1", cache.Write{Like: &cache.Like{Photo: 1, User: 1}}); !errors.Is(err, failing) {
			t.Errorf("got %v, want %v", err, failing)
		}
		text, _, err := f.Fetch(t.Context(), "photo:1")
		if err != nil || string(text) != string(marshal(t, r.records.photo(1))) {
			t.Errorf("after a write that ended with %v: %s, %v", failing, text, err)
		}
	}
}

// When somebody else wrote in between, what the values have is no ground to say what a
// record is after a write.
func TestWriteThroughAfterSomebodyElse(t *testing.T) {
	t.Parallel()
	o := back()
	o.write = "write_through"
	r := newRig(t, o)
	web := r.web(t)
	photo(t, web, 1)
	like(t, r.records, 1, 1)
	if version := like(t, web, 1, 1); version != 3 {
		t.Errorf("version %d", version)
	}
	if p := photo(t, web, 1); p.Version != 3 || p.Likes != 2 {
		t.Errorf("%+v", p)
	}
	// Otherwise it says what it is without reading it.
	reads := r.records.called("Photo")
	like(t, web, 1, 1)
	if p := photo(t, web, 1); p.Version != 4 || p.Likes != 3 || !p.Cached || r.records.called("Photo") != reads {
		t.Errorf("%+v after %d more reads", p, r.records.called("Photo")-reads)
	}
}

// Values that fail cost time, and are counted.
func TestValuesFail(t *testing.T) {
	t.Parallel()
	for _, s := range strategies()[3:] {
		r, h, v := plain(t, options{engine: engine{name: "resp"}, strategy: s})
		f, ctx := h.proxy, t.Context()
		v.set(fail(errors.New("full")))
		for i := range int64(3) {
			if s.write != "write_around" {
				version, err := f.Apply(ctx, "photo:1", cache.Write{Like: &cache.Like{Photo: 1, User: 1}})
				if err != nil || version != i+2 {
					t.Errorf("%v: version %d, %v", s, version, err)
				}
			}
			_, hit, err := f.Fetch(ctx, "photo:1")
			if err != nil || hit != (s.write == "write_back") {
				t.Errorf("%v: hit %t, %v", s, hit, err)
			}
		}
		if n := h.figure(t, "value_errors_total"); n == 0 && s.write != "write_back" {
			t.Errorf("%v: no errors are counted", s)
		}
		v.set(nil)
		if err := f.Close(ctx); err != nil {
			t.Error(err)
		}
		if text, _, err := f.Fetch(ctx, "photo:1"); err != nil || string(text) != string(marshal(t, r.records.photo(1))) {
			t.Errorf("%v: %s, %v", s, text, err)
		}
	}
}
