package balance

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/attempt"
)

// fakeHost replaces the transport of one host. It uses one reaction per attempt, and
// repeats the last one.
type fakeHost struct {
	reactions []reaction
	attempts  int
	bodies    []string // bodies that it read completely
}

// reaction is the result of one attempt.
type reaction func(req *http.Request, host *fakeHost) (*http.Response, error)

func (h *fakeHost) RoundTrip(req *http.Request) (*http.Response, error) {
	react := h.reactions[min(h.attempts, len(h.reactions)-1)]
	h.attempts++
	return react(req, h)
}

// connect calls the trace as the transport does when it has a connection.
func connect(req *http.Request) net.Conn {
	conn := attempt.Count(discardConn{})
	_, _ = conn.Write([]byte("an earlier request"))
	httptrace.ContextClientTrace(req.Context()).GotConn(httptrace.GotConnInfo{Conn: conn, Reused: true})
	return conn
}

// discardConn is a connection that discards all bytes.
type discardConn struct{ net.Conn }

func (discardConn) Write(p []byte) (int, error) { return len(p), nil }

// The reactions.
func answers(req *http.Request, host *fakeHost) (*http.Response, error) {
	_, _ = connect(req).Write([]byte("request"))
	if req.Body != nil {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		host.bodies = append(host.bodies, string(body))
	}
	body := io.NopCloser(strings.NewReader("ok"))
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: body, Request: req}, nil
}

func refuses(req *http.Request, _ *fakeHost) (*http.Response, error) {
	if req.Body != nil {
		_ = req.Body.Close() // as the transport does
	}
	return nil, &net.OpError{Op: "dial", Err: fmt.Errorf("connect: %w", syscall.ECONNREFUSED)}
}

func unreachable(*http.Request, *fakeHost) (*http.Response, error) {
	return nil, &net.OpError{Op: "dial", Err: errors.New("i/o timeout")}
}

func staleConnection(req *http.Request, _ *fakeHost) (*http.Response, error) {
	connect(req)
	return nil, errors.New("server closed idle connection")
}

func breaksOff(req *http.Request, _ *fakeHost) (*http.Response, error) {
	_, _ = connect(req).Write([]byte("request"))
	return nil, io.ErrUnexpectedEOF
}

func breaksOffInBody(req *http.Request, _ *fakeHost) (*http.Response, error) {
	connect(req)
	_, _ = req.Body.Read(make([]byte, 1))
	return nil, io.ErrUnexpectedEOF
}

// dispatchTest is one request with the expected attempts.
type dispatchTest struct {
	name     string
	hosts    [][]reaction
	body     io.Reader
	attempts []int  // per host
	down     string // hosts that are down afterwards
	answer   string // host that answered, or a part of the error
}

func TestDispatch(t *testing.T) {
	t.Parallel()
	body := func() io.Reader { return strings.NewReader("body") }
	for _, test := range []dispatchTest{
		{"answered", [][]reaction{{answers}, {answers}}, nil, []int{1, 0}, "", "web-1"},
		{
			"a refused request goes to another host at once",
			[][]reaction{{refuses}, {answers}},
			nil,
			[]int{1, 1},
			"web-1", "web-2",
		},
		{
			"refused with a body",
			[][]reaction{{refuses}, {refuses}, {answers}},
			body(),
			[]int{1, 1, 1},
			"web-1 web-2", "web-3",
		},
		{
			"an unreachable host stays up until a check fails",
			[][]reaction{{unreachable}, {answers}},
			nil,
			[]int{1, 1},
			"", "web-2",
		},
		{
			"an unreachable host is tried once",
			[][]reaction{{unreachable}},
			nil,
			[]int{1},
			"", errNoUpstream.Error(),
		},
		{
			"all hosts refuse",
			[][]reaction{{refuses}, {refuses}},
			nil,
			[]int{1, 1},
			"web-1 web-2", errNoUpstream.Error(),
		},
		{
			"a stale connection is no failure of the host",
			[][]reaction{{staleConnection, answers}},
			nil,
			[]int{2},
			"", "web-1",
		},
		{
			"stale connection with a body",
			[][]reaction{{staleConnection, answers}},
			body(),
			[]int{2},
			"", "web-1",
		},
		{
			"stale connection to a dead host",
			[][]reaction{{staleConnection, refuses}, {answers}},
			nil,
			[]int{1, 1},
			"", "web-2",
		},
		{
			"only stale connections",
			[][]reaction{{staleConnection}},
			nil,
			[]int{5},
			"", errNoUpstream.Error(),
		},
		{
			"a request that was sent is not sent again",
			[][]reaction{{breaksOff}, {answers}},
			nil,
			[]int{1, 0},
			"", "web-1: unexpected EOF",
		},
		{
			"a request whose body was read is not sent again",
			[][]reaction{{breaksOffInBody}, {answers}},
			body(),
			[]int{1, 0},
			"", "web-1: unexpected EOF",
		},
		{
			"the client's body breaks off",
			[][]reaction{{answers}, {answers}},
			brokenBody{},
			[]int{1, 0},
			"", errClientBody.Error(),
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t)
		})
	}
}

func (test dispatchTest) run(t *testing.T) {
	b := &Balancer{pool: poolOf(len(test.hosts), sut.PolicyRoundRobin), identity: []string{"identity"}}
	p := b.pool
	hosts := make([]*fakeHost, len(test.hosts))
	for i, reactions := range test.hosts {
		hosts[i] = &fakeHost{reactions: reactions}
		p.members[i].transport.RegisterProtocol("http", hosts[i])
	}
	req := &http.Request{Method: "POST", URL: &url.URL{Scheme: "http", Path: "/"}, Header: http.Header{}}
	if test.body != nil {
		req.Body = &closable{Reader: test.body}
	}
	answer, err := dispatch(b, req)
	if err != nil {
		answer = err.Error()
	}
	if !strings.Contains(answer, test.answer) {
		t.Errorf("result %q, want %q", answer, test.answer)
	}
	var attempts []int
	var down []string
	total := 0
	for i, status := range p.status() {
		attempts = append(attempts, hosts[i].attempts)
		total += hosts[i].attempts
		if !status.Up {
			down = append(down, status.Node)
		}
		if status.InFlight != 0 {
			t.Errorf("%s: %d in flight at the end", status.Node, status.InFlight)
		}
		if bodies := hosts[i].bodies; len(bodies) > 0 && !slices.Equal(bodies, []string{"body"}) {
			t.Errorf("%s got bodies %q", status.Node, bodies)
		}
	}
	if diff := cmp.Diff(test.attempts, attempts); diff != "" {
		t.Error("attempts (-want +got):\n" + diff)
	}
	if got := strings.Join(down, " "); got != test.down {
		t.Errorf("down: %q, want %q", got, test.down)
	}
	if n := b.redispatched.Load(); err == nil && n != uint64(total-1) {
		t.Errorf("%d redispatches of %d attempts", n, total)
	}
}

// dispatch sends a request and returns the name of the host that answered.
func dispatch(b *Balancer, req *http.Request) (host string, err error) {
	x := &exchange{balancer: b, client: req.Context()}
	res, err := x.RoundTrip(req)
	if err != nil {
		return "", err
	}
	for _, u := range b.pool.status() {
		if u.InFlight > 0 {
			host += u.Node
		}
	}
	return host, res.Body.Close()
}

// closable is a body that cannot be read after Close.
type closable struct {
	io.Reader
	closed bool
}

func (c *closable) Read(p []byte) (int, error) {
	if c.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	return c.Reader.Read(p)
}

func (c *closable) Close() error {
	c.closed = true
	return nil
}

// brokenBody is the body of a client that has left.
type brokenBody struct{}

func (brokenBody) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestSendOnceLeavesNoTrace compares the bytes at the host with those of the client. The
// empty body that prevents retries of the transport must not change them.
func TestSendOnceLeavesNoTrace(t *testing.T) {
	t.Parallel()
	wire := newRecorder(t)
	b := newBalancer(t, Config{}, wire.address)
	address := serve(t, b)
	for _, test := range []struct{ name, head, body, want string }{
		{"GET", "GET /a?b=c HTTP/1.1\r\nHost: h\r\n\r\n", "", "GET /a?b=c HTTP/1.1\r\nHost: h\r\n"},
		{"HEAD", "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n", "", "HEAD / HTTP/1.1\r\nHost: h\r\n"},
		{"OPTIONS", "OPTIONS / HTTP/1.1\r\nHost: h\r\n\r\n", "", "OPTIONS / HTTP/1.1\r\nHost: h\r\n"},
		{"DELETE", "DELETE / HTTP/1.1\r\nHost: h\r\n\r\n", "", "DELETE / HTTP/1.1\r\nHost: h\r\n"},
		{
			"POST without body", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", "",
			"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n",
		},
		{
			"POST", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n", "abc",
			"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n",
		},
		{
			"GET with body", "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n", "abc",
			"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n",
		},
		{
			"hop-by-hop headers",
			"GET / HTTP/1.1\r\nHost: h\r\nConnection: X-Mine, Upgrade\r\nX-Mine: 1\r\n" +
				"Upgrade: websocket\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTe: gzip\r\n\r\n",
			"",
			"GET / HTTP/1.1\r\nHost: h\r\n",
		},
	} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		head := strings.Replace(test.head, "Host: h\r\n", "Host: h\r\nX-Request-Id: 17\r\n", 1)
		_, _ = io.WriteString(conn, head+test.body)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		_ = conn.Close()
		want := test.want + "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: h\r\n" +
			"X-Forwarded-Proto: http\r\nX-Request-Id: 17\r\n\r\n" + test.body
		select {
		case got := <-wire.requests:
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", test.name, diff)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: the host received no request; the client got %s", test.name, res.Status)
		}
	}
}

// recorder is a host that records the bytes of each request and answers 204.
type recorder struct {
	address  string
	requests chan string
}

func newRecorder(t *testing.T) *recorder {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	r := &recorder{address: listener.Addr().String(), requests: make(chan string, 1)}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go r.record(conn)
		}
	}()
	return r
}

// record reads and answers the requests of one connection.
func (r *recorder) record(conn net.Conn) {
	defer conn.Close()
	var bytesRead bytes.Buffer
	reader := bufio.NewReader(io.TeeReader(conn, &bytesRead))
	for {
		req, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		r.requests <- bytesRead.String()
		bytesRead.Reset()
		_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
	}
}
