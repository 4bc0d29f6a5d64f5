package balancetest

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
)

// begin starts hosts and a balancer over them.
func begin(t *testing.T, start Start, n int, policy string, sticky bool) ([]*host, *client) {
	t.Helper()
	hosts := newHosts(t, n)
	system := start(t, Setup{Upstreams: peers(hosts), Policy: policy, Sticky: sticky, HealthInterval: interval})
	return hosts, newClient(t, system)
}

// spread asks n times, with so many clients at once, and counts who answered.
func spread(c *client, n, clients int, pairs ...string) map[string]int {
	c.t.Helper()
	var mu sync.Mutex
	counts := map[string]int{}
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for range n / clients {
				got, err := c.send(c.request("GET", "/who", nil, pairs...))
				mu.Lock()
				if err != nil || got.status != 200 {
					counts["failed"]++
				}
				counts[got.node]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return counts
}

// evenly says whether all hosts got the same number, but for one request in
// fifty.
func evenly(t *testing.T, hosts []*host, counts map[string]int) {
	t.Helper()
	total := 0
	for _, n := range counts {
		total += n
	}
	for _, h := range hosts {
		want := total / len(hosts)
		if slack := max(1, want/50); counts[h.name] < want-slack || counts[h.name] > want+slack {
			t.Errorf("uneven: %v, want %d each", counts, want)
			return
		}
	}
}

func testRoundRobin(t *testing.T, start Start) {
	hosts, c := begin(t, start, 3, "round_robin", false)
	evenly(t, hosts, spread(c, 90, 1))
	evenly(t, hosts, spread(c, 300, 6))
}

func testLeastConnIdle(t *testing.T, start Start) {
	hosts, c := begin(t, start, 3, "least_conn", false)
	counts := spread(c, 90, 1)
	for _, h := range hosts {
		if counts[h.name] < 20 {
			t.Errorf("unfair among idle hosts: %v", counts)
		}
	}
}

// testLeastConn keeps one host busy with requests that do not end.
func testLeastConn(t *testing.T, start Start) {
	hosts, c := begin(t, start, 3, "least_conn", false)
	var slow *host
	held := c.background(c.request("GET", "/hold", nil))
	eventually(t, "a host to hold a request", func() bool {
		for _, h := range hosts {
			if len(h.held) > 0 {
				slow = h
			}
		}
		return slow != nil
	})
	counts := spread(c, 60, 1)
	// The engine may learn a moment late that a request has ended.
	if counts[slow.name] > 3 || counts["failed"] > 0 {
		t.Errorf("%s is busy and got %d of 60 requests: %v", slow.name, counts[slow.name], counts)
	}
	close(slow.release)
	if end := <-held; end.err != nil || end.reply.node != slow.name {
		t.Errorf("the held request ended with %+v", end)
	}
	eventually(t, "the slow host to get requests again", func() bool { return c.get("/who").node == slow.name })
}

func testSticky(t *testing.T, start Start) {
	_, c := begin(t, start, 3, "round_robin", true)
	used := map[string]bool{}
	for range 6 {
		first := c.get("/who")
		value, set := cookieOf(first.header)
		if !set || value != first.node {
			t.Fatalf("first response of %s sets %q", first.node, first.header["Set-Cookie"])
		}
		if !strings.Contains(strings.ToLower(first.header.Get("Set-Cookie")), "httponly") {
			t.Errorf("scripts can read the cookie: %q", first.header["Set-Cookie"])
		}
		used[first.node] = true
		for range 10 {
			next := c.get("/who", "Cookie", "session=1; lb="+value+"; theme=dark")
			if next.node != first.node {
				t.Fatalf("a user of %s was sent to %s", first.node, next.node)
			}
			if again, set := cookieOf(next.header); set {
				t.Fatalf("the cookie was set again, to %q", again)
			}
		}
	}
	if len(used) != 3 {
		t.Errorf("six new users were sent to %v, want all hosts", slices.Sorted(maps.Keys(used)))
	}
}

func testStickyUnknown(t *testing.T, start Start) {
	hosts, c := begin(t, start, 3, "round_robin", true)
	for _, cookie := range []string{"lb=web-99", "lb=", "lb", "lb=web-1x", `lb="`} {
		got := c.get("/who", "Cookie", cookie)
		if value, set := cookieOf(got.header); !set || value != got.node {
			t.Errorf("cookie %q: %s answered and set %q", cookie, got.node, got.header["Set-Cookie"])
		}
	}
	evenly(t, hosts, spread(c, 90, 1, "Cookie", "lb=web-99"))
}

func testStickyMoves(t *testing.T, start Start) {
	hosts, c := begin(t, start, 3, "round_robin", true)
	home := hosts[1]
	if got := c.get("/who", "Cookie", "lb="+home.name); got.node != home.name {
		t.Fatalf("a user of %s was sent to %s", home.name, got.node)
	}
	home.kill()
	moved := c.get("/who", "Cookie", "lb="+home.name)
	value, set := cookieOf(moved.header)
	if moved.node == home.name || !set || value != moved.node {
		t.Fatalf("%s answered and set %q", moved.node, moved.header["Set-Cookie"])
	}
	c.awaitUp(home, false)
	// Its host is down: every request moves it until it shows the new cookie.
	if got := c.get("/who", "Cookie", "lb="+home.name); got.node == home.name {
		t.Error("a dead host answered")
	}
	home.restart(t)
	c.awaitUp(home, true)
	if got := c.get("/who", "Cookie", "lb="+value); got.node != moved.node {
		t.Errorf("a user who moved to %s was sent to %s", moved.node, got.node)
	}
}

func testStickyInvisible(t *testing.T, start Start) {
	_, c := begin(t, start, 1, "round_robin", true)
	for cookie, want := range map[string]string{
		"a=1; lb=web-1; b=2":   "a=1; b=2",
		"lb=web-1":             "",
		"a=1":                  "a=1",
		"lbx=1; xlb=2; a=lb=3": "lbx=1; xlb=2; a=lb=3",
	} {
		seen := c.echo(c.request("GET", "/echo", nil, "Cookie", cookie))
		if got := strings.Join(seen.Header["Cookie"], "; "); got != want {
			t.Errorf("of cookie %q the host sees %q, want %q", cookie, got, want)
		}
	}
}

func testNotSticky(t *testing.T, start Start) {
	hosts, c := begin(t, start, 3, "round_robin", false)
	got := c.get("/who")
	if lines := got.header["Set-Cookie"]; len(lines) > 0 {
		t.Errorf("cookies %q", lines)
	}
	if lines := got.header["Cache-Control"]; len(lines) > 0 {
		t.Errorf("cache control %q", lines)
	}
	evenly(t, hosts, spread(c, 90, 1, "Cookie", "lb=web-1"))
	seen := c.echo(c.request("GET", "/echo", nil, "Cookie", "lb=web-1"))
	if seen.Header.Get("Cookie") != "lb=web-1" {
		t.Errorf("a cookie that is not the balancer's came as %q", seen.Header["Cookie"])
	}
}
