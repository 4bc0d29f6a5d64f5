package app_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/photos"
)

// When a tier is down, requests that need it get 503 and name it. Other requests work.
func TestDegradation(t *testing.T) {
	everything := map[string]request{
		"page": {method: "GET", path: "/"}, "feed": get("/api/feed?user=1"), "photo": get("/api/photos/1"),
		"user": get("/api/users/1"),
		"me":   {method: "GET", path: "/api/me"}, "image": get("/img/1/thumb.jpg"), "asset": get("/static/app.js"),
		"login": {
			method: "POST", path: "/api/login", body: `{"login": "user-2", "password": "stagebench"}`,
			anonymous: true,
		},
		"logout": {method: "POST", path: "/api/logout"}, "upload": uploadOf(sampleJPEG(8, 8)),
		"rename":  {method: "PATCH", path: "/api/photos/1", body: `{"title": "x"}`},
		"delete":  {method: "DELETE", path: "/api/photos/1"},
		"like":    {method: "POST", path: "/api/photos/1/like"},
		"comment": {method: "POST", path: "/api/photos/1/comments", body: `{"text": "x"}`},
		"follow":  {method: "POST", path: "/api/users/3/follow"}, "health": get("/healthz"), "ready": get("/readyz"),
	}
	for _, test := range []struct {
		tier     string
		fail     func(*service, error)
		failing  string // ops that get 503
		degraded string // ops that succeed, but name the tier in X-Degraded
	}{
		{
			"db", func(s *service, err error) { s.store.breakWith(err) },
			"page feed photo user me login upload rename delete like comment follow", "ready",
		},
		{"blob", func(s *service, err error) { s.blobs.breakWith(err) }, "image upload", "delete ready"},
		{
			"session", func(s *service, err error) { s.sessions.breakWith(err) },
			"me login logout upload rename delete like comment follow", "page",
		},
	} {
		for op, r := range everything {
			for _, cause := range []error{photos.ErrUnavailable, context.DeadlineExceeded} {
				t.Run(fmt.Sprintf("%s/%s/%v", test.tier, op, cause), func(t *testing.T) {
					s := newService(t)
					test.fail(s, cause)
					w := s.do(r)
					failing := slices.Contains(strings.Fields(test.failing), op)
					degraded := slices.Contains(strings.Fields(test.degraded), op)
					if got := w.Code == http.StatusServiceUnavailable; got != failing || !failing && w.Code >= 400 {
						t.Fatalf("%d %s, want 503: %t", w.Code, w.Body, failing)
					}
					if got := w.Header().Get(app.HeaderDegraded); got == test.tier != (failing || degraded) {
						t.Errorf("%s is %q", app.HeaderDegraded, got)
					}
					if failing && w.Header().Get("Retry-After") == "" {
						t.Errorf("headers %v", w.Header())
					}
					if failing && !strings.Contains(s.log.String(), `"tier":"`+test.tier+`"`) {
						t.Errorf("the log does not name the tier: %s", s.log)
					}
				})
			}
		}
	}
}

// When the database is down, the page is still HTML and says so.
func TestPageWithoutDatabase(t *testing.T) {
	s := newService(t)
	s.store.breakWith(photos.ErrUnavailable)
	w := s.do(get("/"))
	if !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") ||
		!strings.Contains(w.Body.String(), "The database does not answer") {
		t.Errorf("%v\n%s", w.Header(), w.Body)
	}
	s.sessions.breakWith(photos.ErrUnavailable)
	if got := s.do(request{method: "GET", path: "/"}).Header().Get(app.HeaderDegraded); got != "session, db" {
		t.Errorf("without database and sessions, %s is %q", app.HeaderDegraded, got)
	}
}

// A response that a store could make without another tier, or from the cache of a database that is down, says so.
func TestAnsweredWithoutATier(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	s := newService(t, func(c *app.Config) {
		c.Now, c.Store = func() time.Time { return at }, withoutCache{c.Store}
	})
	degraded := func(path string) string { return s.do(get(path)).Header().Get(app.HeaderDegraded) }
	if got := degraded("/api/photos/1"); got != "cache" {
		t.Errorf("a photo that was read without the cache: %s is %q", app.HeaderDegraded, got)
	}
	if got := degraded("/api/users/1"); got != "" {
		t.Errorf("a cached user while all tiers answer: %s is %q", app.HeaderDegraded, got)
	}
	s.store.breakWith(photos.ErrUnavailable)
	if got := degraded("/api/photos/1"); got != "db, cache" {
		t.Errorf("a photo without cache and database: %s is %q", app.HeaderDegraded, got)
	}
	for _, path := range []string{"/api/users/1", "/api/feed?user=1"} {
		if got := degraded(path); got != "db" {
			t.Errorf("%s, cached, without the database: %s is %q", path, app.HeaderDegraded, got)
		}
	}
	if got := s.do(request{method: "POST", path: "/api/photos/1/like"}).Header().Get(app.HeaderDegraded); got != "cache" {
		t.Errorf("a write whose cache host does not answer: %s is %q", app.HeaderDegraded, got)
	}
	at = at.Add(3 * time.Second)
	if got := degraded("/api/users/1"); got != "" {
		t.Errorf("3 s after the last failure of the database: %s is %q", app.HeaderDegraded, got)
	}
}

// withoutCache reads photos without the cache, which is down for them and for likes, and has users and feeds in the
// cache.
type withoutCache struct{ photos.Records }

func (s withoutCache) Photo(ctx context.Context, id photos.ID) (photos.Photo, error) {
	sut.NoteWithout(ctx, sut.Cache)
	return s.Records.Photo(ctx, id)
}

func (withoutCache) User(ctx context.Context, id photos.ID) (photos.User, error) {
	sut.NoteCached(ctx)
	return photos.User{ID: id, Version: 1, Cached: true}, nil
}

func (withoutCache) Feed(ctx context.Context, _ photos.ID, _ int) ([]photos.Photo, error) {
	sut.NoteCached(ctx)
	return nil, nil
}

func (withoutCache) Like(context.Context, photos.ID, photos.ID) (int64, error) {
	return 0, sut.OfTier(sut.Cache, photos.ErrUnavailable)
}

// Requests that fail because a tier is down write one log line per second together.
func TestOutageIsLoggedOnceASecond(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	s := newService(t, func(c *app.Config) { c.Now, c.LogRequests = func() time.Time { return at }, sut.LogNone })
	s.store.breakWith(photos.ErrUnavailable)
	for range 3 {
		for range 100 {
			s.do(get("/api/photos/1"))
		}
		at = at.Add(time.Second)
	}
	lines := strings.Split(strings.TrimSpace(s.log.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[1], `"requests_affected":100`) {
		t.Errorf("300 failed requests in 3 s wrote %d lines:\n%s", len(lines), s.log)
	}
}

// An upload whose record cannot be stored leaves no bytes. An upload whose bytes cannot
// be stored leaves no record.
func TestFailedUploadLeavesNothing(t *testing.T) {
	s := newService(t)
	bytes, records := s.blobs.count(), len(s.store.photos)
	s.store.breakWith(photos.ErrUnavailable)
	if w := s.do(uploadOf(sampleJPEG(8, 8))); w.Code != 503 || s.blobs.count() != bytes {
		t.Errorf("without a database: %d, %d objects, before %d", w.Code, s.blobs.count(), bytes)
	}
	s.store.breakWith(nil)
	s.blobs.breakWith(photos.ErrUnavailable)
	if w := s.do(uploadOf(sampleJPEG(8, 8))); w.Code != 503 || len(s.store.photos) != records {
		t.Errorf("without blobs: %d, %d records, before %d", w.Code, len(s.store.photos), records)
	}
	if !strings.Contains(s.log.String(), "cannot remove the bytes of a photo") {
		t.Errorf("bytes that could not be removed are not logged: %s", s.log)
	}
}

// The bytes of a deleted photo are removed even if the client disconnects.
func TestDeleteGoesOnWithoutTheClient(t *testing.T) {
	s := newService(t)
	ctx, cancel := context.WithCancel(t.Context())
	q := httptest.NewRequestWithContext(ctx, "DELETE", "/api/photos/1", nil)
	q.Header.Set("Cookie", s.cookie)
	// The client disconnects after the record is deleted and before the bytes are.
	s.store.onDelete = cancel
	s.ServeHTTP(httptest.NewRecorder(), q)
	if _, err := s.blobs.Head(t.Context(), 1, photos.VariantThumb); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("the bytes are still there: %v", err)
	}
}

// A client that disconnects is not reported as an outage.
func TestClientDisconnects(t *testing.T) {
	s := newService(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/api/photos/1", nil))
	if w.Code != 499 || s.log.Len() != 0 {
		t.Errorf("%d, log %s", w.Code, s.log)
	}
}

// A request waits for a tier that hangs at most for 5 s.
func TestHangingTiers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(t)
		s.store.breakWith(errHangs)
		s.blobs.breakWith(errHangs)
		for path, tier := range map[string]string{"/api/photos/1": "db", "/img/1/thumb.jpg": "blob"} {
			begun := time.Now()
			w := s.do(get(path))
			if took := time.Since(begun); took != 5*time.Second || w.Code != 503 || w.Header().Get(app.HeaderDegraded) != tier {
				t.Errorf("%s: %d after %s, degraded %q", path, w.Code, took, w.Header().Get(app.HeaderDegraded))
			}
		}
		begun := time.Now()
		w := s.do(get("/readyz"))
		if took := time.Since(begun); took != 500*time.Millisecond || w.Code != 200 ||
			w.Header().Get(app.HeaderDegraded) != "blob, db" {
			t.Errorf("readyz: %d after %s, degraded %q", w.Code, took, w.Header().Get(app.HeaderDegraded))
		}
	})
}

func TestReadiness(t *testing.T) {
	s := newService(t)
	check := func(when string, status int, degraded, body string) {
		t.Helper()
		w := s.do(get("/readyz"))
		if w.Code != status || w.Header().Get(app.HeaderDegraded) != degraded || strings.TrimSpace(w.Body.String()) != body ||
			!json.Valid(w.Body.Bytes()) {
			t.Errorf("%s: %d, degraded %q, %s", when, w.Code, w.Header().Get(app.HeaderDegraded), w.Body)
		}
	}
	check("at first", 200, "", `{"node":"web-1","ready":true,"draining":false,"tiers":{"blob":"ok","db":"ok"}}`)
	s.store.breakWith(photos.ErrUnavailable)
	check("without a database", 200, "db",
		`{"node":"web-1","ready":true,"draining":false,"tiers":{"blob":"ok","db":"fake: store unavailable"}}`)
	s.store.breakWith(nil)
	s.Drain()
	check("draining", 503, "", `{"node":"web-1","ready":false,"draining":true,"tiers":{"blob":"ok","db":"ok"}}`)
	if w := s.do(get("/api/photos/1")); w.Code != 200 {
		t.Errorf("a request to a draining node: %d", w.Code)
	}
}

// An unexpected error of a tier and a panic get 500. They are logged and counted, and the
// service continues.
func TestInternalErrors(t *testing.T) {
	s := newService(t)
	s.store.breakWith(errors.New("syntax error at or near SELECT"))
	w := s.do(get("/api/photos/1"))
	if w.Code != 500 || strings.Contains(w.Body.String(), "SELECT") || !strings.Contains(s.log.String(), "SELECT") {
		t.Errorf("%d %s; log %s", w.Code, w.Body, s.log)
	}
	s = newService(t, func(c *app.Config) {
		c.Process = func([]byte) (photos.Variants, error) { panic("index out of range") }
	})
	for range 2 { // the second would wait forever if the first did not release its slot
		if w := s.do(uploadOf(sampleJPEG(8, 8))); w.Code != 500 || !json.Valid(w.Body.Bytes()) {
			t.Errorf("after a panic: %d %s", w.Code, w.Body)
		}
	}
	if !strings.Contains(s.log.String(), "index out of range") || !strings.Contains(s.log.String(), "stack") {
		t.Errorf("the panic is not in the log: %s", s.log)
	}
	if got := counted(t, s)["upload 500"]; got != 2 {
		t.Errorf("%v panics were counted, want 2", got)
	}
	s = newService(t, func(c *app.Config) {
		c.Process = func([]byte) (photos.Variants, error) { return photos.Variants{}, errors.New("out of paint") }
	})
	if w := s.do(uploadOf(sampleJPEG(8, 8))); w.Code != 500 || strings.Contains(w.Body.String(), "paint") {
		t.Errorf("an untyped error of processing: %d %s", w.Code, w.Body)
	}
}

// maxUpload is the maximum size of an upload in bytes. Memory is reserved for uploadsInMemory of that size.
const maxUpload, uploadsInMemory = 8 << 20, 8

// An upload above the reserved memory gets 503 with Retry-After at once. An upload that ends
// releases its memory.
func TestUploadMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		proceed := make(chan struct{})
		s := newService(t, func(c *app.Config) {
			c.Process = func(original []byte) (photos.Variants, error) {
				<-proceed
				return fakeProcess(original)
			}
		})
		upload := uploadOf(sampleJPEG(8, 8))
		upload.unsized = true // without a length, it reserves the maximum
		var group sync.WaitGroup
		for range uploadsInMemory {
			group.Go(func() {
				if w := s.do(upload); w.Code != 201 {
					t.Errorf("an upload below the limit: %d %s", w.Code, w.Body)
				}
			})
		}
		synctest.Wait()
		begun := time.Now()
		if w := s.do(upload); w.Code != 503 || w.Header().Get("Retry-After") == "" ||
			w.Header().Get(app.HeaderDegraded) != "" || time.Since(begun) > 0 {
			t.Errorf("an upload above the limit: %d %v after %v", w.Code, w.Header(), time.Since(begun))
		}
		close(proceed)
		group.Wait()
		if w := s.do(upload); w.Code != 201 {
			t.Errorf("an upload afterwards: %d %s", w.Code, w.Body)
		}
	})
}

// An upload waits for a processing slot at most for 5 s.
func TestUploadWaitsForSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		proceed := make(chan struct{})
		s := newService(t, func(c *app.Config) {
			c.Process = func(original []byte) (photos.Variants, error) {
				<-proceed
				return fakeProcess(original)
			}
		})
		var group sync.WaitGroup
		for range runtime.GOMAXPROCS(0) {
			group.Go(func() { s.do(uploadOf(sampleJPEG(8, 8))) })
		}
		synctest.Wait()
		w := s.do(uploadOf(sampleJPEG(8, 8)))
		if w.Code != 503 || w.Header().Get("Retry-After") == "" || w.Header().Get(app.HeaderDegraded) != "" {
			t.Errorf("%d %v", w.Code, w.Header())
		}
		close(proceed)
		group.Wait()
	})
}
