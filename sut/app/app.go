// Package app is the photo service: one HTTP handler that answers the JSON API,
// the HTML page, the images and the static assets of a web host.
//
// The package implements the HTTP protocol only. Records are in the Store, bytes in
// Blobs, logins in Sessions, and image processing is a function. All of them are
// given to New. The package opens no connection and starts no goroutine that
// outlives its request.
//
// The usual order of calls is New, then serve requests, then Drain before the node
// stops. All methods may be called concurrently.
//
// A client can rely on these rules:
//   - Every response names the node that served it in X-Served-By.
//   - A response that shows a record has the record's version in X-Record-Version,
//     so that a client can detect a stale response. A list has the highest version
//     of its records.
//   - A single record that was read from a cache has the header "X-Cache: hit". A request with the header
//     "Cache-Control: no-cache" is answered from the database (RFC 9111, 5.2.1.4).
//   - Every response has the request's id in X-Request-Id. It is the client's id if
//     that is valid, and else a new one. Log lines and calls to other tiers have the
//     same id.
//   - Errors are JSON: {"error": what was wrong, "hint": what to do}. A client's
//     error is 4xx, never 500.
//   - When a tier is down, requests that need it get 503 with Retry-After. Other
//     requests still work. A response that lacks a tier names it in X-Degraded (db,
//     blob, session, queue).
//   - With workers, an upload is answered when its original and its record are stored, in the state "processing". Its
//     images follow.
//   - The memory of uploads, of pictures that are being processed and of images that are
//     being sent is bounded. Above the bound a request gets 503 with Retry-After. A picture
//     that never fits gets 413.
//   - A request waits for other tiers at most 5 s, and for the
//     client's body at most 60 s. The http.Server bounds the time to
//     read the request header and to write the response.
//
// Times are microseconds since the Unix epoch, sizes are bytes.
package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// Headers of responses.
const (
	HeaderServedBy      = "X-Served-By"
	HeaderRecordVersion = "X-Record-Version"
	HeaderCache         = "X-Cache" // "hit" when the record shown was read from a cache
	// HeaderDegraded names the tiers that do not answer, if the response was made without them or failed for lack of them.
	// A response from a cache names the database if a request to this node failed for lack of it in this second or the one
	// before.
	HeaderDegraded = "X-Degraded"
)

// SessionCookie is the name of the cookie that holds a session's token.
const SessionCookie = "session"

// Config is the configuration of a web node. All fields up to Now are required.
type Config struct {
	Node     string // name of the node, sent in X-Served-By
	Store    photos.Records
	Blobs    Blobs
	Sessions Sessions
	// Process makes the variants of an upload, as imaging.Process does. Its errors
	// wrap ErrTooManyPixels, ErrTruncated or ErrNotJPEG of package photos.
	Process func(original []byte) (photos.Variants, error)
	// Inspect reads the header of an upload, as imaging.Inspect does. Its errors are those of Process.
	Inspect  func(original []byte) (photos.Header, error)
	IDs      *photos.IDSource
	Log      *slog.Logger
	Registry *prometheus.Registry // receives the app's metrics; /metrics shows all of it
	Now      func() time.Time

	// Jobs takes uploads that workers process later; nil = an upload is processed while its client waits.
	Jobs Jobs
	// WorkerMemory is what a worker has for a picture in processing; 0 = this host processes pictures.
	WorkerMemory int64

	// MemoryBytes is the memory of this node; 0 = 512 MiB. Clients get fixed shares of it,
	// see newMemory.
	MemoryBytes int64
	// Service is the service of this host: sut.Reads, sut.Uploads, or "" for both. A
	// request for another service gets 421.
	Service sut.Service
	// Full reports whether a request came over a connection above the limit of this
	// host. Such a request gets 503; the server must close the connection. nil = no
	// limit.
	Full func(context.Context) bool
	// LogRequests selects which requests are logged, one line each: sut.LogFailed
	// (default), those with a status of 500 or more; sut.LogAll; or sut.LogNone.
	// Requests with status 500 are always logged, because they are bugs.
	LogRequests string
}

const (
	tierTimeout    = 5 * time.Second // for all calls of one request to other tiers
	bodyTimeout    = time.Minute     // from the start of a request to the end of its body
	maxUploadBytes = 8 << 20         // size of one original
)

func (c Config) withDefaults() (Config, error) {
	c.LogRequests = cmp.Or(c.LogRequests, sut.LogFailed)
	c.MemoryBytes = cmp.Or(c.MemoryBytes, 512<<20)
	switch {
	case c.Node == "":
		return c, errors.New("app: the node has no name")
	case c.Store == nil || c.Blobs == nil || c.Sessions == nil:
		return c, errors.New("app: Store, Blobs and Sessions are required")
	case c.Process == nil || c.Inspect == nil || c.IDs == nil:
		return c, errors.New("app: Process, Inspect and IDs are required")
	case c.MemoryBytes < 0:
		return c, fmt.Errorf("app: MemoryBytes is %d: want 0 or more", c.MemoryBytes)
	case c.Log == nil || c.Registry == nil || c.Now == nil:
		return c, errors.New("app: Log, Registry and Now are required")
	case c.Service != "" && c.Service != sut.Reads && c.Service != sut.Uploads:
		return c, fmt.Errorf("app: unknown service %q", c.Service)
	case c.LogRequests != sut.LogFailed && c.LogRequests != sut.LogAll && c.LogRequests != sut.LogNone:
		return c, fmt.Errorf("app: log requests %q: want %s, %s or %s", c.LogRequests, sut.LogFailed, sut.LogAll, sut.LogNone)
	}
	return c, nil
}

// App is the photo service of one web node.
type App struct {
	config  Config
	mux     *http.ServeMux
	checks  map[string]http.Handler // health checks by path; they are not counted as requests
	metrics *metrics
	page    *template.Template
	assets  map[string]asset
	outages map[string]*outage // by tier

	buffers  sync.Pool // of *jsonBuffer
	memory   memory
	slots    chan struct{} // one for each upload in processing; more would need more memory and not be faster
	draining atomic.Bool

	ids      *sut.RequestIDs
	servedBy []string // value of HeaderServedBy, shared by all responses
	noSniff  []string // value of X-Content-Type-Options, likewise
	hit      []string // value of HeaderCache, likewise
}

// New returns the service of one node.
func New(c Config) (*App, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	a := &App{
		config:   c,
		mux:      http.NewServeMux(),
		assets:   loadAssets(),
		outages:  map[string]*outage{tierDB: {}, tierBlob: {}, tierSession: {}, tierCache: {}, tierQueue: {}},
		memory:   newMemory(c.MemoryBytes),
		slots:    make(chan struct{}, runtime.GOMAXPROCS(0)),
		ids:      sut.NewRequestIDs(),
		servedBy: []string{c.Node},
		noSniff:  []string{"nosniff"},
		hit:      []string{"hit"},
	}
	a.buffers.New = func() any { return newJSONBuffer() }
	a.page = newPage(a.assets)
	a.checks = map[string]http.Handler{sut.HealthPath: readOnly(a.healthz), "/readyz": readOnly(a.readyz)}
	routes := a.routes()
	a.metrics = newMetrics(c.Registry, routes)
	a.register(routes)
	return a, nil
}

// Operations returns the handler of the admin address: /healthz, /readyz and
// /metrics. The public address serves the first two as well, for balancers.
func (a *App) Operations() http.Handler {
	metrics := readOnly(promhttp.HandlerFor(a.config.Registry, promhttp.HandlerOpts{}).ServeHTTP)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch check := a.checks[r.URL.Path]; {
		case check != nil:
			check.ServeHTTP(w, r)
		case r.URL.Path == "/metrics":
			metrics.ServeHTTP(w, r)
		default:
			sendError(w, http.StatusNotFound, "there is nothing at "+r.URL.Path,
				"this address serves /healthz, /readyz and /metrics")
		}
	})
}

// Draining reports whether Drain was called.
func (a *App) Draining() bool { return a.draining.Load() }

// Drain makes /readyz answer 503, so that balancers send no new requests. Requests
// that still arrive are served.
func (a *App) Drain() { a.draining.Store(true) }

// ServeHTTP answers one request, and counts it.
func (a *App) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header[HeaderServedBy] = a.servedBy
	header["X-Content-Type-Options"] = a.noSniff
	if check := a.checks[r.URL.Path]; check != nil {
		check.ServeHTTP(w, r)
		return
	}
	x := &exchange{ResponseWriter: w, app: a, r: r, op: a.metrics.other, begun: a.config.Now()}
	x.ctx = requestContext{
		Context: r.Context(), id: [1]string{a.ids.FromHeader(r.Header)}, image: reservation{of: a.memory.images},
	}
	x.ctx.served.Fresh = slices.Contains(r.Header["Cache-Control"], "no-cache")
	header[sut.RequestIDHeader] = x.ctx.id[:]
	if r.ContentLength != 0 {
		// Also for a request whose handler does not read the body: the server reads
		// the rest of it, and without a deadline would wait forever.
		x.setBodyDeadline(x.begun.Add(bodyTimeout))
	}
	a.metrics.inFlight.Inc()
	defer a.finish(x)
	if a.config.Full != nil && a.config.Full(r.Context()) {
		a.refuse(x, busy("this host has reached its maximum number of connections"))
		return
	}
	a.mux.ServeHTTP(x, r)
}

// requestIDKey is the key of the request id in a request's context.
type requestIDKey struct{}

// requestContext is the context of one request. The exchange contains it, and the
// response header shares its id, so it needs no allocation of its own.
type requestContext struct {
	context.Context
	id     [1]string
	served sut.Served
	image  reservation
}

// Value returns the request id, how the request is answered, or a value of the server's context.
func (c *requestContext) Value(key any) any {
	switch key.(type) {
	case requestIDKey:
		return &c.id[0] // a pointer, because a string would be copied to the heap
	case sut.ServedKey:
		return &c.served
	case imageKey:
		return &c.image
	}
	return c.Context.Value(key)
}

// RequestID returns the request id in a context, or "" if the context belongs to no
// request. Clients of other tiers send it with their calls.
func RequestID(ctx context.Context) string {
	if id, ok := ctx.Value(requestIDKey{}).(*string); ok {
		return *id
	}
	return ""
}

// finish ends an exchange: it recovers from a panic, counts and logs the request. It
// must run deferred. A handler that panics is a bug. It must not stop the process, and
// its request must still be counted. The client gets a 500 if nothing was sent yet.
func (a *App) finish(x *exchange) {
	cause := recover()
	if cause != nil && cause != http.ErrAbortHandler {
		a.config.Log.Error("a handler panicked", "request_id", x.id(), "op", x.op.name,
			"method", x.r.Method, "path", x.r.URL.Path, "panic", cause, "stack", string(debug.Stack()))
		if x.status == 0 {
			a.refuse(x, internalError(nil))
			cause = nil
		}
	}
	a.metrics.inFlight.Dec()
	x.ctx.image.release()
	x.answered(http.StatusOK) // the server sends 200 if the handler sent nothing
	took := a.config.Now().Sub(x.begun)
	x.op.seconds.Observe(took.Seconds())
	a.logRequest(x, took)
	if cause != nil {
		// Part of the response was sent. Only a broken connection can tell the client
		// that it is incomplete.
		panic(http.ErrAbortHandler)
	}
}
