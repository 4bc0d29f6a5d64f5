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

// who may use a route.
type who int

const (
	anyone    who = iota
	loggedIn      // 401 without a session
	recognise     // anyone, but a session is looked up
)

// action carries out one request. The context ends after Config.TierTimeout.
// An error is answered by refuse, so an action that has begun its response
// must not return one.
type action func(ctx context.Context, x *exchange) error

// route is one method on one path.
type route struct {
	method  string // GET includes HEAD
	pattern string // of http.ServeMux, without the method
	op      string // class of the request in metrics: the names of the workloads' ops
	who     who
	action  action
}

// otherOp is the class of requests that no route answers.
const otherOp = "other"

// uploadOp is the op that web.split gives hosts of its own.
const uploadOp = "upload"

// routes is all that the service does.
func (a *App) routes() []route {
	return []route{
		{"GET", "/{$}", "page", recognise, a.showPage},
		{"GET", "/static/{file...}", "asset", anyone, a.showAsset},
		{"GET", "/img/{id}/{file}", "image", anyone, a.showImage},

		{"GET", "/api/feed", "feed", anyone, a.showFeed},
		{"GET", "/api/photos/{id}", "photo", anyone, a.showPhoto},
		{"GET", "/api/users/{id}", "user", anyone, a.showUser},
		{"GET", "/api/me", "me", loggedIn, a.showMe},

		{"POST", "/api/login", "login", anyone, a.login},
		{"POST", "/api/logout", "login", loggedIn, a.logout},
		{"POST", "/api/photos", uploadOp, loggedIn, a.upload},
		{"PATCH", "/api/photos/{id}", "rename", loggedIn, a.rename},
		{"DELETE", "/api/photos/{id}", "delete", loggedIn, a.delete},
		{"POST", "/api/photos/{id}/like", "like", loggedIn, a.like},
		{"POST", "/api/photos/{id}/comments", "comment", loggedIn, a.comment},
		{"POST", "/api/users/{id}/follow", "follow", loggedIn, a.follow},
	}
}

// register puts the routes into the mux, one resource per path. Methods are not
// left to the mux, whose answer to a wrong one is not JSON.
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
			o.who, o.named = anyone, false
			o.action = func(context.Context, *exchange) error { return a.elsewhere() }
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
		p := notFound("nothing is at "+r.URL.Path, "GET / shows the page, GET /api/feed?user=1 a feed")
		if a.config.Service == sut.Uploads {
			p = a.elsewhere()
		}
		a.refuse(w.(*exchange), p)
	})
}

// offers reports whether a route is part of the service of this host.
func (a *App) offers(r route) bool {
	return a.config.Service == "" || (r.op == uploadOp) == (a.config.Service == sut.Uploads)
}

// elsewhere answers what belongs to a host of the other service.
func (a *App) elsewhere() *problem {
	own, other := a.config.Service, sut.Reads
	if own == sut.Reads {
		other = sut.Uploads
	}
	return refusal(http.StatusMisdirectedRequest,
		fmt.Sprintf("this host serves %s only, and the request belongs to a host for %s", own, other),
		"send it to the balancer, which knows the hosts of each service")
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
	named   bool // its path has an id
	metrics *opMetrics
}

func (s *resource) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := w.(*exchange) // ServeHTTP of App made it
	operation := s.methods[r.Method]
	switch {
	case operation != nil:
		x.op = operation.metrics
		if err := s.app.carryOut(x, operation); err != nil {
			s.app.refuse(x, err)
		}
	case s.app.config.Service == sut.Uploads:
		s.app.refuse(x, s.app.elsewhere())
	default:
		x.Header().Set("Allow", s.allow)
		s.app.refuse(x, refusal(http.StatusMethodNotAllowed,
			"method "+r.Method+" is not allowed here", "use one of "+s.allow))
	}
}

func (a *App) carryOut(x *exchange, o *operation) error {
	ctx, cancel := a.bound(x)
	defer cancel()
	if o.who != anyone {
		if err := a.identify(ctx, x); err != nil {
			if o.who == loggedIn {
				return err
			}
			// The page is for everybody: without a session it is the same, less the
			// user's name, and says so if that is for want of the tier.
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

// bound returns the context for the calls to tiers of one request.
func (a *App) bound(x *exchange) (context.Context, context.CancelFunc) {
	return context.WithTimeout(&x.ctx, a.config.TierTimeout)
}

// identify finds out who is logged in.
func (a *App) identify(ctx context.Context, x *exchange) error {
	cookie, err := x.r.Cookie(SessionCookie)
	if err != nil {
		return unauthorised("no session")
	}
	x.token = cookie.Value
	x.user, err = a.config.Sessions.User(ctx, x.token)
	if errors.Is(err, photos.ErrNotFound) {
		// The cookie is left alone. Where sessions live in web memory this host may
		// simply be the wrong one, and taking the cookie away would log the user
		// out of the right one too.
		a.metrics.sessionsLost.Inc()
		return unauthorised("the session is not known here")
	}
	return a.tierProblem(x, tierSession, "the session", err)
}

// exchange is one request and the response to it. It is the http.ResponseWriter
// that handlers see, which is how the status gets counted.
type exchange struct {
	http.ResponseWriter
	r      *http.Request
	op     *opMetrics
	begun  time.Time
	ctx    requestContext // holds the id
	cause  error          // why it was refused, for the log; nil = it was not
	status int            // sent; 0 = not yet
	user   photos.ID      // who is logged in; 0 = nobody
	named  photos.ID      // the photo or the user that the path names; 0 = it names none
	token  string         // of the session, if the client sent one
}

// id returns the id of the request.
func (x *exchange) id() string { return x.ctx.id[0] }

// body returns the body of the request, bounded in bytes; its time is bounded
// since ServeHTTP. Once it is read, the caller says so with bodyRead.
func (x *exchange) body(limit int64) io.ReadCloser {
	// The innermost writer, which is the server's own, is passed for
	// MaxBytesReader to have the connection closed after the answer: what is left
	// of the body is not read.
	inner := x.ResponseWriter
	for {
		wrapper, ok := inner.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return http.MaxBytesReader(inner, x.r.Body, limit)
		}
		inner = wrapper.Unwrap()
	}
}

// bodyRead lifts the deadline of a body that is there: if it passed while we
// work, that would look like a client who left. That of one which is not all
// there must stay, because the server goes on reading it.
func (x *exchange) bodyRead() { x.setBodyDeadline(time.Time{}) }

// setBodyDeadline bounds the time for the body: a client that sends a byte a
// minute must not hold the memory that is set aside for its upload.
func (x *exchange) setBodyDeadline(at time.Time) {
	// A writer that knows no deadlines is one of a test.
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
	return x.ResponseWriter.Write(p)
}

// answered counts the request, once, before the first byte of the answer can
// leave. If it were counted when its handler ends, a client who has the whole
// answer and asks for the count at once could find it missing.
func (x *exchange) answered(status int) {
	if x.status == 0 {
		x.status = status
		x.op.requests.WithLabelValues(strconv.Itoa(status)).Inc()
	}
}

// Unwrap is for http.ResponseController.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }
