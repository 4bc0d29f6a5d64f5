package edge

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// rig is an edge with one origin, which are connected by pipes, so that all of it runs in a bubble of synctest.
type rig struct {
	t       *testing.T
	edge    *Edge
	fetched atomic.Int64 // requests that the origin's handler got
	refuses atomic.Bool  // the origin refuses connections
}

// newRig starts an edge. Call it in a bubble.
func newRig(t *testing.T, cfg sut.EdgeConfig, origin http.HandlerFunc) *rig {
	t.Helper()
	r := &rig{t: t}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 8 << 20
	}
	cfg.Node, cfg.Origins = "edge-1", []sut.Peer{{Node: "web-1", Address: "192.0.2.1:80"}}
	var err error
	if r.edge, err = New(Config{EdgeConfig: cfg}); err != nil {
		t.Fatal(err)
	}
	pipes := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	r.edge.dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		if r.refuses.Load() {
			return nil, io.ErrClosedPipe
		}
		return pipes.dial(ctx)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.fetched.Add(1)
		origin(w, req)
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(pipes) }()
	t.Cleanup(func() {
		if err := r.edge.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		_ = server.Close()
		<-served
	})
	return r
}

type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error { l.once.Do(func() { close(l.closed) }); return nil }

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80} }

// answer is the answer of the edge to one request.
type answer struct {
	code    int
	header  http.Header
	body    string
	aborted bool // the connection of the client was broken
}

// status returns Cache-Status without the name of the node.
func (a answer) status() string { return strings.TrimPrefix(a.header.Get("Cache-Status"), "edge-1; ") }

// do sends one request. Lines are header lines such as "Name: value".
func (r *rig) do(ctx context.Context, method, url, body string, lines ...string) answer {
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	request := httptest.NewRequestWithContext(ctx, method, url, content)
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		request.Header.Add(name, value)
	}
	return r.serve(request)
}

func (r *rig) serve(request *http.Request) (a answer) {
	recorder := httptest.NewRecorder()
	defer func() {
		if p := recover(); p != nil {
			if p != http.ErrAbortHandler {
				panic(p)
			}
			a.aborted = true
		}
		a.code, a.header, a.body = recorder.Code, recorder.Result().Header, recorder.Body.String()
	}()
	r.edge.serve(recorder, request)
	return a
}

func (r *rig) get(url string, lines ...string) answer {
	return r.do(r.t.Context(), http.MethodGet, url, "", lines...)
}

// together sends requests at the same time. It returns the answers and the time until the last one.
func (r *rig) together(n int, send func(i int) answer) ([]answer, time.Duration) {
	began := time.Now()
	answers := make([]answer, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { answers[i] = send(i) })
	}
	all.Wait()
	return answers, time.Since(began)
}

// expect checks the number of requests at the origin.
func (r *rig) expect(fetched int64, when string) {
	r.t.Helper()
	if got := r.fetched.Load(); got != fetched {
		r.t.Errorf("%s: %d requests at the origin, want %d", when, got, fetched)
	}
}

func (r *rig) figures() sut.EdgeFigures {
	f, _ := r.edge.Figures(context.Background())
	return f
}

// cacheable answers with a header and a body.
func cacheable(control, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", control)
		_, _ = io.WriteString(w, body)
	}
}

// pattern returns bytes that differ everywhere.
func pattern(n int) []byte {
	return bytes.Repeat([]byte("0123456789abcdefghijklmnopqrstuvwxyz-"), n/37+1)[:n]
}
