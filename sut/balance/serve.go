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
)

// exchange is one request and its answer. It is what the client's server, the
// reverse proxy and the transport know in common, in one piece, because each
// piece costs: to the first it is the handler's ResponseWriter, to the second
// its transport.
type exchange struct {
	http.ResponseWriter
	balancer *Balancer
	proxy    httputil.ReverseProxy // with this exchange as its transport
	client   context.Context       // ends when the client leaves
	began    time.Time
	id       [1]string // the request's id, as the value of a header
	code     int       // that the client was sent: 100 to 999, once WriteHeader was called
	complete bool      // the client was sent all of the answer
	route    *route
	held     string // the value of the client's cookie
	node     string // of the host that was tried last
	cause    error  // why the request failed
	attempt  attempt
	body     answerBody
}

// serve handles one request of a client, and counts and logs it when it has come
// to its end, however it ended.
func (b *Balancer) serve(w http.ResponseWriter, r *http.Request) {
	x := &exchange{ResponseWriter: w, balancer: b, proxy: b.proxy, client: r.Context(), began: time.Now()}
	x.id[0] = b.ids.Of(r.Header)
	x.proxy.Transport = x
	defer x.finish(r)
	if r.Method == http.MethodConnect {
		// A tunnel has no end that could be counted, and no host of ours wants one.
		x.refuse(http.StatusMethodNotAllowed, "CONNECT is not supported: ask for a path of this server")
	} else {
		x.proxy.ServeHTTP(x, r)
	}
	x.complete = true
}

// WriteHeader notes the status that the client is sent.
func (x *exchange) WriteHeader(code int) {
	// 103 Early Hints and the like come before the status.
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
	bad := x.code >= http.StatusInternalServerError || x.code == sut.StatusClientGone || !x.complete
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

// rewrite turns the client's request into the one for a host. What it leaves
// out, the exchange does once it knows the host. Hop-by-hop headers are gone
// when it is called.
func rewrite(pr *httputil.ProxyRequest) {
	pr.Out.URL.Scheme = "http"
	// The reverse proxy drops what it cannot parse; that is for the host to judge.
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery
	pr.Out.Header["X-Forwarded-For"] = pr.In.Header["X-Forwarded-For"]
	pr.SetXForwarded() // appends the client's address
	// No switching of protocols; without these, a host answers as usual.
	pr.Out.Header.Del("Connection")
	pr.Out.Header.Del("Upgrade")
}

// fail answers a request that no host answered.
func (b *Balancer) fail(w http.ResponseWriter, r *http.Request, err error) {
	x := w.(*exchange)
	x.cause = err
	var timeout net.Error
	var lost *lostError
	switch {
	case errors.Is(err, errNoUpstream):
		x.Header().Set("Retry-After", b.retryAfter)
		x.Header().Set("X-Degraded", "web") // as the web tier says which tier is away
		x.refuse(http.StatusServiceUnavailable, x.route.without())
	case r.Context().Err() != nil:
		// Nobody is left to read an answer. finish counts the request all the same.
		x.code, x.cause = sut.StatusClientGone, errors.New("the client left")
		panic(http.ErrAbortHandler)
	case errors.Is(err, errClientBody):
		x.refuse(http.StatusBadRequest, "the request body could not be read to its end")
	case errors.As(err, &timeout) && timeout.Timeout():
		x.refuse(http.StatusGatewayTimeout, "the web host did not answer in time")
	case errors.As(err, &lost):
		x.refuse(http.StatusBadGateway, "web host "+lost.node+" did not answer the request, which may have taken effect")
	default:
		x.refuse(http.StatusBadGateway, "the web host sent no valid answer")
	}
}

// refuse answers in the balancer's own name.
func (x *exchange) refuse(code int, text string) {
	x.Header()[sut.RequestIDHeader] = x.id[:]
	writeError(x, code, text)
}

// writeError answers with an error as all our services do.
func writeError(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// The client may have gone; there is nobody else to tell.
	_ = json.NewEncoder(w).Encode(sut.ErrorBody{Error: text})
}

// cookieOf returns the value of the first cookie of that name.
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

// takeCookie removes the cookies of that name from a request and returns the
// value of the first, "" when there is none. What else the header holds stays
// as it is.
func takeCookie(header http.Header, name string) string {
	// Most requests hold no such cookie, and then nothing is copied.
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

// setCookie adds a cookie to a response, as HAProxy's "cookie NAME insert
// nocache httponly" does: what carries one user's cookie is not for a shared
// cache.
func setCookie(header http.Header, name, value string) {
	header.Add("Set-Cookie", name+"="+value+"; path=/; HttpOnly")
	header.Add("Cache-Control", "private")
}

// A user stays on one host of each route that has hosts of its own: the session
// may be in the memory of one, while another takes the uploads. So the cookie's
// value is a list of names with colons between them; most have one.
const heldSeparator = ":"

// holds reports whether a cookie's value lists a host.
func holds(held, node string) bool {
	for name := range strings.SplitSeq(held, heldSeparator) {
		if name == node {
			return true
		}
	}
	return false
}

// holdInstead is the value that lists a host in place of the others of its
// group. Names that are in none of the groups are dropped, so that the list
// cannot grow without end.
func holdInstead(held string, r *routing, g *group, node string) string {
	names := []string{node}
	named := func(name string) func(*upstream) bool { return func(u *upstream) bool { return u.node == name } }
	for name := range strings.SplitSeq(held, heldSeparator) {
		known := slices.ContainsFunc(r.all().members, named(name))
		if known && !slices.ContainsFunc(g.members, named(name)) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, heldSeparator)
}

// bufferPool lends the buffers that bodies are copied through.
type bufferPool struct{ pool sync.Pool }

// bufferSize is the size of a buffer in bytes: io.Copy's.
const bufferSize = 32 << 10

func (p *bufferPool) Get() []byte {
	if buffer, ok := p.pool.Get().(*[bufferSize]byte); ok {
		return buffer[:]
	}
	return make([]byte, bufferSize)
}

// Put keeps the array and not the slice, whose header would cost an allocation.
func (p *bufferPool) Put(buffer []byte) { p.pool.Put((*[bufferSize]byte)(buffer)) }
