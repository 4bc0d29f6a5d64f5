package cache_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
)

// TestSingleFlight: concurrent callers of Load for one key share one load. When Delete
// is called before each Load, no load is shared: the value may have changed in between.
func TestSingleFlight(t *testing.T) {
	const callers = 500
	for deletes, want := range map[bool]int64{false: 1, true: callers} {
		t.Run(fmt.Sprintf("deletes=%t", deletes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, registry := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, "in memory")}})
				cache.UseMemory(c)
				var loads, notShared atomic.Int64
				var all sync.WaitGroup
				release := make(chan struct{})
				for range callers {
					if deletes {
						if err := c.Delete(t.Context(), "a"); err != nil {
							t.Fatal(err)
						}
					}
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
							notShared.Add(1)
						}
					})
					synctest.Wait() // the caller waits for a load
				}
				close(release)
				all.Wait()
				if loads.Load() != want || notShared.Load() != want {
					t.Errorf("%d loads, %d callers did not share: want %d of both",
						loads.Load(), notShared.Load(), want)
				}
				fills, shared := counter(t, registry, "fills_total"), counter(t, registry, "shared_fills_total")
				if int64(fills) != want || int64(shared) != callers-want {
					t.Errorf("metrics: %v fills and %v shared fills, want %d and %d",
						fills, shared, want, callers-want)
				}
			})
		})
	}
}

// TestLoadOutlivesCaller: the first caller of a load may give up. The other callers
// still get the value.
func TestLoadOutlivesCaller(t *testing.T) {
	c, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, "127.0.0.1:1")}})
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		load := func(ctx context.Context) ([]byte, error) {
			<-release
			return []byte("value"), ctx.Err()
		}
		first, giveUp := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if _, _, err := c.Load(first, "a", load); !errors.Is(err, context.Canceled) {
				t.Errorf("first caller: got %v", err)
			}
		})
		synctest.Wait()
		all.Go(func() {
			value, shared, err := c.Load(t.Context(), "a", load)
			if string(value) != "value" || !shared || err != nil {
				t.Errorf("second caller: got %q, shared %t, %v", value, shared, err)
			}
		})
		synctest.Wait()
		giveUp()
		synctest.Wait()
		close(release)
		all.Wait()
	})
}

// TestLoadErrors: Load returns the error of a load, also after a panic and after the
// timeout. A failed load does not affect the next one.
func TestLoadErrors(t *testing.T) {
	c, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, "127.0.0.1:1")}})
	synctest.Test(t, func(t *testing.T) {
		want := errors.New("no such photo")
		fails := func(context.Context) ([]byte, error) { return nil, want }
		if _, _, err := c.Load(t.Context(), "a", fails); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
		panics := func(context.Context) ([]byte, error) { panic("oops") }
		if _, _, err := c.Load(t.Context(), "a", panics); err == nil {
			t.Error("a load panicked, and Load returned no error")
		}
		hangs := func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }
		if _, _, err := c.Load(t.Context(), "a", hangs); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a load that hangs: got %v", err)
		}
	})
}
