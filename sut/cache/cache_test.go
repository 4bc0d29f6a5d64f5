package cache_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/memcached/memcachedtest"
	"github.com/stagebench/stagebench/sut/resp/resptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second // bounds every wait

func connect(t testing.TB, c cache.Config) (*cache.Client, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewRegistry()
	c.Registry = registry
	if c.Timeout == 0 {
		c.Timeout = patience // slow machines are not what is tested
	}
	client, err := cache.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client, registry
}

// figure returns the sum of a counter over those of its labels that are given.
func figure(t *testing.T, registry *prometheus.Registry, name string, labels ...string) (sum float64) {
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
			fits := 0
			for _, pair := range metric.Label {
				for _, label := range labels {
					if pair.GetValue() == label {
						fits++
					}
				}
			}
			if fits == len(labels) {
				sum += metric.Counter.GetValue()
			}
		}
	}
	return sum
}

func peer(i int, address string) sut.Peer {
	return sut.Peer{Node: fmt.Sprint("cache-", i+1), Address: address}
}

// three starts three hosts.
func three(t *testing.T) ([]*resptest.Server, []sut.Peer) {
	t.Helper()
	var servers []*resptest.Server
	var peers []sut.Peer
	for i := range 3 {
		servers = append(servers, resptest.Serve(t, resptest.Config{}))
		peers = append(peers, peer(i, servers[i].Addr().String()))
	}
	return servers, peers
}

func key(i int) string { return fmt.Sprint("photo:", i) }
func fill(t *testing.T, c *cache.Client, n int) {
	t.Helper()
	for i := range n {
		if err := c.Set(t.Context(), key(i), []byte(key(i)), time.Minute); err != nil {
			t.Fatal(err)
		}
	}
}

// read counts how keys are answered.
func read(t *testing.T, c *cache.Client, n int) (hits, misses, failed int) {
	t.Helper()
	for i := range n {
		value, found, err := c.Get(t.Context(), key(i))
		switch {
		case errors.Is(err, cache.ErrUnavailable):
			failed++
		case err != nil:
			t.Fatal(err)
		case found && string(value) != key(i):
			t.Fatalf("%s holds %q", key(i), value)
		case found:
			hits++
		default:
			misses++
		}
	}
	return hits, misses, failed
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T) string{
		"resp":      func(t *testing.T) string { return resptest.Serve(t, resptest.Config{}).Addr().String() },
		"redis":     func(t *testing.T) string { return resptest.Redis(t) },
		"memcached": func(t *testing.T) string { return memcachedtest.Start(t, 64<<20).Address() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			protocol := cache.RESP
			if name == "memcached" {
				protocol = cache.Memcached
			}
			c, registry := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, start(t)), peer(1, start(t))}, Protocol: protocol})
			ctx := t.Context()
			want := func(key string, want []byte) {
				t.Helper()
				got, found, err := c.Get(ctx, key)
				if err != nil || found != (want != nil) || !bytes.Equal(got, want) {
					t.Errorf("%s: got %q, %v, %v", key, got, found, err)
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
			if err := c.Delete(ctx, "a"); err != nil {
				t.Fatal(err)
			}
			want("a", nil)
			if err := c.Delete(ctx, "a"); err != nil {
				t.Errorf("deleting what is gone: %v", err)
			}
			if err := c.Set(ctx, "b", []byte("1"), time.Nanosecond); err != nil { // rounded up to 1 ms, or 1 s
				t.Fatal(err)
			}
			for deadline := time.Now().Add(patience); ; {
				if _, found, err := c.Get(ctx, "b"); err != nil || !found {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("it did not expire")
				}
			}
			if err := c.Set(ctx, "b", nil, -time.Second); err == nil {
				t.Error("a negative time to live was taken")
			}
			fill(t, c, 200)
			if hits, _, _ := read(t, c, 200); hits != 200 {
				t.Errorf("%d of 200 were found", hits)
			}
			if hits, misses, errs := figure(t, registry, "reads_total", "hit"), figure(t, registry, "reads_total", "miss"), figure(t, registry, "errors_total"); hits < 203 || misses < 3 || errs != 0 {
				t.Errorf("%v hits, %v misses, %v errors", hits, misses, errs)
			}
			ended, end := context.WithCancel(ctx)
			end()
			if _, _, err := c.Get(ended, "a"); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A refusal of a host is an error, and not the end of the host.
func TestRefusal(t *testing.T) {
	t.Parallel()
	s := resptest.Serve(t, resptest.Config{MaxBytes: 1000, Evict: "noeviction"})
	c, registry := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, s.Addr().String())}})
	if err := c.Set(t.Context(), "a", make([]byte, 2000), 0); err == nil || errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if _, found, err := c.Get(t.Context(), "a"); found || err != nil {
		t.Errorf("got %v, %v", found, err)
	}
	if n := figure(t, registry, "errors_total", "cache-1", "refused"); n != 1 {
		t.Errorf("%v refusals", n)
	}
}

// proxy passes connections on until it is killed.
type proxy struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
	all   sync.WaitGroup
}

func newProxy(t *testing.T, address, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", address)
	// An outgoing connection may have the port of a dead one for a moment.
	for deadline := time.Now().Add(patience); errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(deadline); {
		<-time.After(5 * time.Millisecond)
		l, err = net.Listen("tcp", address)
	}
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l}
	p.all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			back, err := net.Dial("tcp", to)
			if err != nil {
				_ = conn.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, conn, back)
			p.mu.Unlock()
			p.all.Go(func() { _, _ = io.Copy(back, conn); _ = back.Close() })
			p.all.Go(func() { _, _ = io.Copy(conn, back); _ = conn.Close() })
		}
	})
	t.Cleanup(p.kill)
	return p
}

func (p *proxy) kill() {
	_ = p.Close()
	p.mu.Lock()
	for _, conn := range p.conns {
		_ = conn.Close()
	}
	p.mu.Unlock()
	p.all.Wait()
}

// A dead host costs its keys and no others; a second later it is tried again, and is
// back without anybody saying so.
func TestDeadHost(t *testing.T) {
	t.Parallel()
	const n = 600
	servers, peers := three(t)
	p := newProxy(t, "127.0.0.1:0", peers[1].Address)
	peers[1].Address = p.Addr().String()
	c, registry := connect(t, cache.Config{Hosts: peers})
	fill(t, c, n)
	its := int(servers[1].Stats().Entries)
	if its < n/5 || its > n*2/5 {
		t.Fatalf("one of three hosts has %d of %d keys", its, n)
	}
	p.kill()
	if hits, misses, failed := read(t, c, n); hits != n-its || misses != 0 || failed != its {
		t.Errorf("%d hits, %d misses, %d failed of %d, of which the dead host had %d", hits, misses, failed, n, its)
	}
	if got := figure(t, registry, "errors_total", "cache-2", "unavailable"); int(got) != its {
		t.Errorf("%v errors were counted", got)
	}
	revived := newProxy(t, peers[1].Address, servers[1].Addr().String())
	for deadline := time.Now().Add(patience); ; {
		if hits, _, _ := read(t, c, n); hits == n {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it was never asked again")
		}
	}
	revived.kill()
	peers[1].Address = servers[1].Addr().String()
	if err := c.SetHosts(t.Context(), peers); err != nil {
		t.Fatal(err)
	}
	if hits, _, _ := read(t, c, n); hits != n {
		t.Errorf("with its successor: %d hits of %d", hits, n)
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

// silent listens and never answers.
func silent(t *testing.T) (address string, accepted *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepted = new(atomic.Int64)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			all.Go(func() { _, _ = io.Copy(io.Discard, conn); _ = conn.Close() })
		}
	})
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	return l.Addr().String(), accepted
}

// A host that hangs costs one timeout, and then nothing for a second, in which
// nobody even connects.
func TestHangingHost(t *testing.T) {
	t.Parallel()
	forEachProtocol(t, testHangingHost)
}

func testHangingHost(t *testing.T, protocol cache.Protocol) {
	address, accepted := silent(t)
	c, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, address)}, Protocol: protocol, Timeout: 10 * time.Millisecond})
	if _, _, err := c.Get(t.Context(), "a"); !errors.Is(err, cache.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	begun := time.Now()
	const before = 1 // the connection of the first one, which the host may count later
	for i := 0; time.Since(begun) < 300*time.Millisecond; i++ {
		if err := c.Set(t.Context(), key(i), nil, 0); !errors.Is(err, cache.ErrUnavailable) {
			t.Fatalf("got %v", err)
		}
	}
	if n := accepted.Load(); n > before && time.Since(begun) < 900*time.Millisecond {
		t.Errorf("%d connections to a host that hangs", n)
	}
	// It is tried again, by one of those who ask, however many there are.
	for deadline := time.Now().Add(patience); accepted.Load() <= before; {
		if time.Now().After(deadline) {
			t.Fatal("it is never tried again")
		}
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { _, _, _ = c.Get(t.Context(), "a") })
		}
		all.Wait()
	}
	// A slow machine may need longer than the pause for all of those who ask.
	if n := accepted.Load() - before; n > 4 {
		t.Errorf("%d tries at once", n)
	}
}

// A caller with little time says nothing of the host.
func TestImpatientCaller(t *testing.T) {
	t.Parallel()
	forEachProtocol(t, testImpatientCaller)
}

func testImpatientCaller(t *testing.T, protocol cache.Protocol) {
	address, accepted := silent(t)
	c, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, address)}, Protocol: protocol})
	begun := time.Now()
	for i := range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if _, _, err := c.Get(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, cache.ErrUnavailable) {
			t.Errorf("call %d: %v", i, err)
		}
		cancel()
	}
	if took := time.Since(begun); took >= patience { // what the client itself would wait
		t.Errorf("three callers with 20 ms took %v", took)
	}
	for deadline := time.Now().Add(patience); accepted.Load() == 0; { // the host may count them later
		if time.Now().After(deadline) {
			t.Fatal("nobody asked")
		}
		<-time.After(time.Millisecond)
	}
}

// Hosts may come and go under load, and nobody notices but by misses. Those that left
// keep no connection.
func TestSetHostsUnderLoad(t *testing.T) {
	t.Parallel()
	servers, peers := three(t)
	c, registry := connect(t, cache.Config{Hosts: peers})
	var all sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for i := range 4 {
		all.Go(func() {
			for j := i; ctx.Err() == nil; j++ {
				if err := c.Set(t.Context(), key(j%100), []byte(key(j%100)), time.Minute); err != nil {
					t.Error(err)
					return
				}
				if value, found, err := c.Get(t.Context(), key(j%100)); err != nil || found && string(value) != key(j%100) {
					t.Errorf("got %q, %v", value, err)
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
	for deadline := time.Now().Add(patience); servers[1].Stats().Conns+servers[2].Stats().Conns > 0; {
		if time.Now().After(deadline) {
			t.Fatal("hosts that left keep connections")
		}
	}
	stop()
	all.Wait()
	if n := figure(t, registry, "errors_total"); n != 0 {
		t.Errorf("%v errors", n)
	}
}

// When SetHosts returns nil, nothing is under way that began with other hosts; one that
// hangs holds up nothing else.
func TestSetHostsWaits(t *testing.T) {
	t.Parallel()
	address, accepted := silent(t)
	servers, _ := three(t)
	c, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, address)}})
	asking, giveUp := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	go func() {
		_, _, err := c.Get(asking, "a")
		answered <- err
	}()
	for accepted.Load() == 0 {
		runtime.Gosched()
	}
	ended, end := context.WithCancel(t.Context())
	end()
	next := []sut.Peer{peer(0, servers[0].Addr().String())}
	if err := c.SetHosts(ended, next); !errors.Is(err, context.Canceled) {
		t.Errorf("while a request is under way: %v", err)
	}
	if _, _, err := c.Get(t.Context(), "a"); err != nil {
		t.Errorf("the new host was not asked: %v", err)
	}
	giveUp()
	if err := c.SetHosts(t.Context(), next); err != nil {
		t.Error(err)
	}
	if err := <-answered; !errors.Is(err, context.Canceled) {
		t.Errorf("the request that hung: %v", err)
	}
}

func TestRefusedConfigs(t *testing.T) {
	t.Parallel()
	one := []sut.Peer{peer(0, "127.0.0.1:1")}
	for _, c := range []cache.Config{
		{},
		{Hosts: one, Timeout: -1},
		{Hosts: one, Protocol: "http"},
	} {
		c.Registry = prometheus.NewRegistry()
		if client, err := cache.New(c); err == nil {
			client.Close()
			t.Errorf("%+v was taken", c)
		}
	}
	c, _ := connect(t, cache.Config{Hosts: one})
	c.Close()
	c.Close()
	if _, _, err := c.Get(t.Context(), "a"); err == nil || errors.Is(err, cache.ErrUnavailable) {
		t.Errorf("closed: %v", err)
	}
	if err := c.SetHosts(t.Context(), one); err == nil {
		t.Error("closed, and takes hosts")
	}
}
