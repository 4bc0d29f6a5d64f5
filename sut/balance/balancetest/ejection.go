package balancetest

import (
	"fmt"
	"testing"
	"time"
)

// ejecting starts two hosts that are taken out after three failures, and whose
// health checks are good and far enough apart to tell the two causes apart.
func ejecting(t *testing.T, start Start) ([]*host, *client) {
	t.Helper()
	return beginWith(t, start, 2, Setup{Sticky: true, EjectAfter: 3, HealthInterval: time.Second})
}

// transitions counts how often a host went up or down.
func (c *client) transitions(h *host, to string) float64 {
	c.t.Helper()
	return c.metric("stagebench_lb_upstream_transitions_total", fmt.Sprintf("upstream=%q", h.name), fmt.Sprintf("to=%q", to))
}

// testEjected: a host answers its health checks and fails what it is asked for.
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
			t.Errorf("%s: a user of a host that came back was sent to %s", path, got.node)
		}
		if n := c.transitions(hosts[1], "down"); n > 0 {
			t.Errorf("%s: the other host went down %v times", path, n)
		}
	}
}

// testNotEjected: only failures in a row count.
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
