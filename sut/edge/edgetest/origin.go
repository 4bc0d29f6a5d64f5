package edgetest

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// numberField is a field of each response of the origin but 304: the number of the response in its case, from 1.
const numberField = "Origin-Response"

// origin is the server behind the edges. It answers by the scripts of cases, and other paths by their handlers.
type origin struct {
	server *httptest.Server

	mu       sync.Mutex
	scripts  map[string]*script
	handlers map[string]http.HandlerFunc // by path
}

func newOrigin(t testing.TB) *origin {
	o := &origin{scripts: map[string]*script{}, handlers: map[string]http.HandlerFunc{}}
	o.server = httptest.NewServer(o)
	t.Cleanup(o.server.Close)
	return o
}

// peer returns the origin as a neighbour of an edge.
func (o *origin) peer(node string) sut.Peer {
	return sut.Peer{Node: node, Address: o.server.Listener.Addr().String()}
}

// handle answers the requests for a path.
func (o *origin) handle(path string, h http.HandlerFunc) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.handlers[path] = h
}

// newScript starts a script for the paths that contain "/case/NAME".
func (o *origin) newScript(name string) *script {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := &script{name: name, answer: &Answer{}, changed: make(chan struct{})}
	o.scripts[name] = s
	return s
}

var casePath = regexp.MustCompile(`/case/([^/?]+)`)

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	o.mu.Lock()
	handler := o.handlers[r.URL.Path]
	var s *script
	if match := casePath.FindStringSubmatch(r.URL.Path); match != nil {
		s = o.scripts[match[1]]
	}
	o.mu.Unlock()
	switch {
	case handler != nil:
		handler(w, r)
	case s != nil:
		text := s.serve(r)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err) // HTTP/1.1 connections can be hijacked
		}
		_, _ = conn.Write(text) // the edge may be gone
		_ = conn.Close()
	default:
		http.NotFound(w, r)
	}
}

// script is the origin's side of a case.
type script struct {
	name  string
	begun time.Time

	mu         sync.Mutex
	answer     *Answer
	validates  bool      // conditional requests get 304
	etag, date string    // validators of the last full response
	requests   []arrival // in order; never changed, only replaced
	changed    chan struct{}
}

// arrival is a request that reached the origin.
type arrival struct {
	header      http.Header
	host        string
	method      string
	notModified bool
}

// play sets the answer from now on.
func (s *script) play(a *Answer, validates bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a != nil {
		s.answer = a
	}
	if s.begun.IsZero() { // a script may have waited for its turn
		s.begun = time.Now()
	}
	s.validates = validates
}

// reached returns the requests that reached the origin so far, and a channel that closes at the next one.
func (s *script) reached() ([]arrival, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests, s.changed
}

// serve returns the response to a request, as it is on the wire. It has the fields exactly as the case gives them,
// which a server of net/http would not permit.
func (s *script) serve(r *http.Request) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.answer
	header := http.Header{} // to look fields up
	var lines bytes.Buffer
	for _, line := range a.Fields {
		name, value := field(line)
		value = s.expand(value)
		header.Add(name, value)
		if !strings.EqualFold(name, "Connection") {
			fmt.Fprintf(&lines, "%s: %s\r\n", name, value)
		}
	}
	notModified := s.validates &&
		(s.etag != "" && r.Header.Get("If-None-Match") == s.etag ||
			s.date != "" && r.Header.Get("If-Modified-Since") == s.date)
	s.requests = append(slices.Clip(s.requests), arrival{
		header: r.Header.Clone(), host: r.Host, method: r.Method, notModified: notModified,
	})
	close(s.changed)
	s.changed = make(chan struct{})
	if a.Drop {
		return nil
	}
	var out bytes.Buffer
	code, body := cmp.Or(a.Status, http.StatusOK), cmp.Or(a.Body, fmt.Sprintf("%s #%d", s.name, len(s.requests)))
	if code == http.StatusPartialContent && r.Header.Get("Range") == "" {
		code, body = http.StatusOK, a.Whole
	}
	if notModified {
		code = http.StatusNotModified
	} else {
		s.etag, s.date = header.Get("ETag"), header.Get("Last-Modified")
	}
	fmt.Fprintf(&out, "HTTP/1.1 %d %s\r\n", code, cmp.Or(http.StatusText(code), "Whatever"))
	if header.Get("Date") == "" {
		fmt.Fprintf(&out, "Date: %s\r\n", httpDate(time.Now()))
	}
	out.Write(lines.Bytes())
	fmt.Fprintf(&out, "Connection: %s\r\n", strings.TrimSuffix("close, "+header.Get("Connection"), ", "))
	if notModified {
		return append(out.Bytes(), "\r\n"...)
	}
	fmt.Fprintf(&out, "%s: %d\r\n", numberField, len(s.requests))
	if code == http.StatusNoContent {
		body = ""
	} else {
		fmt.Fprintf(&out, "Content-Length: %d\r\n", len(body))
	}
	if header.Get("Content-Type") == "" {
		fmt.Fprint(&out, "Content-Type: text/plain\r\n")
	}
	out.WriteString("\r\n")
	if r.Method != http.MethodHead {
		out.WriteString(body)
	}
	return out.Bytes()
}

// expand replaces "@N" by a date, and "{path}" by the path of the case.
func (s *script) expand(value string) string {
	if seconds, dated := strings.CutPrefix(value, "@"); dated {
		if n, err := strconv.Atoi(seconds); err == nil {
			return httpDate(s.begun.Add(time.Duration(n) * time.Second))
		}
	}
	return strings.ReplaceAll(value, "{path}", "/case/"+s.name)
}

func httpDate(t time.Time) string { return t.UTC().Format(http.TimeFormat) }
