package cacheproxy_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/cache/cacheproxy"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/resp/resptest"
)

func TestMain(m *testing.M) {
	cache.LogTo(discard()) // some tests stop hosts on purpose
	goleak.VerifyTestMain(m)
}

// testTimeout bounds every wait of a test.
const testTimeout = time.Minute

// never is an interval that is longer than any test.
const never = time.Hour

// engine is a kind of cache host.
type engine struct {
	name string
	// native starts a server of this engine; nil = the embedded node, which runs its
	// proxy in the same process.
	native   func(t testing.TB) (address string, stop func())
	protocol cache.Protocol // of the native server
}

// strategy holds the values of the knobs cache.read and cache.write.
type strategy struct{ read, write string }

// options configure a rig.
type options struct {
	engine
	strategy
	hosts    int           // number of cache hosts; 0 = 1
	photos   int           // number of photos in the database at the start; 0 = 20
	ttl      time.Duration // time to live of records and lists; 0 = 1 min
	noLists  bool          // lists are not cached
	interval time.Duration // flush interval of write-back; 0 = never
	maxBytes int64         // memory limit of the embedded node; 0 = no limit
	// noSingleFlight lets each miss load on its own.
	noSingleFlight bool
	change         func(*cacheproxy.Config) // changes the configuration of each proxy; nil = no change
}

// host is a cache host.
type host struct {
	peer     sut.Peer
	server   *resptest.Server  // serves the clients; nil = the native server does
	proxy    *cacheproxy.Proxy // nil = the host has no proxy
	registry *prometheus.Registry
	kill     func() // stops the native server
}

// rig is a cache tier in front of a database in memory. Everything except native servers
// runs in the test process.
type rig struct {
	options
	records *records
	hosts   []*host
	clients []*cache.Client // clients of the web hosts
}

// newRig starts the hosts of a rig.
func newRig(t testing.TB, o options) *rig {
	t.Helper()
	if o.hosts == 0 {
		o.hosts = 1
	}
	if o.photos == 0 {
		o.photos = 20
	}
	if o.ttl == 0 {
		o.ttl = time.Minute
	}
	if o.interval == 0 {
		o.interval = never
	}
	r := &rig{options: o, records: newRecords(o.photos)}
	for i := range o.hosts {
		r.hosts = append(r.hosts, r.newHost(t, fmt.Sprint("cache-", i+1)))
	}
	return r
}

// hasProxy reports whether the cache hosts load or write records themselves.
func (r *rig) hasProxy() bool { return r.read == "read_through" || r.write != "write_around" }

func (r *rig) newHost(t testing.TB, name string) *host {
	t.Helper()
	h := &host{peer: sut.Peer{Node: name}, registry: prometheus.NewRegistry()}
	config := resptest.Config{MaxBytes: r.maxBytes}
	var values cacheproxy.Values
	if r.native != nil {
		if h.peer.Address, h.kill = r.native(t); !r.hasProxy() {
			return h
		}
		client, err := cache.New(cache.Config{
			Hosts: []sut.Peer{h.peer}, Protocol: r.protocol, Timeout: testTimeout, Registry: prometheus.NewRegistry(),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		values, config.Proxy = client, true
	}
	h.server = resptest.ServeProxy(t, config, func(s *resptest.Server) map[string]resptest.Command {
		if !r.hasProxy() {
			return nil
		}
		if values == nil {
			values = s.Values()
		}
		h.proxy = r.newProxy(t, values, h.registry)
		commands := map[string]resptest.Command{}
		for name, c := range h.proxy.Commands() {
			commands[name] = resptest.Command(c)
		}
		return commands
	})
	h.peer.Address = h.server.Addr().String()
	return h
}

// newProxy returns a proxy. At the end of the test, it removes the hooks of the database
// and closes the proxy, which flushes its backlog.
func (r *rig) newProxy(t testing.TB, values cacheproxy.Values, registry prometheus.Registerer) *cacheproxy.Proxy {
	t.Helper()
	c := cacheproxy.Config{
		Values: values, Records: r.records, TTL: r.ttl, FeedTTL: r.ttl, SingleFlight: !r.noSingleFlight,
		Timeout: testTimeout, Registry: registry, Log: discard(),
	}
	if r.noLists {
		c.FeedTTL = 0
	}
	if r.write == "write_back" {
		c.FlushInterval = r.interval
	}
	if r.change != nil {
		r.change(&c)
	}
	proxy, err := cacheproxy.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.records.setHooks(nil, nil)
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		if err := proxy.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return proxy
}

// client returns a new client of all hosts.
func (r *rig) client(t testing.TB) *cache.Client {
	t.Helper()
	c := cache.Config{Timeout: testTimeout, FailOver: r.hasProxy(), Registry: prometheus.NewRegistry()}
	if !r.hasProxy() {
		c.Protocol = r.protocol
	}
	c.Hosts = r.peers()
	client, err := cache.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	r.clients = append(r.clients, client)
	return client
}

func (r *rig) peers() (peers []sut.Peer) {
	for _, h := range r.hosts {
		peers = append(peers, h.peer)
	}
	return peers
}

// stopHost stops a host and gives it an address that nothing listens on. The old port
// could soon belong to a server of another test.
func (r *rig) stopHost(t testing.TB, i int) {
	t.Helper()
	r.hosts[i].stop(t)
	r.hosts[i].peer.Address = "127.0.0.1:1"
	for _, client := range r.clients {
		if err := client.SetHosts(t.Context(), r.peers()); err != nil {
			t.Fatal(err)
		}
	}
}

// web returns the cache tier of a new web host.
func (r *rig) web(t testing.TB) *cache.Tier {
	t.Helper()
	c := cache.TierConfig{ReadThrough: r.read == "read_through", Writes: r.write != "write_around"}
	c.AsideConfig = cache.AsideConfig{
		Records: r.records, Client: r.client(t), TTL: r.ttl, FeedTTL: r.ttl, SingleFlight: !r.noSingleFlight,
	}
	if r.noLists {
		c.FeedTTL = 0
	}
	tier, err := cache.NewTier(c)
	if err != nil {
		t.Fatal(err)
	}
	return tier
}

// stopHosts stops all hosts. Each proxy then flushes its backlog to the database.
func (r *rig) stopHosts(t testing.TB) {
	t.Helper()
	for _, h := range r.hosts {
		h.stop(t)
	}
}

// stop stops the server of the clients, embedded or native. Then it closes the proxy,
// which flushes its backlog.
func (h *host) stop(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if h.server == nil {
		h.kill()
	} else {
		if err := h.server.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	}
	if h.proxy != nil {
		if err := h.proxy.Close(ctx); err != nil {
			t.Error(err)
		}
	}
}

// awaitFlushed waits until the host has no unflushed writes.
func (h *host) awaitFlushed(t testing.TB) {
	t.Helper()
	eventually(t, "all writes are flushed", func() bool { return h.metric(t, "unflushed") == 0 })
}

// metric returns the value of the metric stagebench_cache_node_<name>.
func (h *host) metric(t testing.TB, name string) float64 {
	t.Helper()
	families, err := h.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "stagebench_cache_node_"+name {
			metric := family.Metric[0]
			return metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
		}
	}
	t.Fatalf("got no metric stagebench_cache_node_%s, want one", name)
	return 0
}

// eventually polls until a condition holds. It ends the test after testTimeout.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, testTimeout, time.Millisecond, what, holds)
}

// waitClosed waits until a channel is closed. what completes "timed out waiting until".
func waitClosed(t testing.TB, what string, closed <-chan struct{}) {
	t.Helper()
	select {
	case <-closed:
	case <-time.After(testTimeout):
		t.Fatal("timed out waiting until " + what)
	}
}

// photo reads a photo. It fails the test when the read returns an error.
func photo(t testing.TB, web photos.Records, id photos.ID) photos.Photo {
	t.Helper()
	p, err := web.Photo(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
