package app_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/photos"
)

// service is an app with fakes of its tiers.
type service struct {
	*app.App
	store    *fakeStore
	blobs    *fakeBlobs
	sessions *fakeSessions
	registry *prometheus.Registry
	log      *bytes.Buffer
	cookie   string // session cookie of user 1
}

// newService returns a service in which user 1 is logged in and every photo
// has its bytes.
func newService(t testing.TB, adjust ...func(*app.Config)) *service {
	t.Helper()
	s := &service{
		store: newFakeStore(), blobs: &fakeBlobs{}, sessions: newFakeSessions(time.Now),
		registry: prometheus.NewRegistry(), log: &bytes.Buffer{},
	}
	config := app.Config{
		Node: "web-1", Store: s.store, Blobs: s.blobs, Sessions: s.sessions, Process: fakeProcess,
		Inspect: fakeInspect,
		IDs:     photos.NewIDSource(1, time.Now), Log: slog.New(slog.NewJSONHandler(s.log, nil)), Registry: s.registry,
		Now: time.Now,
	}
	for _, f := range adjust {
		f(&config)
	}
	a, err := app.New(config)
	if err != nil {
		t.Fatal(err)
	}
	s.App = a
	for id := photos.ID(1); id <= 9; id++ {
		for _, v := range photos.AllVariants() {
			s.blobs.objects.Store(object{id, v}, []byte(fmt.Sprintf("%s of %d, twenty bytes or more", v, id)))
		}
	}
	token, _, err := s.sessions.Start(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	s.cookie = app.SessionCookie + "=" + token
	return s
}

// request is one request and the way it is sent.
type request struct {
	method, path string
	body         string
	header       map[string]string
	anonymous    bool // without the session of user 1
	unsized      bool // without a Content-Length
}

// do sends a request to the service and returns the response.
func (s *service) do(r request) *httptest.ResponseRecorder {
	var body io.Reader = strings.NewReader(r.body)
	if r.unsized {
		body = io.MultiReader(body)
	}
	q := httptest.NewRequest(r.method, r.path, body)
	if !r.anonymous {
		q.Header.Set("Cookie", s.cookie)
	}
	if strings.HasPrefix(r.body, "{") {
		q.Header.Set("Content-Type", "application/json")
	}
	for name, value := range r.header {
		q.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, q)
	return w
}

func get(path string) request { return request{method: "GET", path: path, anonymous: true} }

func uploadOf(body []byte) request {
	return request{
		method: "POST", path: "/api/photos", body: string(body),
		header: map[string]string{"Content-Type": "image/jpeg"},
	}
}

// Every route answers a correct request with this status, version and body.
func TestAnswers(t *testing.T) {
	login := fmt.Sprintf(`{"login": "user-2", "password": %q}`, sut.SeedPassword)
	for _, test := range []struct {
		name     string
		request  request
		status   int
		version  string // X-Record-Version
		contains string // part of the body
	}{
		{"page", get("/"), 200, "9", "<title>Photos</title>"},
		{"feed", get("/api/feed?user=3&limit=2"), 200, "4", `{"user":3,"photos":[{"id":4,`},
		{"feed without limit", get("/api/feed?user=3"), 200, "4", `"photos":[{"id":4,`},
		{"feed of nobody", get("/api/feed?user=77"), 200, "", `"photos":[]`},
		{"photo", get("/api/photos/5"), 200, "5", `"id":5,"user_id":5,"title":"Photo 5","state":"ready"`},
		{"user", get("/api/users/5"), 200, "1", `"id":5,"login":"user-5"`},
		{"me", request{method: "GET", path: "/api/me"}, 200, "1", `"id":1,"login":"user-1"`},
		{"image", get("/img/3/thumb.jpg?v=1"), 200, "", "thumb of 3"},
		{"asset", get("/static/app.css"), 200, "", "main {"},
		{"login", request{method: "POST", path: "/api/login", body: login, anonymous: true}, 200, "1", `"login":"user-2"`},
		{"logout", request{method: "POST", path: "/api/logout"}, 204, "", ""},
		{
			"upload", uploadOf(sampleJPEG(16, 12)), 201, "1",
			`"user_id":1,"title":"Untitled","state":"ready","width":16,"height":12`,
		},
		{
			"rename",
			request{method: "PATCH", path: "/api/photos/1", body: `{"title": "New"}`},
			200, "2",
			`{"photo_id":1,"title":"New","version":2}`,
		},
		{"delete", request{method: "DELETE", path: "/api/photos/1"}, 204, "", ""},
		{"like", request{method: "POST", path: "/api/photos/7/like"}, 200, "8", `{"photo_id":7,"version":8}`},
		{
			"comment",
			request{method: "POST", path: "/api/photos/7/comments", body: `{"text": "Nice"}`},
			201, "8",
			`"photo_id":7,"comment_id":`,
		},
		{"follow", request{method: "POST", path: "/api/users/7/follow"}, 200, "", `{"follower":1,"followee":7}`},
		{"health", get("/healthz"), 200, "", `{"node":"web-1","status":"alive"}`},
		{
			"readiness", get("/readyz"), 200, "",
			`{"node":"web-1","ready":true,"draining":false,"tiers":{"blob":"ok","db":"ok"}}`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newService(t).do(test.request)
			if w.Code != test.status || !strings.Contains(w.Body.String(), test.contains) {
				t.Errorf("%d %s\nwant %d with %s", w.Code, w.Body, test.status, test.contains)
			}
			if got := w.Header().Get(app.HeaderRecordVersion); got != test.version {
				t.Errorf("record version %q, want %q", got, test.version)
			}
			if w.Header().Get(app.HeaderServedBy) != "web-1" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("the response lacks a header that every response must have: %v", w.Header())
			}
			if strings.HasPrefix(w.Body.String(), "{") {
				if got := w.Header().Get("Content-Type"); got != "application/json" {
					t.Errorf("JSON has the content type %s", got)
				}
				if strings.Contains(w.Body.String(), "assword") {
					t.Errorf("the body contains a password: %s", w.Body)
				}
			}
		})
	}
}

// Only the response for a single record that was read from a cache has X-Cache: hit.
func TestRecordsFromACache(t *testing.T) {
	s := newService(t)
	for id := range s.store.photos {
		p, u := s.store.photos[id], s.store.users[id]
		p.Cached, u.Cached = id%2 == 1, id%2 == 1
		s.store.photos[id], s.store.users[id] = p, u
	}
	for path, want := range map[string]string{
		"/api/photos/5": "hit", "/api/photos/6": "", "/api/users/5": "hit", "/api/users/6": "", "/api/photos/77": "",
		"/api/feed?user=2": "", "/": "",
	} {
		w := s.do(get(path))
		if got := w.Header().Get(app.HeaderCache); got != want ||
			strings.Contains(strings.ToLower(w.Body.String()), "cached") {
			t.Errorf("%s: %s %q, want %q\n%s", path, app.HeaderCache, got, want, w.Body)
		}
	}
	fresh := request{method: "GET", path: "/api/photos/5", header: map[string]string{"Cache-Control": "no-cache"}}
	if w := s.do(fresh); w.Code != http.StatusOK || w.Header().Get(app.HeaderCache) != "" {
		t.Errorf("with no-cache: %d, %v", w.Code, w.Header())
	}
	if w := s.do(request{method: "GET", path: "/api/me"}); w.Header().Get(app.HeaderCache) != "hit" {
		t.Errorf("/api/me: %v", w.Header())
	}
}

// HEAD answers like GET, without the body. The test needs a real server, because the
// server drops the body.
func TestHead(t *testing.T) {
	s := newService(t)
	server := httptest.NewServer(s)
	defer server.Close()
	for _, path := range []string{
		"/", "/api/feed?user=3", "/api/photos/5", "/api/users/5", "/img/3/thumb.jpg",
		"/static/app.js", "/healthz", "/readyz",
	} {
		full, err := server.Client().Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(full.Body)
		full.Body.Close()
		head, err := server.Client().Head(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		head.Body.Close()
		if head.StatusCode != 200 || full.StatusCode != 200 ||
			head.Header.Get("Content-Type") != full.Header.Get("Content-Type") ||
			head.Header.Get("Etag") != full.Header.Get("Etag") {
			t.Errorf("%s: HEAD %d %v, GET %d %v", path, head.StatusCode, head.Header, full.StatusCode, full.Header)
		}
		if got := head.Header.Get("Content-Length"); got != "" && got != strconv.Itoa(len(body)) {
			t.Errorf("%s: HEAD says %s bytes, GET has %d", path, got, len(body))
		}
	}
}

// A user logs in, uploads, changes and deletes a photo, and logs out. Each step relies
// on the steps before it.
func TestLifecycle(t *testing.T) {
	s := newService(t)
	login := s.do(request{
		method: "POST", path: "/api/login", body: `{"login": "user-4", "password": "stagebench"}`,
		anonymous: true,
	})
	cookies := login.Result().Cookies()
	if len(cookies) != 1 || cookies[0].Name != app.SessionCookie || !cookies[0].HttpOnly ||
		cookies[0].SameSite != http.SameSiteLaxMode || cookies[0].Path != "/" {
		t.Fatalf("login set the cookies %v", cookies)
	}
	s.cookie = cookies[0].Name + "=" + cookies[0].Value
	original := sampleJPEG(40, 30)
	sent := uploadOf(original)
	sent.path += "?title=Robert%27%29%3B+DROP+TABLE+photos%3B--"
	uploaded := s.do(sent)
	var photo photos.Photo
	if err := json.Unmarshal(uploaded.Body.Bytes(), &photo); err != nil || uploaded.Code != 201 {
		t.Fatalf("upload: %d %s, %v", uploaded.Code, uploaded.Body, err)
	}
	where := "/api/photos/" + strconv.FormatInt(int64(photo.ID), 10)
	if photo.Title != "Robert'); DROP TABLE photos;--" || photo.UserID != 4 || photo.ID <= 1<<40 ||
		photo.Bytes != int64(len(original)) || photo.CreatedUS == 0 || uploaded.Header().Get("Location") != where {
		t.Errorf("uploaded %+v at %s", photo, uploaded.Header().Get("Location"))
	}
	for _, v := range photos.AllVariants() {
		image := s.do(get(fmt.Sprintf("/img/%d/%s.jpg", photo.ID, v)))
		if image.Code != 200 || !bytes.Equal(image.Body.Bytes(), original) ||
			image.Header().Get("Content-Type") != "image/jpeg" {
			t.Errorf("%s: %d, %d bytes", v, image.Code, image.Body.Len())
		}
	}
	version := photo.Version
	for _, change := range []request{
		{method: "PATCH", path: where, body: `{"title": "  Sm\u00f8rrebr\u00f8d  "}`},
		{method: "POST", path: where + "/like"},
		{method: "POST", path: where + "/comments", body: `{"text": "two\nlines"}`},
	} {
		version++
		if w := s.do(change); w.Code >= 300 || w.Header().Get(app.HeaderRecordVersion) != strconv.FormatInt(version, 10) {
			t.Errorf("%s %s: %d %s, version %s, want %d", change.method, change.path, w.Code, w.Body,
				w.Header().Get(app.HeaderRecordVersion), version)
		}
	}
	read := s.do(get(where))
	if err := json.Unmarshal(read.Body.Bytes(), &photo); err != nil || photo.Title != "Smørrebrød" || photo.Likes != 1 ||
		photo.Comments != 1 || photo.Version != 4 {
		t.Errorf("after the changes the photo is %+v, %v", photo, err)
	}
	if got := s.store.comments[0]; got.Text != "two\nlines" || got.UserID != 4 || got.PhotoID != photo.ID {
		t.Errorf("the comment is %+v", got)
	}
	if w := s.do(request{method: "DELETE", path: where}); w.Code != 204 ||
		w.Header().Get("Cache-Group-Invalidation") != fmt.Sprintf(`"photo-%d"`, photo.ID) {
		t.Errorf("delete: %d %v %s", w.Code, w.Header(), w.Body)
	}
	for _, path := range []string{where, fmt.Sprintf("/img/%d/thumb.jpg", photo.ID)} {
		if w := s.do(get(path)); w.Code != 404 {
			t.Errorf("%s after delete: %d", path, w.Code)
		}
	}
	logout := s.do(request{method: "POST", path: "/api/logout"})
	if removed := logout.Result().Cookies(); logout.Code != 204 || len(removed) != 1 || removed[0].MaxAge >= 0 {
		t.Errorf("logout: %d, cookies %v", logout.Code, removed)
	}
	if w := s.do(request{method: "GET", path: "/api/me"}); w.Code != 401 {
		t.Errorf("me after logout: %d", w.Code)
	}
}

// form is a multipart upload with these fields.
func form(t testing.TB, fields ...[2]string) request {
	t.Helper()
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for _, field := range fields {
		create := w.CreateFormField
		if field[0] == "photo" {
			create = func(name string) (io.Writer, error) { return w.CreateFormFile(name, "holiday.jpg") }
		}
		part, err := create(field[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(part, field[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return request{
		method: "POST", path: "/api/photos", body: body.String(),
		header: map[string]string{"Content-Type": w.FormDataContentType()},
	}
}

func TestMultipartUpload(t *testing.T) {
	picture := string(sampleJPEG(20, 10))
	for name, test := range map[string]struct {
		fields [][2]string
		title  string
	}{
		"photo alone":  {[][2]string{{"photo", picture}}, "Untitled"},
		"title after":  {[][2]string{{"photo", picture}, {"title", "A tram, Lisbon"}}, "A tram, Lisbon"},
		"title before": {[][2]string{{"title", "Fog"}, {"photo", picture}}, "Fog"},
		"empty title":  {[][2]string{{"title", ""}, {"photo", picture}}, "Untitled"},
	} {
		s := newService(t)
		w := s.do(form(t, test.fields...))
		var photo photos.Photo
		if err := json.Unmarshal(w.Body.Bytes(), &photo); err != nil || w.Code != 201 || photo.Title != test.title ||
			photo.Width != 20 {
			t.Errorf("%s: %d %s, %v", name, w.Code, w.Body, err)
		}
	}
}

// A user who logs in again holds one session, not two.
func TestLoginEndsTheOldSession(t *testing.T) {
	s := newService(t)
	if w := s.do(request{
		method: "POST", path: "/api/login",
		body: `{"login": "user-2", "password": "stagebench"}`,
	}); w.Code != 200 {
		t.Fatalf("login: %d %s", w.Code, w.Body)
	}
	if w := s.do(request{method: "GET", path: "/api/me"}); w.Code != 401 {
		t.Errorf("the old session is still valid: %d", w.Code)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for name, spoil := range map[string]func(*app.Config){
		"node":     func(c *app.Config) { c.Node = "" },
		"store":    func(c *app.Config) { c.Store = nil },
		"blobs":    func(c *app.Config) { c.Blobs = nil },
		"sessions": func(c *app.Config) { c.Sessions = nil },
		"process":  func(c *app.Config) { c.Process = nil },
		"inspect":  func(c *app.Config) { c.Inspect = nil },
		"ids":      func(c *app.Config) { c.IDs = nil },
		"log":      func(c *app.Config) { c.Log = nil },
		"registry": func(c *app.Config) { c.Registry = nil },
		"now":      func(c *app.Config) { c.Now = nil },
	} {
		good := app.Config{
			Node: "web-1", Store: newFakeStore(), Blobs: &fakeBlobs{}, Sessions: newFakeSessions(time.Now), Process: fakeProcess,
			Inspect: fakeInspect, IDs: photos.NewIDSource(1, time.Now),
			Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(),
			Now: time.Now,
		}
		spoil(&good)
		if _, err := app.New(good); err == nil {
			t.Errorf("a config without %s is accepted", name)
		}
	}
}
