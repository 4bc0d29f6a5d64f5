// Package app is the photo service: one HTTP handler that answers the JSON API,
// the HTML page, the images and the static assets of a web host.
//
// It owns the protocol and nothing else. Rows are in the Store, bytes in Blobs,
// logins in Sessions, and processing is a function: all of them are declared
// here, in tiers.go, as the service needs them, and given to New. The package
// opens no connection and starts no goroutine that outlives its request.
//
// The usual order of calls: New, serve it for as long as the node lives, Drain
// when the node is told to stop. All methods may be called concurrently.
//
// What a client can rely on:
//   - Every response carries X-Served-By, the node that answered; every
//     response that shows a record carries its version in X-Record-Version (of
//     a list, the highest), so that a client can tell a stale answer. A single
//     record that was read from a cache comes with "X-Cache: hit".
//   - Every response carries the request's id in X-Request-Id: the one that it
//     came with, or a new one. Log lines and calls to other tiers have it, too.
//   - Errors are JSON, {"error": what was wrong, "hint": what to do}. What the
//     client sent wrong is 4xx, never 500.
//   - When a tier is away, what needs it answers 503 with Retry-After; what does
//     not need it goes on. Whatever was answered without it names it in
//     X-Degraded (db, blob, session).
//   - A tier is waited for no longer than Config.TierTimeout, a client's body
//     no longer than Config.BodyTimeout. How long a client may take for the
//     header of a request, or to read the response, is for the http.Server to
//     say.
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
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/semaphore"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// Headers of responses.
const (
	HeaderServedBy      = "X-Served-By"
	HeaderRecordVersion = "X-Record-Version"
	HeaderCache         = "X-Cache" // "hit" when the record shown was read from a cache
	HeaderDegraded      = "X-Degraded"
)

// SessionCookie is the name of the cookie that holds a session's token.
const SessionCookie = "session"

// Config is what a web node is made of. All fields up to Now are needed.
type Config struct {
	Node     string // name of the node, in X-Served-By
	Store    photos.Records
	Blobs    Blobs
	Sessions Sessions
	// Process makes the variants of an upload: imaging.Process. Its errors wrap
	// those of package photos.
	Process  func(original []byte) (photos.Variants, error)
	IDs      *photos.IDSource
	Log      *slog.Logger
	Registry *prometheus.Registry // gets the app's metrics, and is what /metrics shows
	Now      func() time.Time

	// Service is what this host offers: sut.Reads, sut.Uploads, or both when it is
	// empty. What it does not offer is 421: it belongs to another host.
	Service sut.Service
	// Full reports whether a request came over a connection that is one too many
	// for this host; it is answered 503, and whoever serves closes the connection.
	// nil = none is.
	Full func(context.Context) bool
	// LogRequests says which requests are logged, a line each with their ids:
	// sut.LogFailed, which is the default, those answered 500 or more; sut.LogAll or
	// sut.LogNone. Mistakes of the service are logged whatever it says.
	LogRequests string

	TierTimeout    time.Duration // for all calls to tiers of one request; 0 = 5 s
	BodyTimeout    time.Duration // from the start of a request to the end of its body; 0 = 60 s
	MaxUploadBytes int64         // of one original; 0 = 8 MiB
	// UploadMemory bounds the bytes of all uploads that are being read or
	// processed; an upload above it is told to come back. 0 = 64 MiB.
	UploadMemory int64
	// ProcessSlots is how many uploads are processed at once, 0 = GOMAXPROCS:
	// more would not be faster, and each needs memory for its pixels.
	ProcessSlots int
}

func (c Config) withDefaults() (Config, error) {
	c.LogRequests = cmp.Or(c.LogRequests, sut.LogFailed)
	c.TierTimeout = cmp.Or(c.TierTimeout, 5*time.Second)
	c.BodyTimeout = cmp.Or(c.BodyTimeout, time.Minute)
	c.MaxUploadBytes = cmp.Or(c.MaxUploadBytes, 8<<20)
	c.UploadMemory = cmp.Or(c.UploadMemory, 64<<20)
	c.ProcessSlots = cmp.Or(c.ProcessSlots, runtime.GOMAXPROCS(0))
	switch {
	case c.Node == "":
		return c, errors.New("app: the node has no name")
	case c.Store == nil || c.Blobs == nil || c.Sessions == nil:
		return c, errors.New("app: a store, blobs and sessions are needed")
	case c.Process == nil || c.IDs == nil:
		return c, errors.New("app: photo processing and a source of ids are needed")
	case c.Log == nil || c.Registry == nil || c.Now == nil:
		return c, errors.New("app: a logger, a registry and a clock are needed")
	case min(c.TierTimeout, c.BodyTimeout) < 0 || min(c.MaxUploadBytes, int64(c.ProcessSlots)) < 0:
		return c, errors.New("app: no limit may be negative")
	case c.Service != "" && c.Service != sut.Reads && c.Service != sut.Uploads:
		return c, fmt.Errorf("app: unknown service %q", c.Service)
	case c.LogRequests != sut.LogFailed && c.LogRequests != sut.LogAll && c.LogRequests != sut.LogNone:
		return c, fmt.Errorf("app: log requests %q: want %s, %s or %s", c.LogRequests, sut.LogFailed, sut.LogAll, sut.LogNone)
	case c.UploadMemory < c.MaxUploadBytes+formOverhead:
		return c, errors.New("app: the memory for uploads must hold at least one of the largest")
	}
	return c, nil
}

// App is the photo service of one web node.
type App struct {
	config  Config
	mux     *http.ServeMux
	checks  map[string]http.Handler // by path: for operators and balancers, not counted as requests
	metrics *metrics
	page    *template.Template
	assets  map[string]asset
	outages map[string]*outage // by tier, for its log lines

	buffers  sync.Pool // of *jsonBuffer
	memory   *semaphore.Weighted
	slots    chan struct{}
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
		outages:  map[string]*outage{tierDB: {}, tierBlob: {}, tierSession: {}},
		memory:   semaphore.NewWeighted(c.UploadMemory),
		slots:    make(chan struct{}, c.ProcessSlots),
		ids:      sut.NewRequestIDs(),
		servedBy: []string{c.Node},
		noSniff:  []string{"nosniff"},
		hit:      []string{"hit"},
	}
	a.buffers.New = func() any { return newJSONBuffer() }
	a.page = newPage(a.assets)
	a.checks = map[string]http.Handler{"/healthz": readOnly(a.healthz), "/readyz": readOnly(a.readyz)}
	routes := a.routes()
	a.metrics = newMetrics(c.Registry, routes)
	a.register(routes)
	return a, nil
}

// Operations is the operators' side: /healthz, /readyz and /metrics. Balancers
// find the first two at the public address as well.
func (a *App) Operations() http.Handler {
	metrics := readOnly(promhttp.HandlerFor(a.config.Registry, promhttp.HandlerOpts{}).ServeHTTP)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch check := a.checks[r.URL.Path]; {
		case check != nil:
			check.ServeHTTP(w, r)
		case r.URL.Path == "/metrics":
			metrics.ServeHTTP(w, r)
		default:
			sendError(w, http.StatusNotFound, "nothing is at "+r.URL.Path,
				"operators find /healthz, /readyz and /metrics here")
		}
	})
}

// Draining reports whether Drain was called.
func (a *App) Draining() bool { return a.draining.Load() }

// Drain makes /readyz answer 503, so that balancers send nothing new. Requests
// that come nevertheless are served.
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
	x := &exchange{ResponseWriter: w, r: r, op: a.metrics.other, begun: a.config.Now()}
	x.ctx = requestContext{Context: r.Context(), id: [1]string{a.ids.Of(r.Header)}}
	header[sut.RequestIDHeader] = x.ctx.id[:]
	if r.ContentLength != 0 {
		// Also for a body that nobody will read: the server does so before it
		// sends the answer, and without a bound would wait for ever.
		x.setBodyDeadline(x.begun.Add(a.config.BodyTimeout))
	}
	a.metrics.inFlight.Inc()
	defer a.finish(x)
	if a.config.Full != nil && a.config.Full(r.Context()) {
		a.refuse(x, busy("this host has as many connections as it takes"))
		return
	}
	a.mux.ServeHTTP(x, r)
}

// requestIDKey is where a request's context has its id.
type requestIDKey struct{}

// requestContext is the context of one request. It is a part of the exchange,
// whose id is that of the response's header, too: nothing of it is allocated on
// its own.
type requestContext struct {
	context.Context
	id [1]string
}

// Value returns the id, or what the server put into the context.
func (c *requestContext) Value(key any) any {
	if _, ours := key.(requestIDKey); ours {
		return &c.id[0] // a pointer: a string would be copied to the heap
	}
	return c.Context.Value(key)
}

// RequestID returns the id of the request that a context belongs to, "" for any
// other context. It goes with the calls that are made to other tiers.
func RequestID(ctx context.Context) string {
	if id, ok := ctx.Value(requestIDKey{}).(*string); ok {
		return *id
	}
	return ""
}

// finish ends an exchange. It runs deferred: a handler that panics is a mistake
// of ours, answered with a 500 where nothing was sent yet, and must not escape
// the figures or take the process along.
func (a *App) finish(x *exchange) {
	cause := recover()
	if cause != nil && cause != http.ErrAbortHandler {
		a.config.Log.Error("a handler panicked", "request_id", x.id(), "op", x.op.name,
			"method", x.r.Method, "path", x.r.URL.Path, "panic", cause, "stack", string(debug.Stack()))
		if x.status == 0 {
			a.refuse(x, mistake(nil))
			cause = nil
		}
	}
	a.metrics.inFlight.Dec()
	x.answered(http.StatusOK) // what the server sends for a handler that said nothing
	took := a.config.Now().Sub(x.begun)
	x.op.seconds.Observe(took.Seconds())
	a.logRequest(x, took)
	if cause != nil {
		// The response has begun: breaking the connection is the only way left to
		// say that it is not whole.
		panic(http.ErrAbortHandler)
	}
}
