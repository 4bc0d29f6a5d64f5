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

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/imaging"
)

// tiers starts a database and a blob node with the seeded data, and returns them as the
// neighbours of a web node.
func tiers(t testing.TB) (uses map[sut.Role][]sut.Peer, db *running) {
	t.Helper()
	blobDir := t.TempDir()
	db = start(t, sut.NodeConfig{Node: "db-1", Role: sut.DB, Engine: sut.SQLite, Dir: t.TempDir()})
	uses = map[sut.Role][]sut.Peer{sut.DB: {db.peer("db-1")}}
	start(t, sut.NodeConfig{
		Node: "seed", Role: sut.Seed, Engine: sut.SQLite, Dir: blobDir, Wiring: sut.Wiring{Uses: uses},
	})
	blob := start(t, sut.NodeConfig{Node: "blob-1", Role: sut.Blob, Engine: sut.Files, Dir: blobDir})
	uses[sut.Blob] = []sut.Peer{blob.peer("blob-1")}
	return uses, db
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

// admin sends a request to the admin address of a node.
func (r *running) admin(t testing.TB, method, path, body string) (status int, text string) {
	t.Helper()
	s := service{url: "http://" + r.ready.Admin}
	response, got := s.do(t, browser(t), method, path, "application/json", []byte(body))
	return response.StatusCode, string(got)
}

// withPeers adds the web hosts that an upload host asks for sessions.
func withPeers(uses map[sut.Role][]sut.Peer, peers ...sut.Peer) map[sut.Role][]sut.Peer {
	all := map[sut.Role][]sut.Peer{sut.Web: peers}
	for role, used := range uses {
		all[role] = used
	}
	return all
}

// rewire sends a wiring to a node and returns the response.
func (r *running) rewire(t testing.TB, next sut.Wiring) (status int, text string) {
	t.Helper()
	document, err := json.Marshal(next)
	if err != nil {
		t.Fatal(err)
	}
	return r.admin(t, http.MethodPut, sut.WiringPath, string(document))
}

// The tests of web nodes share a database and a blob node, because seeding them takes
// longer than the tests.
func TestWebNodes(t *testing.T) {
	uses, _ := tiers(t)
	t.Run("uploads have a host", func(t *testing.T) { uploadHost(t, uses) })
	t.Run("burn costs CPU", func(t *testing.T) { burnCostsCPU(t, uses) })
	t.Run("a full host is not dead", func(t *testing.T) { fullHost(t, uses) })
	t.Run("texts are compressed", func(t *testing.T) { textsAreCompressed(t, uses) })
	t.Run("the admin address is separate", func(t *testing.T) { adminAddress(t, uses) })
}

// An upload host accepts the sessions of the read hosts. Read hosts are added and removed
// while it runs.
func uploadHost(t *testing.T, uses map[sut.Role][]sut.Peer) {
	photo := imaging.Sample(1, 64, 48)
	forReads := func(c *sut.NodeConfig) { c.Service = sut.Reads }
	reads := web(t, "web-2", uses, forReads)
	uploads := web(t, "web-1", withPeers(uses, reads.peer("web-2")), func(c *sut.NodeConfig) { c.Service = sut.Uploads })

	c := browser(t) // cookies depend on the host name, which is the same for all nodes
	reads.service().logIn(t, c, 7)
	upload := func(to *running, c *http.Client, want int) *http.Response {
		t.Helper()
		response, got := to.service().do(t, c, http.MethodPost, "/api/photos", "image/jpeg", photo)
		if response.StatusCode != want {
			t.Errorf("upload: %s %s, want %d", response.Status, got, want)
		}
		return response
	}
	created := upload(uploads, c, http.StatusCreated)
	response, got := reads.service().do(t, c, http.MethodGet, created.Header.Get("Location"), "", nil)
	if response.StatusCode != http.StatusOK || !strings.Contains(string(got), `"user_id":7`) {
		t.Errorf("the uploaded photo at a read host: %s %s", response.Status, got)
	}
	upload(uploads, browser(t), http.StatusUnauthorized)
	upload(reads, c, http.StatusMisdirectedRequest)
	response, _ = uploads.service().do(t, c, http.MethodGet, "/api/me", "", nil)
	if response.StatusCode != http.StatusMisdirectedRequest {
		t.Errorf("a read from the upload host: %s", response.Status)
	}

	t.Run("a read host is added", func(t *testing.T) {
		added := web(t, "web-3", uses, forReads)
		other := browser(t)
		added.service().logIn(t, other, 8)
		upload(uploads, other, http.StatusUnauthorized)
		next := sut.Wiring{Epoch: 1, Uses: withPeers(uses, reads.peer("web-2"), added.peer("web-3"))}
		if status, text := uploads.rewire(t, next); status != http.StatusNoContent {
			t.Errorf("wiring: %d %s", status, text)
		}
		if _, text := uploads.admin(t, http.MethodGet, "/status", ""); !strings.Contains(text, added.ready.Address) {
			t.Errorf("status after the change: %s", text)
		}
		upload(uploads, other, http.StatusCreated)
	})
	t.Run("bad wirings change nothing", func(t *testing.T) {
		badWirings(t, uploads, uses)
		upload(uploads, c, http.StatusCreated)
	})
	t.Run("a read host dies", func(t *testing.T) {
		_ = reads.stdin.Close()
		if err := reads.end(t); err != nil {
			t.Error(err)
		}
		response := upload(uploads, c, http.StatusServiceUnavailable)
		if response.Header.Get("X-Degraded") != "session" || response.Header.Get("Retry-After") == "" {
			t.Errorf("headers %v", response.Header)
		}
		if status, text := uploads.rewire(t, sut.Wiring{Epoch: 2, Uses: uses}); status != http.StatusNoContent {
			t.Errorf("wiring: %d %s", status, text)
		}
		upload(uploads, c, http.StatusUnauthorized) // sessions of a removed host are not valid
	})
}

// badWirings sends bad wirings to a web node whose current wiring has epoch 1.
func badWirings(t *testing.T, w *running, uses map[sut.Role][]sut.Peer) {
	t.Helper()
	db, blobs := uses[sut.DB], uses[sut.Blob]
	for name, bad := range map[string]map[sut.Role][]sut.Peer{
		"no database":                nil,
		"no blob node":               {sut.DB: db},
		"a cache tier is added":      {sut.DB: db, sut.Blob: blobs, sut.Cache: blobs},
		"a database is listed twice": {sut.DB: append(db[:1:1], db...), sut.Blob: blobs},
	} {
		status, text := w.rewire(t, sut.Wiring{Epoch: 9, Uses: bad})
		if status != http.StatusBadRequest || !json.Valid([]byte(text)) {
			t.Errorf("%s: %d %s", name, status, text)
		}
	}
	if _, text := w.admin(t, http.MethodGet, sut.WiringPath, ""); !strings.Contains(text, `"epoch":1,`) {
		t.Errorf("current wiring %s, want epoch 1", text)
	}
}

// Slow clients use all connections of a host. The host answers 503 at once, and health
// checks and operators still get answers. Before that, idle connections are closed.
func fullHost(t *testing.T, uses map[sut.Role][]sut.Peer) {
	const maxConns = 20
	w := web(t, "web-1", uses, func(c *sut.NodeConfig) { c.Knobs = sut.Knobs{"web.max_conns": fmt.Sprint(maxConns)} })
	get := func(conn net.Conn, path string) *http.Response {
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
	awaitMetric := func(name string) {
		t.Helper()
		eventually(t, fmt.Sprintf("%s is %d", name, maxConns), func() bool {
			_, text := w.admin(t, http.MethodGet, "/metrics", "")
			return strings.Contains(text, fmt.Sprintf("%s %d\n", name, maxConns))
		})
	}
	for range maxConns { // kept alive and idle
		if response := get(dialNode(t, w), "/static/app.css"); response.StatusCode != http.StatusOK {
			t.Fatalf("request to a host that is not full: %s", response.Status)
		}
	}
	// A client may read the response before the server marks the connection as idle.
	awaitMetric("stagebench_http_connections_idle")
	var slow []net.Conn
	for range maxConns {
		conn := dialNode(t, w)
		slow = append(slow, conn)
		const incomplete = "POST /api/login HTTP/1.1\r\nHost: x\r\n" +
			"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
		if _, err := io.WriteString(conn, incomplete); err != nil {
			t.Fatal(err)
		}
	}
	awaitMetric("stagebench_http_requests_in_flight")
	refused := get(dialNode(t, w), "/static/app.css")
	if refused.StatusCode != http.StatusServiceUnavailable || refused.Header.Get("Retry-After") == "" || !refused.Close {
		t.Errorf("request to a full host: %s %v", refused.Status, refused.Header)
	}
	if response := get(dialNode(t, w), "/healthz"); response.StatusCode != http.StatusOK {
		t.Errorf("health check of a full host: %s", response.Status)
	}
	for _, path := range []string{"/healthz", "/readyz", "/status"} {
		if status, text := w.admin(t, http.MethodGet, path, ""); status != http.StatusOK {
			t.Errorf("%s at the admin address of a full host: %d %s", path, status, text)
		}
	}
	for _, conn := range slow {
		_ = conn.Close()
	}
	eventually(t, "the host is no longer full", func() bool {
		return get(dialNode(t, w), "/static/app.css").StatusCode == http.StatusOK
	})
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

// eventually polls until a condition holds. It ends the test after 20 s.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, 20*time.Second, 5*time.Millisecond, what, holds)
}

// web.burn costs CPU time, which is visible in the account of the process.
func burnCostsCPU(t *testing.T, uses map[sut.Role][]sut.Peer) {
	const requests, each = 20, 20 * time.Millisecond
	slow := web(t, "web-1", uses, func(c *sut.NodeConfig) { c.Knobs = sut.Knobs{"web.burn": each.String()} })
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	for range requests {
		if response, _ := fetch(t, slow, "GET", "/static/app.css"); response.StatusCode != http.StatusOK {
			t.Fatal(response.Status)
		}
	}
	if got := used() - before; got < requests*each {
		t.Errorf("%d requests with web.burn=%v used %v of CPU, want %v or more", requests, each, got, requests*each)
	}
}

// A compressed response has the same content as an uncompressed one. Its entity tag still
// works with If-None-Match.
func textsAreCompressed(t *testing.T, uses map[sut.Role][]sut.Peer) {
	plain := web(t, "web-1", uses)
	packed := web(t, "web-1", uses, func(c *sut.NodeConfig) { c.Knobs = sut.Knobs{"web.gzip": "true"} })
	accept := []string{"Accept-Encoding", "zstd, gzip, br"}
	for _, path := range []string{"/", "/api/feed?user=1&limit=50", "/static/app.css?v=1"} {
		want, text := fetch(t, plain, "GET", path, accept...)
		if want.Header.Get("Content-Encoding") != "" || want.Header.Get("Vary") != "" {
			t.Errorf("%s without web.gzip: %v", path, want.Header)
		}
		got, bytes := fetch(t, packed, "GET", path, accept...)
		h := got.Header
		if got.StatusCode != http.StatusOK || h.Get("Content-Encoding") != "gzip" ||
			h.Get("Vary") != "Accept-Encoding" || len(bytes) >= len(text) || gunzip(t, bytes) != string(text) {
			t.Errorf("%s: %s %v, %d bytes, uncompressed %d", path, got.Status, h, len(bytes), len(text))
		}
		if tag := want.Header.Get("Etag"); tag != "" && h.Get("Etag") != "W/"+tag ||
			h.Get("X-Record-Version") != want.Header.Get("X-Record-Version") {
			t.Errorf("%s: headers %v, uncompressed %v", path, h, want.Header)
		}
		head, body := fetch(t, packed, "HEAD", path, accept...)
		for _, name := range []string{"Content-Encoding", "Vary", "Etag", "X-Record-Version", "Content-Type"} {
			if head.Header.Get(name) != h.Get(name) {
				t.Errorf("%s: HEAD has %s %q, GET %q", path, name, head.Header.Get(name), h.Get(name))
			}
		}
		length := head.Header.Get("Content-Length")
		if len(body) > 0 || length != "" && length != fmt.Sprint(len(bytes)) {
			t.Errorf("%s: HEAD has %d bytes and %v", path, len(body), head.Header)
		}
		got, same := fetch(t, packed, "GET", path)
		if got.Header.Get("Content-Encoding") != "" || string(same) != string(text) ||
			got.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("%s without Accept-Encoding: %v", path, got.Header)
		}
	}
	first, _ := fetch(t, packed, "GET", "/static/app.css", accept...)
	tag := first.Header.Get("Etag")
	again, body := fetch(t, packed, "GET", "/static/app.css", append(accept, "If-None-Match", tag)...)
	if again.StatusCode != http.StatusNotModified || len(body) > 0 {
		t.Errorf("second request with the tag %s: %s", tag, again.Status)
	}
	// Small responses, parts of a response, and images are not compressed.
	for path, header := range map[string][]string{
		photoPath(1): accept, imagePath(1, "original"): accept,
		"/static/app.css": append(accept, "Range", "bytes=0-1199"),
	} {
		want, text := fetch(t, plain, "GET", path, header...)
		got, same := fetch(t, packed, "GET", path, header...)
		if got.Header.Get("Content-Encoding") != "" || got.StatusCode != want.StatusCode ||
			!bytes.Equal(text, same) || got.Header.Get("Etag") != want.Header.Get("Etag") {
			t.Errorf("%s: %s %v", path, got.Status, got.Header)
		}
	}
}

// fetch sends a request that does not decompress its response. header is header names and
// values.
func fetch(t *testing.T, r *running, method, path string, header ...string) (*http.Response, []byte) {
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
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, body
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

// Metrics and status are only at the admin address.
func adminAddress(t *testing.T, uses map[sut.Role][]sut.Peer) {
	w := web(t, "web-1", uses)
	if w.ready.Admin == w.ready.Address || w.ready.Admin == "" {
		t.Fatalf("admin is at %q, the service at %q", w.ready.Admin, w.ready.Address)
	}
	for path, want := range map[string]struct {
		admin, public int
		contains      string
	}{
		"/metrics":   {200, 404, "stagebench_http_connections_open"},
		"/healthz":   {200, 200, "alive"},
		"/readyz":    {200, 200, `"db":"ok"`},
		"/status":    {200, 404, `"node":"web-1"`},
		photoPath(1): {404, 200, "error"},
	} {
		status, text := w.admin(t, http.MethodGet, path, "")
		if status != want.admin || !strings.Contains(text, want.contains) {
			t.Errorf("admin address, %s: %d %s", path, status, text)
		}
		response, _ := w.service().do(t, browser(t), http.MethodGet, path, "", nil)
		if response.StatusCode != want.public {
			t.Errorf("public address, %s: %s, want %d", path, response.Status, want.public)
		}
	}
}
