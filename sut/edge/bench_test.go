package edge

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// BenchmarkHit measures hits of 5 kB: the handler alone, and with clients in this process over loopback connections.
//
//	go test -run '^$' -bench Hit -benchtime 20000x ./sut/edge
func BenchmarkHit(b *testing.B) {
	e, url := loopback(b, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "max-age=3600")
		w.Header().Set("Etag", `"1"`)
		w.Header().Set("Content-Type", "image/jpeg")
		_, _ = w.Write(pattern(5000))
	})
	const path = "/img/17/thumb.jpg?v=1"
	fetch(b, newRequest(b, http.MethodGet, url+path, ""))
	b.Run("handler", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			request := httptest.NewRequest(http.MethodGet, path, nil)
			request.Host = url[len("http://"):]
			w := &discard{header: http.Header{}}
			for pb.Next() {
				clear(w.header)
				e.serve(w, request)
				if w.bytes != 5000 {
					b.Fatalf("%d bytes", w.bytes)
				}
				w.bytes = 0
			}
		})
	})
	b.Run("loopback", func(b *testing.B) {
		b.ReportAllocs()
		transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
		defer transport.CloseIdleConnections()
		b.RunParallel(func(pb *testing.PB) {
			request := newRequest(b, http.MethodGet, url+path, "")
			for pb.Next() {
				res, err := transport.RoundTrip(request)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, res.Body); n != 5000 || err != nil {
					b.Fatal(n, err)
				}
				_ = res.Body.Close()
			}
		})
	})
	if f, _ := e.Figures(b.Context()); f.Fetched != 1 {
		b.Errorf("%d requests at the origin", f.Fetched)
	}
}

// discard is a ResponseWriter that counts bytes.
type discard struct {
	header http.Header
	bytes  int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { d.bytes += len(p); return len(p), nil }
func (d *discard) WriteHeader(int)             {}
