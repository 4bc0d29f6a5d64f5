package balance

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
)

// TestChecksAreSpreadAndPunctual: the first checks of the hosts are spread over the
// interval, and each host is checked once per interval.
func TestChecksAreSpreadAndPunctual(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{Balancing: sut.Balancing{HealthInterval: 900 * time.Millisecond}}
		b := newBalancer(t, cfg, "192.0.2.1:80", "192.0.2.2:80", "192.0.2.3:80")
		began := time.Now()
		probes := make(chan string, 100)
		b.probe = func(_ context.Context, address string) error {
			probes <- fmt.Sprintf("%v %s", time.Since(began), address)
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		b.run(ctx)
		close(probes)
		var got []string
		for probe := range probes {
			got = append(got, probe)
		}
		want := []string{
			"0s 192.0.2.1:80", "300ms 192.0.2.2:80", "600ms 192.0.2.3:80",
			"900ms 192.0.2.1:80", "1.2s 192.0.2.2:80", "1.5s 192.0.2.3:80",
			"1.8s 192.0.2.1:80",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error("(-want +got):\n" + diff)
		}
	})
}

// TestOneCheckDecides: one failed check marks a host down, and one good check marks it
// up.
func TestOneCheckDecides(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBalancer(t, Config{Balancing: sut.Balancing{HealthInterval: time.Second}}, "192.0.2.1:80")
		var sick atomic.Bool
		b.probe = func(context.Context, string) error {
			if sick.Load() {
				return errors.New("sick")
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); b.run(ctx) }()

		up := func() bool { synctest.Wait(); return b.pool.status()[0].Up }
		time.Sleep(500 * time.Millisecond) // fake time: between two checks
		for i, want := range []bool{true, false, true} {
			sick.Store(!want)
			time.Sleep(time.Second)
			if up() != want {
				t.Errorf("step %d: up is %v one interval after the change", i, !want)
			}
		}
		cancel()
		<-done
	})
}

// TestSlowCheckFails: a host that hangs is down after the health timeout, and its checks
// never overlap.
func TestSlowCheckFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{Balancing: sut.Balancing{HealthInterval: time.Second, HealthTimeout: 2500 * time.Millisecond}}
		b := newBalancer(t, cfg, "192.0.2.1:80")
		var running atomic.Int32
		b.probe = func(ctx context.Context, _ string) error {
			if running.Add(1) > 1 {
				t.Error("two checks of one host at once")
			}
			defer running.Add(-1)
			<-ctx.Done()
			return ctx.Err()
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); b.run(ctx) }()
		for _, step := range []struct {
			wait time.Duration
			up   bool
		}{{2400 * time.Millisecond, true}, {200 * time.Millisecond, false}} {
			time.Sleep(step.wait)
			synctest.Wait()
			if got := b.pool.status()[0].Up; got != step.up {
				t.Errorf("after another %v up is %v", step.wait, got)
			}
		}
		cancel()
		<-done
	})
}

func TestProbe(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		"good": "", "moved": "", "sick": "status 503", "hang": "no answer in time",
	} {
		ctx, cancel := context.WithCancel(t.Context())
		if answer == "hang" {
			cancel()
			ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
		}
		err := newProbe()(ctx, hostOf(t, func(w http.ResponseWriter, r *http.Request) {
			switch answer {
			case "hang":
				<-r.Context().Done()
			case "moved":
				http.Redirect(w, r, "/sick", http.StatusFound)
			case "sick":
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			if r.URL.Path != "/healthz" {
				t.Errorf("a check requests %s", r.URL.Path)
			}
		}))
		cancel()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", answer, err, want)
		}
	}
	if err := newProbe()(t.Context(), "127.0.0.1:1"); err == nil {
		t.Error("a host that refuses connections counts as healthy")
	}
}

// newBalancer makes a balancer whose hosts are named web-1, web-2 and so on.
func newBalancer(t testing.TB, cfg Config, addresses ...string) *Balancer {
	t.Helper()
	cfg.Node = "lb-1"
	for i, address := range addresses {
		cfg.Peers = append(cfg.Peers, sut.Peer{Node: fmt.Sprintf("web-%d", i+1), Address: address})
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
