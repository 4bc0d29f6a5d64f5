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

// blobHost is a blob host that can be switched off and made full.
type blobHost struct {
	*httptest.Server
	dir      *blob.Dir
	requests atomic.Int64
	dead     atomic.Bool
	full     atomic.Bool
}

// startRing starts hosts blob-1 and so on, and a store of them.
func startRing(t *testing.T, n, copies int) (*blob.Ring, []*blobHost) {
	t.Helper()
	var hosts []*blobHost
	var peers []sut.Peer
	for i := range n {
		h := &blobHost{dir: openDir(t)}
		inner := blob.NewHandler(blob.HandlerConfig{Dir: h.dir, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry()})
		h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.requests.Add(1)
			switch {
			case h.dead.Load():
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
		Peers: peers, Copies: copies, Client: blob.ClientConfig{Timeout: 20 * time.Second}, Registry: prometheus.NewRegistry(),
	})
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

// Photos are spread evenly, and a host more takes its share from all others and
// moves nothing else.
func TestPlacement(t *testing.T) {
	const n = 60_000
	counts, moved := map[string]int{}, 0
	for id := photos.ID(1); id <= n; id++ {
		five, six := blob.Place(id, hostNames(5)), blob.Place(id, hostNames(6))
		counts[five[0]]++
		if five[0] != six[0] {
			moved++
			if six[0] != "blob-6" {
				t.Fatalf("photo %d moved from %s to %s, which was there before", id, five[0], six[0])
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
	// Where a photo is must be the same in every version and on every host.
	if got := fmt.Sprint(blob.Place(1, hostNames(3)), blob.Place(123_456_789, hostNames(3))); got != "[blob-2 blob-3 blob-1] [blob-3 blob-1 blob-2]" {
		t.Errorf("fixed placements are now %s", got)
	}
}

// A dead host costs nothing that has a copy elsewhere, and what has none is
// unavailable, not missing.
func TestDeadHost(t *testing.T) {
	for _, copies := range []int{1, 2} {
		ring, hosts := startRing(t, 3, copies)
		for id := photos.ID(1); id <= 60; id++ {
			if err := ring.Put(t.Context(), id, photos.VariantThumb, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		hosts[1].dead.Store(true)
		lost := 0
		for id := photos.ID(1); id <= 60; id++ {
			_, err := ring.Get(t.Context(), id, photos.VariantThumb)
			if errors.Is(err, photos.ErrNotFound) {
				t.Errorf("%d copies: photo %d is said not to exist: %v", copies, id, err)
			}
			if err != nil {
				lost++
			}
		}
		if alone := copies == 1; alone != (lost > 5) || !alone && lost > 0 {
			t.Errorf("%d copies: %d of 60 photos cannot be read with one of three hosts dead", copies, lost)
		}
		// It is asked again and again no more.
		before := hosts[1].requests.Load()
		for range 20 {
			_, _ = ring.Get(t.Context(), 1_000_000, photos.VariantThumb)
		}
		if copies == 2 && hosts[1].requests.Load()-before > 40 {
			t.Errorf("a dead host was asked %d times", hosts[1].requests.Load()-before)
		}
		// New photos are taken by the others, and found.
		for id := photos.ID(100); id < 130; id++ {
			if err := ring.Put(t.Context(), id, photos.VariantThumb, []byte("y")); err != nil {
				t.Fatalf("with one of three hosts dead: %v", err)
			}
			if _, err := ring.Get(t.Context(), id, photos.VariantThumb); err != nil {
				t.Errorf("photo %d: %v", id, err)
			}
		}
		hosts[1].dead.Store(false)
		for id := photos.ID(1); id < 130; id++ {
			if _, err := ring.Get(t.Context(), id, photos.VariantThumb); err != nil && (id <= 60 || id >= 100) {
				t.Errorf("%d copies, all hosts back: photo %d: %v", copies, id, err)
			}
		}
	}
}

// What a full host cannot take goes to another, and is found there.
func TestFullHost(t *testing.T) {
	ring, hosts := startRing(t, 3, 2)
	hosts[0].full.Store(true)
	for id := photos.ID(1); id <= 40; id++ {
		if err := ring.Put(t.Context(), id, photos.VariantThumb, []byte("x")); err != nil {
			t.Fatal(err)
		}
		for _, h := range hosts[1:] {
			if _, err := h.dir.Head(t.Context(), id, photos.VariantThumb); err != nil {
				t.Errorf("photo %d is not on both hosts that have room: %v", id, err)
			}
		}
	}
	for _, h := range hosts {
		h.full.Store(true)
	}
	if err := ring.Put(t.Context(), 99, photos.VariantThumb, []byte("x")); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("with all hosts full: %v", err)
	}
	if err := ring.Delete(t.Context(), 1, photos.VariantThumb); err != nil {
		t.Errorf("a full host must let go: %v", err)
	}
}

// A host that hangs costs its time-out once, not at each request.
func TestHangingHost(t *testing.T) {
	over := make(chan struct{})
	hang := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-over }))
	t.Cleanup(func() { close(over); hang.Close() })
	well, _ := serve(t, openDir(t))
	ring, err := blob.NewRing(blob.RingConfig{
		Peers:  []sut.Peer{{Node: "blob-1", Address: hang.Listener.Addr().String()}, {Node: "blob-2", Address: well.Listener.Addr().String()}},
		Copies: 1, Registry: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ring.Close)
	// call does something in the time that the web tier has for the whole store. What
	// holds up this machine holds up the host that is well, so it may be repeated.
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
		if err := call(func(ctx context.Context) error { return ring.Put(ctx, id, photos.VariantThumb, []byte("x")) }); err != nil {
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

// A host holds no more than its capacity, and deleting makes room.
func TestCapacity(t *testing.T) {
	dir := openDir(t)
	put(t, dir, 1, "12345")
	put(t, dir, 2, "not held")
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
		t.Errorf("an object that is another host's: %v", err)
	}
	if err := c.Put(ctx, uploaded+3, photos.VariantThumb, []byte("12345678")); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("13 bytes on a host of 12: %v", err)
	}
	for range 3 { // the same object takes its place once
		if err := c.Put(ctx, uploaded+3, photos.VariantThumb, []byte("1234567")); err != nil {
			t.Errorf("12 bytes on a host of 12: %v", err)
		}
	}
	if err := c.Delete(ctx, 1, photos.VariantThumb); err != nil {
		t.Error(err)
	}
	if err := c.Put(ctx, uploaded+4, photos.VariantThumb, []byte("12345")); err != nil {
		t.Errorf("deleting made no room: %v", err)
	}
}

func TestBadRing(t *testing.T) {
	for _, config := range []blob.RingConfig{{}, {Peers: []sut.Peer{{Node: "blob-1"}}, Copies: 2}, {Peers: []sut.Peer{{Node: "blob-1"}}, Copies: -1}} {
		config.Registry = prometheus.NewRegistry()
		if _, err := blob.NewRing(config); err == nil {
			t.Errorf("%+v was taken", config)
		}
	}
}
