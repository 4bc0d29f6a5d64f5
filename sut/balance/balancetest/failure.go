package balancetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// testKilledHost kills a host with three requests in flight. Only these fail.
func testKilledHost(t *testing.T, start Start) {
	hosts, c := begin(t, start, 3, "round_robin", true)
	victim := hosts[1]
	spread(c, 30, 1) // so that the balancer has connected to all hosts
	const inFlight = 3
	var held []<-chan result
	for range inFlight {
		held = append(held, c.background(c.request("GET", "/hold", nil, "Cookie", "lb="+victim.name)))
		await(t, "a request to be held", victim.held)
	}
	victim.kill()
	for _, done := range held {
		end := <-done
		if end.err == nil && end.reply.status != http.StatusBadGateway {
			t.Errorf("a request in flight on a killed host ended with status %d: %s", end.reply.status, end.reply.body)
		}
		if end.err == nil {
			isJSONError(t, end.reply)
		}
	}
	idle := 1 // idle connections of the balancer, see client.afterDeath
	for i := range 60 {
		pairs := []string{"Cookie", "lb=" + victim.name}
		switch got, err := c.send(c.request("POST", "/who", nil, pairs[:2*(i%2)]...)); {
		case err == nil && got.status == http.StatusBadGateway && idle > 0:
			isJSONError(t, got)
			idle--
		case err != nil || got.status != 200:
			t.Errorf("request %d after the kill: status %d, %v: %s", i, got.status, err, got.body)
		}
	}
	c.awaitUp(victim, false)
	if down := c.metric("stagebench_lb_upstream_transitions_total", `upstream="web-2"`, `to="down"`); down != 1 {
		t.Errorf("%v transitions to down, want 1", down)
	}
}

// testKilledUnderLoad kills a host under load. Only requests that are in flight, or that
// arrive before the balancer marks the host as down, may fail.
func testKilledUnderLoad(t *testing.T, start Start) {
	hosts, c := begin(t, start, 3, "round_robin", false)
	victim := hosts[2]
	const clients = 8
	var started, succeeded, failed, failedLate atomic.Int64
	var markedDown atomic.Bool
	end := repeat(clients, func() bool {
		late := markedDown.Load()
		started.Add(1)
		got, err := c.send(c.request("GET", "/who", nil))
		switch {
		case err == nil && got.status == 200:
			succeeded.Add(1)
		case late:
			failedLate.Add(1)
		default:
			failed.Add(1)
		}
		return true
	})
	defer end()
	more := func(n int64) {
		t.Helper()
		want := succeeded.Load() + n
		eventually(t, "requests to succeed", func() bool { return succeeded.Load() >= want })
	}
	more(200)
	if n := failed.Load(); n > 0 {
		t.Errorf("%d requests failed before anything was killed", n)
	}
	before := started.Load()
	victim.kill()
	c.awaitUp(victim, false)
	markedDown.Store(true)
	arrived := started.Load() - before
	more(200)
	end()
	if n := failedLate.Load(); n > 0 {
		t.Errorf("%d requests failed that arrived after the host was marked as down", n)
	}
	if n := failed.Load(); n > clients+arrived {
		t.Errorf("%d requests failed, want at most %d: %d in flight and %d that arrived before the host was marked as down",
			n, clients+arrived, clients, arrived)
	}
	t.Logf("%d requests failed; %d clients, %d arrivals before the host was marked as down",
		failed.Load(), clients, arrived)
}

func testRestartedHost(t *testing.T, start Start) {
	hosts, c := begin(t, start, 2, "round_robin", false)
	victim := hosts[0]
	victim.kill()
	c.awaitUp(victim, false)
	if counts := spread(c, 20, 1); counts[hosts[1].name] != 20 {
		t.Errorf("with one host down: %v", counts)
	}
	victim.start(t)
	c.awaitUp(victim, true)
	evenly(t, hosts, spread(c, 40, 1))
	if up := c.metric("stagebench_lb_upstream_transitions_total", `upstream="web-1"`, `to="up"`); up != 1 {
		t.Errorf("%v transitions to up, want 1", up)
	}
}

// testUnhealthyHost: a host that answers but fails its health checks gets no request.
func testUnhealthyHost(t *testing.T, start Start) {
	hosts, c := begin(t, start, 2, "round_robin", true)
	hosts[0].sick.Store(true)
	c.awaitUp(hosts[0], false)
	served := hosts[0].served.Load()
	for range 20 {
		c.get("/who", "Cookie", "lb=web-1")
	}
	if n := hosts[0].served.Load() - served; n > 0 {
		t.Errorf("a sick host got %d requests", n)
	}
	hosts[0].sick.Store(false)
	c.awaitUp(hosts[0], true)
	if got := c.get("/who", "Cookie", "lb=web-1"); got.node != "web-1" {
		t.Errorf("a request with the cookie of a host that is up again went to %s", got.node)
	}
}

func testAllDead(t *testing.T, start Start) {
	hosts, c := begin(t, start, 3, "round_robin", true)
	c.get("/who")
	for _, h := range hosts {
		h.kill()
	}
	refused := func(got reply) {
		t.Helper()
		if got.status != http.StatusServiceUnavailable {
			t.Fatalf("status %d, want 503: %s", got.status, got.body)
		}
		if seconds, err := strconv.Atoi(got.header.Get("Retry-After")); err != nil || seconds < 1 {
			t.Errorf("Retry-After %q, want seconds", got.header.Get("Retry-After"))
		}
		isJSONError(t, got)
	}
	// Before and after the balancer marks the hosts as down.
	refused(c.afterDeath(1, "/who"))
	for _, h := range hosts {
		c.awaitUp(h, false)
	}
	for range 20 {
		refused(c.do("POST", "/who", "Cookie", "lb=web-1"))
	}
	c.revive(hosts[1])
}

// revive restarts one host while all hosts are dead.
func (c *client) revive(h *host) {
	c.t.Helper()
	if got := c.admin("/readyz"); got.status != http.StatusServiceUnavailable {
		c.t.Errorf("/readyz: status %d with all hosts dead", got.status)
	}
	h.start(c.t)
	c.awaitUp(h, true)
	if got := c.get("/who"); got.node != h.name {
		c.t.Errorf("%s answered, want %s", got.node, h.name)
	}
}

// isJSONError checks the form of the balancer's own errors.
func isJSONError(t *testing.T, got reply) {
	t.Helper()
	var body struct {
		Error string `json:"error"`
	}
	contentType := got.header.Get("Content-Type")
	err := json.Unmarshal([]byte(got.body), &body)
	if err != nil || body.Error == "" || !strings.HasPrefix(contentType, "application/json") {
		t.Errorf("error with status %d has type %s and body %q, want JSON", got.status, contentType, got.body)
	}
}

// testNeverResent: a request is not sent again when the host closes the connection without
// a response, because the host may have executed it.
func testNeverResent(t *testing.T, start Start) {
	hosts, c := begin(t, start, 2, "round_robin", false)
	// On a used connection, an HTTP client could assume that the idle connection was
	// closed, and send the request again.
	spread(c, 40, 4)
	served := func() (n int64) {
		for _, h := range hosts {
			n += h.served.Load()
		}
		return n
	}
	for _, method := range []string{"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST"} {
		for _, pairs := range [][]string{nil, {"Idempotency-Key", "1"}} {
			for _, body := range []io.Reader{nil, strings.NewReader("body")} {
				if body != nil && method != "POST" && method != "PUT" {
					continue
				}
				before := served()
				got, err := c.send(c.request(method, "/abort", body, pairs...))
				if n := served() - before; n != 1 {
					t.Errorf("%s %v: the hosts got it %d times, want once", method, pairs, n)
				}
				if err == nil && got.status != http.StatusBadGateway {
					t.Errorf("%s %v: status %d, want 502", method, pairs, got.status)
				}
				if err == nil && method != "HEAD" {
					isJSONError(t, got)
				}
			}
		}
	}
}

// testRedispatchedBody sends bodies to a dead host before any health check fails, because
// the checks are a minute apart. The requests go to another host.
func testRedispatchedBody(t *testing.T, start Start) {
	hosts, c := beginWith(t, start, 3, Setup{Sticky: true, HealthInterval: time.Minute})
	victim := hosts[2]
	victim.kill()
	const size = 300_000
	for _, body := range []io.Reader{
		bytes.NewReader(payload(size)),                      // with Content-Length
		struct{ io.Reader }{bytes.NewReader(payload(size))}, // chunked
	} {
		got, err := c.send(c.request("POST", "/upload", body, "Cookie", "lb="+victim.name))
		if err != nil || got.status != 200 || got.body != payloadSum(size) {
			t.Errorf("status %d, %v, %q, want %q", got.status, err, got.body, payloadSum(size))
		}
	}
	if c.metric("stagebench_lb_redispatches_total") == 0 {
		t.Error("no redispatch was counted")
	}
}

func testTruncatedResponse(t *testing.T, start Start) {
	_, c := begin(t, start, 1, "round_robin", false)
	got, err := c.send(c.request("GET", "/truncate", nil))
	if !errors.Is(err, errTruncated) {
		t.Errorf("truncated response: status %d, error %v, want %v", got.status, err, errTruncated)
	}
}

func testClientAbort(t *testing.T, start Start) {
	hosts, c := begin(t, start, 1, "round_robin", false)
	for _, method := range []string{"GET", "POST"} {
		req := c.request(method, "/hold", nil)
		ctx, leave := contextOf(t)
		done := c.background(req.WithContext(ctx))
		await(t, "the request to arrive", hosts[0].held)
		leave()
		if end := <-done; end.err == nil {
			t.Errorf("a client that left got status %d", end.reply.status)
		}
		await(t, "the host to see that the client has left", hosts[0].gone)
	}
	eventually(t, "nothing to be in flight", func() bool {
		return c.metric("stagebench_lb_upstream_in_flight") == 0
	})
	c.get("/who")
}

// ejecting starts two hosts that are ejected after three failures. Their health checks
// pass. The checks are so far apart that an ejection is visible before the next one.
func ejecting(t *testing.T, start Start) ([]*host, *client) {
	t.Helper()
	return beginWith(t, start, 2, Setup{Sticky: true, EjectAfter: 3, HealthInterval: time.Second})
}

// transitions returns how often a host went up or down.
func (c *client) transitions(h *host, to string) float64 {
	c.t.Helper()
	return c.metric("stagebench_lb_upstream_transitions_total",
		fmt.Sprintf("upstream=%q", h.name), fmt.Sprintf("to=%q", to))
}

// testEjected: a host that passes its health checks but fails requests is ejected.
func testEjected(t *testing.T, start Start) {
	for _, path := range []string{"/status/500", "/abort"} {
		hosts, c := ejecting(t, start)
		victim := hosts[0]
		for range 3 {
			_, _ = c.send(c.request("GET", path, nil, "Cookie", "lb="+victim.name))
		}
		eventually(t, victim.name+" to be ejected", func() bool { return c.transitions(victim, "down") >= 1 })
		eventually(t, victim.name+" to come back", func() bool { return c.transitions(victim, "up") >= 1 })
		if got := c.get("/who", "Cookie", "lb="+victim.name); got.node != victim.name {
			t.Errorf("%s: a request with the cookie of a host that is up again went to %s", path, got.node)
		}
		if n := c.transitions(hosts[1], "down"); n > 0 {
			t.Errorf("%s: the other host went down %v times", path, n)
		}
	}
}

// testNotEjected: only consecutive failures count.
func testNotEjected(t *testing.T, start Start) {
	hosts, c := ejecting(t, start)
	for range 6 {
		for _, path := range []string{"/status/500", "/status/500", "/status/404"} {
			c.do("GET", path, "Cookie", "lb=web-1")
		}
	}
	if n := c.transitions(hosts[0], "down"); n > 0 {
		t.Errorf("the host went down %v times", n)
	}
}

// testUnavailable: a 503 is neither a failure of the host nor a success. A host sends it when a tier behind it is down,
// and all hosts share these tiers.
func testUnavailable(t *testing.T, start Start) {
	hosts, c := ejecting(t, start)
	for range 6 {
		c.do("GET", "/status/503", "Cookie", "lb=web-1")
	}
	// An engine judges requests in their order, and does not eject the last host: when it has ejected the second one,
	// it had judged the 503s, and the first one was up.
	for _, path := range []string{"/status/500", "/status/500", "/status/503", "/status/500"} {
		c.do("GET", path, "Cookie", "lb=web-2")
	}
	eventually(t, "web-2 to be ejected", func() bool { return c.transitions(hosts[1], "down") >= 1 })
	if n := c.transitions(hosts[0], "down"); n > 0 {
		t.Errorf("the host that answered 503 went down %v times", n)
	}
}
