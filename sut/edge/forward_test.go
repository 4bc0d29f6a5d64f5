package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/sut"
)

// TestInvalidation: what a request with an unsafe method removes.
func TestInvalidation(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, method string
		code         int
		header       []string
		removed      string // of the paths a, b and c
	}{
		{"invalidate-POST", "POST", 200, nil, "a"},
		{"invalidate-PUT", "PUT", 201, nil, "a"},
		{"invalidate-DELETE", "DELETE", 302, nil, "a"},
		{"invalidate-M-SEARCH", "M-SEARCH", 200, nil, "a"},
		{"invalidate-POST-failed", "POST", 500, []string{"Location", "/b"}, ""},
		{"a client's error", "POST", 404, nil, ""},
		{"OPTIONS is safe", "OPTIONS", 200, nil, ""},
		{"HEAD is safe", "HEAD", 200, nil, ""},
		{"invalidate-POST-location", "POST", 201, []string{"Location", "b"}, "ab"},
		{"invalidate-POST-cl", "POST", 200, []string{"Content-Location", "http://EXAMPLE.com/b"}, "ab"},
		{"another origin", "POST", 201, []string{"Location", "http://other.test/b"}, "a"},
		{"RFC 9875", "POST", 200, []string{"Cache-Group-Invalidation", `"group-c", "x"`}, "ac"},
	} {
		for _, site := range []string{"", "example.com"} {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, sut.EdgeConfig{Site: site}, func(w http.ResponseWriter, req *http.Request) {
					if req.Method == http.MethodGet {
						w.Header().Set("Cache-Groups", `"group-`+strings.TrimPrefix(req.URL.Path, "/")+`"`)
						cacheable("max-age=60", "x")(w, req)
						return
					}
					if test.header != nil {
						w.Header().Set(test.header[0], test.header[1])
					}
					w.WriteHeader(test.code)
				})
				for _, path := range []string{"/a", "/b", "/c"} {
					r.get(path)
				}
				before := r.figures()
				a := r.do(t.Context(), test.method, "/a", "")
				if test.method != http.MethodHead && (a.code != test.code || !strings.HasPrefix(a.status(), "fwd=method")) {
					t.Errorf("%s: %d, %q", test.name, a.code, a.status())
				}
				removed := ""
				for _, path := range []string{"a", "b", "c"} {
					if !strings.HasPrefix(r.do(t.Context(), http.MethodHead, "/"+path, "").status(), "hit") {
						removed += path
					}
				}
				if removed != test.removed {
					t.Errorf("%s, site %q: removed %q, want %q", test.name, site, removed, test.removed)
				}
				if f := r.figures(); f.Purged-before.Purged != int64(len(test.removed)) {
					t.Errorf("%s: figures %+v", test.name, f)
				}
			})
		}
	}
}

// TestPurgeByGroupOfOneHost: Cache-Group-Invalidation does not reach other hosts, but a purge does.
func TestPurgeByGroupOfOneHost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Cache-Groups", `"g"`)
			w.Header().Set("Cache-Group-Invalidation", `"g"`)
			cacheable("max-age=60", req.Host)(w, req)
		})
		hosts := []string{"one.test", "two.test"}
		hits := func() (hits string) {
			for _, host := range hosts {
				request := httptest.NewRequest(http.MethodGet, "/a", nil)
				request.Host = host
				a := r.serve(request)
				if a.body != host {
					t.Errorf("%s got %q", host, a.body)
				}
				if strings.HasPrefix(a.status(), "hit") {
					hits += host[:3]
				}
			}
			return hits
		}
		hits()
		post := httptest.NewRequest(http.MethodPost, "/b", nil)
		post.Host = "one.test"
		r.serve(post)
		if got := hits(); got != "two" {
			t.Errorf("after the invalidation: hits %q, want %q", got, "two")
		}
		for _, purge := range []sut.Purge{{Groups: []string{"g"}}, {URLs: []string{"/a"}}} {
			if err := r.edge.Purge(t.Context(), purge); err != nil {
				t.Fatal(err)
			}
			if got := hits(); got != "" {
				t.Errorf("after %+v: hits %q, want none", purge, got)
			}
		}
	})
}

// TestForwardedHeader: what the origin and the client get.
func TestForwardedHeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var got http.Header
		var uri string
		r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, req *http.Request) {
			got, uri = req.Header.Clone(), req.RequestURI
			w.Header().Set("X-Request-Id", "origin")
			w.Header().Set("Via", "1.1 lb-1")
			w.Header().Set("Cache-Status", "lb-1; fwd=bypass")
			w.Header().Set("Keep-Alive", "timeout=5")
			w.Header().Set("X-Mine", "1")
			w.Header()["Content-Type"] = nil
			w.Header().Set("Connection", "x-mine")
			cacheable("max-age=60", "x")(w, req)
		})
		lines := []string{
			"Cookie: session=1", "Connection: X-Hop", "X-Hop: 1", "X-Forwarded-For: 198.51.100.1", "Te: trailers",
			"Via: 1.1 client", "X-Request-Id: mine", "Accept-Encoding: br", "If-None-Match: \"x\"",
			"X-Forwarded-Host: evil.test",
		}
		for _, path := range []string{"/img/1/thumb.jpg?v=1&b=%41", "/static/a.css", "/api/me"} {
			a := r.get(path, lines...)
			want := map[string]string{
				"X-Hop": "", "Te": "", "X-Forwarded-For": "192.0.2.1", "Via": "1.1 client, 1.1 edge-1",
				"X-Request-Id": "mine", "Accept-Encoding": "br", "If-None-Match": "", "User-Agent": "",
				"X-Forwarded-Host": "example.com", "Cookie": map[bool]string{true: "session=1"}[path == "/api/me"],
			}
			for name, value := range want {
				if strings.Join(got[name], "|") != value {
					t.Errorf("%s: %s is %q, want %q", path, name, got[name], value)
				}
			}
			if uri != path {
				t.Errorf("the origin got %q, want %q", uri, path)
			}
			for name, value := range map[string]string{
				"X-Request-Id": "mine", "Via": "1.1 lb-1, 1.1 edge-1", "Keep-Alive": "", "X-Mine": "",
				"Content-Type": "",
			} {
				if strings.Join(a.header[name], "|") != value {
					t.Errorf("%s: the client got %s %q, want %q", path, name, a.header[name], value)
				}
			}
			hit := r.get(path, "X-Request-Id: other")
			if hit.header.Get("X-Request-Id") != "other" || len(hit.header["Date"]) != 1 {
				t.Errorf("%s: hit: %v", path, hit.header)
			}
			if status := hit.header["Cache-Status"]; len(status) != 2 || status[0] != "lb-1; fwd=bypass" {
				t.Errorf("%s: Cache-Status %q", path, status)
			}
		}
		r.expect(3, "all")
	})
}

// TestStoredAnswers: ranges, conditions and HEAD are answered from a stored response.
func TestStoredAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sut.EdgeConfig{}, func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Etag", `"a"`)
			w.Header().Set("Vary", "Foo")
			w.Header().Set("Content-Type", "text/plain")
			cacheable("max-age=60", "0123456789")(w, req)
		})
		r.get("/a")
		for _, test := range []struct {
			method, line string
			code         int
			body         string
			header       map[string]string
		}{
			{"GET", "", 200, "0123456789", map[string]string{"Content-Length": "10", "Content-Type": "text/plain"}},
			{"HEAD", "", 200, "", map[string]string{"Content-Length": "10", "Etag": `"a"`}},
			{"GET", "Range: bytes=2-3", 206, "23", map[string]string{"Content-Range": "bytes 2-3/10", "Content-Length": "2"}},
			{"GET", "Range: bytes=10-", 416, "", map[string]string{"Content-Range": "bytes */10"}},
			{"HEAD", "Range: bytes=2-3", 200, "", map[string]string{"Content-Length": "10"}},
			{"GET", `If-None-Match: "a"`, 304, "", map[string]string{
				"Etag": `"a"`, "Vary": "Foo", "Cache-Control": "max-age=60", "Content-Type": "", "Content-Length": "",
			}},
		} {
			a := r.do(t.Context(), test.method, "/a", "", test.line)
			if a.code != test.code || a.body != test.body || a.status() != "hit; ttl=60" || a.header.Get("Date") == "" {
				t.Errorf("%s %s: %+v", test.method, test.line, a)
			}
			for name, value := range test.header {
				if got := a.header.Get(name); got != value {
					t.Errorf("%s %s: %s is %q, want %q", test.method, test.line, name, got, value)
				}
			}
		}
		r.expect(1, "all")
	})
}

// loopback starts an edge with real connections. Each origin is a handler.
func loopback(t testing.TB, handlers ...http.HandlerFunc) (*Edge, string) {
	t.Helper()
	var peers []sut.Peer
	for i, handler := range handlers {
		origin := httptest.NewServer(handler)
		t.Cleanup(origin.Close)
		peers = append(peers, sut.Peer{Node: fmt.Sprintf("web-%d", i+1), Address: origin.Listener.Addr().String()})
	}
	if len(peers) == 0 {
		peers = []sut.Peer{deadPeer(t)}
	}
	e, err := New(Config{EdgeConfig: sut.EdgeConfig{Node: "edge-1", Origins: peers, MaxBytes: 64 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- e.Serve(listener) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(e.Shutdown(ctx), <-served); err != nil {
			t.Error(err)
		}
	})
	return e, "http://" + listener.Addr().String()
}

// deadPeer returns an origin that refuses connections.
func deadPeer(t testing.TB) sut.Peer {
	t.Helper()
	return sut.Peer{Node: "dead-1", Address: porttest.Free(t).String()}
}

// fetch sends a request and reads the answer.
func fetch(t testing.TB, request *http.Request) (*http.Response, string) {
	t.Helper()
	res, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

func newRequest(t testing.TB, method, url, body string) *http.Request {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return request
}

// TestOriginsInTurn: requests go to each origin in turn, and one that refuses connections is skipped.
func TestOriginsInTurn(t *testing.T) {
	t.Parallel()
	var counts [2]atomic.Int64
	handler := func(i int) http.HandlerFunc {
		return func(http.ResponseWriter, *http.Request) { counts[i].Add(1) }
	}
	e, url := loopback(t, handler(0), handler(1))
	for i := range 20 {
		fetch(t, newRequest(t, http.MethodGet, fmt.Sprintf("%s/%d", url, i), ""))
	}
	if a, b := counts[0].Load(), counts[1].Load(); a != 10 || b != 10 {
		t.Errorf("the origins got %d and %d requests", a, b)
	}
	if err := e.SetOrigins(t.Context(), append(e.current.peers(), deadPeer(t))); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if res, _ := fetch(t, newRequest(t, http.MethodPost, fmt.Sprintf("%s/%d", url, i), "body")); res.StatusCode != 200 {
			t.Errorf("got %s", res.Status)
		}
	}
	if sum := counts[0].Load() + counts[1].Load(); sum != 40 {
		t.Errorf("%d requests, want 40", sum)
	}
	if err := e.SetOrigins(t.Context(), nil); !errors.Is(err, sut.ErrWiring) {
		t.Errorf("no origins: %v", err)
	}
}

func (o *origins) peers() (peers []sut.Peer) {
	for _, origin := range o.list {
		peers = append(peers, origin.peer)
	}
	return peers
}

func TestNoOrigin(t *testing.T) {
	t.Parallel()
	_, url := loopback(t)
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodHead} {
		res, body := fetch(t, newRequest(t, method, url+"/a", ""))
		if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" ||
			res.Header.Get("X-Degraded") != "web" || method != http.MethodHead && body != errorBody("no origin is reachable") {
			t.Errorf("%s: %s, %v, %q", method, res.Status, res.Header, body)
		}
	}
}

// TestNothingIsSentTwice: a request with an unsafe method reaches the origin once, even if its connection breaks.
func TestNothingIsSentTwice(t *testing.T) {
	t.Parallel()
	var sent atomic.Int64
	_, url := loopback(t, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/warm" {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		sent.Add(1)
		panic(http.ErrAbortHandler)
	})
	for i, body := range []string{"body", "", "body"} {
		fetch(t, newRequest(t, http.MethodGet, url+"/warm", "")) // leaves an idle connection
		request := newRequest(t, http.MethodPost, url+"/a", body)
		request.Header.Set("Idempotency-Key", "1")
		res, _ := fetch(t, request)
		if res.StatusCode != http.StatusBadGateway || sent.Load() != int64(i+1) {
			t.Errorf("request %d: %s, sent %d times", i, res.Status, sent.Load()-int64(i))
		}
	}
}

// TestSetOriginsWaits: a removed origin has no request in flight when SetOrigins returns.
func TestSetOriginsWaits(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	e, url := loopback(t, func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-release
		_, _ = io.WriteString(w, "old")
	})
	next := httptest.NewServer(cacheable("no-store", "new"))
	t.Cleanup(next.Close)
	got := make(chan string)
	go func() {
		_, body := fetch(t, newRequest(t, http.MethodGet, url+"/a", ""))
		got <- body
	}()
	<-arrived
	peers := []sut.Peer{{Node: "web-2", Address: next.Listener.Addr().String()}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.SetOrigins(ctx, peers); !errors.Is(err, context.Canceled) {
		t.Errorf("with a request in flight: %v", err)
	}
	if _, body := fetch(t, newRequest(t, http.MethodGet, url+"/b", "")); body != "new" {
		t.Errorf("got %q from the removed origin", body)
	}
	close(release)
	if body := <-got; body != "old" {
		t.Errorf("the request in flight got %q", body)
	}
	if err := e.SetOrigins(t.Context(), peers); err != nil {
		t.Error(err)
	}
}

// TestInterimResponses: informational responses pass, and the final response is stored.
func TestInterimResponses(t *testing.T) {
	t.Parallel()
	_, url := loopback(t, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Link", "</a.css>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		cacheable("max-age=60", "x")(w, req)
	})
	for i, want := range []string{"103 </a.css>", ""} {
		got := ""
		trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			got += fmt.Sprint(code, " ", header.Get("Link"))
			return nil
		}}
		request := newRequest(t, http.MethodGet, url+"/a", "")
		res, body := fetch(t, request.WithContext(httptrace.WithClientTrace(request.Context(), trace)))
		if got != want || body != "x" || res.Header.Get("Link") != "" {
			t.Errorf("request %d: got %q, then %v", i, got, res.Header)
		}
	}
}
