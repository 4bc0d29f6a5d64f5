package node_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/imaging"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node"
	"github.com/stagebench/stagebench/sut/photos"
)

// running is a node that runs in this process.
type running struct {
	ready sut.Ready
	stdin *io.PipeWriter
	drain context.CancelFunc
	ended chan error
}

// secret is that of all systems of the tests.
const secret sut.Secret = "secret-of-the-tests"

// start runs a node as its parent would.
func start(t testing.TB, c sut.NodeConfig) *running {
	t.Helper()
	c.Listen, c.Procs, c.DrainSeconds, c.Secret = cmp.Or(c.Listen, "127.0.0.1"), 2, 5, secret
	sessions := c.Knobs["session.store"]
	c.Knobs = ladder.Complete(c.Knobs)
	if len(c.Wiring.Uses[sut.Session]) == 0 { // as before stage stateless
		c.Knobs["session.store"] = cmp.Or(sessions, "memory")
	}
	_, _ = fmt.Sscanf(c.Node, "web-%d", &c.IDHost) // it stays 0 for other nodes
	c.Data = sut.Data{Size: "small", Seed: 1}
	document, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	in, stdin := io.Pipe()
	stdout, out := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{stdin: stdin, drain: cancel, ended: make(chan error, 1)}
	go func() { _, _ = stdin.Write(document) }()
	go func() {
		err := node.Run(ctx, in, out, io.Discard)
		_ = out.CloseWithError(io.EOF) // never fails for a pipe
		r.ended <- err
	}()
	if err := json.NewDecoder(stdout).Decode(&r.ready); err != nil {
		t.Fatalf("node %s: no ready line: %v; it ended with %v", c.Node, err, <-r.ended)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		<-r.ended
		cancel()
	})
	return r
}

// end waits until the node ends and returns its error. It may be called again.
func (r *running) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.ended:
		r.ended <- err
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("the node did not end within 20 s")
		return nil
	}
}

// service is a photo service in this process.
type service struct {
	url string
	db  *running
}

// serve starts a service with all its nodes.
func serve(t testing.TB) service {
	t.Helper()
	uses, db := tiers(t)
	return service{url: web(t, "web-1", uses).service().url, db: db}
}

// photoPath and imagePath return the paths of a seeded photo.
func photoPath(index int) string { return fmt.Sprintf("/api/photos/%d", seededPhoto(index)) }

func imagePath(index int, variant string) string {
	return fmt.Sprintf("/img/%d/%s.jpg", seededPhoto(index), variant)
}

func seededPhoto(index int) photos.ID {
	counts, _ := sut.Data{Size: "small"}.Counts()
	return photos.PhotoID(index, counts)
}

// browser returns a client that keeps cookies.
func browser(t testing.TB) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Jar: jar, Transport: transport, Timeout: 20 * time.Second}
}

// do sends a request and returns the response and its body.
func (s service) do(
	t testing.TB, c *http.Client, method, path, contentType string, body []byte,
) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	req.Header.Set("Authorization", secret.Bearer()) // for admin addresses
	response, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, got
}

func (s service) logIn(t testing.TB, c *http.Client, user int) {
	t.Helper()
	body := fmt.Sprintf(`{"login":%q,"password":%q}`, sut.SeedLogin(user), sut.SeedPassword)
	response, got := s.do(t, c, http.MethodPost, "/api/login", "application/json", []byte(body))
	if response.StatusCode != http.StatusOK {
		t.Fatalf("login: %s %s", response.Status, got)
	}
}

// A user logs in, uploads a photo, reads all its image variants, and renames, likes,
// comments on and deletes it. The requests use every tier over its real protocol.
func TestCompleteService(t *testing.T) {
	s, c := serve(t), browser(t)
	s.logIn(t, c, 7)
	t.Run("all operations on a photo", func(t *testing.T) { photoOperations(t, s, c) })
	t.Run("without a database", func(t *testing.T) { withoutDatabase(t, s, c) })
}

func photoOperations(t *testing.T, s service, c *http.Client) {
	response, got := s.do(t, c, http.MethodPost, "/api/photos?title=Harbour", "image/jpeg", imaging.Sample(1, 160, 120))
	if response.StatusCode != http.StatusCreated {
		t.Fatalf("upload: %s %s", response.Status, got)
	}
	photo := response.Header.Get("Location")
	id := photo[strings.LastIndexByte(photo, '/')+1:]
	for _, variant := range []string{"original", "thumb", "sharp", "blur"} {
		response, got := s.do(t, c, http.MethodGet, "/img/"+id+"/"+variant+".jpg", "", nil)
		if _, err := imaging.Inspect(got); response.StatusCode != http.StatusOK || err != nil {
			t.Errorf("%s: %s, %v", variant, response.Status, err)
		}
	}
	before := ""
	for _, step := range []struct{ method, path, contentType, body string }{
		{http.MethodPatch, photo, "application/json", `{"title":"Harbour at night"}`},
		{http.MethodPost, photo + "/like", "", ""},
		{http.MethodPost, photo + "/comments", "application/json", `{"text":"well seen"}`},
	} {
		response, got := s.do(t, c, step.method, step.path, step.contentType, []byte(step.body))
		version := response.Header.Get("X-Record-Version")
		if response.StatusCode >= 300 || version == before || version == "" {
			t.Errorf("%s %s: %s, version %q after %q: %s", step.method, step.path, response.Status, version, before, got)
		}
		before = version
	}
	response, got = s.do(t, c, http.MethodGet, photo, "", nil)
	if !strings.Contains(string(got), "Harbour at night") || response.Header.Get("X-Record-Version") != before {
		t.Errorf("photo: %s %s", response.Status, got)
	}
	if response, got := s.do(t, c, http.MethodDelete, photo, "", nil); response.StatusCode != http.StatusNoContent {
		t.Errorf("delete: %s %s", response.Status, got)
	}
	if response, _ := s.do(t, c, http.MethodGet, photo, "", nil); response.StatusCode != http.StatusNotFound {
		t.Errorf("after the delete: %s", response.Status)
	}
}

// With the database down, requests that need it get a 503. All others still work.
func withoutDatabase(t *testing.T, s service, c *http.Client) {
	_ = s.db.stdin.Close()
	if err := s.db.end(t); err != nil {
		t.Error(err)
	}
	response, _ := s.do(t, c, http.MethodPost, photoPath(1)+"/like", "", nil)
	if response.StatusCode != http.StatusServiceUnavailable ||
		response.Header.Get("X-Degraded") != "db" || response.Header.Get("Retry-After") == "" {
		t.Errorf("a like without a database: %s %v", response.Status, response.Header)
	}
	response, _ = s.do(t, c, http.MethodGet, imagePath(1, "thumb"), "", nil)
	if response.StatusCode != http.StatusOK {
		t.Errorf("an image without a database: %s", response.Status)
	}
}

// A node ends when its parent closes its standard input, drains on request, and rejects
// an invalid configuration.
func TestContract(t *testing.T) {
	t.Run("stdin closes", func(t *testing.T) {
		r := start(t, sut.NodeConfig{Node: "blob-1", Role: sut.Blob, Engine: sut.Files, Dir: t.TempDir()})
		_ = r.stdin.Close()
		if err := r.end(t); err != nil {
			t.Error(err)
		}
	})
	t.Run("drain", func(t *testing.T) {
		r := start(t, sut.NodeConfig{Node: "blob-1", Role: sut.Blob, Engine: sut.Files, Dir: t.TempDir()})
		r.drain()
		if err := r.end(t); err != nil {
			t.Error(err)
		}
		if response, err := http.Get("http://" + r.ready.Admin + "/healthz"); err == nil {
			_ = response.Body.Close()
			t.Error("the node still answers after its end")
		}
	})
	for name, document := range map[string]string{
		"no document": "", "no JSON": "hello", "unknown field": `{"node":"a","colour":"red"}`,
		"no such engine":       `{"node":"a","role":"db","engine":"mysql"}`,
		"web without database": `{"node":"web-1","role":"web","engine":"app","listen":"127.0.0.1","id_host":1}`,
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := node.Run(t.Context(), strings.NewReader(document), &out, io.Discard); err == nil || out.Len() > 0 {
				t.Errorf("error %v, ready line %q", err, out.String())
			}
		})
	}
}

// No upload gets a 5xx, whatever its body is.
func FuzzUpload(f *testing.F) {
	s, c := serve(f), browser(f)
	s.logIn(f, c, 1)
	photo := imaging.Sample(1, 64, 48)
	f.Add("image/jpeg", photo)
	f.Add("image/jpeg", photo[:len(photo)/2])
	f.Add("image/jpeg", []byte{0xff, 0xd8, 0xff, 0xc0, 0, 17, 8, 0xff, 0xff, 0xff, 0xff, 3})
	f.Add("text/plain", []byte("not a picture"))
	f.Add("multipart/form-data; boundary=x",
		[]byte("--x\r\nContent-Disposition: form-data; name=\"photo\"\r\n\r\n\xff\xd8\r\n--x--\r\n"))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		if strings.ContainsFunc(contentType, func(r rune) bool { return r < ' ' || r > '~' }) {
			return // Go's client cannot send such a header
		}
		if response, got := s.do(t, c, http.MethodPost, "/api/photos", contentType, body); response.StatusCode >= 500 {
			t.Errorf("%s: %s", response.Status, got)
		}
	})
}
