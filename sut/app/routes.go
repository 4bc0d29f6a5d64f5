package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// access says which clients may use a route.
type access int

const (
	public   access = iota // no session is looked up
	private                // a session is required, else 401
	personal               // no session is required, but one is looked up
)

// action serves one request. The context ends after 5 s. refuse answers
// a returned error, so an action that has started its response must return nil.
type action func(ctx context.Context, x *exchange) error

// route is one method on one path.
type route struct {
	method  string // GET includes HEAD
	pattern string // of http.ServeMux, without the method
	op      string // the op in metrics; workloads use the same names
	access  access
	action  action
}

// otherOp is the op of requests without a route.
const otherOp = "other"

// uploadOp is the op of the service sut.Uploads.
const uploadOp = "upload"

// routes lists all routes of the service.
func (a *App) routes() []route {
	return []route{
		{"GET", "/{$}", "page", personal, a.showPage},
		{"GET", "/static/{file...}", "asset", public, a.showAsset},
		{"GET", "/img/{id}/{file}", "image", public, a.showImage},

		{"GET", "/api/feed", "feed", public, a.showFeed},
		{"GET", "/api/photos/{id}", "photo", public, a.showPhoto},
		{"GET", "/api/users/{id}", "user", public, a.showUser},
		{"GET", "/api/me", "me", private, a.showMe},

		{"POST", "/api/login", "login", public, a.login},
		{"POST", "/api/logout", "login", private, a.logout},
		{"POST", "/api/photos", uploadOp, private, a.upload},
		{"PATCH", "/api/photos/{id}", "rename", private, a.rename},
		{"DELETE", "/api/photos/{id}", "delete", private, a.delete},
		{"POST", "/api/photos/{id}/like", "like", private, a.like},
		{"POST", "/api/photos/{id}/comments", "comment", private, a.comment},
		{"POST", "/api/users/{id}/follow", "follow", private, a.follow},
	}
}

// register adds the routes to the mux, one resource per path. The resource checks the
// method, because the mux would answer a wrong method without JSON.
func (a *App) register(routes []route) {
	resources := map[string]*resource{}
	for _, route := range routes {
		r := resources[route.pattern]
		if r == nil {
			r = &resource{app: a, methods: map[string]*operation{}}
			resources[route.pattern] = r
			a.mux.Handle(route.pattern, r)
		}
		o := &operation{route: route, metrics: a.metrics.byOp[route.op], named: strings.Contains(route.pattern, "{id}")}
		if !a.offers(route) {
			o.access, o.named = public, false
			o.action = func(context.Context, *exchange) error { return a.misdirected() }
		}
		r.methods[route.method] = o
		if route.method == http.MethodGet {
			r.methods[http.MethodHead] = o
		}
	}
	for _, r := range resources {
		r.allow = strings.Join(slices.Sorted(maps.Keys(r.methods)), ", ")
	}
	a.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		p := notFound("there is nothing at "+r.URL.Path, "GET / shows the page, GET /api/feed?user=1 a feed")
		if a.config.Service == sut.Uploads {
			p = a.misdirected()
		}
		a.refuse(w.(*exchange), p)
	})
}

// offers reports whether a route belongs to the service of this host.
func (a *App) offers(r route) bool {
	return a.config.Service == "" || (r.op == uploadOp) == (a.config.Service == sut.Uploads)
}

// misdirected refuses a request that belongs to a host of the other service.
func (a *App) misdirected() *problem {
	own, other := a.config.Service, sut.Reads
	if own == sut.Reads {
		other = sut.Uploads
	}
	return refusal(http.StatusMisdirectedRequest,
		fmt.Sprintf("this host serves %s only, and the request belongs to a host for %s", own, other),
		"send it to the balancer, which routes it to a host of that service")
}

// resource is all methods of one path.
type resource struct {
	app     *App
	methods map[string]*operation
	allow   string // value of the header Allow
}

// operation is one method of a resource.
type operation struct {
	route
	named   bool // the path has an id
	metrics *opMetrics
}

func (s *resource) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := w.(*exchange) // App.ServeHTTP passes it
	operation := s.methods[r.Method]
	switch {
	case operation != nil:
		x.op = operation.metrics
		if err := s.app.carryOut(x, operation); err != nil {
			s.app.refuse(x, err)
		}
	case s.app.config.Service == sut.Uploads:
		s.app.refuse(x, s.app.misdirected())
	default:
		x.Header().Set("Allow", s.allow)
		s.app.refuse(x, refusal(http.StatusMethodNotAllowed,
			"method "+r.Method+" is not allowed here", "use one of "+s.allow))
	}
}

func (a *App) carryOut(x *exchange, o *operation) error {
	ctx, cancel := bound(x)
	defer cancel()
	if o.access != public {
		if err := a.identify(ctx, x); err != nil {
			if o.access == private {
				return err
			}
			// Without a session the page lacks only the user's name. If the session tier
			// is down, the response says so.
			x.user = 0
			if p, ok := errors.AsType[*problem](err); ok && p.degraded != "" {
				a.noteProblem(x, p)
			}
		}
	}
	if o.named {
		id, err := parseID("the id in the path", x.r.PathValue("id"))
		if err != nil {
			return err
		}
		x.named = id
	}
	return o.action(ctx, x)
}

// bound returns the context for a request's calls to other tiers.
func bound(x *exchange) (context.Context, context.CancelFunc) {
	return context.WithTimeout(&x.ctx, tierTimeout)
}

// identify looks up the user of the request's session and sets x.user.
func (a *App) identify(ctx context.Context, x *exchange) error {
	cookie, err := x.r.Cookie(SessionCookie)
	if err != nil {
		return unauthorised("no session")
	}
	x.token = cookie.Value
	x.user, err = a.config.Sessions.User(ctx, x.token)
	if errors.Is(err, photos.ErrNotFound) {
		// The cookie stays. If web hosts keep sessions in memory, another host may know
		// this session, and removing the cookie would log the user out there.
		a.metrics.sessionsLost.Inc()
		return unauthorised("this host does not know the session")
	}
	return a.tierProblem(x, tierSession, "the session", err)
}

// exchange is one request and its response. Handlers get it as their
// http.ResponseWriter, so that it can count the status.
type exchange struct {
	http.ResponseWriter
	app    *App
	r      *http.Request
	op     *opMetrics
	begun  time.Time
	ctx    requestContext // holds the id
	cause  error          // why the request failed, for the log; nil = it did not
	status int            // the status that was sent; 0 = none yet
	user   photos.ID      // the user who is logged in; 0 = nobody
	named  photos.ID      // the id in the path, of a photo or a user; 0 = none
	token  string         // session token; "" = the client sent none
}

// id returns the id of the request.
func (x *exchange) id() string { return x.ctx.id[0] }

// body returns the body of the request, limited to a number of bytes. ServeHTTP has
// set its deadline. The caller must call bodyRead once it has read the whole body.
func (x *exchange) body(limit int64) io.ReadCloser {
	// MaxBytesReader needs the server's own writer, which is the innermost one. It makes
	// the server close the connection after the response instead of reading the rest of
	// a body that is too large.
	inner := x.ResponseWriter
	for {
		wrapper, ok := inner.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return http.MaxBytesReader(inner, x.r.Body, limit)
		}
		inner = wrapper.Unwrap()
	}
}

// bodyRead removes the deadline of a body that was read completely. A deadline that
// expires later, during processing, would look like a client that disconnected. An
// incomplete body keeps its deadline, because the server goes on reading it.
func (x *exchange) bodyRead() { x.setBodyDeadline(time.Time{}) }

// setBodyDeadline sets the deadline for the body. Without it, a client that sends one
// byte per minute would hold the memory of its upload.
func (x *exchange) setBodyDeadline(at time.Time) {
	// Only the ResponseWriter of a test does not support deadlines.
	_ = http.NewResponseController(x.ResponseWriter).SetReadDeadline(at)
}

// WriteHeader sends the status.
func (x *exchange) WriteHeader(status int) {
	if status >= 200 {
		x.answered(status)
	}
	x.ResponseWriter.WriteHeader(status)
}

// Write sends a part of the body.
func (x *exchange) Write(p []byte) (int, error) {
	x.answered(http.StatusOK)
	if x.op.static && x.r.Method != http.MethodHead { // the server drops the body of a response to HEAD
		x.app.metrics.staticBytes.Add(float64(len(p)))
	}
	return x.ResponseWriter.Write(p)
}

// answered counts the request once, before the first byte of the response is sent, and names the tiers that it was
// answered without. If the request were counted after its handler, a client could read the complete response and then
// scrape metrics that do not count it yet.
func (x *exchange) answered(status int) {
	if x.status == 0 {
		cached, without := x.ctx.served.Noted()
		if cached && x.app.outages[tierDB].lasts(x.app.config.Now()) {
			x.degrade(tierDB)
		}
		for _, tier := range without {
			x.degrade(string(tier))
		}
		x.status = status
		x.op.requests.WithLabelValues(strconv.Itoa(status)).Inc()
		if x.op.static {
			x.app.metrics.staticRequests.Inc()
		}
	}
}

// Unwrap is for http.ResponseController.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }
