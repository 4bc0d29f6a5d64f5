package balancetest

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

// begin starts n hosts and a balancer.
func begin(t *testing.T, start Start, n int, policy string, sticky bool) ([]*host, *client) {
	t.Helper()
	return beginWith(t, start, n, Setup{Policy: policy, Sticky: sticky})
}

// beginWith starts n hosts and a balancer with the rest of the setup.
func beginWith(t *testing.T, start Start, n int, setup Setup) ([]*host, *client) {
	t.Helper()
	hosts := newHosts(t, n)
	setup.Upstreams = peers(hosts)
	setDefault(&setup.HealthInterval, interval)
	setDefault(&setup.Policy, "round_robin")
	return hosts, newClient(t, start(t, setup))
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// spread sends n requests from that many concurrent clients. It counts the responses by
// host, and failed requests as "failed".
func spread(c *client, n, clients int, pairs ...string) map[string]int {
	c.t.Helper()
	var mu sync.Mutex
	counts := map[string]int{}
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
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
	running.Wait()
	return counts
}

// evenly checks that each host got an equal share, give or take 2 % and at least one
// request.
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

func testWeighted(t *testing.T, start Start) { weighted(t, start, "l7") }

// weighted gives three hosts the weights 3, 2 and 1.
func weighted(t *testing.T, start Start, layer string) {
	hosts := newHosts(t, 3)
	list := peers(hosts)
	for i := range list {
		list[i].Weight = float64(3 - i)
	}
	system := start(t, Setup{Upstreams: list, Layer: layer, Policy: "weighted_round_robin", HealthInterval: interval})
	c := newClient(t, system)
	for _, clients := range []int{1, 6} {
		counts := spread(c, 120, clients)
		for i, h := range hosts {
			if want := 20 * (3 - i); counts[h.name] < want-2 || counts[h.name] > want+2 {
				t.Errorf("%d clients: %v, want 60, 40, 20", clients, counts)
				break
			}
		}
	}
	// A host must not get its share in one burst.
	six := spread(c, 6, 1)
	for i, h := range hosts {
		if want := 3 - i; six[h.name] < want-1 || six[h.name] > want+1 {
			t.Errorf("six requests in sequence: %v, want 3, 2, 1", six)
			break
		}
	}
}

func testIPHash(t *testing.T, start Start) { ipHash(t, start, "l7") }

// ipHash uses many client addresses, and a host that dies and restarts.
func ipHash(t *testing.T, start Start, layer string) {
	hosts, c := beginWith(t, start, 3, Setup{Layer: layer, Policy: "ip_hash"})
	const sources = 30
	homes := func() []string {
		list := make([]string, sources)
		for i := range list {
			from := newClientFrom(t, c.system, net.IPv4(127, 0, 1, byte(10+i)))
			list[i] = from.get("/who").node
			for range 2 { // each on a new connection, from another port
				if again := from.get("/who").node; again != list[i] {
					t.Fatalf("address %d was sent to %s and to %s", i, list[i], again)
				}
			}
		}
		return list
	}
	before := homes()
	for _, h := range hosts {
		if !slices.Contains(before, h.name) {
			t.Errorf("none of %d addresses was sent to %s", sources, h.name)
		}
	}
	victim := hosts[1]
	victim.kill()
	c.awaitUp(victim, false)
	for i, home := range homes() {
		if home == victim.name || before[i] != victim.name && home != before[i] {
			t.Errorf("with %s dead, address %d moved from %s to %s", victim.name, i, before[i], home)
		}
	}
	victim.start(t)
	c.awaitUp(victim, true)
	if after := homes(); !slices.Equal(before, after) {
		t.Errorf("after the restart the addresses are on\n%v, want as before\n%v", after, before)
	}
}

func testLeastConnIdle(t *testing.T, start Start) {
	hosts, c := begin(t, start, 3, "least_conn", false)
	counts := spread(c, 90, 1)
	for _, h := range hosts {
		// The share is not exact: it depends on when the balancer learns that a request ended.
		if counts[h.name] < 10 {
			t.Errorf("uneven among idle hosts: %v, want about 30 each", counts)
		}
	}
}

func testLeastConn(t *testing.T, start Start) { leastConn(t, start, "l7") }

// leastConn keeps one host busy with requests that do not end, and checks that the other
// hosts get all later requests. A busy machine cannot change the result: the later
// requests are no more than those that the busy host holds, so it never has the fewest,
// even if the balancer learns of no end of a request.
func leastConn(t *testing.T, start Start, layer string) {
	hosts, c := beginWith(t, start, 3, Setup{Layer: layer, Policy: "least_conn"})
	busy, free := hosts[0], hosts[1:]
	const each = 10
	var held []<-chan result
	for i := range each * len(hosts) {
		held = append(held, c.background(c.request("GET", "/hold", nil)))
		eventually(t, "the request to be held", func() bool {
			return len(hosts[0].held)+len(hosts[1].held)+len(hosts[2].held) == i+1
		})
	}
	for _, h := range hosts {
		if n := len(h.held); n != each {
			t.Fatalf("%s holds %d of %d requests, want %d", h.name, n, each*len(hosts), each)
		}
	}
	inFlight := "stagebench_lb_upstream_in_flight"
	if layer == "l4" {
		inFlight = "stagebench_lb_upstream_connections_active"
	}
	for _, h := range free {
		close(h.release)
		eventually(t, h.name+" to be free", func() bool {
			return c.metric(inFlight, fmt.Sprintf("upstream=%q", h.name)) == 0
		})
	}
	if counts := spread(c, each, 1); counts[busy.name] > 0 || counts["failed"] > 0 {
		t.Errorf("%s is busy: requests by host %v, want none for it", busy.name, counts)
	}
	close(busy.release)
	for _, done := range held {
		if end := <-done; end.err != nil || end.reply.status != 200 {
			t.Errorf("a held request ended with %+v", end)
		}
	}
	eventually(t, "the busy host to get requests again", func() bool { return c.get("/who").node == busy.name })
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
				t.Fatalf("a second response set the cookie to %q", again)
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
	moved := c.afterDeath(1, "/who", "Cookie", "lb="+home.name)
	value, set := cookieOf(moved.header)
	if moved.node == home.name || !set || value != moved.node {
		t.Fatalf("%s answered and set %q", moved.node, moved.header["Set-Cookie"])
	}
	c.awaitUp(home, false)
	// A request with the old cookie still goes to another host.
	if got := c.get("/who", "Cookie", "lb="+home.name); got.node == home.name {
		t.Error("a dead host answered")
	}
	home.start(t)
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
			t.Errorf("for cookie %q the host got %q, want %q", cookie, got, want)
		}
	}
}

// Responses that are the same for all users come from any host, and carry no cookie: a shared cache may store them.
func testStickyShared(t *testing.T, start Start) {
	hosts, c := begin(t, start, 3, "round_robin", true)
	for _, prefix := range sut.SharedPaths() {
		counts := map[string]int{}
		for range 30 {
			got, err := c.send(c.request("GET", prefix+"echo", nil, "Cookie", "a=1; lb=web-1"))
			if err != nil || got.status != 200 {
				t.Fatalf("%s: status %d, error %v", prefix, got.status, err)
			}
			counts[got.node]++
			if lines := slices.Concat(got.header["Set-Cookie"], got.header["Cache-Control"]); len(lines) > 0 {
				t.Fatalf("%s: headers %q", prefix, lines)
			}
		}
		evenly(t, hosts, counts)
		seen := c.echo(c.request("GET", prefix+"echo", nil, "Cookie", "a=1; lb=web-1"))
		if got := strings.Join(seen.Header["Cookie"], "; "); got != "a=1" {
			t.Errorf("%s: the host got the cookies %q, want a=1", prefix, got)
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
		t.Errorf("without sticky the host got the cookie lb=web-1 as %q", seen.Header["Cookie"])
	}
}

// testUnsticky ends stickiness and begins it again while the balancer serves.
func testUnsticky(t *testing.T, start Start) {
	hosts, c := begin(t, start, 3, "round_robin", true)
	held := func() {
		t.Helper()
		for range 10 {
			if got := c.get("/who", "Cookie", "lb=web-1"); got.node != "web-1" {
				t.Fatalf("a user of web-1 was sent to %s", got.node)
			}
		}
	}
	held()
	c.mustChange(sut.Upstreams{Peers: peers(hosts), Unsticky: true})
	evenly(t, hosts, spread(c, 90, 1, "Cookie", "lb=web-1"))
	got := c.get("/who")
	if value, set := cookieOf(got.header); set {
		t.Errorf("the balancer set the cookie to %q", value)
	}
	if status, err := c.system.Status(t.Context()); err != nil || status.Sticky {
		t.Errorf("sticky is %t, %v", status.Sticky, err)
	}
	c.mustChange(sut.Upstreams{Peers: peers(hosts)})
	held()
}
