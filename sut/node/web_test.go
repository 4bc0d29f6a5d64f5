package node_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/imaging"
)

// tiers starts what web nodes use, with the seeded data in it.
func tiers(t testing.TB) map[sut.Role][]sut.Peer {
	t.Helper()
	blobDir := t.TempDir()
	db := start(t, sut.NodeConfig{Node: "db-1", Role: sut.DB, Engine: sut.SQLite, Dir: t.TempDir()})
	uses := map[sut.Role][]sut.Peer{sut.DB: {{Node: "db-1", Address: db.ready.Address}}}
	start(t, sut.NodeConfig{Node: "seed", Role: sut.Seed, Engine: sut.SQLite, Dir: blobDir, Wiring: sut.Wiring{Uses: uses}})
	blob := start(t, sut.NodeConfig{Node: "blob-1", Role: sut.Blob, Engine: sut.Files, Dir: blobDir})
	uses[sut.Blob] = []sut.Peer{{Node: "blob-1", Address: blob.ready.Address}}
	return uses
}

// web starts a web node.
func web(t testing.TB, name string, uses map[sut.Role][]sut.Peer, adjust ...func(*sut.NodeConfig)) *running {
	t.Helper()
	c := sut.NodeConfig{Node: name, Role: sut.Web, Engine: sut.App, Dir: t.TempDir(), Wiring: sut.Wiring{Uses: uses}}
	for _, f := range adjust {
		f(&c)
	}
	return start(t, c)
}

func (r *running) service() service       { return service{url: "http://" + r.ready.Address} }
func (r *running) peer(n string) sut.Peer { return sut.Peer{Node: n, Address: r.ready.Address} }

// admin sends a request to the operators' side of a node.
func (r *running) admin(t testing.TB, method, path, body string) (status int, text string) {
	t.Helper()
	s := service{url: "http://" + r.ready.Admin}
	response, got := s.do(t, browser(t), method, path, "application/json", []byte(body))
	return response.StatusCode, string(got)
}

// withPeers adds the web hosts that a host for uploads asks for sessions.
func withPeers(uses map[sut.Role][]sut.Peer, peers ...sut.Peer) map[sut.Role][]sut.Peer {
	all := map[sut.Role][]sut.Peer{sut.Web: peers}
	for role, used := range uses {
		all[role] = used
	}
	return all
}

// rewire tells a node of other neighbours, and returns its answer.
func (r *running) rewire(t testing.TB, next sut.Wiring) (status int, text string) {
	t.Helper()
	document, err := json.Marshal(next)
	if err != nil {
		t.Fatal(err)
	}
	return r.admin(t, http.MethodPut, sut.WiringPath, string(document))
}

// The tests of web nodes share what these use: filling it takes longer than they
// do.
func TestWebNodes(t *testing.T) {
	uses := tiers(t)
	t.Run("uploads are split", func(t *testing.T) { uploadsAreSplit(t, uses) })
	t.Run("a full host is not dead", func(t *testing.T) { fullHostIsNotDead(t, uses) })
	t.Run("texts are compressed", func(t *testing.T) { textsAreCompressed(t, uses) })
	t.Run("operators have an address of their own", func(t *testing.T) { adminAddress(t, uses) })
}

// Uploads have a host of their own: it takes the sessions of the hosts for reads,
// of which it is told while it runs.
func uploadsAreSplit(t *testing.T, uses map[sut.Role][]sut.Peer) {
	picture := imaging.Sample(1, 64, 48)
	reading := func(c *sut.NodeConfig) { c.Service = sut.Reads }
	reads := web(t, "web-2", uses, reading)
	uploads := web(t, "web-1", withPeers(uses, reads.peer("web-2")), func(c *sut.NodeConfig) { c.Service = sut.Uploads })

	c := browser(t) // keeps cookies by host name, which is the same for all nodes
	reads.service().logIn(t, c, 7)
	upload := func(c *http.Client, want int) *http.Response {
		t.Helper()
		response, got := uploads.service().do(t, c, http.MethodPost, "/api/photos", "image/jpeg", picture)
		if response.StatusCode != want {
			t.Errorf("upload: %s %s, want %d", response.Status, got, want)
		}
		return response
	}
	created := upload(c, http.StatusCreated)
	if response, got := reads.service().do(t, c, http.MethodGet, created.Header.Get("Location"), "", nil); response.StatusCode != http.StatusOK || !strings.Contains(string(got), `"user_id":7`) {
		t.Errorf("the upload read at the other host: %s %s", response.Status, got)
	}
	upload(browser(t), http.StatusUnauthorized)
	if response, _ := reads.service().do(t, c, http.MethodPost, "/api/photos", "image/jpeg", picture); response.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("an upload to the host for reads: %s", response.Status)
	}
	if response, _ := uploads.service().do(t, c, http.MethodGet, "/api/me", "", nil); response.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("a read from the host for uploads: %s", response.Status)
	}

	t.Run("a host comes", func(t *testing.T) {
		late := web(t, "web-3", uses, reading)
		other := browser(t)
		late.service().logIn(t, other, 8)
		upload(other, http.StatusUnauthorized)
		if status, text := uploads.rewire(t, sut.Wiring{Epoch: 1, Uses: withPeers(uses, reads.peer("web-2"), late.peer("web-3"))}); status != http.StatusNoContent {
			t.Errorf("wiring: %d %s", status, text)
		}
		if _, text := uploads.admin(t, http.MethodGet, "/status", ""); !strings.Contains(text, late.ready.Address) {
			t.Errorf("status after it: %s", text)
		}
		upload(other, http.StatusCreated)
	})
	t.Run("bad wirings change nothing", func(t *testing.T) {
		for _, bad := range []map[sut.Role][]sut.Peer{
			nil, // no database
			{sut.DB: uses[sut.DB]},
			{sut.DB: uses[sut.DB], sut.Blob: uses[sut.Blob], sut.Cache: uses[sut.Blob]}, // it was started without a cache
			{sut.DB: append(uses[sut.DB][:1:1], uses[sut.DB]...), sut.Blob: uses[sut.Blob]},
		} {
			if status, text := uploads.rewire(t, sut.Wiring{Epoch: 9, Uses: bad}); status != http.StatusBadRequest || !json.Valid([]byte(text)) {
				t.Errorf("wiring %v: %d %s", bad, status, text)
			}
		}
		upload(c, http.StatusCreated)
		if _, text := uploads.admin(t, http.MethodGet, sut.WiringPath, ""); !strings.Contains(text, `"epoch":1,`) {
			t.Errorf("it acts by %s", text)
		}
	})
	t.Run("a host dies", func(t *testing.T) {
		_ = reads.stdin.Close()
		if err := reads.end(t); err != nil {
			t.Error(err)
		}
		if response := upload(c, http.StatusServiceUnavailable); response.Header.Get("X-Degraded") != "session" || response.Header.Get("Retry-After") == "" {
			t.Errorf("headers %v", response.Header)
		}
		if status, text := uploads.rewire(t, sut.Wiring{Epoch: 2, Uses: uses}); status != http.StatusNoContent {
			t.Errorf("wiring: %d %s", status, text)
		}
		upload(c, http.StatusUnauthorized) // who is no member has taken its sessions with it
	})
}

// Slow clients fill a host, which says so at once and does not look dead to its
// balancer or its operators; idle connections make room before that.
func fullHostIsNotDead(t *testing.T, uses map[sut.Role][]sut.Peer) {
	const most = 20
	w := web(t, "web-1", uses, func(c *sut.NodeConfig) { c.Knobs = sut.Knobs{"web.max_conns": fmt.Sprint(most)} })
	ask := func(conn net.Conn, path string) *http.Response {
		t.Helper()
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("GET %s: %v", path, err)
		}
		return response
	}
	for range most { // kept alive and idle
		if response := ask(dialNode(t, w), "/static/app.css"); response.StatusCode != http.StatusOK {
			t.Fatalf("an ordinary request: %s", response.Status)
		}
	}
	// A client may read its answer before the server has called its connection idle.
	waitFor(t, "all of them are idle", func() bool {
		_, text := w.admin(t, http.MethodGet, "/metrics", "")
		return strings.Contains(text, fmt.Sprintf("stagebench_http_connections_idle %d\n", most))
	})
	var slow []net.Conn
	for range most {
		conn := dialNode(t, w)
		slow = append(slow, conn)
		if _, err := io.WriteString(conn, "POST /api/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "all slow clients are served", func() bool {
		_, text := w.admin(t, http.MethodGet, "/metrics", "")
		return strings.Contains(text, fmt.Sprintf("stagebench_http_requests_in_flight %d\n", most))
	})
	if response := ask(dialNode(t, w), "/static/app.css"); response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") == "" || !response.Close {
		t.Errorf("a connection too many: %s %v", response.Status, response.Header)
	}
	if response := ask(dialNode(t, w), "/healthz"); response.StatusCode != http.StatusOK {
		t.Errorf("a health check of a full host: %s", response.Status)
	}
	for _, path := range []string{"/healthz", "/readyz", "/status"} {
		if status, text := w.admin(t, http.MethodGet, path, ""); status != http.StatusOK {
			t.Errorf("operators get %s of a full host: %d %s", path, status, text)
		}
	}
	for _, conn := range slow {
		_ = conn.Close()
	}
	waitFor(t, "there is room again", func() bool { return ask(dialNode(t, w), "/static/app.css").StatusCode == http.StatusOK })
}

func dialNode(t *testing.T, r *running) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", r.ready.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// What is compressed says the same as what is not, and its tag still saves the
// transfer.
func textsAreCompressed(t *testing.T, uses map[sut.Role][]sut.Peer) {
	plain := web(t, "web-1", uses)
	packed := web(t, "web-1", uses, func(c *sut.NodeConfig) { c.Knobs = sut.Knobs{"web.gzip": "true"} })
	send := func(r *running, method, path string, header ...string) (*http.Response, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+r.ready.Address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		c := browser(t)
		c.Transport.(*http.Transport).DisableCompression = true
		response, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }() // read to its end
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response, body
	}
	accept := []string{"Accept-Encoding", "zstd, gzip, br"}
	for _, path := range []string{"/", "/api/feed?user=1&limit=50", "/static/app.css?v=1"} {
		want, text := send(plain, "GET", path, accept...)
		if want.Header.Get("Content-Encoding") != "" || want.Header.Get("Vary") != "" {
			t.Errorf("%s without web.gzip: %v", path, want.Header)
		}
		got, bytes := send(packed, "GET", path, accept...)
		h := got.Header
		if got.StatusCode != 200 || h.Get("Content-Encoding") != "gzip" || h.Get("Vary") != "Accept-Encoding" || len(bytes) >= len(text) || gunzip(t, bytes) != string(text) {
			t.Errorf("%s: %s %v, %d bytes of %d", path, got.Status, h, len(bytes), len(text))
		}
		if tag := want.Header.Get("Etag"); tag != "" && h.Get("Etag") != "W/"+tag || h.Get("X-Record-Version") != want.Header.Get("X-Record-Version") {
			t.Errorf("%s: %v, and uncompressed %v", path, h, want.Header)
		}
		head, body := send(packed, "HEAD", path, accept...)
		for _, name := range []string{"Content-Encoding", "Vary", "Etag", "X-Record-Version", "Content-Type"} {
			if head.Header.Get(name) != h.Get(name) {
				t.Errorf("%s: HEAD has %s %q, GET %q", path, name, head.Header.Get(name), h.Get(name))
			}
		}
		if len(body) > 0 || head.Header.Get("Content-Length") != "" && head.Header.Get("Content-Length") != fmt.Sprint(len(bytes)) {
			t.Errorf("%s: HEAD has %d bytes and %v", path, len(body), head.Header)
		}
		if got, same := send(packed, "GET", path); got.Header.Get("Content-Encoding") != "" || string(same) != string(text) || got.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("%s for a client that accepts nothing: %v", path, got.Header)
		}
	}
	first, _ := send(packed, "GET", "/static/app.css", accept...)
	if again, body := send(packed, "GET", "/static/app.css", append(accept, "If-None-Match", first.Header.Get("Etag"))...); again.StatusCode != http.StatusNotModified || len(body) > 0 {
		t.Errorf("asked for again by its tag %s: %s", first.Header.Get("Etag"), again.Status)
	}
	// What is small, a part of something, or a picture stays as it is.
	for path, header := range map[string][]string{photoPath(1): accept, imagePath(1, "original"): accept, "/static/app.css": append(accept, "Range", "bytes=0-1199")} {
		want, text := send(plain, "GET", path, header...)
		got, same := send(packed, "GET", path, header...)
		if got.Header.Get("Content-Encoding") != "" || got.StatusCode != want.StatusCode || !bytes.Equal(text, same) || got.Header.Get("Etag") != want.Header.Get("Etag") {
			t.Errorf("%s: %s %v", path, got.Status, got.Header)
		}
	}
}

func gunzip(t *testing.T, packed []byte) string {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Error(err)
		return ""
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

// Metrics are for operators, at an address of their own.
func adminAddress(t *testing.T, uses map[sut.Role][]sut.Peer) {
	w := web(t, "web-1", uses)
	if w.ready.Admin == w.ready.Address || w.ready.Admin == "" {
		t.Fatalf("admin is at %q, the service at %q", w.ready.Admin, w.ready.Address)
	}
	for path, want := range map[string]struct {
		admin, public int
		contains      string
	}{
		"/metrics": {200, 404, "stagebench_http_connections_open"}, "/healthz": {200, 200, "alive"}, "/readyz": {200, 200, `"db":"ok"`},
		"/status": {200, 404, `"node":"web-1"`}, photoPath(1): {404, 200, "error"},
	} {
		if status, text := w.admin(t, http.MethodGet, path, ""); status != want.admin || !strings.Contains(text, want.contains) {
			t.Errorf("operators get %s: %d %s", path, status, text)
		}
		if response, _ := w.service().do(t, browser(t), http.MethodGet, path, "", nil); response.StatusCode != want.public {
			t.Errorf("the public gets %s: %s, want %d", path, response.Status, want.public)
		}
	}
}
