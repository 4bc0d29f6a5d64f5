package edge

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stagebench/stagebench/sut"
)

func TestConfigurationErrors(t *testing.T) {
	t.Parallel()
	origins := []sut.Peer{{Node: "web-1", Address: "192.0.2.1:80"}}
	valid := sut.EdgeConfig{Node: "edge-1", Origins: origins, MaxBytes: 1 << 20}
	for want, change := range map[string]func(*sut.EdgeConfig){
		"":              func(*sut.EdgeConfig) {},
		"node name":     func(c *sut.EdgeConfig) { c.Node = "" },
		"no origins":    func(c *sut.EdgeConfig) { c.Origins = nil },
		"memory budget": func(c *sut.EdgeConfig) { c.MaxBytes = 1000 },
		"admit":         func(c *sut.EdgeConfig) { c.Admit = "some" },
		"ttl":           func(c *sut.EdgeConfig) { c.TTL = -1 },
	} {
		cfg := valid
		change(&cfg)
		_, err := New(Config{EdgeConfig: cfg})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// TestFull: a request over a connection above the limit gets 503 without a request to the origin.
func TestFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, sut.EdgeConfig{}, cacheable("max-age=60", "x"))
		r.edge.cfg.Full = func(context.Context) bool { return true }
		a := r.get("/a")
		closes, retry := a.header.Get("Connection"), a.header.Get("Retry-After")
		if a.code != http.StatusServiceUnavailable || closes != "close" || retry != "1" {
			t.Errorf("got %+v", a)
		}
		r.expect(0, "full")
	})
}

// TestRefusedMethods: CONNECT is refused, and a node whose name begins with a digit has a valid Cache-Status.
func TestRefusedMethods(t *testing.T) {
	t.Parallel()
	e, err := New(Config{EdgeConfig: sut.EdgeConfig{
		Node: "1.edge", Origins: []sut.Peer{{Node: "web-1", Address: "192.0.2.1:80"}}, MaxBytes: 1 << 20,
	}})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	e.serve(w, httptest.NewRequest(http.MethodConnect, "example.com:443", nil))
	if got := w.Header().Get("Cache-Status"); w.Code != http.StatusMethodNotAllowed || got != `"1.edge"; fwd=method` {
		t.Errorf("got %d, %q", w.Code, got)
	}
	if err := e.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestLoop: an edge whose origin is itself answers with an error.
func TestLoop(t *testing.T) {
	t.Parallel()
	e, url := loopback(t)
	self := sut.Peer{Node: "web-1", Address: strings.TrimPrefix(url, "http://")}
	if err := e.SetOrigins(t.Context(), []sut.Peer{self}); err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		if res, body := fetch(t, newRequest(t, method, url+"/a", "")); res.StatusCode != http.StatusLoopDetected {
			t.Errorf("%s: got %s, %q", method, res.Status, body)
		}
	}
}
