package app_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stagebench/stagebench/sut/photos"
)

// discard is a ResponseWriter that drops the body.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkHandlers measures the service's own cost per request. The tiers answer from
// memory, and there is no network connection.
func BenchmarkHandlers(b *testing.B) {
	s := newService(b)
	for id := photos.ID(100); id < 130; id++ {
		photo := s.store.photos[1]
		photo.ID, photo.UserID = id, 2
		s.store.photos[id] = photo
	}
	s.blobs.objects.Store(object{1, photos.VariantThumb}, make([]byte, 6<<10))
	for _, test := range []struct {
		name string
		request
	}{
		{"feed", get("/api/feed?user=1&limit=20")},
		{"photo", get("/api/photos/1")},
		{"image", get("/img/1/thumb.jpg")},
		{"me", request{method: "GET", path: "/api/me"}},
		{"like", request{method: "POST", path: "/api/photos/1/like"}},
		{"page", get("/")},
		{"health", get("/healthz")},
	} {
		b.Run(test.name, func(b *testing.B) {
			q := httptest.NewRequest(test.method, test.path, nil)
			q.Header.Set("Cookie", s.cookie)
			b.ReportAllocs()
			for b.Loop() {
				s.ServeHTTP(&discard{http.Header{}}, q)
			}
		})
	}
}
