package balancetest

import (
	"net/http"
	"net/http/cookiejar"
	"strconv"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

// routed starts four hosts: web-1 for POST of one path, web-2 for requests with a header,
// web-3 for requests with a cookie, web-4 for images, and web-1 and web-2 for all other
// requests.
func routed(t *testing.T, start Start, sticky bool) ([]*host, *client) {
	t.Helper()
	return beginWith(t, start, 4, Setup{Sticky: sticky, Routes: []sut.Route{
		{Method: "POST", Path: "/who", To: []string{"web-1"}},
		{Header: "X-Batch", To: []string{"web-2"}},
		{Header: "X-Tier:slow", To: []string{"web-2"}},
		{Cookie: "beta", To: []string{"web-3"}},
		{Cookie: "plan:gold", To: []string{"web-3"}},
		{Path: "/img/*", To: []string{"web-4"}},
		{To: []string{"web-1", "web-2"}},
	}})
}

func testRoutes(t *testing.T, start Start) {
	hosts, c := routed(t, start, false)
	for _, test := range []struct {
		method, path string
		pairs        []string
		want         string // hosts that may answer
	}{
		{"POST", "/who", nil, "web-1"},
		{"POST", "/who?x=1", nil, "web-1"}, // a query is not part of a path
		{"POST", "/status/200", nil, "web-1 web-2"},
		{"GET", "/who", []string{"X-Batch", "anything"}, "web-2"},
		{"GET", "/who", []string{"X-Tier", "slow"}, "web-2"},
		{"GET", "/who", []string{"X-Tier", "slower", "Cookie", "beta=1"}, "web-3"},
		{"GET", "/who", []string{"Cookie", "a=1; beta=; b=2"}, "web-3"},
		{"GET", "/who", []string{"Cookie", "plan=gold"}, "web-3"},
		{"GET", "/who", []string{"Cookie", "plan=golden"}, "web-1 web-2"},
		{"GET", "/who", []string{"Cookie", "alphabeta=1"}, "web-1 web-2"},
		{"GET", "/img/17/thumb.jpg", nil, "web-4"},
		{"GET", "/img/", nil, "web-4"},
		// The first route that matches is used.
		{"POST", "/who", []string{"X-Batch", "1", "Cookie", "beta=1"}, "web-1"},
		{"GET", "/img/17", []string{"X-Batch", "1"}, "web-2"},
	} {
		for range 4 {
			got := c.do(test.method, test.path, test.pairs...)
			if got.status != http.StatusOK || !strings.Contains(test.want, got.node) || got.node == "" {
				t.Errorf("%s %s %v: %s answered with %d, want %s",
					test.method, test.path, test.pairs, got.node, got.status, test.want)
			}
		}
	}
	// Requests of other routes must not change the turn of this one.
	evenly(t, hosts[:2], spread(c, 40, 1))
}

// testRouteDown: when the only host of a route is down, all other routes still work.
func testRouteDown(t *testing.T, start Start) {
	hosts, c := routed(t, start, true)
	hosts[3].kill()
	for range 2 { // before and after the balancer marks the host as down
		got := c.do("GET", "/img/17", "Cookie", "lb=web-1")
		if got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, "web-4") {
			t.Errorf("a route without a host: status %d: %s: want 503 with the name of the host", got.status, got.body)
		}
		if seconds, err := strconv.Atoi(got.header.Get("Retry-After")); err != nil || seconds < 1 {
			t.Errorf("Retry-After %q, want seconds", got.header.Get("Retry-After"))
		}
		isJSONError(t, got)
		for range 4 {
			c.get("/who")
		}
		c.awaitUp(hosts[3], false)
	}
	if got := c.admin("/readyz"); got.status != http.StatusOK {
		t.Errorf("/readyz: status %d with one route down", got.status)
	}
	hosts[3].start(t)
	c.awaitUp(hosts[3], true)
	if got := c.get("/img/17"); got.node != "web-4" {
		t.Errorf("%s answered, want web-4", got.node)
	}
}

// testRouteSticky: a user stays on a host only within a route that has this host.
func testRouteSticky(t *testing.T, start Start) {
	_, c := routed(t, start, true)
	for range 6 {
		if got := c.get("/who", "Cookie", "lb=web-2"); got.node != "web-2" {
			t.Errorf("a user of web-2 was sent to %s", got.node)
		}
		if got := c.get("/img/17", "Cookie", "lb=web-2"); got.node != "web-4" {
			t.Errorf("an image came from %s, want web-4", got.node)
		}
		if got := c.get("/who", "Cookie", "lb=web-4"); got.node != "web-1" && got.node != "web-2" {
			t.Errorf("a user of web-4 was sent to %s", got.node)
		}
	}
}

// testRouteStickyEach: a user who uses two routes stays on one host of each. A session
// may be in the memory of one host while another one takes the uploads.
func testRouteStickyEach(t *testing.T, start Start) {
	_, c := beginWith(t, start, 4, Setup{Sticky: true, Routes: []sut.Route{
		{Path: "/albums/*", To: []string{"web-1", "web-2"}},
		{To: []string{"web-3", "web-4"}},
	}})
	for range 4 {
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		user := newClient(t, c.system)
		user.http.Jar = jar
		page, image := user.get("/who").node, user.get("/albums/17").node
		for range 4 {
			if next := user.get("/who").node; next != page {
				t.Errorf("a user of %s was sent to %s", page, next)
			}
			if next := user.get("/albums/17").node; next != image {
				t.Errorf("a user whose images come from %s was sent to %s", image, next)
			}
		}
	}
}
