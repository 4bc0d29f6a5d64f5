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

// client is a client of the balancer. It never repeats a request.
type client struct {
	t      *testing.T
	system System
	http   *http.Client
}

func newClient(t *testing.T, system System) *client {
	return newClientFrom(t, system, net.IPv4(127, 0, 0, 1))
}

// newClientFrom returns a client with that source address.
func newClientFrom(t *testing.T, system System, source net.IP) *client {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: source}}
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: dialer.DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	return &client{t: t, system: system, http: &http.Client{
		Transport:     transport,
		Timeout:       timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// reply is a response with its complete body.
type reply struct {
	status int
	node   string // the host that answered; "" = the balancer
	header http.Header
	length int64 // Content-Length; -1 = none
	body   string
}

// request returns a request and does not send it. pairs are header names and values.
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

// send sends a request and reads the complete response.
func (c *client) send(req *http.Request) (reply, error) {
	res, err := c.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		err = errors.Join(errTruncated, err)
	}
	return reply{
		status: res.StatusCode, node: res.Header.Get("X-Node"), header: res.Header,
		length: res.ContentLength, body: string(body),
	}, err
}

// do sends a request that must get a response, with any status.
func (c *client) do(method, path string, pairs ...string) reply {
	c.t.Helper()
	got, err := c.send(c.request(method, path, nil, pairs...))
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return got
}

// afterDeath requests a path just after hosts died to which the balancer has idle
// connections. The balancer may still send a request over each of them. It cannot know
// whether that took effect, so it answers 502. afterDeath accepts one 502 for each idle
// connection.
func (c *client) afterDeath(idle int, path string, pairs ...string) reply {
	c.t.Helper()
	got := c.do(http.MethodGet, path, pairs...)
	for ; idle > 0 && got.status == http.StatusBadGateway; idle-- {
		isJSONError(c.t, got)
		got = c.do(http.MethodGet, path, pairs...)
	}
	return got
}

// get requests a path, which must be answered with 200.
func (c *client) get(path string, pairs ...string) reply {
	c.t.Helper()
	got := c.do(http.MethodGet, path, pairs...)
	if got.status != http.StatusOK {
		c.t.Fatalf("GET %s: status %d: %s", path, got.status, got.body)
	}
	return got
}

// echo sends a request to /echo and returns the request as the host received it.
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

// result is the result of a request in the background.
type result struct {
	reply reply
	err   error
}

// background sends a request and returns a channel with its result.
func (c *client) background(req *http.Request) <-chan result {
	done := make(chan result, 1)
	go func() {
		got, err := c.send(req)
		done <- result{got, err}
	}()
	return done
}

// repeat calls do again and again in n goroutines, until do returns false or end is
// called. end may be called more than once.
func repeat(n int, do func() bool) (end func()) {
	var stop atomic.Bool
	var running sync.WaitGroup
	for range n {
		running.Go(func() {
			for !stop.Load() && do() {
			}
		})
	}
	return func() {
		stop.Store(true)
		running.Wait()
	}
}

// admin requests an operator endpoint.
func (c *client) admin(path string) reply {
	c.t.Helper()
	recorder := httptest.NewRecorder()
	c.system.Admin.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
	return reply{status: recorder.Code, header: recorder.Header(), body: recorder.Body.String()}
}

// status decodes the operators' /status.
func (c *client) status(into any) {
	c.t.Helper()
	got := c.admin("/status")
	if err := json.Unmarshal([]byte(got.body), into); err != nil {
		c.t.Fatalf("/status: status %d: %v: %s", got.status, err, got.body)
	}
}

// metric returns the sum of the series of a metric that have all the given labels, such
// as `upstream="web-1"`. It returns 0 if there is no such series.
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

// awaitUp waits until the balancer marks a host as up or down.
func (c *client) awaitUp(h *host, up bool) {
	c.t.Helper()
	want := 0.0
	if up {
		want = 1
	}
	eventually(c.t, fmt.Sprintf("the balancer to mark %s as up=%v", h.name, up), func() bool {
		return c.metric("stagebench_lb_upstream_up", fmt.Sprintf("upstream=%q", h.name)) == want
	})
}

// cookieOf returns the value of the balancer's cookie in a response; false = not set.
func cookieOf(header http.Header) (string, bool) {
	for _, cookie := range (&http.Response{Header: header}).Cookies() {
		if cookie.Name == "lb" {
			return cookie.Value, true
		}
	}
	return "", false
}
