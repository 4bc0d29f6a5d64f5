package node

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/klauspost/compress/gzhttp"

	"github.com/stagebench/stagebench/sut/conns"
)

// httpServer is a part that serves HTTP on one or two listeners.
type httpServer struct {
	servers []*http.Server
	died    chan error
}

// serve adds a listener.
func (h *httpServer) serve(listener net.Listener, handler http.Handler) {
	h.start(listener, &http.Server{Handler: handler})
}

// serveBounded adds a listener whose connections are bounded.
func (h *httpServer) serveBounded(listener net.Listener, handler http.Handler, bound *conns.Bound) {
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if conns.Refused(r.Context()) {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	})}
	bound.Attach(server)
	h.start(bound.Listen(listener), server)
}

func (h *httpServer) start(listener net.Listener, server *http.Server) {
	server.ReadHeaderTimeout, server.IdleTimeout = 10*time.Second, 5*time.Minute
	h.servers = append(h.servers, server)
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			h.died <- err
		}
	}()
}

// stop lets the requests in flight finish, and closes what is left in the end.
func (h *httpServer) stop(ctx context.Context) error {
	var errs error
	for _, server := range h.servers {
		if err := server.Shutdown(ctx); err != nil {
			errs = errors.Join(errs, err, server.Close())
		}
	}
	return errs
}

func newHTTPServer() *httpServer { return &httpServer{died: make(chan error, 4)} }

// sendJSON answers operators.
func sendJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // an error is the client's connection
}

// smallestCompressed is the size in bytes below which compression saves next to
// nothing: the text fits into one packet anyway.
const smallestCompressed = 1 << 10

// compressed compresses the texts of a handler with gzip for clients that accept
// it. Pictures are compressed as they are.
func compressed(handler http.Handler) http.Handler {
	wrap, err := gzhttp.NewWrapper(
		gzhttp.EnableZstd(false),
		gzhttp.MinSize(smallestCompressed),
		gzhttp.CompressionLevel(gzip.BestSpeed), // a small host is short of CPU
		gzhttp.ContentTypes([]string{"application/json", "text/html", "text/css", "text/javascript", "image/svg+xml"}),
	)
	if err != nil {
		panic("node: the options of compression are constant: " + err.Error())
	}
	compressing := wrap(handler)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/img/"):
			// Whatever the client accepts, it gets the same: no Vary.
			handler.ServeHTTP(w, r)
		case r.Method == http.MethodHead:
			// The wrapper would not compress what HEAD shows, and HEAD would show
			// another representation than GET. The server leaves the body out.
			asGet := &http.Request{Method: http.MethodGet, Header: r.Header}
			wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { handler.ServeHTTP(w, r) })).ServeHTTP(&weakener{ResponseWriter: w}, asGet)
		default:
			compressing.ServeHTTP(&weakener{ResponseWriter: w}, r)
		}
	})
}

// weakener makes the entity tag of a compressed response a weak one: its bytes
// are not those that the strong tag stands for, but their meaning is, so that the
// client's If-None-Match still finds it (RFC 9110, 8.8.1).
type weakener struct{ http.ResponseWriter }

// WriteHeader sends the status.
func (w *weakener) WriteHeader(status int) {
	header := w.Header()
	if tag := header.Get("Etag"); header.Get("Content-Encoding") != "" && strings.HasPrefix(tag, `"`) {
		header.Set("Etag", "W/"+tag)
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *weakener) Unwrap() http.ResponseWriter { return w.ResponseWriter }
