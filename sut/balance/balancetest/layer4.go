package balancetest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// beginLayer4 starts n hosts and a layer 4 balancer.
func beginLayer4(t *testing.T, start Start, n int) ([]*host, *client) {
	t.Helper()
	return beginWith(t, start, n, Setup{Layer: "l4"})
}

func testLayer4Spread(t *testing.T, start Start) {
	for _, test := range []struct {
		policy string
		run    func(t *testing.T, start Start, layer string)
	}{
		{"round_robin", func(t *testing.T, start Start, layer string) {
			hosts, c := beginWith(t, start, 3, Setup{Layer: layer})
			evenly(t, hosts, spread(c, 90, 1))
			evenly(t, hosts, spread(c, 300, 6))
		}},
		{"weighted_round_robin", weighted},
		{"ip_hash", ipHash},
		{"least_conn", leastConn},
	} {
		t.Run(test.policy, func(t *testing.T) { test.run(t, start, "l4") })
	}
}

// line is a client connection.
type line struct {
	t      *testing.T
	conn   *net.TCPConn
	reader *bufio.Reader
}

// dial connects to a balancer.
func (c *client) dial() *line {
	c.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.system.URL, "http://"))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		c.t.Fatal(err)
	}
	return &line{t: c.t, conn: conn.(*net.TCPConn), reader: bufio.NewReader(conn)}
}

// who returns the name of the host that answers on the connection.
func (l *line) who() string {
	l.t.Helper()
	_, _ = io.WriteString(l.conn, "GET /who HTTP/1.1\r\nHost: h\r\n\r\n")
	res, err := http.ReadResponse(l.reader, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return string(body)
}

// over waits for the end of the connection. Nothing may arrive before it.
func (l *line) over() {
	l.t.Helper()
	if n, err := io.Copy(io.Discard, l.reader); n > 0 || isTimeout(err) {
		l.t.Errorf("%d bytes and then %v, want the end of the connection", n, err)
	}
}

func isTimeout(err error) bool {
	timeout, ok := err.(net.Error)
	return ok && timeout.Timeout()
}

func testLayer4Connection(t *testing.T, start Start) {
	_, c := beginLayer4(t, start, 3)
	used := map[string]bool{}
	for range 3 {
		l := c.dial()
		first := l.who()
		used[first] = true
		for range 5 {
			if next := l.who(); next != first {
				t.Errorf("a connection went from %s to %s", first, next)
			}
		}
	}
	if len(used) != 3 {
		t.Errorf("three connections went to %v", used)
	}
}

func testLayer4Bytes(t *testing.T, start Start) {
	_, c := beginLayer4(t, start, 2)
	seen := c.echo(c.request("GET", "/echo", nil, "Cookie", "lb=web-1; a=1", "Te", "trailers"))
	for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", sut.RequestIDHeader} {
		if values, found := seen.Header[name]; found {
			t.Errorf("the host got %s: %q", name, values)
		}
	}
	h := seen.Header
	if h.Get("Cookie") != "lb=web-1; a=1" || h.Get("Te") != "trailers" || h.Get("Connection") != "close" {
		t.Errorf("the host got %v", h)
	}
	if got := c.get("/who"); len(got.header["Set-Cookie"]) > 0 {
		t.Errorf("cookies %q", got.header["Set-Cookie"])
	}
	const size = 8 << 20
	got, err := c.send(c.request("POST", "/upload", strings.NewReader(string(payload(size)))))
	if err != nil || got.body != payloadSum(size) {
		t.Errorf("upload: %v, %q", err, got.body)
	}
	if got := c.get(fmt.Sprintf("/big?bytes=%d", size)); got.body != string(payload(size)) {
		t.Errorf("the %d bytes of a download differ from the host's", len(got.body))
	}
}

// testLayer4HalfClose closes one direction while the other is in use.
func testLayer4HalfClose(t *testing.T, start Start) {
	hosts, c := beginLayer4(t, start, 1)
	l := c.dial()
	_, _ = io.WriteString(l.conn, "GET /raw HTTP/1.1\r\nHost: h\r\n\r\nnot HTTP any more")
	if err := l.conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(l.reader); err != nil || string(got) != "not HTTP any more" {
		t.Errorf("after the client half-closed the connection, it received %q, %v; want its own bytes", got, err)
	}

	l = c.dial()
	_, _ = io.WriteString(l.conn, "GET /raw?first=1 HTTP/1.1\r\nHost: h\r\n\r\n")
	if got, err := io.ReadAll(l.reader); err != nil || string(got) != "web-1" {
		t.Errorf("the host sent %q, %v, want its name", got, err)
	}
	_, _ = io.WriteString(l.conn, "after the host's end")
	_ = l.conn.Close()
	select {
	case got := <-hosts[0].sent:
		if got != "after the host's end" {
			t.Errorf("after the host half-closed the connection, it received %q, want %q", got, "after the host's end")
		}
	case <-time.After(timeout):
		t.Error("the host did not see that the client closed the connection")
	}
}

// testLayer4Connect: while a dead host is not yet marked as down, connections go to other
// hosts.
func testLayer4Connect(t *testing.T, start Start) {
	hosts, c := beginWith(t, start, 3, Setup{Layer: "l4", HealthInterval: time.Minute})
	hosts[1].kill()
	for range 12 {
		c.get("/who")
	}
	if c.metric("stagebench_lb_redispatches_total") == 0 {
		t.Error("no redispatch was counted")
	}
}

func testLayer4AllDead(t *testing.T, start Start) {
	hosts, c := beginLayer4(t, start, 2)
	c.get("/who")
	for _, h := range hosts {
		h.kill()
	}
	for range 2 { // before and after the balancer marks the hosts as down
		c.dial().over()
		for _, h := range hosts {
			c.awaitUp(h, false)
		}
	}
	c.revive(hosts[0])
}

// testLayer4Down: the connections of a host that is marked as down are closed, so that its
// clients connect to another host.
func testLayer4Down(t *testing.T, start Start) {
	hosts, c := beginLayer4(t, start, 2)
	lines := map[string]*line{}
	for range 2 {
		l := c.dial()
		lines[l.who()] = l
	}
	if len(lines) != 2 {
		t.Fatalf("two connections went to %d hosts", len(lines))
	}
	hosts[0].sick.Store(true)
	c.awaitUp(hosts[0], false)
	lines["web-1"].over()
	if got := lines["web-2"].who(); got != "web-2" {
		t.Errorf("the connection to the other host went to %s", got)
	}
}

// testLayer4Membership: connections to a removed host stay open.
func testLayer4Membership(t *testing.T, start Start) {
	hosts := newHosts(t, 3)
	c := newClient(t, start(t, Setup{
		Upstreams: peers(hosts[:2]), Layer: "l4", Policy: "round_robin", HealthInterval: interval,
	}))
	lines := map[string]*line{}
	for range 2 {
		l := c.dial()
		lines[l.who()] = l
	}
	if lines["web-1"] == nil || lines["web-2"] == nil {
		t.Fatalf("two connections went to %d hosts", len(lines))
	}
	next := sut.Upstreams{Peers: peers(hosts[1:])}
	if err := c.change(next, shortTimeout); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v while a connection to a removed host is open, want a timeout", err)
	}
	for name, l := range lines {
		if got := l.who(); got != name {
			t.Errorf("a connection went from %s to %s", name, got)
		}
	}
	c.awaitUp(hosts[2], true)
	evenly(t, hosts[1:], spread(c, 40, 1))
	_ = lines["web-1"].conn.Close()
	c.mustChange(next)
	if got := lines["web-2"].who(); got != "web-2" {
		t.Errorf("a connection to a host that stays went to %s", got)
	}
}

func testLayer4Metrics(t *testing.T, start Start) {
	hosts, c := beginLayer4(t, start, 2)
	spread(c, 40, 4)
	open := c.dial()
	open.who()
	name := open.who()
	eventually(t, "all other connections to end", func() bool { return c.metric("stagebench_lb_connections_active") == 1 })
	if n := c.metric("stagebench_lb_connections_total"); n != 41 {
		t.Errorf("%v connections, want 41", n)
	}
	var sum float64
	for _, h := range hosts {
		label := fmt.Sprintf("upstream=%q", h.name)
		sum += c.metric("stagebench_lb_upstream_connections_total", label)
		want := 0.0
		if h.name == name {
			want = 1
		}
		if n := c.metric("stagebench_lb_upstream_connections_active", label); n != want {
			t.Errorf("%v connections to %s, want %v", n, h.name, want)
		}
	}
	if sum != 41 {
		t.Errorf("%v connections to hosts, want 41", sum)
	}
	c.get("/big?bytes=1000000")
	eventually(t, "a connection's bytes to be counted", func() bool {
		return c.metric("stagebench_lb_connection_bytes_total", `direction="out"`) >= 1_000_000
	})
	if in := c.metric("stagebench_lb_connection_bytes_total", `direction="in"`); in < 42*20 || in > 100_000 {
		t.Errorf("%v bytes from clients are counted, want 840 to 100,000", in)
	}
	if got := c.admin("/metrics"); strings.Contains(got.body, "stagebench_http_requests_total") {
		t.Error("a layer 4 balancer has a metric of requests")
	}
	var status struct{ Layer string }
	c.status(&status)
	if status.Layer != "l4" {
		t.Errorf("layer %q", status.Layer)
	}
}
