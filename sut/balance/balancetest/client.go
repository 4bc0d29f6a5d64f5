package balancetest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// client is a user of the balancer. It repeats nothing.
type client struct {
	t      *testing.T
	system System
	http   *http.Client
}

func newClient(t *testing.T, system System) *client {
	return newClientFrom(t, system, net.IPv4(127, 0, 0, 1))
}

// newClientFrom makes a client with a source address of its own.
func newClientFrom(t *testing.T, system System, source net.IP) *client {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: source}}
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: dialer.DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	return &client{t: t, system: system, http: &http.Client{
		Transport:     transport,
		Timeout:       patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// reply is a response that has been read to its end.
type reply struct {
	status int
	node   string // that answered, "" for the balancer itself
	header http.Header
	length int64 // announced, -1 for none
	body   string
}

// request makes a request without sending it. Pairs are header names and values.
func (c *client) request(method, path string, body io.Reader, pairs ...string) *http.Request {
	c.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, c.system.URL+path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		req.Header.Add(pairs[i], pairs[i+1])
	}
	return req
}

// send sends a request and reads the response to its end.
func (c *client) send(req *http.Request) (reply, error) {
	res, err := c.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		err = errors.Join(errNoBody, err)
	}
	return reply{status: res.StatusCode, node: res.Header.Get("X-Node"), header: res.Header, length: res.ContentLength, body: string(body)}, err
}

// do sends a request that must be answered, whatever the status.
func (c *client) do(method, path string, pairs ...string) reply {
	c.t.Helper()
	got, err := c.send(c.request(method, path, nil, pairs...))
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return got
}

// afterDeath asks for a path just after the death of hosts to which the balancer kept idle
// connections. Until it has seen these end, it may write a request on one; nobody knows whether
// that took effect, so it answers 502 and does not repeat it: once for each connection.
func (c *client) afterDeath(idle int, path string, pairs ...string) reply {
	c.t.Helper()
	got := c.do(http.MethodGet, path, pairs...)
	for ; idle > 0 && got.status == http.StatusBadGateway; idle-- {
		isJSONError(c.t, got)
		got = c.do(http.MethodGet, path, pairs...)
	}
	return got
}

// get asks for a path that must be answered with 200.
func (c *client) get(path string, pairs ...string) reply {
	c.t.Helper()
	got := c.do(http.MethodGet, path, pairs...)
	if got.status != http.StatusOK {
		c.t.Fatalf("GET %s: status %d: %s", path, got.status, got.body)
	}
	return got
}

// echo sends a request to /echo and returns what the host got.
func (c *client) echo(req *http.Request) echo {
	c.t.Helper()
	got, err := c.send(req)
	if err != nil {
		c.t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	if got.status != http.StatusOK {
		c.t.Fatalf("%s %s: status %d: %s", req.Method, req.URL, got.status, got.body)
	}
	var seen echo
	if err := json.Unmarshal([]byte(got.body), &seen); err != nil {
		c.t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	return seen
}

// result is how a request in the background ended.
type result struct {
	reply reply
	err   error
}

// background sends a request and returns where its end is announced.
func (c *client) background(req *http.Request) <-chan result {
	done := make(chan result, 1)
	go func() {
		got, err := c.send(req)
		done <- result{got, err}
	}()
	return done
}

// keepOn has n goroutines do something again and again, until it returns false or end is
// called, which may be done twice.
func keepOn(n int, do func() bool) (end func()) {
	var stop atomic.Bool
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			for !stop.Load() && do() {
			}
		})
	}
	return func() {
		stop.Store(true)
		all.Wait()
	}
}

// admin asks the operators' side.
func (c *client) admin(path string) reply {
	c.t.Helper()
	recorder := httptest.NewRecorder()
	c.system.Admin.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
	return reply{status: recorder.Code, header: recorder.Header(), body: recorder.Body.String()}
}

// status reads the operators' /status.
func (c *client) status(into any) {
	c.t.Helper()
	got := c.admin("/status")
	if err := json.Unmarshal([]byte(got.body), into); err != nil {
		c.t.Fatalf("/status: status %d: %v: %s", got.status, err, got.body)
	}
}

// metric sums the samples of a metric whose labels contain all the given ones,
// such as `upstream="web-1"`; 0 when there is none.
func (c *client) metric(name string, labels ...string) float64 {
	c.t.Helper()
	got := c.admin("/metrics")
	if got.status != http.StatusOK {
		c.t.Fatalf("/metrics: status %d: %s", got.status, got.body)
	}
	sum := 0.0
	for lines := bufio.NewScanner(strings.NewReader(got.body)); lines.Scan(); {
		series, value, found := strings.Cut(lines.Text(), "} ")
		if !found {
			series, value, _ = strings.Cut(lines.Text(), " ")
		}
		base, rest, _ := strings.Cut(series, "{")
		if base != name || !containsAll(rest, labels) {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			c.t.Fatalf("/metrics: %s: %v", lines.Text(), err)
		}
		sum += n
	}
	return sum
}

func containsAll(text string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}

// awaitUp waits until the balancer holds a host for up or down.
func (c *client) awaitUp(h *host, up bool) {
	c.t.Helper()
	want := 0.0
	if up {
		want = 1
	}
	eventually(c.t, fmt.Sprintf("%s to be held for up=%v", h.name, up), func() bool {
		return c.metric("stagebench_lb_upstream_up", fmt.Sprintf("upstream=%q", h.name)) == want
	})
}

// cookieOf returns the value of the balancer's cookie in a response, and whether
// it was set.
func cookieOf(header http.Header) (string, bool) {
	for _, cookie := range (&http.Response{Header: header}).Cookies() {
		if cookie.Name == "lb" {
			return cookie.Value, true
		}
	}
	return "", false
}
