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
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// host is a web host of the kit.
type host struct {
	name    string
	address string
	sick    atomic.Bool  // its health check fails
	served  atomic.Int64 // requests that reached it, health checks left out

	held    chan struct{} // receives when a request to /hold has arrived
	gone    chan struct{} // receives when the client of a held request has left
	release chan struct{} // closed: held requests are answered
	began   chan struct{} // receives when the first bytes of an upload have arrived
	next    chan struct{} // send: /stream goes on
	sent    chan string   // receives what a client of /raw?first=1 sent

	mu     sync.Mutex
	server *http.Server
}

// echo is what /echo says of the request that it got.
type echo struct {
	Node             string
	Method           string
	Host             string
	Target           string // of the request line
	Header           http.Header
	TransferEncoding []string
	Length           int64 // announced, -1 for none
	BodyBytes        int
	BodySHA          string
}

// newHosts starts n hosts, web-1 and so on, which end with the test.
func newHosts(t *testing.T, n int) []*host {
	t.Helper()
	hosts := make([]*host, n)
	for i := range hosts {
		h := &host{
			name: fmt.Sprintf("web-%d", i+1),
			held: make(chan struct{}, 100), gone: make(chan struct{}, 100), release: make(chan struct{}),
			began: make(chan struct{}, 100), next: make(chan struct{}), sent: make(chan string, 1),
		}
		listener := listen(t)
		h.address = listener.Addr().String()
		h.serve(listener)
		t.Cleanup(h.kill)
		hosts[i] = h
	}
	return hosts
}

// listen binds a port below those that the system gives to outgoing connections, and
// beside those that tests of engines give to these: while its host is dead, nobody
// else can take it.
func listen(t *testing.T) net.Listener {
	t.Helper()
	// Not reproducible on purpose: tests that run at once must not meet.
	random := rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(time.Now().UnixNano())))
	for range 100 {
		if listener, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", 17_000+random.IntN(6_000))); err == nil {
			return listener
		}
	}
	t.Fatal("no free port")
	return nil
}

// peers lists hosts as the engine is told them.
func peers(hosts []*host) []sut.Peer {
	var list []sut.Peer
	for _, h := range hosts {
		list = append(list, sut.Peer{Node: h.name, Address: h.address})
	}
	return list
}

func (h *host) serve(listener net.Listener) {
	server := &http.Server{Handler: h.handler(), ReadHeaderTimeout: patience}
	h.mu.Lock()
	h.server = server
	h.mu.Unlock()
	go func() { _ = server.Serve(listener) }()
}

// kill ends the host as the death of its process would: it listens no more and
// all connections break. Killing it again does nothing.
func (h *host) kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	_ = h.server.Close()
}

// restart brings a killed host back on its old port.
func (h *host) restart(t *testing.T) {
	t.Helper()
	var listener net.Listener
	eventually(t, "the port of "+h.name+" to be free", func() bool {
		var err error
		listener, err = net.Listen("tcp4", h.address)
		return err == nil
	})
	h.serve(listener)
}

func (h *host) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", h.healthz)
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
		TransferEncoding: r.TransferEncoding, Length: r.ContentLength, BodyBytes: len(body), BodySHA: hex.EncodeToString(sum[:]),
	})
}

func (h *host) who(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, h.name) }

// id says which id a request came with, and gives it back as the service does.
func (h *host) id(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get(sut.RequestIDHeader)
	w.Header().Set(sut.RequestIDHeader, id)
	_, _ = io.WriteString(w, id)
}

// raw leaves HTTP: it sends back what it gets, once that has come to its end.
// With ?first=1 it speaks first, ends its own direction, and reads on.
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

// hold answers when it is told to, or never.
func (h *host) hold(w http.ResponseWriter, r *http.Request) {
	h.held <- struct{}{}
	select {
	case <-h.release:
		_, _ = io.WriteString(w, h.name)
	case <-r.Context().Done():
		h.gone <- struct{}{}
	}
}

// abort reads the request and breaks the connection without an answer.
func (h *host) abort(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	panic(http.ErrAbortHandler)
}

// truncate announces more than it sends, and breaks the connection.
func (h *host) truncate(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "100000")
	_, _ = w.Write(make([]byte, 50_000))
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// upload reports when the first bytes of the body have come, and at the end what
// has come.
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

// big sends a body of a length: ?bytes=N, &chunked=1 for one that is not
// announced.
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

// stream sends one line, and a second one when it is told to.
func (h *host) stream(w http.ResponseWriter, r *http.Request) {
	_, _ = io.WriteString(w, "first\n")
	_ = http.NewResponseController(w).Flush()
	select {
	case <-h.next:
		_, _ = io.WriteString(w, "second\n")
	case <-r.Context().Done():
	}
}

// contentTime is when /content was changed.
func contentTime() time.Time { return time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC) }

// contentTag is the version of /content.
const contentTag = `"v1-strong"`

// content is a file that can be asked for in parts and on conditions.
func (h *host) content(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("ETag", contentTag)
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	http.ServeContent(w, r, "photo.jpg", contentTime(), bytes.NewReader(payload(10_000)))
}

// headers answers with headers that are easily lost.
func (h *host) headers(w http.ResponseWriter, _ *http.Request) {
	for _, pair := range responseHeaders() {
		w.Header().Add(pair[0], pair[1])
	}
	w.WriteHeader(http.StatusTeapot)
}

// responseHeaders is what /headers answers with.
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

// payload is n bytes that no two places of which look alike.
func payload(n int) []byte {
	data := make([]byte, n)
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(data)
	return data
}

// payloadSum is what /upload answers for a payload.
func payloadSum(n int) string { return fmt.Sprintf("%d %x", n, sha256.Sum256(payload(n))) }

// eventually waits for something to become true.
func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for !happened() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// await waits for an event.
func await(t *testing.T, what string, event <-chan struct{}) {
	t.Helper()
	select {
	case <-event:
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
}

// errNoBody marks a response whose body did not come to its end.
var errNoBody = errors.New("body broke off")
