package balance

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/attempt"
)

// exchange is one request and its answer. It is the ResponseWriter of the handler and
// the transport of the reverse proxy. One struct holds the state of both to save
// allocations.
type exchange struct {
	http.ResponseWriter
	balancer *Balancer
	proxy    httputil.ReverseProxy // its transport is this exchange
	client   context.Context       // ends when the client leaves
	began    time.Time
	id       [1]string // the request id, as the value of a header
	code     int       // status sent to the client: 100 to 999, 0 before WriteHeader
	complete bool      // the complete answer was sent to the client
	route    *route
	sticky   string          // value of the client's sticky cookie
	keeps    bool            // the user stays on the host that answers
	node     string          // the host that was tried last
	cause    error           // why the request failed
	attempt  attempt.Attempt // the last one
	sent     time.Time       // start of the last attempt
	body     answerBody
}

// serve handles one request of a client. It counts and logs the request at its end,
// after failures too.
func (b *Balancer) serve(w http.ResponseWriter, r *http.Request) {
	x := &exchange{ResponseWriter: w, balancer: b, proxy: b.proxy, client: r.Context(), began: time.Now()}
	x.id[0] = b.ids.FromHeader(r.Header)
	x.proxy.Transport = x
	defer x.finish(r)
	switch {
	case b.cfg.Full != nil && b.cfg.Full(r.Context()):
		x.Header().Set("Connection", "close")
		x.Header().Set("Retry-After", "1")
		x.refuse(http.StatusServiceUnavailable, "the balancer has reached its maximum number of connections")
	case r.Method == http.MethodConnect:
		// The web hosts do not support tunnels.
		x.refuse(http.StatusMethodNotAllowed, "CONNECT is not supported: request a path of this server")
	default:
		x.proxy.ServeHTTP(x, r)
	}
	x.complete = true
}

// WriteHeader records the status that is sent to the client.
func (x *exchange) WriteHeader(code int) {
	// Informational statuses, such as 103 Early Hints, come before the final one.
	if code >= http.StatusOK {
		x.code = code
	}
	x.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController flush.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// finish counts and logs the request.
func (x *exchange) finish(r *http.Request) {
	b := x.balancer
	b.finished[x.code].Add(1)
	bad := x.code >= http.StatusInternalServerError || x.code == sut.StatusClientDisconnected || !x.complete
	if b.cfg.LogRequests == sut.LogNone || b.cfg.LogRequests == sut.LogFailed && !bad {
		return
	}
	level, cause := slog.LevelInfo, ""
	if bad {
		level = slog.LevelWarn
		switch {
		case x.cause != nil:
			cause = x.cause.Error()
		case !x.complete:
			cause = "the client left"
		}
	}
	b.cfg.Log.LogAttrs(context.Background(), level, "request",
		slog.String("request_id", x.id[0]), slog.String("method", r.Method), slog.String("path", r.URL.Path),
		slog.Int("status", x.code), slog.String("upstream", x.node),
		slog.Int64("duration_ns", time.Since(x.began).Nanoseconds()), slog.String("cause", cause))
}

// rewrite turns the client's request into the request for a host. RoundTrip later sets
// the parts that depend on the host. The reverse proxy has already removed the
// hop-by-hop headers.
func rewrite(pr *httputil.ProxyRequest) {
	pr.Out.URL.Scheme = "http"
	// The reverse proxy removes query parameters that it cannot parse. The host must
	// get them and decide.
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery
	pr.Out.Header["X-Forwarded-For"] = pr.In.Header["X-Forwarded-For"]
	pr.SetXForwarded() // appends the client's address
	// Protocols are not switched. Without these headers, a host sends a normal answer.
	pr.Out.Header.Del("Connection")
	pr.Out.Header.Del("Upgrade")
}

// fail sends an error to the client when no host answered the request.
func (b *Balancer) fail(w http.ResponseWriter, r *http.Request, err error) {
	x := w.(*exchange)
	x.cause = err
	var timeout net.Error
	var lost *lostError
	switch {
	case errors.Is(err, errNoUpstream):
		x.Header().Set("Retry-After", b.retryAfter)
		x.Header().Set("X-Degraded", "web") // names the tier that is down, as the web tier does
		x.refuse(http.StatusServiceUnavailable, x.route.noHostMessage())
	case r.Context().Err() != nil:
		// The client has left, so no answer is sent. finish still counts the request.
		x.code, x.cause = sut.StatusClientDisconnected, errors.New("the client left")
		panic(http.ErrAbortHandler)
	case errors.Is(err, errClientBody):
		x.refuse(http.StatusBadRequest, "the request body is incomplete or malformed")
	case errors.As(err, &timeout) && timeout.Timeout():
		x.refuse(http.StatusGatewayTimeout, "the web host did not answer in time")
	case errors.As(err, &lost):
		x.refuse(http.StatusBadGateway, "web host "+lost.node+" did not answer the request, which may have taken effect")
	default:
		x.refuse(http.StatusBadGateway, "the web host sent no valid answer")
	}
}

// refuse sends an error of the balancer itself.
func (x *exchange) refuse(code int, text string) {
	x.Header()[sut.RequestIDHeader] = x.id[:]
	writeError(x, code, text)
}

// writeError sends an error in the JSON format of all nodes.
func writeError(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// Encode fails only when the client has left.
	_ = json.NewEncoder(w).Encode(sut.ErrorBody{Error: text})
}

// cookieOf returns the value of the first cookie with the name.
func cookieOf(header http.Header, name string) (value string, found bool) {
	for _, line := range header["Cookie"] {
		for pair := range strings.SplitSeq(line, ";") {
			key, text, _ := strings.Cut(textproto.TrimString(pair), "=")
			if key == name {
				return strings.Trim(text, `"`), true
			}
		}
	}
	return "", false
}

// takeCookie removes the cookies with the name from a request and returns the value of
// the first one, "" when there is none. It does not change other cookies.
func takeCookie(header http.Header, name string) string {
	// Most requests have no such cookie. They return here without a copy.
	maybe := func(line string) bool { return strings.Contains(line, name+"=") }
	if !slices.ContainsFunc(header["Cookie"], maybe) {
		return ""
	}
	value, _ := cookieOf(header, name)
	var kept []string
	for _, line := range header["Cookie"] {
		var pairs []string
		for pair := range strings.SplitSeq(line, ";") {
			pair = textproto.TrimString(pair)
			if key, _, _ := strings.Cut(pair, "="); key != name {
				pairs = append(pairs, pair)
			}
		}
		if len(pairs) > 0 {
			kept = append(kept, strings.Join(pairs, "; "))
		}
	}
	header["Cookie"] = kept
	if len(kept) == 0 {
		delete(header, "Cookie")
	}
	return value
}

// setCookie adds a cookie to a response, as HAProxy's "cookie NAME insert nocache
// httponly" does. "private" prevents a shared cache from serving one user's cookie to
// other users.
func setCookie(header http.Header, name, value string) {
	header.Add("Set-Cookie", name+"="+value+"; path=/; HttpOnly")
	header.Add("Cache-Control", "private")
}

// stickySeparator separates the names of hosts in the sticky cookie. The cookie lists
// one host for each route with its own hosts: one host may have the user's session in
// memory, and another one may receive the uploads.
const stickySeparator = ":"

// listsNode reports whether the value of a sticky cookie lists a host.
func listsNode(sticky, node string) bool {
	for name := range strings.SplitSeq(sticky, stickySeparator) {
		if name == node {
			return true
		}
	}
	return false
}

// stickyValue returns the new value of a sticky cookie. The host replaces the other
// hosts of its group. Unknown names are dropped: a client could make the list grow
// without limit.
func stickyValue(sticky string, r *routing, g *group, node string) string {
	names := []string{node}
	named := func(name string) func(*upstream) bool { return func(u *upstream) bool { return u.node == name } }
	for name := range strings.SplitSeq(sticky, stickySeparator) {
		known := slices.ContainsFunc(r.all().members, named(name))
		if known && !slices.ContainsFunc(g.members, named(name)) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, stickySeparator)
}

// bufferPool holds the buffers for copying bodies.
type bufferPool struct{ pool sync.Pool }

// bufferSize is the size of a buffer in bytes, the same as in io.Copy.
const bufferSize = 32 << 10

func (p *bufferPool) Get() []byte {
	if buffer, ok := p.pool.Get().(*[bufferSize]byte); ok {
		return buffer[:]
	}
	return make([]byte, bufferSize)
}

// Put stores a pointer to the array: storing the slice would allocate its header.
func (p *bufferPool) Put(buffer []byte) { p.pool.Put((*[bufferSize]byte)(buffer)) }
