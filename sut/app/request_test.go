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

// tierCalls records the request id of the last call to each tier.
type tierCalls struct {
	mu  sync.Mutex
	ids map[string]string // tier -> id
}

func (o *tierCalls) note(tier string, ctx context.Context) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ids[tier] = app.RequestID(ctx)
}

type (
	recordingStore struct {
		photos.Records
		*tierCalls
	}
	recordingBlobs struct {
		app.Blobs
		*tierCalls
	}
	recordingSessions struct {
		app.Sessions
		*tierCalls
	}
)

func (h recordingStore) AddPhoto(ctx context.Context, p photos.Photo) error {
	h.note("db", ctx)
	return h.Records.AddPhoto(ctx, p)
}

func (h recordingBlobs) Put(ctx context.Context, id photos.ID, v photos.Variant, data []byte) error {
	h.note("blob", ctx)
	return h.Blobs.Put(ctx, id, v, data)
}

func (h recordingBlobs) Delete(ctx context.Context, id photos.ID, v photos.Variant) error {
	h.note("blob delete", ctx)
	return h.Blobs.Delete(ctx, id, v)
}

func (h recordingSessions) User(ctx context.Context, token string) (photos.ID, error) {
	h.note("session", ctx)
	return h.Sessions.User(ctx, token)
}

// All calls to tiers carry the request's id, including the calls of a cleanup.
func TestRequestIDsGoToTiers(t *testing.T) {
	calls := &tierCalls{ids: map[string]string{}}
	s := newService(t, func(c *app.Config) {
		c.Store, c.Blobs, c.Sessions = recordingStore{c.Store, calls}, recordingBlobs{c.Blobs, calls},
			recordingSessions{c.Sessions, calls}
	})
	s.store.breakWith(photos.ErrUnavailable) // makes the upload remove the bytes again
	r := uploadOf(sampleJPEG(8, 8))
	r.header[sut.RequestIDHeader] = "upload-17"
	if w := s.do(r); w.Code != http.StatusServiceUnavailable || w.Header().Get(sut.RequestIDHeader) != "upload-17" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	for _, tier := range []string{"db", "blob", "blob delete", "session"} {
		if calls.ids[tier] != "upload-17" {
			t.Errorf("the call to %s belongs to request %q", tier, calls.ids[tier])
		}
	}
	if id := app.RequestID(t.Context()); id != "" {
		t.Errorf("a context without a request has the id %q", id)
	}
}

// line is one log line.
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

// requestsLogged returns the log lines of requests.
func requestsLogged(t *testing.T, s *service) (lines []line) {
	t.Helper()
	for text := range strings.Lines(s.log.String()) {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if l.RequestID == "" {
			t.Errorf("a log line lacks the request id: %s", text)
		}
		if l.Message == "request" {
			lines = append(lines, l)
		}
	}
	return lines
}

// LogRequests selects which requests are logged. Each has one line with all its fields.
func TestRequestsAreLogged(t *testing.T) {
	for knob, want := range map[string][]int{
		"":            {500, 503, 500},
		sut.LogFailed: {500, 503, 500},
		sut.LogAll:    {200, 404, 500, 503, 500},
		sut.LogNone:   {500, 500}, // bugs are always logged
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

// An invalid id of a client is replaced, so it cannot inject text into logs or headers.
func TestInvalidIDsAreReplaced(t *testing.T) {
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

// A host for uploads accepts only uploads. A host for reads accepts everything else. For
// other requests, both name the service that they belong to.
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

// The admin handler serves the metrics. The public handler does not.
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
