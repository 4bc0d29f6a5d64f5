package balancetest

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// change changes the hosts, with a timeout.
func (c *client) change(next sut.Upstreams, bound time.Duration) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), bound)
	defer cancel()
	return c.system.SetUpstreams(ctx, next)
}

// mustChange changes the hosts. The change must succeed.
func (c *client) mustChange(next sut.Upstreams) {
	c.t.Helper()
	if err := c.change(next, timeout); err != nil {
		c.t.Fatalf("change of the hosts: %v", err)
	}
}

// shortTimeout is for a change that cannot succeed, because a removed host still has
// requests or connections.
const shortTimeout = 5 * time.Second

// testMembershipUnderLoad changes the hosts twice under load. Each change adds and removes
// two hosts.
func testMembershipUnderLoad(t *testing.T, start Start) {
	hosts := newHosts(t, 5)
	c := newClient(t, start(t, Setup{Upstreams: peers(hosts[:3]), Policy: "round_robin", HealthInterval: interval}))
	var succeeded atomic.Int64
	end := repeat(6, func() bool {
		if got, err := c.send(c.request("GET", "/who", nil)); err != nil || got.status != 200 {
			t.Errorf("status %d, %v: %s", got.status, err, got.body)
			return false
		}
		succeeded.Add(1)
		return true
	})
	defer end()
	more := func() {
		t.Helper()
		want := succeeded.Load() + 100
		eventually(t, "requests to succeed", func() bool { return t.Failed() || succeeded.Load() >= want })
	}
	more()
	for _, members := range [][]*host{hosts[2:], hosts[:3]} {
		c.mustChange(sut.Upstreams{Peers: peers(members)})
		served := make([]int64, len(hosts))
		for i, h := range hosts {
			served[i] = h.served.Load()
		}
		more()
		for _, h := range members {
			before := h.served.Load()
			eventually(t, h.name+" to get requests", func() bool { return t.Failed() || h.served.Load() > before })
		}
		for i, h := range hosts {
			if n := h.served.Load() - served[i]; n > 0 && !slices.Contains(members, h) {
				t.Errorf("%s was removed and got %d requests", h.name, n)
			}
		}
	}
	if down := c.metric("stagebench_lb_upstream_transitions_total", `to="down"`, `upstream="web-3"`); down != 0 {
		t.Errorf("a host that was never removed went down %v times", down)
	}
}

// testMembershipHealth: an added host that fails its health check gets no request until a
// check passes.
func testMembershipHealth(t *testing.T, start Start) {
	hosts := newHosts(t, 2)
	c := newClient(t, start(t, Setup{Upstreams: peers(hosts[:1]), Policy: "round_robin", HealthInterval: interval}))
	hosts[1].sick.Store(true)
	c.mustChange(sut.Upstreams{Peers: peers(hosts)})
	for range 20 {
		c.get("/who")
	}
	if n := hosts[1].served.Load(); n > 0 {
		t.Errorf("an added host with failing checks got %d requests", n)
	}
	c.awaitUp(hosts[1], false)
	hosts[1].sick.Store(false)
	c.awaitUp(hosts[1], true)
	evenly(t, hosts, spread(c, 40, 1))
}

// testMembershipDrain: requests in flight succeed, on a removed host and on one that stays.
func testMembershipDrain(t *testing.T, start Start) {
	hosts, c := begin(t, start, 2, "round_robin", true)
	removed, kept := hosts[0], hosts[1]
	first := c.background(c.request("GET", "/hold", nil, "Cookie", "lb=web-1"))
	await(t, "a request to be held", removed.held)
	second := c.background(c.request("GET", "/hold", nil, "Cookie", "lb=web-2"))
	await(t, "a request to be held", kept.held)
	if err := c.change(sut.Upstreams{Peers: peers(hosts[1:])}, shortTimeout); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v while a request is in flight on a removed host, want a timeout", err)
	}
	if counts := spread(c, 20, 2, "Cookie", "lb=web-1"); counts[kept.name] != 20 {
		t.Errorf("with one host removed: %v", counts)
	}
	close(removed.release)
	if end := <-first; end.err != nil || end.reply.node != removed.name {
		t.Errorf("the request on the removed host ended with %+v", end)
	}
	// The same change now succeeds, because the removed host has no request.
	c.mustChange(sut.Upstreams{Peers: peers(hosts[1:])})
	close(kept.release)
	if end := <-second; end.err != nil || end.reply.node != kept.name {
		t.Errorf("the request on the host that stays ended with %+v", end)
	}
}

func testMembershipSticky(t *testing.T, start Start) {
	hosts, c := begin(t, start, 3, "round_robin", true)
	c.mustChange(sut.Upstreams{Peers: peers(hosts[1:])})
	moved := c.get("/who", "Cookie", "lb=web-1")
	if value, set := cookieOf(moved.header); moved.node == "web-1" || !set || value != moved.node {
		t.Errorf("a user of a removed host: %s answered and set %q", moved.node, moved.header["Set-Cookie"])
	}
	for range 4 {
		if got := c.get("/who", "Cookie", "lb=web-3"); got.node != "web-3" {
			t.Errorf("a request with the cookie of a host that stays went to %s", got.node)
		}
	}
	// When the host is added again, its users may return.
	c.mustChange(sut.Upstreams{Peers: peers(hosts)})
	c.awaitUp(hosts[0], true)
	if got := c.get("/who", "Cookie", "lb=web-1"); got.node != "web-1" {
		t.Errorf("a request with the cookie of a host that was added again went to %s", got.node)
	}
}

// testMembershipRoute adds a host to a route.
func testMembershipRoute(t *testing.T, start Start) {
	hosts := newHosts(t, 3)
	routes := func(images ...string) []sut.Route {
		return []sut.Route{{Path: "/img/*", To: images}, {To: []string{"web-1"}}}
	}
	c := newClient(t, start(t, Setup{
		Upstreams: peers(hosts[:2]), Routes: routes("web-2"), Policy: "round_robin", HealthInterval: interval,
	}))
	if got := c.get("/img/17"); got.node != "web-2" {
		t.Errorf("an image came from %s, want web-2", got.node)
	}
	c.mustChange(sut.Upstreams{Peers: peers(hosts), Routes: routes("web-2", "web-3")})
	c.awaitUp(hosts[2], true)
	counts := map[string]int{}
	for range 20 {
		counts[c.get("/img/17").node]++
		if got := c.get("/who"); got.node != "web-1" {
			t.Errorf("%s answered, want web-1", got.node)
		}
	}
	evenly(t, hosts[1:], counts)
}

func testMembershipBad(t *testing.T, start Start) {
	hosts, c := begin(t, start, 2, "round_robin", false)
	good := peers(hosts[:1])
	one := func(node, address string, weight float64) sut.Upstreams {
		return sut.Upstreams{Peers: []sut.Peer{{Node: node, Address: address, Weight: weight}}}
	}
	for name, next := range map[string]sut.Upstreams{
		"no hosts":       {},
		"twice":          {Peers: append(good[:1:1], good...)},
		"bad address":    one("web-1", "example.org", 0),
		"bad name":       one("web 1", hosts[0].address, 0),
		"bad weight":     one("web-1", hosts[0].address, -1),
		"bad route":      {Peers: good, Routes: []sut.Route{{Path: "img", To: []string{"web-1"}}}},
		"route to other": {Peers: good, Routes: []sut.Route{{To: []string{"web-7"}}}},
	} {
		if err := c.change(next, timeout); !errors.Is(err, sut.ErrWiring) {
			t.Errorf("%s: error %v, want %v", name, err, sut.ErrWiring)
		}
	}
	evenly(t, hosts, spread(c, 40, 1))
}
