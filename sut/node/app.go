package node

import (
	"compress/gzip"
	"context"
	"errors"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/gzhttp"
	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/conns"
	"github.com/stagebench/stagebench/sut/imaging"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/session"
)

// webNode is a web host.
type webNode struct {
	node process.Node
	stores
	sessions *sessions
	jobs     *jobQueue // nil = uploads are processed here
	app      *app.App

	maxConns int
}

// startApp starts a web host.
func startApp(ctx context.Context, n process.Node) (c process.Component, err error) {
	w := webNode{node: n}
	if w.stores, err = openStores(ctx, n, storesConfig{conns: dbConns, reserve: app.ReserveImage}); err != nil {
		return c, err
	}
	if w.sessions, err = placeSessions(n, w.database); err != nil {
		return c, err
	}
	if w.jobs, err = openJobs(n, w.database); err != nil {
		return c, err
	}
	w.maxConns = w.limitConns()
	bound, err := conns.New(w.maxConns, n.Registry)
	if err != nil {
		return c, err
	}
	w.app, err = app.New(app.Config{
		Node: n.Config.Node, Store: w.records, Blobs: w.bytes, Sessions: w.sessions.used, Process: imaging.Process,
		Inspect: imaging.Inspect, Jobs: w.jobs.taker(), WorkerMemory: w.jobs.workerMemory(),
		MemoryBytes: n.Config.MemoryBytes,
		IDs:         photos.NewIDSource(uint8(n.Config.IDHost), time.Now), Log: n.Log, Registry: n.Registry, Now: time.Now,
		Service: n.Config.Service, Full: conns.Refused, LogRequests: ladder.LogsOf(n.Config.Knobs).Requests,
	})
	if err != nil {
		return c, err
	}
	listener, err := n.Listen()
	if err != nil {
		return c, err
	}
	h := process.NewHTTP()
	// Sent within this time, or the client has to ask again: a slow client holds the memory of its image.
	h.Serve(listener, &http.Server{Handler: w.public(), WriteTimeout: 2 * time.Minute}, bound)
	c = process.Component{
		Ready: sut.Ready{Address: listener.Addr().String()}, Died: h.Died, Operators: w.operators(), Rewire: w.rewire,
		Stop: func(ctx context.Context) error {
			w.app.Drain()
			err := h.Stop(ctx)
			w.close()
			return err
		},
	}
	return c.WithBackground(w.sessions.background).WithBackground(w.jobs.background), nil
}

// limitConns returns the maximum number of connections: web.max_conns, or what fits into two thirds of the memory.
func (w *webNode) limitConns() int {
	want := ladder.WebOf(w.node.Config.Knobs).MaxConns
	limit := min(2*w.node.ConnsWithin(process.HTTPConnBytes, want), want)
	if limit < want {
		w.node.Log.Warn("the memory of this node allows fewer connections than web.max_conns: a larger web.cpu gives more",
			"max_conns", limit, "web.max_conns", want)
	}
	return limit
}

// rewire gives the clients of all other tiers their new hosts. Brokers keep their addresses.
func (w *webNode) rewire(ctx context.Context, next sut.Wiring) error {
	err := w.stores.rewire(ctx, next, w.sessions.check(next))
	if errors.Is(err, sut.ErrWiring) {
		return err
	}
	return errors.Join(err, w.sessions.rewire(ctx, next))
}

// close ends the connections to other tiers.
func (w *webNode) close() {
	w.jobs.close()
	w.sessions.close()
	w.stores.close()
}

// public returns the handler of the public address: the service and, on a host that
// holds sessions, the lookups by other web hosts.
func (w *webNode) public() http.Handler {
	public := http.Handler(w.app)
	if d := ladder.WebOf(w.node.Config.Knobs).Burn; d > 0 {
		public = burning(public, d)
	}
	if ladder.WebOf(w.node.Config.Knobs).Gzip {
		public = compressed(public)
	}
	if w.sessions.memory == nil {
		return public
	}
	// A session lookup bypasses the service. It is not a user's request, and it must be
	// answered even if this host is full.
	lookups := session.Handler(w.sessions.used.Own(), w.node.Config.Secret, w.node.Log)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == session.Path {
			lookups.ServeHTTP(w, r)
			return
		}
		public.ServeHTTP(w, r)
	})
}

// webStatus is the answer to GET /status at the admin address of a web host.
type webStatus struct {
	Node     string      `json:"node"`
	Service  sut.Service `json:"service,omitempty"` // empty = all services
	Draining bool        `json:"draining"`
	MaxConns int         `json:"max_conns"`
	// SessionStore is where this host finds sessions.
	SessionStore ladder.SessionStore `json:"session_store"`
	// Sessions is the number of sessions in the memory of this host.
	Sessions int `json:"sessions"`
	// Peers are the hosts that this host asks for sessions in their memory.
	Peers []sut.Peer `json:"peers,omitempty"`
}

// operators returns the handler of the admin address: the endpoints of the service, and
// /status.
func (w *webNode) operators() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", w.app.Operations())
	mux.HandleFunc("GET /status", func(answer http.ResponseWriter, _ *http.Request) {
		config := w.node.Config
		status := webStatus{
			Node: config.Node, Service: config.Service, Draining: w.app.Draining(),
			MaxConns: w.maxConns,
		}
		status.SessionStore = w.sessions.current()
		if owners := w.sessions.used.Place().Owners; owners != nil {
			status.Peers = owners.Peers()
		}
		if w.sessions.memory != nil {
			status.Sessions = w.sessions.memory.Len()
		}
		process.SendJSON(answer, http.StatusOK, status)
	})
	mux.HandleFunc("GET "+sut.BucketLoadPath, func(answer http.ResponseWriter, _ *http.Request) {
		process.SendJSON(answer, http.StatusOK, w.database.BucketLoad())
	})
	return mux
}

// burning answers each request only after it has used this much CPU time.
func burning(handler http.Handler, d time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		burn(d)
		handler.ServeHTTP(w, r)
	})
}

// burn uses CPU time. Time in which the thread waits for a CPU does not count.
func burn(d time.Duration) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for end := threadCPU() + d; threadCPU() < end; {
	}
}

// threadCPU returns the CPU time that the thread has used.
func threadCPU() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) // fails only for an unknown clock
	return time.Duration(t.Nano())
}

// smallestCompressed is the size in bytes below which a text is not compressed: it fits
// into one packet anyway.
const smallestCompressed = 1 << 10

// compressed compresses the text responses of a handler with gzip, for clients that
// accept it. It leaves images alone, because JPEG is already compressed.
func compressed(handler http.Handler) http.Handler {
	wrap, err := gzhttp.NewWrapper(
		gzhttp.EnableZstd(false),
		gzhttp.MinSize(smallestCompressed),
		gzhttp.CompressionLevel(gzip.BestSpeed), // a small host is short of CPU
		gzhttp.ContentTypes([]string{"application/json", "text/html", "text/css", "text/javascript", "image/svg+xml"}),
	)
	if err != nil {
		panic("node: constant gzip options are invalid: " + err.Error())
	}
	compressing := wrap(handler)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/img/"):
			// The response is the same for every client, so it has no Vary header.
			handler.ServeHTTP(w, r)
		case r.Method == http.MethodHead:
			// The wrapper does not compress the response to HEAD. Its headers would then
			// differ from those of GET. So HEAD is handled as GET; the server drops the body.
			asGet := &http.Request{Method: http.MethodGet, Header: r.Header}
			asHead := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { handler.ServeHTTP(w, r) })
			wrap(asHead).ServeHTTP(&weakener{ResponseWriter: w}, asGet)
		default:
			compressing.ServeHTTP(&weakener{ResponseWriter: w}, r)
		}
	})
}

// weakener makes the entity tag of a compressed response weak. A strong tag promises the
// exact bytes, and compression changes them. If-None-Match accepts a weak tag (RFC 9110,
// 8.8.1).
type weakener struct{ http.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *weakener) WriteHeader(status int) {
	header := w.Header()
	if tag := header.Get("Etag"); header.Get("Content-Encoding") != "" && strings.HasPrefix(tag, `"`) {
		header.Set("Etag", "W/"+tag)
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap returns the inner writer for http.ResponseController.
func (w *weakener) Unwrap() http.ResponseWriter { return w.ResponseWriter }
