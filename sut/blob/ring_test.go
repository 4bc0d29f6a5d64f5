package blob_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/blob"
	"github.com/stagebench/stagebench/sut/blob/blobtest"
	"github.com/stagebench/stagebench/sut/photos"
)

// blobHost is a blob host whose failure a test can simulate.
type blobHost struct {
	*httptest.Server
	dir      *blob.Dir
	requests atomic.Int64
	down     atomic.Bool // it closes each connection without a response
	full     atomic.Bool // it refuses each PUT with 507
}

// startRing starts n hosts, blob-1 to blob-n, and returns a ring over them.
func startRing(t *testing.T, n, copies int) (*blob.Ring, []*blobHost) {
	t.Helper()
	var hosts []*blobHost
	var peers []sut.Peer
	for i := range n {
		h := &blobHost{dir: openDir(t)}
		inner := blob.NewHandler(blob.HandlerConfig{
			Dir: h.dir, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(),
		})
		h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.requests.Add(1)
			switch {
			case h.down.Load():
				panic(http.ErrAbortHandler)
			case h.full.Load() && r.Method == http.MethodPut:
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(http.StatusInsufficientStorage)
			default:
				inner.ServeHTTP(w, r)
			}
		}))
		h.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		t.Cleanup(h.Close)
		hosts = append(hosts, h)
		peers = append(peers, sut.Peer{Node: fmt.Sprintf("blob-%d", i+1), Address: h.Listener.Addr().String()})
	}
	ring, err := blob.NewRing(blob.RingConfig{
		Peers: peers, Copies: copies, Registry: prometheus.NewRegistry(),
	}.WithTimeout(testTimeout))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ring.Close)
	return ring, hosts
}

func TestRingConforms(t *testing.T) {
	for _, size := range []struct{ hosts, copies int }{{1, 1}, {3, 1}, {3, 2}, {4, 4}} {
		t.Run(fmt.Sprintf("%d hosts %d copies", size.hosts, size.copies), func(t *testing.T) {
			blobtest.Run(t, func(t *testing.T) blobtest.Store {
				ring, _ := startRing(t, size.hosts, size.copies)
				return ring
			})
		})
	}
}

func hostNames(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("blob-%d", i+1))
	}
	return names
}

// Photos are spread evenly. An added host takes its share from all others, and no other
// photo moves.
func TestPlacement(t *testing.T) {
	const n = 60_000
	counts, moved := map[string]int{}, 0
	for id := photos.ID(1); id <= n; id++ {
		five, six := blob.Place(id, hostNames(5)), blob.Place(id, hostNames(6))
		counts[five[0]]++
		if five[0] != six[0] {
			moved++
			if six[0] != "blob-6" {
				t.Fatalf("photo %d moved from %s to %s, want only moves to the added host", id, five[0], six[0])
			}
		}
		sorted := slices.Sorted(slices.Values(five))
		if len(slices.Compact(sorted)) != 5 {
			t.Fatalf("photo %d has the hosts %v", id, five)
		}
	}
	for name, count := range counts {
		// Five standard deviations of a binomial count.
		if want := float64(n) / 5; math.Abs(float64(count)-want) > 5*math.Sqrt(want*0.8) {
			t.Errorf("%s has %d of %d photos, want about %.0f", name, count, n, want)
		}
	}
	if want := float64(n) / 6; math.Abs(float64(moved)-want) > 5*math.Sqrt(want) {
		t.Errorf("a sixth host moved %d photos, want about %.0f", moved, want)
	}
	// The placement must not depend on the version of the program or on the machine.
	got := fmt.Sprint(blob.Place(1, hostNames(3)), blob.Place(123_456_789, hostNames(3)))
	if want := "[blob-2 blob-3 blob-1] [blob-3 blob-1 blob-2]"; got != want {
		t.Errorf("placements %s, want %s", got, want)
	}
}

// With one host down, an object with a second copy stays readable. An object without one
// is unavailable, not missing.
func TestHostDown(t *testing.T) {
	for _, copies := range []int{1, 2} {
		ring, hosts := startRing(t, 3, copies)
		for id := photos.ID(1); id <= 60; id++ {
			if err := ring.Put(t.Context(), id, photos.VariantThumb, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		hosts[1].down.Store(true)
		lost := 0
		for id := photos.ID(1); id <= 60; id++ {
			_, err := ring.Get(t.Context(), id, photos.VariantThumb)
			if errors.Is(err, photos.ErrNotFound) {
				t.Errorf("%d copies: photo %d is reported as not found: %v", copies, id, err)
			}
			if err != nil {
				lost++
			}
		}
		if single := copies == 1; single != (lost > 5) || !single && lost > 0 {
			t.Errorf("%d copies: %d of 60 photos cannot be read with one of three hosts down", copies, lost)
		}
		// Not every request tries the host first.
		before := hosts[1].requests.Load()
		for range 20 {
			_, _ = ring.Get(t.Context(), 1_000_000, photos.VariantThumb)
		}
		if copies == 2 && hosts[1].requests.Load()-before > 40 {
			t.Errorf("a host that is down got %d requests", hosts[1].requests.Load()-before)
		}
		// The other hosts take new photos, and reads find them there.
		for id := photos.ID(100); id < 130; id++ {
			if err := ring.Put(t.Context(), id, photos.VariantThumb, []byte("y")); err != nil {
				t.Fatalf("put with one of three hosts down: %v", err)
			}
			if _, err := ring.Get(t.Context(), id, photos.VariantThumb); err != nil {
				t.Errorf("photo %d: %v", id, err)
			}
		}
		hosts[1].down.Store(false)
		for id := photos.ID(1); id < 130; id++ {
			if _, err := ring.Get(t.Context(), id, photos.VariantThumb); err != nil && (id <= 60 || id >= 100) {
				t.Errorf("%d copies, all hosts up again: photo %d: %v", copies, id, err)
			}
		}
	}
}

// The next host takes the objects that a full host refuses, and reads find them there.
func TestFullHost(t *testing.T) {
	ring, hosts := startRing(t, 3, 2)
	hosts[0].full.Store(true)
	for id := photos.ID(1); id <= 40; id++ {
		if err := ring.Put(t.Context(), id, photos.VariantThumb, []byte("x")); err != nil {
			t.Fatal(err)
		}
		for _, h := range hosts[1:] {
			if _, err := h.dir.Head(t.Context(), id, photos.VariantThumb); err != nil {
				t.Errorf("photo %d is not on both hosts that are not full: %v", id, err)
			}
		}
	}
	for _, h := range hosts {
		h.full.Store(true)
	}
	if err := ring.Put(t.Context(), 99, photos.VariantThumb, []byte("x")); !errors.Is(err, photos.ErrFull) {
		t.Errorf("put with all hosts full: %v", err)
	}
	if err := ring.Delete(t.Context(), 1, photos.VariantThumb); err != nil {
		t.Errorf("delete on full hosts: %v", err)
	}
}

// A hanging host delays one request by its timeout, not every request.
func TestHangingHost(t *testing.T) {
	end := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-end }))
	t.Cleanup(func() { close(end); hanging.Close() })
	healthy, _ := serve(t, openDir(t))
	ring, err := blob.NewRing(blob.RingConfig{
		Secret: secret,
		Peers: []sut.Peer{
			{Node: "blob-1", Address: hanging.Listener.Addr().String()},
			{Node: "blob-2", Address: healthy.Listener.Addr().String()},
		},
		Copies: 1, Registry: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ring.Close)
	// call runs do within the timeout of the web tier for the whole store. It retries,
	// because a busy machine may delay the healthy host, too.
	call := func(do func(context.Context) error) error {
		var errs []error
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			err := do(ctx)
			cancel()
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	for id := photos.ID(1); id <= 20; id++ {
		if err := call(func(ctx context.Context) error {
			return ring.Put(ctx, id, photos.VariantThumb, []byte("x"))
		}); err != nil {
			t.Errorf("photo %d: put: %v", id, err)
		}
		if err := call(func(ctx context.Context) error {
			_, err := ring.Get(ctx, id, photos.VariantThumb)
			return err
		}); err != nil {
			t.Errorf("photo %d: get: %v", id, err)
		}
	}
}

// A node stores no more than its capacity. A delete frees bytes.
func TestCapacity(t *testing.T) {
	dir := openDir(t)
	put(t, dir, 1, "12345")
	put(t, dir, 2, "not served")
	handler := blob.NewHandler(blob.HandlerConfig{
		Dir: dir, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(), Capacity: 12,
		Node: "blob-2", Seeded: sut.DataCounts{Users: 1, Photos: 2},
	})
	if err := handler.SetMembers(t.Context(), []sut.Peer{{Node: "blob-1"}, {Node: "blob-2"}}, true); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	c := client(t, server.Listener.Addr().String())
	ctx := t.Context()
	if _, err := c.Get(ctx, 2, photos.VariantThumb); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("get of an object that is placed on another node: %v", err)
	}
	if err := c.Put(ctx, uploaded+3, photos.VariantThumb, []byte("12345678")); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("13 bytes on a node with a capacity of 12: %v", err)
	}
	for range 3 { // a replaced object counts once
		if err := c.Put(ctx, uploaded+3, photos.VariantThumb, []byte("1234567")); err != nil {
			t.Errorf("12 bytes on a node with a capacity of 12: %v", err)
		}
	}
	if err := c.Delete(ctx, 1, photos.VariantThumb); err != nil {
		t.Error(err)
	}
	if err := c.Put(ctx, uploaded+4, photos.VariantThumb, []byte("12345")); err != nil {
		t.Errorf("put after a delete: %v", err)
	}
}

func TestBadRing(t *testing.T) {
	for _, config := range []blob.RingConfig{
		{},
		{Peers: []sut.Peer{{Node: "blob-1"}}, Copies: 2},
		{Peers: []sut.Peer{{Node: "blob-1"}}, Copies: -1},
	} {
		config.Registry = prometheus.NewRegistry()
		if _, err := blob.NewRing(config); err == nil {
			t.Errorf("%+v was accepted", config)
		}
	}
}
