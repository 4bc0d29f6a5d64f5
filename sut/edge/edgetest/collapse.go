package edgetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// crowd is the number of clients that ask for the same URL at the same time.
const crowd = 100

// collapseProbes are the rules about many requests for one URL.
func collapseProbes() []probe {
	named := func(id string, severity Severity, run func(*bench) error) probe {
		return probe{Case{ID: "collapse-" + id, Group: "collapse", Severity: severity, Section: "RFC 9111, 4"}, run}
	}
	return []probe{
		named("cold", Required, collapseCold),
		named("stream", Optimal, collapseStream),
		named("uncacheable", Required, collapseUncacheable),
		named("error", Optimal, collapseError),
		named("truncated", Required, truncated),
		named("client-leaves", Optimal, clientLeaves),
	}
}

// arrivals counts the requests at the origin for a path.
type arrivals struct {
	mu       sync.Mutex
	n, peak  int
	inFlight int
	changed  chan struct{}
}

func newArrivals() *arrivals { return &arrivals{changed: make(chan struct{})} }

// add counts requests in flight; by is 1 or -1. It returns the number of requests so far.
func (a *arrivals) add(by int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if by > 0 {
		a.n++
	}
	a.inFlight += by
	a.peak = max(a.peak, a.inFlight)
	close(a.changed)
	a.changed = make(chan struct{})
	return a.n
}

func (a *arrivals) counts() (n, peak int, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n, a.peak, a.changed
}

// await waits until n requests have arrived. It returns false after a time.
func (a *arrivals) await(n int, within time.Duration) bool {
	deadline := time.After(within)
	for {
		got, _, changed := a.counts()
		if got >= n {
			return true
		}
		select {
		case <-changed:
		case <-deadline:
			return false
		}
	}
}

// rush sends a request from each client of a crowd, and returns their errors and how long they took, the slowest last.
func (b *bench) rush(path string, valid func(response, error) error) ([]error, []time.Duration) {
	failures, times := make([]error, crowd), make([]time.Duration, crowd)
	gate := make(chan struct{})
	var clients sync.WaitGroup
	for i := range crowd {
		clients.Go(func() {
			<-gate
			begun := time.Now()
			failures[i] = valid(b.client.get(b.ctx, path))
			times[i] = time.Since(begun)
		})
	}
	close(gate)
	clients.Wait()
	slices.Sort(times)
	return failures, times
}

// originDelay is how long the origin takes in the cases of this file.
const originDelay = 200 * time.Millisecond

func delay(r *http.Request) {
	select {
	case <-time.After(originDelay):
	case <-r.Context().Done():
	}
}

// collapseCold: the origin gets one request, and everybody gets its response. The limit of time is for a quiet machine:
// it is printed, not judged. A busy machine cannot make two requests from one.
func collapseCold(b *bench) error {
	const path = "/collapse/cold"
	seen := newArrivals()
	b.origin.handle(path, func(w http.ResponseWriter, r *http.Request) {
		seen.add(1)
		defer seen.add(-1)
		delay(r)
		w.Header().Set("Cache-Control", "max-age=3600")
		_, _ = w.Write([]byte("cold"))
	})
	failures, times := b.rush(path, wantBody("cold"))
	n, _, _ := seen.counts()
	b.t.Logf("cold: %d clients, %d requests at the origin, which takes %v; median %v, slowest %v (a quiet machine: 300ms)",
		crowd, n, originDelay, times[crowd/2], times[crowd-1])
	if err := errors.Join(failures...); err != nil {
		return err
	}
	if n != 1 {
		return fmt.Errorf("%d requests reached the origin, want 1", n)
	}
	return nil
}

// collapseStream: clients that wait for a fill get its bytes when they arrive. The origin sends the second half only
// when every client has the first half.
func collapseStream(b *bench) error {
	const path, half = "/collapse/stream", 64 << 10
	seen, halves := newArrivals(), newArrivals()
	b.origin.handle(path, func(w http.ResponseWriter, r *http.Request) {
		seen.add(1)
		w.Header().Set("Cache-Control", "max-age=3600")
		w.Header().Set("Content-Length", strconv.Itoa(2*half))
		_, _ = w.Write(make([]byte, half))
		_ = http.NewResponseController(w).Flush()
		halves.await(crowd, patience)
		_, _ = w.Write(make([]byte, half))
	})
	var clients errgroup.Group
	for range crowd {
		clients.Go(func() error { return b.halves(path, half, halves) })
	}
	if err := clients.Wait(); err != nil {
		return err
	}
	if n, _, _ := seen.counts(); n != 1 {
		return fmt.Errorf("%d requests reached the origin, want 1", n)
	}
	return nil
}

// halves reads a response in two halves, and counts the first one.
func (b *bench) halves(path string, half int, got *arrivals) error {
	r, err := http.NewRequestWithContext(b.ctx, http.MethodGet, b.edge.URL+path, nil)
	if err != nil {
		return err
	}
	res, err := b.client.http.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	for range 2 {
		// The edge may keep some of the first half in its buffers.
		if _, err := io.ReadFull(res.Body, make([]byte, half/4)); err != nil {
			return err
		}
		got.add(1)
		if _, err := io.CopyN(io.Discard, res.Body, int64(half-half/4)); err != nil {
			return err
		}
	}
	return nil
}

// patience is how long the origin waits for the requests of a crowd. A request that has to wait for others arrives
// later.
const patience = 3 * time.Second

// collapseUncacheable: a response that may not be stored must not make clients wait for each other. The first request
// is answered, and says so. Then the origin answers when the requests of all others are in flight, which happens only
// if none waits for another.
func collapseUncacheable(b *bench) error {
	const path = "/collapse/uncacheable"
	seen := newArrivals()
	b.origin.handle(path, func(w http.ResponseWriter, r *http.Request) {
		first := seen.add(1) == 1
		defer seen.add(-1)
		if delay(r); !first {
			seen.await(crowd, patience)
		}
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write([]byte("uncacheable"))
	})
	failures, times := b.rush(path, wantBody("uncacheable"))
	n, peak, _ := seen.counts()
	b.t.Logf("no-store: %d clients, %d requests at the origin, %d at the same time; median %v, slowest %v "+
		"(a quiet machine: 400ms)", crowd, n, peak, times[crowd/2], times[crowd-1])
	if err := errors.Join(failures...); err != nil {
		return err
	}
	if n != crowd || peak < crowd-1 {
		return fmt.Errorf("%d requests reached the origin, %d at the same time, want %d, all but one at the same time",
			n, peak, crowd)
	}
	return nil
}

// collapseError: when a fill fails, those who wait for it get its error. Otherwise an outage becomes a queue of tries.
func collapseError(b *bench) error {
	const path = "/collapse/error"
	seen := newArrivals()
	b.origin.handle(path, func(w http.ResponseWriter, r *http.Request) {
		seen.add(1)
		defer seen.add(-1)
		delay(r)
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	failures, times := b.rush(path, func(res response, err error) error {
		if err == nil && res.status != http.StatusServiceUnavailable {
			return fmt.Errorf("status %d, want 503", res.status)
		}
		return err
	})
	n, _, _ := seen.counts()
	b.t.Logf("error: %d clients, %d requests at the origin, slowest %v", crowd, n, times[crowd-1])
	if err := errors.Join(failures...); err != nil {
		return err
	}
	if n > crowd/10 {
		return fmt.Errorf("%d of %d requests reached the failing origin, want at most %d", n, crowd, crowd/10)
	}
	return nil
}

// breaks is the number of bodies of each kind that break off. Varnish 7.1 mistook one of forty for a whole one, if it
// streamed them.
const breaks = 50

// truncated: a body that breaks off is never stored, and never looks complete.
func truncated(b *bench) error {
	for n := range 2 * breaks {
		chunked := n%2 == 1
		path := fmt.Sprintf("/collapse/truncated/%d", n)
		seen := newArrivals()
		b.origin.handle(path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "max-age=3600")
			whole := strings.Repeat("whole", 1000)
			if seen.add(1) > 1 {
				_, _ = io.WriteString(w, whole)
				return
			}
			if !chunked {
				w.Header().Set("Content-Length", strconv.Itoa(len(whole)))
			}
			_, _ = io.WriteString(w, whole[:len(whole)/2])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		if res, err := b.client.get(b.ctx, path); err == nil && res.status < 500 {
			return fmt.Errorf("chunked %t: a truncated body looks complete: status %d, %d bytes", chunked, res.status,
				len(res.body))
		}
		if err := wantBody(strings.Repeat("whole", 1000))(b.client.get(b.ctx, path)); err != nil {
			return fmt.Errorf("chunked %t: the next request: %w", chunked, err)
		}
		if asked, _, _ := seen.counts(); asked != 2 {
			return fmt.Errorf("chunked %t: %d requests reached the origin, want 2", chunked, asked)
		}
	}
	return nil
}

// clientLeaves: a fill goes on when its client leaves, so that an impatient user does not cost a second request.
func clientLeaves(b *bench) error {
	const path = "/collapse/leaves"
	seen, release := newArrivals(), make(chan struct{})
	b.origin.handle(path, func(w http.ResponseWriter, r *http.Request) {
		seen.add(1)
		<-release
		w.Header().Set("Cache-Control", "max-age=3600")
		_, _ = w.Write([]byte("late"))
	})
	ctx, leave := context.WithCancel(b.ctx)
	left := make(chan error, 1)
	go func() {
		_, err := b.client.get(ctx, path)
		left <- err
	}()
	arrived := seen.await(1, timeout)
	leave()
	<-left
	close(release)
	if !arrived {
		return errors.New("no request reached the origin")
	}
	if err := wantBody("late")(b.client.get(b.ctx, path)); err != nil {
		return err
	}
	if n, _, _ := seen.counts(); n != 1 {
		return fmt.Errorf("%d requests reached the origin, want 1", n)
	}
	return nil
}

// wantBody returns a function that accepts a response 200 with a body.
func wantBody(body string) func(response, error) error {
	return func(res response, err error) error {
		if err := ok(res, err); err != nil {
			return err
		}
		if res.body != body {
			return fmt.Errorf("body %q, want %q", res.body, body)
		}
		return nil
	}
}
