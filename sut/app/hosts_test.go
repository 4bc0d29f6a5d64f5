package app_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
)

// A host of one service answers 421 to requests for the other service.
func TestServices(t *testing.T) {
	for service, want := range map[sut.Service]struct{ feed, upload int }{
		"":          {http.StatusOK, http.StatusUnauthorized},
		sut.Reads:   {http.StatusOK, http.StatusMisdirectedRequest},
		sut.Uploads: {http.StatusMisdirectedRequest, http.StatusUnauthorized},
	} {
		s := newService(t, func(c *app.Config) { c.Service = service })
		for path, want := range map[string]struct {
			method string
			status int
		}{
			"/api/feed?user=1": {http.MethodGet, want.feed}, "/api/photos": {http.MethodPost, want.upload},
			"/healthz": {http.MethodGet, http.StatusOK},
		} {
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest(want.method, path, nil))
			if w.Code != want.status {
				t.Errorf("service %q: %s %s answered %d %s, want %d", service, want.method, path, w.Code, w.Body, want.status)
			}
		}
	}
}

// A request on a connection above the limit gets 503. The health check still succeeds.
func TestFullHost(t *testing.T) {
	s := newService(t, func(c *app.Config) { c.Full = func(context.Context) bool { return true } })
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/feed?user=1", nil))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" ||
		!strings.Contains(w.Body.String(), "maximum number of connections") {
		t.Errorf("answered %d %v %s", w.Code, w.Header(), w.Body)
	}
	w = httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/healthz", nil))
	if w.Code != http.StatusOK {
		t.Errorf("/healthz answered %d", w.Code)
	}
}

// A valid id of a client is kept, an invalid one is replaced. The log has the id.
func TestRequestIDs(t *testing.T) {
	s := newService(t, func(c *app.Config) { c.LogRequests = sut.LogAll })
	made := ""
	for sent, kept := range map[string]bool{"abc-1.2_Z": true, "": false, "a b": false, strings.Repeat("x", 65): false} {
		r := httptest.NewRequest(http.MethodGet, "/api/photos/1", nil)
		r.Header.Set(sut.RequestIDHeader, sent)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		id := w.Header().Get(sut.RequestIDHeader)
		if kept != (id == sent) || len(id) < 9 || id == made {
			t.Errorf("sent with the id %q, answered with %q", sent, id)
		}
		if !strings.Contains(s.log.String(),
			`"request_id":"`+id+`","op":"photo","method":"GET","path":"/api/photos/1","status":200`) {
			t.Errorf("no log line has the id %s:\n%s", id, s.log)
		}
		made = id
	}
}
