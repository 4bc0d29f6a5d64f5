package balancetest

import (
	"encoding/json"
	"fmt"
	"testing"
)

// testMetrics compares the balancer's metrics with the requests of the clients.
func testMetrics(t *testing.T, start Start) {
	hosts, c := begin(t, start, 2, "round_robin", false)
	counts := func(class string) float64 {
		return c.metric("stagebench_http_requests_total", `op="all"`, fmt.Sprintf("code=\"%s", class))
	}
	spread(c, 40, 4)
	for range 3 {
		c.do("GET", "/status/404")
	}
	for range 2 {
		c.do("GET", "/status/302")
	}
	c.do("GET", "/status/500")
	if got, err := c.send(c.request("POST", "/abort", nil)); err == nil && got.status != 502 {
		t.Errorf("status %d", got.status)
	}
	// The balancer may count the last response after the client gets it.
	eventually(t, "all requests to be counted", func() bool { return counts("") >= 47 })
	for class, want := range map[string]float64{"": 47, "2": 40, "3": 2, "4": 3, "5": 2} {
		if got := counts(class); got != want {
			t.Errorf("%v responses with status %sxx, want %v", got, class, want)
		}
	}
	var sent float64
	for _, h := range hosts {
		n := c.metric("stagebench_lb_upstream_requests_total", fmt.Sprintf("upstream=%q", h.name))
		if float64(h.served.Load()) != n {
			t.Errorf("%s served %d requests, the balancer sent it %v", h.name, h.served.Load(), n)
		}
		sent += n
	}
	if sent != 47 {
		t.Errorf("%v requests sent to hosts, want 47", sent)
	}

	held := c.background(c.request("GET", "/hold", nil))
	eventually(t, "a request to be in flight", func() bool { return c.metric("stagebench_lb_upstream_in_flight") == 1 })
	for _, h := range hosts {
		close(h.release)
	}
	<-held
	eventually(t, "nothing to be in flight", func() bool { return c.metric("stagebench_lb_upstream_in_flight") == 0 })

	for _, h := range hosts {
		h.kill()
		c.awaitUp(h, false)
	}
	before := counts("5")
	c.do("GET", "/who")
	eventually(t, "the 503 to be counted", func() bool { return counts("5") == before+1 })
}

func testAdmin(t *testing.T, start Start) {
	hosts, c := begin(t, start, 2, "least_conn", true)
	for _, path := range []string{"/healthz", "/readyz", "/status", "/metrics"} {
		if got := c.admin(path); got.status != 200 {
			t.Errorf("%s: status %d: %s", path, got.status, got.body)
		}
	}
	var status struct {
		Policy    string
		Sticky    bool
		Upstreams []struct {
			Node, Address string
			Up            bool
		}
	}
	if err := json.Unmarshal([]byte(c.admin("/status").body), &status); err != nil {
		t.Fatal(err)
	}
	if status.Policy != "least_conn" || !status.Sticky || len(status.Upstreams) != 2 {
		t.Errorf("status %+v", status)
	}
	for i, u := range status.Upstreams {
		if u.Node != hosts[i].name || u.Address != hosts[i].address || !u.Up {
			t.Errorf("upstream %+v", u)
		}
	}
	// One host is enough to be ready.
	hosts[0].kill()
	c.awaitUp(hosts[0], false)
	if got := c.admin("/readyz"); got.status != 200 {
		t.Errorf("/readyz: status %d with one host up", got.status)
	}
}
