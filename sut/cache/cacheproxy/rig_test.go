package cacheproxy_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/cache/cacheproxy"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/resp/resptest"
)

func TestMain(m *testing.M) {
	cache.LogTo(discard()) // which hosts do not answer is known
	goleak.VerifyTestMain(m)
}

const patience = 20 * time.Second // bounds every wait

// never is an interval that does not end before the test does.
const never = time.Hour

// engine is a kind of cache host.
type engine struct {
	name string
	// native starts a server of it, which is spoken to over the protocol; nil = the
	// embedded node, which has its proxy in itself.
	native   func(t testing.TB) (address string, end func())
	protocol cache.Protocol
}

// strategy is a value of the knobs cache.read and cache.write.
type strategy struct{ read, write string }

// options say what a rig is made of.
type options struct {
	engine
	strategy
	hosts    int           // 0 = 1
	photos   int           // that there are at first; 0 = 20
	ttl      time.Duration // of everything; 0 = 1 min
	noLists  bool          // lists are not kept
	interval time.Duration // of write-back; 0 = never
	bytes    int64         // that the embedded node may use; 0 = no limit
	many     bool          // there is no single flight
	change   func(*cacheproxy.Config)
}

// host is a cache host.
type host struct {
	peer     sut.Peer
	server   *resptest.Server  // that clients speak to; nil = a native server
	proxy    *cacheproxy.Proxy // nil = there is none
	registry *prometheus.Registry
	kill     func() // ends the native server
}

// rig is a cache tier before records, in one process but for native servers.
type rig struct {
	options
	records *records
	hosts   []*host
	clients []*cache.Client // of web hosts
}

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

func (r *rig) hasProxy() bool { return r.read == "read_through" || r.write != "write_around" }

func (r *rig) newHost(t testing.TB, name string) *host {
	t.Helper()
	h := &host{peer: sut.Peer{Node: name}, registry: prometheus.NewRegistry()}
	config := resptest.Config{MaxBytes: r.bytes}
	var values cacheproxy.Values
	if r.native != nil {
		if h.peer.Address, h.kill = r.native(t); !r.hasProxy() {
			return h
		}
		client, err := cache.New(cache.Config{
			Hosts: []sut.Peer{h.peer}, Protocol: r.protocol, Timeout: patience, Registry: prometheus.NewRegistry(),
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

// newProxy returns a proxy that flushes when the test ends.
func (r *rig) newProxy(t testing.TB, values cacheproxy.Values, registry prometheus.Registerer) *cacheproxy.Proxy {
	t.Helper()
	c := cacheproxy.Config{
		Values: values, Records: r.records, TTL: r.ttl, FeedTTL: r.ttl, SingleFlight: !r.many,
		Timeout: patience, Registry: registry, Log: discard(),
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
	f, err := cacheproxy.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.records.set(nil, nil)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := f.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return f
}

// client returns a client of all hosts.
func (r *rig) client(t testing.TB) *cache.Client {
	t.Helper()
	c := cache.Config{Timeout: patience, FailOver: r.hasProxy(), Registry: prometheus.NewRegistry()}
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

// down ends a host in order. Clients look for it where nobody is from then on: its port
// may be another test's a moment later.
func (r *rig) down(t testing.TB, i int) {
	t.Helper()
	r.hosts[i].end(t)
	r.hosts[i].peer.Address = "127.0.0.1:1"
	for _, client := range r.clients {
		if err := client.SetHosts(t.Context(), r.peers()); err != nil {
			t.Fatal(err)
		}
	}
}

// web returns records as a web host has them.
func (r *rig) web(t testing.TB) *cache.Tier {
	t.Helper()
	c := cache.TierConfig{ReadThrough: r.read == "read_through", Writes: r.write != "write_around"}
	c.AsideConfig = cache.AsideConfig{
		Records: r.records, Client: r.client(t), TTL: r.ttl, FeedTTL: r.ttl, SingleFlight: !r.many,
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

// flush ends all hosts in order, after which the records have everything.
func (r *rig) flush(t testing.TB) {
	t.Helper()
	for _, h := range r.hosts {
		h.end(t)
	}
}

// end ends a host in order.
func (h *host) end(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
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

// figure is the value of stagebench_cache_node_*.
func (h *host) figure(t testing.TB, name string) float64 {
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
	t.Fatalf("there is no figure %s", name)
	return 0
}

// eventually waits until a condition is true.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for !condition() {
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatal("timed out waiting until " + what)
		}
	}
}

// wait waits for a channel to be closed.
func wait(t testing.TB, what string, closed <-chan struct{}) {
	t.Helper()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("timed out waiting until " + what)
	}
}

// photo reads a photo that has to be there.
func photo(t testing.TB, web photos.Records, id photos.ID) photos.Photo {
	t.Helper()
	p, err := web.Photo(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
