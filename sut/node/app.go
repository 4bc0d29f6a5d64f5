package node

import (
	"compress/gzip"
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/klauspost/compress/gzhttp"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/blob"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/conns"
	"github.com/stagebench/stagebench/sut/imaging"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/session"
	"github.com/stagebench/stagebench/sut/store"
)

// webNode is a web host.
type webNode struct {
	node    process.Node
	records *store.Store
	cache   *cache.Client // nil = there is no cache tier
	bytes   *blob.Ring
	// Where the sessions are that it knows of: one of the two.
	memory *session.Memory // in this host
	remote *session.Remote // in the hosts for reads, of a host that has uploads only
	app    *app.App
}

// startApp starts a web host.
func startApp(ctx context.Context, n process.Node) (c process.Component, err error) {
	w := webNode{node: n}
	if w.bytes, err = blob.NewRing(blob.RingConfig{
		Peers: n.Config.Wiring.Uses[sut.Blob], Copies: ladder.BlobOf(n.Config.Knobs).Copies,
		Client: blob.ClientConfig{RequestID: app.RequestID}, Registry: n.Registry,
	}); err != nil {
		return c, err
	}
	if w.records, err = openStore(ctx, n, false); err != nil {
		return c, err
	}
	records, client, err := cached(n, w.records)
	if err != nil {
		return c, err
	}
	w.cache = client
	sessions, err := w.placeSessions()
	if err != nil {
		return c, err
	}
	bound, err := conns.New(ladder.WebOf(n.Config.Knobs).MaxConns, n.Registry)
	if err != nil {
		return c, err
	}
	w.app, err = app.New(app.Config{
		Node: n.Config.Node, Store: records, Blobs: w.bytes, Sessions: sessions, Process: imaging.Process,
		IDs: photos.NewIDSource(uint8(n.Config.IDHost), time.Now), Log: n.Log, Registry: n.Registry, Now: time.Now,
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
	h.Serve(bound.Listen(listener), bounded(w.public(), bound))
	return process.Component{
		Ready: sut.Ready{Address: listener.Addr().String()}, Died: h.Died, Operators: w.operators(), Rewire: w.rewire,
		Stop: func(ctx context.Context) error {
			w.app.Drain()
			err := h.Stop(ctx)
			w.close()
			return err
		},
	}, nil
}

// placeSessions places sessions in this host's memory; a host that has uploads
// only asks the others for theirs.
func (w *webNode) placeSessions() (app.Sessions, error) {
	config := w.node.Config
	if config.Service == sut.Uploads {
		w.remote = session.NewRemote(config.Wiring.Active(sut.Web), app.RequestID)
		return w.remote, nil
	}
	var err error
	w.memory, err = session.NewMemory(session.MemoryConfig{Host: config.Node, Registry: w.node.Registry})
	return w.memory, err
}

// rewire tells all clients of other tiers of their hosts.
func (w *webNode) rewire(ctx context.Context, next sut.Wiring) error {
	primary, replicas, err := databases(next)
	if err != nil {
		return err
	}
	caches, blobs := next.Active(sut.Cache), next.Uses[sut.Blob]
	if (len(caches) > 0) != (w.cache != nil) {
		return refused("%d cache nodes: whether there are any is decided when a web node is started", len(caches))
	}
	if err := w.bytes.Check(blobs); err != nil {
		return refused("%w", err)
	}
	if err := w.records.SetDatabases(primary, replicas); err != nil {
		return refused("%w", err)
	}
	// Each of them is told, whatever becomes of the others.
	told := []error{w.bytes.SetPeers(ctx, blobs)}
	if w.cache != nil {
		told = append(told, w.cache.SetHosts(ctx, caches))
	}
	if w.remote != nil {
		told = append(told, w.remote.SetPeers(ctx, next.Active(sut.Web)))
	}
	return errors.Join(told...)
}

// close ends the connections to other tiers.
func (w *webNode) close() {
	if w.cache != nil {
		w.cache.Close()
	}
	w.records.Close()
	w.bytes.Close()
	if w.remote != nil {
		w.remote.Close()
	}
}

// bounded is a server whose connections are bounded.
func bounded(handler http.Handler, bound *conns.Bound) *http.Server {
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if conns.Refused(r.Context()) {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	})}
	bound.Attach(server)
	return server
}

// public is what clients see: the service, and on a host that holds sessions what
// other web hosts ask about them.
func (w *webNode) public() http.Handler {
	public := http.Handler(w.app)
	if ladder.WebOf(w.node.Config.Knobs).Gzip {
		public = compressed(public)
	}
	if w.memory == nil {
		return public
	}
	// Not through the service: what a host of another service asks is no request
	// of a user, and is answered also when this host is full.
	about := session.Handler(w.memory)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == session.Path {
			about.ServeHTTP(w, r)
			return
		}
		public.ServeHTTP(w, r)
	})
}

// webStatus is what a web host says of itself at /status of its admin address.
type webStatus struct {
	Node     string      `json:"node"`
	Service  sut.Service `json:"service,omitempty"` // empty = everything
	Draining bool        `json:"draining"`
	MaxConns int         `json:"max_conns"`
	// Sessions is how many this host holds; a host for uploads holds none.
	Sessions int `json:"sessions"`
	// Peers is the hosts that a host for uploads asks for sessions.
	Peers []sut.Peer `json:"peers,omitempty"`
}

// operators is the admin side of a web host: what the service shows to them, and
// /status.
func (w *webNode) operators() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", w.app.Operations())
	mux.HandleFunc("GET /status", func(answer http.ResponseWriter, _ *http.Request) {
		config := w.node.Config
		status := webStatus{
			Node: config.Node, Service: config.Service, Draining: w.app.Draining(),
			MaxConns: ladder.WebOf(config.Knobs).MaxConns,
		}
		if w.remote != nil {
			status.Peers = w.remote.Peers()
		} else {
			status.Sessions = w.memory.Len()
		}
		process.SendJSON(answer, http.StatusOK, status)
	})
	return mux
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
			asHead := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { handler.ServeHTTP(w, r) })
			wrap(asHead).ServeHTTP(&weakener{ResponseWriter: w}, asGet)
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
