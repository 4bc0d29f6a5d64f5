package app_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/photos"
)

// overheard is tiers that note whose request each call belongs to.
type overheard struct {
	mu  sync.Mutex
	ids map[string]string // tier -> id
}

func (o *overheard) note(tier string, ctx context.Context) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ids[tier] = app.RequestID(ctx)
}

type (
	heardStore struct {
		photos.Records
		*overheard
	}
	heardBlobs struct {
		app.Blobs
		*overheard
	}
	heardSessions struct {
		app.Sessions
		*overheard
	}
)

func (h heardStore) AddPhoto(ctx context.Context, p photos.Photo) error {
	h.note("db", ctx)
	return h.Records.AddPhoto(ctx, p)
}

func (h heardBlobs) Put(ctx context.Context, id photos.ID, v photos.Variant, data []byte) error {
	h.note("blob", ctx)
	return h.Blobs.Put(ctx, id, v, data)
}

func (h heardBlobs) Delete(ctx context.Context, id photos.ID, v photos.Variant) error {
	h.note("blob delete", ctx)
	return h.Blobs.Delete(ctx, id, v)
}

func (h heardSessions) User(ctx context.Context, token string) (photos.ID, error) {
	h.note("session", ctx)
	return h.Sessions.User(ctx, token)
}

// A request's id goes to all tiers, also with what is cleaned up after it.
func TestRequestIDsGoToTiers(t *testing.T) {
	heard := &overheard{ids: map[string]string{}}
	s := newService(t, func(c *app.Config) {
		c.Store, c.Blobs, c.Sessions = heardStore{c.Store, heard}, heardBlobs{c.Blobs, heard},
			heardSessions{c.Sessions, heard}
	})
	s.store.breakWith(photos.ErrUnavailable) // so that the bytes are removed again
	r := uploadOf(sampleJPEG(8, 8))
	r.header[sut.RequestIDHeader] = "upload-17"
	if w := s.do(r); w.Code != http.StatusServiceUnavailable || w.Header().Get(sut.RequestIDHeader) != "upload-17" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	for _, tier := range []string{"db", "blob", "blob delete", "session"} {
		if heard.ids[tier] != "upload-17" {
			t.Errorf("the call to %s belongs to request %q", tier, heard.ids[tier])
		}
	}
	if id := app.RequestID(t.Context()); id != "" {
		t.Errorf("a context of no request has the id %q", id)
	}
}

// line is one line of a log.
type line struct {
	Level      string `json:"level"`
	Message    string `json:"msg"`
	RequestID  string `json:"request_id"`
	Op         string `json:"op"`
	Method     string `json:"method"`
	Path       string `json:"path"`
	Status     int    `json:"status"`
	DurationNS *int64 `json:"duration_ns"`
	User       int64  `json:"user"`
	Cause      string `json:"cause"`
}

// requestsLogged returns the lines about requests.
func requestsLogged(t *testing.T, s *service) (lines []line) {
	t.Helper()
	for text := range strings.Lines(s.log.String()) {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if l.RequestID == "" {
			t.Errorf("a line about a request without its id: %s", text)
		}
		if l.Message == "request" {
			lines = append(lines, l)
		}
	}
	return lines
}

// Which requests are logged is what the knob says, each in one line that holds
// all that is asked for when somebody searches for it.
func TestRequestsAreLogged(t *testing.T) {
	for knob, want := range map[string][]int{
		"":            {500, 503, 500},
		sut.LogFailed: {500, 503, 500},
		sut.LogAll:    {200, 404, 500, 503, 500},
		sut.LogNone:   {500, 500}, // mistakes of ours
	} {
		s := newService(t, func(c *app.Config) {
			c.LogRequests = knob
			c.Process = func([]byte) (photos.Variants, error) { panic("index out of range") }
		})
		s.do(request{method: "GET", path: "/api/me"})
		s.do(get("/api/photos/77"))
		s.store.breakWith(errors.New("syntax error"))
		s.do(get("/api/photos/1"))
		s.store.breakWith(photos.ErrUnavailable)
		s.do(request{method: "POST", path: "/api/photos/3/like"})
		s.do(uploadOf(sampleJPEG(8, 8)))
		s.do(get("/healthz"))
		lines := requestsLogged(t, s)
		if len(lines) != len(want) {
			t.Fatalf("log requests %q: %d lines, want %d:\n%s", knob, len(lines), len(want), s.log)
		}
		for i, l := range lines {
			failed := l.Status >= 500
			if l.Status != want[i] || l.DurationNS == nil || l.Method == "" || l.Path == "" || l.Op == "" ||
				failed == (l.Level == "INFO") || failed && l.Cause == "" {
				t.Errorf("log requests %q: line %d is %+v, want status %d", knob, i, l, want[i])
			}
			if l.Op == "like" && (l.User != 1 || l.Path != "/api/photos/3/like" ||
				!strings.Contains(l.Cause, "store unavailable")) {
				t.Errorf("the like is logged as %+v", l)
			}
		}
	}
}

// An id that a client makes up cannot put anything into the log or the header.
func TestMadeUpIDsAreReplaced(t *testing.T) {
	s := newService(t)
	own := regexp.MustCompile(`^[0-9a-f]{32}$`)
	known := map[string]bool{}
	for _, sent := range [][]string{nil, {""}, {"a b"}, {"a\"b"}, {"\u00e9"}, {strings.Repeat("x", 65)}, {"one", "two"}} {
		r := httptest.NewRequest(http.MethodGet, "/api/photos/1", nil)
		if sent != nil {
			r.Header[sut.RequestIDHeader] = sent
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		ids := w.Header()[sut.RequestIDHeader]
		if len(ids) != 1 || !own.MatchString(ids[0]) || known[ids[0]] {
			t.Errorf("sent with %q, answered with %q", sent, ids)
		}
		known[ids[0]] = true
	}
}

// A host for uploads takes uploads and nothing else, whatever it is; one for
// reads takes everything but them. Both say where the rest belongs.
func TestMisdirectedRequests(t *testing.T) {
	for _, r := range []request{
		get("/"), get("/nothing"), get("/api/photos"), get("/api/photos/1"), get("/img/1/thumb.jpg"), get("/static/app.css"),
		{method: "GRAB", path: "/api/me"},
		{method: "POST", path: "/api/login", body: `{"login": "user-2", "password": "stagebench"}`},
		{method: "POST", path: "/api/photos/1/like"},
		{method: "DELETE", path: "/api/photos"},
	} {
		s := newService(t, func(c *app.Config) { c.Service = sut.Uploads })
		wantMisdirected(t, r, s.do(r), "reads")
		s = newService(t, func(c *app.Config) { c.Service = sut.Reads })
		if w := s.do(r); w.Code == http.StatusMisdirectedRequest {
			t.Errorf("%s %s at a host for reads: %d", r.method, r.path, w.Code)
		}
	}
	upload := uploadOf(sampleJPEG(8, 8))
	s := newService(t, func(c *app.Config) { c.Service = sut.Uploads })
	if w := s.do(upload); w.Code != http.StatusCreated {
		t.Errorf("an upload: %d %s", w.Code, w.Body)
	}
	s = newService(t, func(c *app.Config) { c.Service = sut.Reads })
	objects := s.blobs.count()
	wantMisdirected(t, upload, s.do(upload), "uploads")
	if s.blobs.count() != objects {
		t.Error("a misdirected upload was stored")
	}
}

func wantMisdirected(t *testing.T, r request, w *httptest.ResponseRecorder, belongs string) {
	t.Helper()
	var body struct{ Error, Hint string }
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || w.Code != http.StatusMisdirectedRequest ||
		!strings.Contains(body.Error, "belongs to a host for "+belongs) || body.Hint == "" {
		t.Errorf("%s %s: %d %s, %v; want 421 and that it belongs to %s", r.method, r.path, w.Code, w.Body, err, belongs)
	}
}

// The operators' side shows the metrics, which the public does not see.
func TestOperations(t *testing.T) {
	s := newService(t)
	for path, want := range map[string]struct {
		operators, public int
		contains          string
	}{
		"/healthz":      {200, 200, `"alive"`},
		"/readyz":       {200, 200, `"ready":true`},
		"/metrics":      {200, 404, "stagebench_http_requests_in_flight 0"},
		"/api/photos/1": {404, 200, `"error"`},
	} {
		w := httptest.NewRecorder()
		s.Operations().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want.operators || !strings.Contains(w.Body.String(), want.contains) {
			t.Errorf("operators get %s: %d %s", path, w.Code, w.Body)
		}
		if w := s.do(get(path)); w.Code != want.public {
			t.Errorf("the public gets %s: %d, want %d", path, w.Code, want.public)
		}
	}
	w := httptest.NewRecorder()
	s.Operations().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/metrics", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST /metrics: %d", w.Code)
	}
}
