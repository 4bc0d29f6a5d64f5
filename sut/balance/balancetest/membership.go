package balancetest

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

// member asks for a membership and returns the answer. drain is in seconds, as
// the header carries it.
func (c *client) member(m sut.Membership, drain string) reply {
	c.t.Helper()
	body, err := json.Marshal(m)
	if err != nil {
		c.t.Fatal(err)
	}
	req := httptest.NewRequest(http.MethodPut, sut.MembershipPath, bytes.NewReader(body))
	req.Header.Set(sut.DrainHeader, drain)
	return c.operate(req)
}

// become asks for a membership that must be reached.
func (c *client) become(m sut.Membership) {
	c.t.Helper()
	if got := c.member(m, "30"); got.status != http.StatusNoContent || got.body != "" {
		c.t.Fatalf("membership: status %d: %s", got.status, got.body)
	}
}

// testMembershipUnderLoad adds two hosts and removes two of the first, twice.
func testMembershipUnderLoad(t *testing.T, start Start) {
	hosts := newHosts(t, 5)
	c := newClient(t, start(t, Setup{Upstreams: peers(hosts[:3]), Policy: "round_robin", HealthInterval: interval}))
	var succeeded atomic.Int64
	stop := make(chan struct{})
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if got, err := c.send(c.request("GET", "/who", nil)); err != nil || got.status != 200 {
					t.Errorf("status %d, %v: %s", got.status, err, got.body)
					return
				}
				succeeded.Add(1)
			}
		})
	}
	defer func() { close(stop); all.Wait() }()
	more := func() {
		t.Helper()
		want := succeeded.Load() + 100
		eventually(t, "requests to succeed", func() bool { return t.Failed() || succeeded.Load() >= want })
	}
	more()
	for _, members := range [][]*host{hosts[2:], hosts[:3]} {
		c.become(sut.Membership{Upstreams: peers(members)})
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
			if n := h.served.Load() - served[i]; n > 0 && !contains(members, h) {
				t.Errorf("%s is not a member and got %d requests", h.name, n)
			}
		}
	}
	if down := c.metric("stagebench_lb_upstream_transitions_total", `to="down"`, `upstream="web-3"`); down != 0 {
		t.Errorf("a host that was a member all the time went down %v times", down)
	}
}

func contains(hosts []*host, h *host) bool {
	for _, other := range hosts {
		if other == h {
			return true
		}
	}
	return false
}

// testMembershipHealth: a host that is added and not well gets nothing until it
// is.
func testMembershipHealth(t *testing.T, start Start) {
	hosts := newHosts(t, 2)
	c := newClient(t, start(t, Setup{Upstreams: peers(hosts[:1]), Policy: "round_robin", HealthInterval: interval}))
	hosts[1].sick.Store(true)
	c.become(sut.Membership{Upstreams: peers(hosts)})
	for range 20 {
		c.get("/who")
	}
	if n := hosts[1].served.Load(); n > 0 {
		t.Errorf("a new host that is not well got %d requests", n)
	}
	c.awaitUp(hosts[1], false)
	hosts[1].sick.Store(false)
	c.awaitUp(hosts[1], true)
	evenly(t, hosts, spread(c, 40, 1))
}

// testMembershipDrain: a request in flight on a host that is removed, and one on
// a host that stays, both come to their ends.
func testMembershipDrain(t *testing.T, start Start) {
	hosts, c := begin(t, start, 2, "round_robin", true)
	removed, kept := hosts[0], hosts[1]
	first := c.background(c.request("GET", "/hold", nil, "Cookie", "lb=web-1"))
	await(t, "a request to be held", removed.held)
	second := c.background(c.request("GET", "/hold", nil, "Cookie", "lb=web-2"))
	await(t, "a request to be held", kept.held)
	if got := c.member(sut.Membership{Upstreams: peers(hosts[1:])}, "5"); got.status != http.StatusGatewayTimeout {
		t.Errorf("status %d while a request is in flight on a removed host, want 504: %s", got.status, got.body)
	} else {
		isJSONError(t, got)
	}
	if counts := spread(c, 20, 2, "Cookie", "lb=web-1"); counts[kept.name] != 20 {
		t.Errorf("with one host removed: %v", counts)
	}
	close(removed.release)
	if end := <-first; end.err != nil || end.reply.node != removed.name {
		t.Errorf("the request on the removed host ended with %+v", end)
	}
	// With nothing in flight, the same membership is reached at once.
	c.become(sut.Membership{Upstreams: peers(hosts[1:])})
	close(kept.release)
	if end := <-second; end.err != nil || end.reply.node != kept.name {
		t.Errorf("the request on the host that stays ended with %+v", end)
	}
}

func testMembershipSticky(t *testing.T, start Start) {
	hosts, c := begin(t, start, 3, "round_robin", true)
	c.become(sut.Membership{Upstreams: peers(hosts[1:])})
	moved := c.get("/who", "Cookie", "lb=web-1")
	if value, set := cookieOf(moved.header); moved.node == "web-1" || !set || value != moved.node {
		t.Errorf("a user of a removed host: %s answered and set %q", moved.node, moved.header["Set-Cookie"])
	}
	for range 4 {
		if got := c.get("/who", "Cookie", "lb=web-3"); got.node != "web-3" {
			t.Errorf("a user of a host that stays was sent to %s", got.node)
		}
	}
	// It comes back, and so may its users.
	c.become(sut.Membership{Upstreams: peers(hosts)})
	c.awaitUp(hosts[0], true)
	if got := c.get("/who", "Cookie", "lb=web-1"); got.node != "web-1" {
		t.Errorf("a user of a host that came back was sent to %s", got.node)
	}
}

// testMembershipRoute adds a host to a route.
func testMembershipRoute(t *testing.T, start Start) {
	hosts := newHosts(t, 3)
	routes := func(pictures ...string) []sut.Route {
		return []sut.Route{{Path: "/img/*", To: pictures}, {To: []string{"web-1"}}}
	}
	c := newClient(t, start(t, Setup{Upstreams: peers(hosts[:2]), Routes: routes("web-2"), Policy: "round_robin", HealthInterval: interval}))
	if got := c.get("/img/17"); got.node != "web-2" {
		t.Errorf("a picture came from %s", got.node)
	}
	c.become(sut.Membership{Upstreams: peers(hosts), Routes: routes("web-2", "web-3")})
	c.awaitUp(hosts[2], true)
	counts := map[string]int{}
	for range 20 {
		counts[c.get("/img/17").node]++
		if got := c.get("/who"); got.node != "web-1" {
			t.Errorf("%s answered", got.node)
		}
	}
	evenly(t, hosts[1:], counts)
}

func testMembershipBad(t *testing.T, start Start) {
	hosts, c := begin(t, start, 2, "round_robin", false)
	address := hosts[0].address
	for name, body := range map[string]string{
		"no JSON":        "hello",
		"nothing":        "",
		"unknown field":  `{"upstreams":[{"node":"web-1","address":"` + address + `"}],"colour":"red"}`,
		"more behind":    `{"upstreams":[{"node":"web-1","address":"` + address + `"}]} {}`,
		"no hosts":       `{"upstreams":[]}`,
		"twice":          `{"upstreams":[{"node":"web-1","address":"` + address + `"},{"node":"web-1","address":"` + address + `"}]}`,
		"bad address":    `{"upstreams":[{"node":"web-1","address":"example.org"}]}`,
		"bad name":       `{"upstreams":[{"node":"web 1","address":"` + address + `"}]}`,
		"bad weight":     `{"upstreams":[{"node":"web-1","address":"` + address + `","weight":-1}]}`,
		"bad route":      `{"upstreams":[{"node":"web-1","address":"` + address + `"}],"routes":[{"path":"img","to":["web-1"]}]}`,
		"route to other": `{"upstreams":[{"node":"web-1","address":"` + address + `"}],"routes":[{"to":["web-7"]}]}`,
	} {
		req := httptest.NewRequest(http.MethodPut, sut.MembershipPath, strings.NewReader(body))
		got := c.operate(req)
		if got.status != http.StatusBadRequest {
			t.Errorf("%s: status %d, want 400: %s", name, got.status, got.body)
		}
		isJSONError(t, got)
	}
	if got := c.member(sut.Membership{Upstreams: peers(hosts[:1])}, "soon"); got.status != http.StatusBadRequest {
		t.Errorf("a bad bound: status %d, want 400: %s", got.status, got.body)
	}
	evenly(t, hosts, spread(c, 40, 1))
}
