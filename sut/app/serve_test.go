package app_test

import (
	"bytes"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/photos"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestImagesAreCacheable(t *testing.T) {
	s := newService(t)
	const whole = "thumb of 3, twenty bytes or more"
	forever := fmt.Sprintf("public, max-age=%.0f, immutable", sut.VersionedLifetime.Seconds())
	shortly := fmt.Sprintf("public, max-age=%.0f, stale-while-revalidate=60, stale-if-error=86400",
		sut.UnversionedLifetime.Seconds())
	plain := s.do(get("/img/3/thumb.jpg"))
	tag := plain.Header().Get("Etag")
	if plain.Code != 200 || plain.Body.String() != whole || !strings.HasPrefix(tag, `"`) ||
		plain.Header().Get("Cache-Control") != shortly || plain.Header().Get("Cache-Groups") != `"photo-3"` {
		t.Errorf("%d %v", plain.Code, plain.Header())
	}
	if got := s.do(get("/img/3/thumb.jpg?v=1")).Header().Get("Cache-Control"); got != forever {
		t.Errorf("a versioned URL has Cache-Control %q", got)
	}
	if other := s.do(get("/img/3/blur.jpg")).Header().Get("Etag"); other == tag {
		t.Error("two variants have the same tag")
	}
	for _, test := range []struct {
		name, header, value string
		status              int
		body                string
	}{
		{"same tag", "If-None-Match", tag, 304, ""},
		{"one of several tags", "If-None-Match", `"x", ` + tag, 304, ""},
		{"any tag", "If-None-Match", "*", 304, ""},
		{"another tag", "If-None-Match", `"x"`, 200, whole},
		{"match", "If-Match", tag, 200, whole},
		{
			"no match", "If-Match", `"x"`, 412,
			`{"error":"the content does not match If-Match","hint":"read it again and use its current Etag"}`,
		},
		{"first bytes", "Range", "bytes=0-4", 206, "thumb"},
		{"last bytes", "Range", "bytes=-4", 206, "more"},
		{"open end", "Range", "bytes=28-", 206, "more"},
		{
			"beyond the end", "Range", "bytes=99-", 416,
			`{"error":"the range lies outside of the content","hint":"read its length in Content-Range"}`,
		},
		{
			"backwards", "Range", "bytes=9-2", 416,
			`{"error":"the range lies outside of the content","hint":"read its length in Content-Range"}`,
		},
		{
			"not bytes", "Range", "pages=1-2", 416,
			`{"error":"the range lies outside of the content","hint":"read its length in Content-Range"}`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := get("/img/3/thumb.jpg?v=1")
			r.header = map[string]string{test.header: test.value}
			w := s.do(r)
			if w.Code != test.status || w.Body.String() != test.body {
				t.Errorf("%d %q, want %d %q", w.Code, w.Body, test.status, test.body)
			}
			if test.status == 304 && w.Header().Get("Etag") != tag {
				t.Errorf("304 without the tag: %v", w.Header())
			}
			if test.status >= 400 && (w.Header().Get("Content-Type") != "application/json" ||
				w.Header().Get("Cache-Control") != "no-store") {
				t.Errorf("a refusal has %v", w.Header())
			}
		})
	}
	r := get("/img/3/thumb.jpg")
	r.header = map[string]string{"Range": "bytes=0-4", "If-Range": `"x"`}
	if w := s.do(r); w.Code != 200 || w.Body.String() != whole {
		t.Errorf("a range of something older: %d %q", w.Code, w.Body)
	}
}

// The page links each asset with the hash of its content, so that caches may keep it
// forever.
func TestAssets(t *testing.T) {
	s := newService(t)
	page := s.do(get("/")).Body.String()
	for _, name := range []string{"app.css", "app.js", "icon.svg"} {
		_, rest, found := strings.Cut(page, "/static/"+name+"?v=")
		version, _, _ := strings.Cut(rest, `"`)
		w := s.do(get("/static/" + name + "?v=" + version))
		if !found || w.Code != 200 || !strings.Contains(w.Header().Get("Cache-Control"), "immutable") ||
			w.Header().Get("Etag") != `"`+version+`"` {
			t.Errorf("%s: linked %t, %d %v", name, found, w.Code, w.Header())
		}
	}
}

func TestPageGolden(t *testing.T) {
	s := newService(t)
	photo := s.store.photos[9]
	photo.Title = `<script>alert("x")</script> & 'more'`
	s.store.photos[9] = photo
	for name, r := range map[string]request{"page": get("/"), "page-user": {method: "GET", path: "/"}} {
		got := s.do(r)
		if policy := got.Header().Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") {
			t.Errorf("the page may load anything: %q", policy)
		}
		file := "testdata/" + name + ".html"
		if *update {
			if err := os.WriteFile(file, got.Body.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got.Body.String()); diff != "" {
			t.Errorf("%s (-want +got), make golden rewrites it:\n%s", file, diff)
		}
	}
}

// counted returns the counters and gauges by metric name, and finished requests by "op
// code".
func counted(t *testing.T, s *service) map[string]float64 {
	t.Helper()
	families, err := s.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name := family.GetName()
			if name == "stagebench_http_requests_total" {
				labels := map[string]string{}
				for _, label := range metric.GetLabel() {
					labels[label.GetName()] = label.GetValue()
				}
				name = labels["op"] + " " + labels["code"]
			}
			all[name] += metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
		}
	}
	return all
}

// Every finished request is counted once, by op and status. Health checks and scrapes
// are not counted.
func TestRequestsAreCounted(t *testing.T) {
	s := newService(t)
	staticBytes := 0.0
	for _, r := range []request{
		get("/"), get("/api/feed?user=1"), get("/api/feed?user=x"), get("/api/photos/1"), get("/api/photos/999"),
		get("/api/users/1"),
		get("/api/me"),
		{method: "GET", path: "/api/me"},
		get("/img/1/thumb.jpg"),
		{method: "HEAD", path: "/img/1/thumb.jpg"},
		get("/static/app.css"),
		{method: "POST", path: "/api/login", body: `{"login": "user-2", "password": "stagebench"}`, anonymous: true},
		uploadOf(sampleJPEG(8, 8)),
		{method: "PATCH", path: "/api/photos/1", body: `{"title": "x"}`},
		{method: "POST", path: "/api/photos/1/like"},
		{method: "POST", path: "/api/photos/1/comments", body: `{"text": "x"}`},
		{method: "POST", path: "/api/users/2/follow"},
		{method: "DELETE", path: "/api/photos/1"},
		{method: "POST", path: "/api/logout"},
		get("/nothing"),
		{method: "GRAB", path: "/api/me"},
		get("//api/me"),
		get("/healthz"), get("/readyz"),
		{method: "POST", path: "/readyz"},
	} {
		w := s.do(r)
		if r.method == http.MethodGet && sut.Shared(r.path) { // a recorder also keeps the body of a response to HEAD
			staticBytes += float64(w.Body.Len())
		}
	}
	got := counted(t, s)
	want := map[string]float64{
		"page 200": 1, "feed 200": 1, "feed 400": 1, "photo 200": 1, "photo 404": 1, "user 200": 1, "me 200": 1, "me 401": 1,
		"image 200": 2, "asset 200": 1, "login 200": 1, "login 204": 1, "upload 201": 1, "rename 200": 1, "like 200": 1,
		"comment 201": 1,
		"follow 200":  1, "delete 204": 1, "other 404": 1, "other 405": 1, "other 307": 1,
		"stagebench_uploads_total": 1, "stagebench_likes_total": 1, "stagebench_comments_total": 1,
		"stagebench_follows_total": 1,
		"stagebench_logins_total":  1, "stagebench_sessions_lost_total": 0, "stagebench_http_requests_in_flight": 0,
		"stagebench_static_requests_total": 3, "stagebench_static_bytes_total": staticBytes,
		"stagebench_upload_bytes_total": float64(len(sampleJPEG(8, 8))), "stagebench_http_request_duration_seconds": 0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
	lost := get("/api/me")
	lost.header = map[string]string{"Cookie": "session=of-another-host"}
	s.do(lost)
	if got := counted(t, s)["stagebench_sessions_lost_total"]; got != 1 {
		t.Errorf("%v sessions are counted as lost, want 1", got)
	}
}

// Concurrent users over real connections lose no writes, and the counters are exact.
func TestConcurrentUsers(t *testing.T) {
	s := newService(t)
	server := httptest.NewServer(s)
	defer server.Close()
	picture := sampleJPEG(16, 16)
	const users, rounds = 8, 10
	var group sync.WaitGroup
	for user := 1; user <= users; user++ {
		group.Go(func() {
			token, _, err := s.sessions.Start(t.Context(), photos.ID(user))
			if err != nil {
				t.Error(err)
				return
			}
			ask := func(method, path, contentType string, body []byte, want int) {
				q, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, bytes.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				q.Header.Set("Cookie", app.SessionCookie+"="+token)
				q.Header.Set("Content-Type", contentType)
				response, err := server.Client().Do(q)
				if err != nil {
					t.Error(err)
					return
				}
				defer response.Body.Close()
				if response.StatusCode != want {
					t.Errorf("%s %s: %d, want %d", method, path, response.StatusCode, want)
				}
			}
			for range rounds {
				ask("POST", "/api/photos/9/like", "", nil, 200)
				ask("POST", "/api/photos/9/comments", "application/json", []byte(`{"text": "x"}`), 201)
				ask("POST", "/api/photos", "image/jpeg", picture, 201)
				ask("GET", fmt.Sprintf("/api/feed?user=%d", user), "", nil, 200)
				ask("GET", "/", "", nil, 200)
				ask("GET", "/img/9/thumb.jpg", "", nil, 200)
			}
		})
	}
	group.Wait()
	server.Close() // waits for the handlers, which end a little after their answers
	const each = users * rounds
	if photo := s.store.photos[9]; photo.Likes != 9+each || photo.Comments != 2+each || photo.Version != 9+2*each {
		t.Errorf("after %d likes and comments the photo is %+v", each, photo)
	}
	got := counted(t, s)
	for _, name := range []string{
		"like 200", "comment 201", "upload 201", "feed 200", "page 200", "image 200",
		"stagebench_uploads_total",
	} {
		if got[name] != each {
			t.Errorf("%s is counted %v times, want %d", name, got[name], each)
		}
	}
	if got["stagebench_http_requests_in_flight"] != 0 {
		t.Errorf("%v requests are in flight at the end", got["stagebench_http_requests_in_flight"])
	}
}
