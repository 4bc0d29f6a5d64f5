package cache_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
)

// However many callers there are for a key, there is one load, and all get its value.
func TestSingleFlight(t *testing.T) {
	c, registry := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, "127.0.0.1:1")}})
	const callers = 500
	synctest.Test(t, func(t *testing.T) {
		var loads, own atomic.Int64
		var all sync.WaitGroup
		release := make(chan struct{})
		for range callers {
			all.Go(func() {
				value, shared, err := c.Load(t.Context(), "a", func(context.Context) ([]byte, error) {
					loads.Add(1)
					<-release
					return []byte("value"), nil
				})
				if string(value) != "value" || err != nil {
					t.Errorf("got %q, %v", value, err)
				}
				if !shared {
					own.Add(1)
				}
			})
		}
		synctest.Wait() // all are in it
		close(release)
		all.Wait()
		if loads.Load() != 1 || own.Load() != 1 {
			t.Errorf("%d loads, of which %d callers had their own", loads.Load(), own.Load())
		}
	})
	if fills, shared := figure(t, registry, "fills_total"), figure(t, registry, "shared_fills_total"); fills != 1 || shared != callers-1 {
		t.Errorf("%v fills and %v shared ones were counted", fills, shared)
	}
}

// The caller that began a load may leave, and the others still get the value. What
// goes wrong in a load goes to all its callers, and the next one begins anew.
func TestLoadsOutliveCallers(t *testing.T) {
	c, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, "127.0.0.1:1")}})
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		load := func(ctx context.Context) ([]byte, error) {
			<-release
			return []byte("value"), ctx.Err()
		}
		first, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if _, _, err := c.Load(first, "a", load); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
		synctest.Wait()
		all.Go(func() {
			if value, shared, err := c.Load(t.Context(), "a", load); string(value) != "value" || !shared || err != nil {
				t.Errorf("got %q, %v, %v", value, shared, err)
			}
		})
		synctest.Wait()
		leave()
		synctest.Wait()
		close(release)
		all.Wait()

		wrong := errors.New("no such photo")
		if _, _, err := c.Load(t.Context(), "a", func(context.Context) ([]byte, error) { return nil, wrong }); !errors.Is(err, wrong) {
			t.Errorf("got %v", err)
		}
		if _, _, err := c.Load(t.Context(), "a", func(context.Context) ([]byte, error) { panic("oops") }); err == nil {
			t.Error("a panic went unnoticed")
		}
		// A load that never ends by itself does end.
		if _, _, err := c.Load(t.Context(), "a", func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}
