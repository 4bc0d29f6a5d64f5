package balancetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/sut"
)

// host is a web host of the kit.
type host struct {
	name    string
	address string
	sick    atomic.Bool  // makes health checks fail
	served  atomic.Int64 // number of received requests, without health checks

	held    chan struct{} // receives when a request to /hold has arrived
	gone    chan struct{} // receives when the client of a held request has left
	release chan struct{} // close it to answer held requests
	began   chan struct{} // receives when the first byte of an upload has arrived
	next    chan struct{} // send to it to continue /stream
	sent    chan string   // receives the bytes that a client of /raw?first=1 sent

	mu     sync.Mutex
	server *http.Server
	closed chan struct{} // closed when the listener of server is
}

// echo is the response of /echo: the request as the host received it.
type echo struct {
	Node             string
	Method           string
	Host             string
	Target           string // in the request line
	Header           http.Header
	TransferEncoding []string
	Length           int64 // Content-Length; -1 = none
	BodyBytes        int
	BodySHA          string
}

// newHosts starts n hosts with the names web-1, web-2 and so on. They end with the test.
func newHosts(t *testing.T, n int) []*host {
	t.Helper()
	hosts := make([]*host, n)
	for i := range hosts {
		h := &host{
			name: fmt.Sprintf("web-%d", i+1),
			held: make(chan struct{}, 100), gone: make(chan struct{}, 100), release: make(chan struct{}),
			began: make(chan struct{}, 100), next: make(chan struct{}), sent: make(chan string, 1),
		}
		h.address = porttest.Free(t).String()
		h.start(t)
		t.Cleanup(h.kill)
		hosts[i] = h
	}
	return hosts
}

// peers returns hosts as peers for a balancer.
func peers(hosts []*host) []sut.Peer {
	var list []sut.Peer
	for _, h := range hosts {
		list = append(list, sut.Peer{Node: h.name, Address: h.address})
	}
	return list
}

// start starts a host on its port, also one that was killed.
func (h *host) start(t *testing.T) {
	t.Helper()
	var listener net.Listener
	eventually(t, "the port of "+h.name+" to be free", func() bool {
		var err error
		listener, err = net.Listen("tcp4", h.address)
		return err == nil
	})
	server := &http.Server{Handler: h.handler(), ReadHeaderTimeout: timeout}
	h.mu.Lock()
	h.server, h.closed = server, make(chan struct{})
	closed := h.closed
	h.mu.Unlock()
	go func() {
		defer close(closed)
		_ = server.Serve(listener)
	}()
}

// kill stops the host as if its process died: it closes the listener and all connections.
// A second call does nothing.
func (h *host) kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	_ = h.server.Close()
	<-h.closed // until then, the kernel accepts connections
}

func (h *host) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(sut.HealthPath, h.healthz)
	for path, handler := range map[string]http.HandlerFunc{
		"/who":           h.who,
		"/echo":          h.echo,
		"/echo/":         h.echo,
		"/hold":          h.hold,
		"/abort":         h.abort,
		"/truncate":      h.truncate,
		"/upload":        h.upload,
		"/big":           h.big,
		"/stream":        h.stream,
		"/content":       h.content,
		"/headers":       h.headers,
		"/id":            h.id,
		"/img/":          h.who,
		"/albums/":       h.who,
		"/img/echo":      h.echo,
		"/static/echo":   h.echo,
		"/raw":           h.raw,
		"/status/{code}": h.status,
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			h.served.Add(1)
			w.Header().Set("X-Node", h.name)
			handler(w, r)
		})
	}
	return mux
}

func (h *host) healthz(w http.ResponseWriter, _ *http.Request) {
	if h.sick.Load() {
		w.WriteHeader(http.StatusInternalServerError)
	}
}

func (h *host) echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	sum := sha256.Sum256(body)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(echo{
		Node: h.name, Method: r.Method, Host: r.Host, Target: r.RequestURI, Header: r.Header,
		TransferEncoding: r.TransferEncoding, Length: r.ContentLength,
		BodyBytes: len(body), BodySHA: hex.EncodeToString(sum[:]),
	})
}

func (h *host) who(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, h.name) }

// id returns the id of a request, in the body and in the header as the service does.
func (h *host) id(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get(sut.RequestIDHeader)
	w.Header().Set(sut.RequestIDHeader, id)
	_, _ = io.WriteString(w, id)
}

// raw takes over the connection. It reads until the client closes its direction, and then
// sends everything back. With ?first=1 it first sends its name and closes its own
// direction, and then reads.
func (h *host) raw(w http.ResponseWriter, r *http.Request) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	if r.FormValue("first") != "" {
		_, _ = io.WriteString(conn, h.name)
		_ = conn.(*net.TCPConn).CloseWrite()
		got, _ := io.ReadAll(buffered)
		h.sent <- string(got)
		return
	}
	got, err := io.ReadAll(buffered)
	if err != nil {
		return
	}
	_, _ = conn.Write(got)
}

// hold answers after release is closed.
func (h *host) hold(w http.ResponseWriter, r *http.Request) {
	h.held <- struct{}{}
	select {
	case <-h.release:
		_, _ = io.WriteString(w, h.name)
	case <-r.Context().Done():
		h.gone <- struct{}{}
	}
}

// abort reads the request and closes the connection without a response.
func (h *host) abort(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	panic(http.ErrAbortHandler)
}

// truncate sends half of its Content-Length and closes the connection.
func (h *host) truncate(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "100000")
	_, _ = w.Write(make([]byte, 50_000))
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// upload sends to began after the first byte of the body. It answers with the length and
// the hash of the body.
func (h *host) upload(w http.ResponseWriter, r *http.Request) {
	hash := sha256.New()
	first := make([]byte, 1)
	if _, err := io.ReadFull(r.Body, first); err != nil {
		return
	}
	h.began <- struct{}{}
	hash.Write(first)
	rest, err := io.Copy(hash, r.Body)
	if err != nil {
		return
	}
	_, _ = fmt.Fprintf(w, "%d %x", 1+rest, hash.Sum(nil))
}

// big sends a body of ?bytes=N bytes. With &chunked=1 it has no Content-Length.
func (h *host) big(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.FormValue("bytes"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if r.FormValue("chunked") == "" {
		w.Header().Set("Content-Length", strconv.Itoa(n))
	} else {
		_ = http.NewResponseController(w).Flush()
	}
	_, _ = w.Write(payload(n))
}

// stream sends one line, and a second one after a send to next.
func (h *host) stream(w http.ResponseWriter, r *http.Request) {
	_, _ = io.WriteString(w, "first\n")
	_ = http.NewResponseController(w).Flush()
	select {
	case <-h.next:
		_, _ = io.WriteString(w, "second\n")
	case <-r.Context().Done():
	}
}

// contentTime is the Last-Modified time of /content.
func contentTime() time.Time { return time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC) }

// contentTag is the entity tag of /content.
const contentTag = `"v1-strong"`

// content serves a file with support for ranges and conditions.
func (h *host) content(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("ETag", contentTag)
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	http.ServeContent(w, r, "photo.jpg", contentTime(), bytes.NewReader(payload(10_000)))
}

// headers answers with headers that a proxy could lose.
func (h *host) headers(w http.ResponseWriter, _ *http.Request) {
	for _, pair := range responseHeaders() {
		w.Header().Add(pair[0], pair[1])
	}
	w.WriteHeader(http.StatusTeapot)
}

// responseHeaders returns the headers of /headers.
func responseHeaders() [][2]string {
	return [][2]string{
		{"Set-Cookie", "session=abc; Path=/; HttpOnly; SameSite=Lax"},
		{"Set-Cookie", "theme=dark; Max-Age=60"},
		{"Set-Cookie", "lbx=1"},
		{"X-Photo-Version", "17"},
		{"X-Twice", "one, and"},
		{"X-Twice", "two"},
		{"X-Empty", ""},
		{"Vary", "Accept-Encoding"},
		{"Content-Encoding", "x-unknown"},
		{"Link", "</static/site.css>; rel=preload"},
		{"X-Long", strings.Repeat("x", 4000)},
	}
}

func (h *host) status(w http.ResponseWriter, r *http.Request) {
	code, err := strconv.Atoi(r.PathValue("code"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Location", "/elsewhere")
	w.Header().Set("Retry-After", "17")
	w.WriteHeader(code)
	if code != http.StatusNoContent && code != http.StatusNotModified {
		_, _ = fmt.Fprintf(w, "status %d", code)
	}
}

// payload returns n pseudo-random bytes, always the same.
func payload(n int) []byte {
	data := make([]byte, n)
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(data)
	return data
}

// payloadSum returns the response of /upload for a payload.
func payloadSum(n int) string { return fmt.Sprintf("%d %x", n, sha256.Sum256(payload(n))) }

// eventually polls until a condition holds. It ends the test after timeout.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, timeout, 2*time.Millisecond, what, holds)
}

// await waits for an event.
func await(t *testing.T, what string, event <-chan struct{}) {
	t.Helper()
	select {
	case <-event:
	case <-time.After(timeout):
		t.Fatalf("waited %v for %s", timeout, what)
	}
}

// errTruncated is the error of a response whose body is incomplete.
var errTruncated = errors.New("incomplete body")
