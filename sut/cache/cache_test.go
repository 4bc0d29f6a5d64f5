package cache_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/memcached/memcachedtest"
	"github.com/stagebench/stagebench/sut/resp/resptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testTimeout bounds each wait of a test. It is long, because the machine may be slow.
const testTimeout = time.Minute

// eventually polls until a condition holds. It ends the test after testTimeout.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, testTimeout, time.Millisecond, what, holds)
}

// connect returns a client and the registry with its metrics.
func connect(t testing.TB, c cache.Config) (*cache.Client, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewRegistry()
	c.Registry = registry
	c.Timeout = cmp.Or(c.Timeout, testTimeout)
	client, err := cache.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client, registry
}

// counter returns a counter of the client, summed over all series that have the given
// label values.
func counter(t *testing.T, registry *prometheus.Registry, name string, labels ...string) (sum float64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "stagebench_cache_"+name {
			continue
		}
		for _, metric := range family.Metric {
			var values []string
			for _, pair := range metric.Label {
				values = append(values, pair.GetValue())
			}
			missing := func(label string) bool { return !slices.Contains(values, label) }
			if !slices.ContainsFunc(labels, missing) {
				sum += metric.Counter.GetValue()
			}
		}
	}
	return sum
}

func key(i int) string { return fmt.Sprint("photo:", i) }

// fill stores n keys. The value of each key is its text.
func fill(t *testing.T, c *cache.Client, n int) {
	t.Helper()
	for i := range n {
		if err := c.Set(t.Context(), key(i), []byte(key(i)), time.Minute); err != nil {
			t.Fatal(err)
		}
	}
}

// readAll reads n keys and counts the results.
func readAll(t *testing.T, c *cache.Client, n int) (hits, misses, failed int) {
	t.Helper()
	for i := range n {
		value, found, err := c.Get(t.Context(), key(i))
		switch {
		case errors.Is(err, cache.ErrUnavailable):
			failed++
		case err != nil:
			t.Fatal(err)
		case found && string(value) != key(i):
			t.Fatalf("the value of %s is %q", key(i), value)
		case found:
			hits++
		default:
			misses++
		}
	}
	return hits, misses, failed
}

// secret is that of the hosts that need one.
const secret sut.Secret = "of-the-system"

// A host that needs a secret answers no client without it. Such a host counts as unavailable.
func TestMemcachedNeedsTheSecret(t *testing.T) {
	t.Parallel()
	hosts := []sut.Peer{peer(0, memcachedtest.Start(t, 1<<20, secret).Address())}
	for _, wrong := range []sut.Secret{"", "of-another-one"} {
		c, _ := connect(t, cache.Config{Hosts: hosts, Protocol: cache.Memcached, Secret: wrong})
		if err := c.Set(t.Context(), "a", []byte("1"), 0); err == nil {
			t.Errorf("with secret %q a value was written", string(wrong))
		}
	}
	c, _ := connect(t, cache.Config{Hosts: hosts, Protocol: cache.Memcached, Secret: secret})
	if value, found, err := c.Get(t.Context(), "a"); err != nil || found {
		t.Errorf("afterwards the value is %q, %t, %v, want none", value, found, err)
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T) string{
		"resp":      func(t *testing.T) string { return resptest.Serve(t, resptest.Config{}).Addr().String() },
		"redis":     func(t *testing.T) string { return resptest.Redis(t) },
		"memcached": func(t *testing.T) string { return memcachedtest.Start(t, 64<<20, secret).Address() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := cache.Config{Hosts: []sut.Peer{peer(0, start(t)), peer(1, start(t))}}
			if name == "memcached" {
				config.Protocol, config.Secret = cache.Memcached, secret
			}
			c, registry := connect(t, config)
			testValues(t, c)
			fill(t, c, 200)
			if hits, _, _ := readAll(t, c, 200); hits != 200 {
				t.Errorf("%d hits for 200 keys", hits)
			}
			hits, misses := counter(t, registry, "reads_total", "hit"), counter(t, registry, "reads_total", "miss")
			if errs := counter(t, registry, "errors_total"); hits < 203 || misses < 3 || errs != 0 {
				t.Errorf("metrics: %v hits, %v misses, %v errors, want at least 203, at least 3 and 0",
					hits, misses, errs)
			}
		})
	}
}

func testValues(t *testing.T, c *cache.Client) {
	ctx := t.Context()
	want := func(key string, want []byte) {
		t.Helper()
		got, found, err := c.Get(ctx, key)
		if err != nil || found != (want != nil) || !bytes.Equal(got, want) {
			t.Errorf("Get of %s: got %q, %t, %v", key, got, found, err)
		}
	}
	want("a", nil)
	opaque := bytes.Repeat([]byte{0, 1, 254, 255, '\r', '\n'}, 50_000)
	for _, value := range [][]byte{opaque, []byte("short"), {}} {
		if err := c.Set(ctx, "a", value, 0); err != nil {
			t.Fatal(err)
		}
		want("a", value)
	}
	for range 2 { // the second time the key is missing
		if err := c.Delete(ctx, "a"); err != nil {
			t.Fatal(err)
		}
		want("a", nil)
	}
	// This time to live is rounded up to 1 ms, or 1 s.
	if err := c.Set(ctx, "b", []byte("1"), time.Nanosecond); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the value to expire", func() bool {
		_, found, err := c.Get(ctx, "b")
		if err != nil {
			t.Fatal(err)
		}
		return !found
	})
	if err := c.Set(ctx, "b", nil, -time.Second); err == nil {
		t.Error("Set accepted a negative time to live")
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, _, err := c.Get(canceled, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("Get with a canceled context: got %v", err)
	}
}

// TestErrorReply: after an error reply the host counts as healthy.
func TestErrorReply(t *testing.T) {
	t.Parallel()
	s := resptest.Serve(t, resptest.Config{MaxBytes: 1000, Evict: "noeviction"})
	c, registry := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, s.Addr().String())}})
	if err := c.Set(t.Context(), "a", make([]byte, 2000), 0); err == nil || errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("Set of a value that is too large: got %v", err)
	}
	if _, found, err := c.Get(t.Context(), "a"); found || err != nil {
		t.Errorf("Get after the error reply: got %t, %v", found, err)
	}
	if n := counter(t, registry, "errors_total", "cache-1", "refused"); n != 1 {
		t.Errorf("metrics: %v error replies, want 1", n)
	}
}

// TestDeadHost: a dead host affects only its own keys. The client retries it after a
// second, and uses it again when it answers.
func TestDeadHost(t *testing.T) {
	t.Parallel()
	const n = 600
	servers, peers := startThree(t)
	r := relay(t, "127.0.0.1:0", peers[1].Address)
	peers[1].Address = r.address()
	c, registry := connect(t, cache.Config{Hosts: peers})
	fill(t, c, n)
	lost := int(servers[1].Stats().Entries)
	if lost < n/5 || lost > n*2/5 {
		t.Fatalf("one of three hosts has %d of %d keys", lost, n)
	}
	r.stop()
	if hits, misses, failed := readAll(t, c, n); hits != n-lost || misses != 0 || failed != lost {
		t.Errorf("%d hits, %d misses, %d failed, want %d, 0, %d", hits, misses, failed, n-lost, lost)
	}
	if got := counter(t, registry, "errors_total", "cache-2", "unavailable"); int(got) != lost {
		t.Errorf("metrics: %v errors, want %d", got, lost)
	}
	r = relay(t, peers[1].Address, servers[1].Addr().String())
	eventually(t, "the client to use the host again", func() bool {
		hits, _, _ := readAll(t, c, n)
		return hits == n
	})
	r.stop()
	peers[1].Address = servers[1].Addr().String()
	if err := c.SetHosts(t.Context(), peers); err != nil {
		t.Fatal(err)
	}
	if hits, _, _ := readAll(t, c, n); hits != n {
		t.Errorf("after the host has moved to another address: %d hits of %d", hits, n)
	}
}

func forEachProtocol(t *testing.T, test func(*testing.T, cache.Protocol)) {
	t.Helper()
	for _, protocol := range []cache.Protocol{cache.RESP, cache.Memcached} {
		t.Run(cmp.Or(string(protocol), "resp"), func(t *testing.T) {
			t.Parallel()
			test(t, protocol)
		})
	}
}

// TestHangingHost: after one timeout, the client does not connect to a host that hangs
// for a second. Then few requests probe it.
func TestHangingHost(t *testing.T) {
	t.Parallel()
	forEachProtocol(t, testHangingHost)
}

func testHangingHost(t *testing.T, protocol cache.Protocol) {
	host := hangingHost(t)
	c, _ := connect(t, cache.Config{
		Hosts: []sut.Peer{peer(0, host.address())}, Protocol: protocol, Timeout: 10 * time.Millisecond,
	})
	failed := time.Now()
	if _, _, err := c.Get(t.Context(), "a"); !errors.Is(err, cache.ErrUnavailable) {
		t.Fatalf("first request: got %v", err)
	}
	const first = 1 // the connection of the first request
	for i := range 1000 {
		if err := c.Set(t.Context(), key(i), nil, 0); !errors.Is(err, cache.ErrUnavailable) {
			t.Fatalf("request %d during the pause: got %v", i, err)
		}
	}
	// On a slow machine the pause may be over already.
	if n := host.accepted.Load(); n > first && time.Since(failed) < 900*time.Millisecond {
		t.Errorf("%d connections during the pause, want 0", n-first)
	}
	eventually(t, "a request to probe the host", func() bool {
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { _, _, _ = c.Get(t.Context(), "a") })
		}
		all.Wait()
		return host.accepted.Load() > first
	})
	// On a slow machine the 20 requests may take longer than a pause.
	if n := host.accepted.Load() - first; n > 4 {
		t.Errorf("%d of 20 requests probed the host, want 1", n)
	}
}

// TestImpatientCaller: the deadline of a caller bounds a request. When it ends, the
// client does not regard the host as down.
func TestImpatientCaller(t *testing.T) {
	t.Parallel()
	forEachProtocol(t, testImpatientCaller)
}

func testImpatientCaller(t *testing.T, protocol cache.Protocol) {
	host := hangingHost(t)
	c, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, host.address())}, Protocol: protocol})
	began := time.Now()
	for i := range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, _, err := c.Get(ctx, "a")
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, cache.ErrUnavailable) {
			t.Errorf("request %d: got %v", i, err)
		}
	}
	if took := time.Since(began); took >= testTimeout { // the timeout of the client
		t.Errorf("three requests with deadlines of 20 ms took %v", took)
	}
	eventually(t, "a connection to the host", func() bool { return host.accepted.Load() > 0 })
}

// TestSetHostsUnderLoad: no request fails while hosts are added and removed. Connections
// to removed hosts are closed.
func TestSetHostsUnderLoad(t *testing.T) {
	t.Parallel()
	servers, peers := startThree(t)
	c, registry := connect(t, cache.Config{Hosts: peers})
	var all sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for i := range 4 {
		all.Go(func() {
			for j := i; ctx.Err() == nil; j++ {
				key := key(j % 100)
				if err := c.Set(t.Context(), key, []byte(key), time.Minute); err != nil {
					t.Error(err)
					return
				}
				if value, found, err := c.Get(t.Context(), key); err != nil || found && string(value) != key {
					t.Errorf("Get of %s: got %q, %v", key, value, err)
					return
				}
			}
		})
	}
	for i := range 61 {
		if err := c.SetHosts(t.Context(), peers[:1+i%3]); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the connections to removed hosts to be closed", func() bool {
		return servers[1].Stats().Conns+servers[2].Stats().Conns == 0
	})
	stop()
	all.Wait()
	if n := counter(t, registry, "errors_total"); n != 0 {
		t.Errorf("metrics: %v errors, want 0", n)
	}
}

// TestSetHostsWaits: SetHosts waits for requests to the old hosts. New requests use the
// new hosts meanwhile.
func TestSetHostsWaits(t *testing.T) {
	t.Parallel()
	host := hangingHost(t)
	newHost := resptest.Serve(t, resptest.Config{})
	c, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, host.address())}})
	pending, giveUp := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, _, err := c.Get(pending, "a")
		result <- err
	}()
	eventually(t, "the pending request", func() bool { return host.accepted.Load() > 0 })
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	next := []sut.Peer{peer(0, newHost.Addr().String())}
	if err := c.SetHosts(canceled, next); !errors.Is(err, context.Canceled) {
		t.Errorf("SetHosts with a pending request and a canceled context: got %v", err)
	}
	if _, _, err := c.Get(t.Context(), "a"); err != nil {
		t.Errorf("a request to the new host: got %v", err)
	}
	giveUp()
	host.closeConns() // ends the pending request
	if err := c.SetHosts(t.Context(), next); err != nil {
		t.Error(err)
	}
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("the pending request: got %v", err)
	}
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	hosts := []sut.Peer{peer(0, "127.0.0.1:1")}
	for _, c := range []cache.Config{
		{},
		{Hosts: hosts, Timeout: -1},
		{Hosts: hosts, WorkTimeout: -1},
		{Hosts: hosts, Protocol: "http"},
	} {
		c.Registry = prometheus.NewRegistry()
		if client, err := cache.New(c); err == nil {
			client.Close()
			t.Errorf("New accepted %+v", c)
		}
	}
}

func TestClosedClient(t *testing.T) {
	t.Parallel()
	hosts := []sut.Peer{peer(0, "127.0.0.1:1")}
	c, _ := connect(t, cache.Config{Hosts: hosts})
	c.Close()
	c.Close()
	if _, _, err := c.Get(t.Context(), "a"); err == nil || errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("Get: got %v", err)
	}
	if err := c.SetHosts(t.Context(), hosts); err == nil {
		t.Error("SetHosts succeeded on a closed client")
	}
}
