package edge

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/edge/rules"
)

// Header fields with a meaning for an edge.
const (
	headerAge          = "Age"
	headerCacheStatus  = "Cache-Status"
	headerCookie       = "Cookie"
	headerDate         = "Date"
	headerDegraded     = "X-Degraded"
	headerForwardedFor = "X-Forwarded-For"
	headerLength       = "Content-Length"
	headerRetryAfter   = "Retry-After"
	headerType         = "Content-Type"
	headerVia          = "Via"
)

// exchange is one request of a client and its answer. It is the ResponseWriter of the handler.
type exchange struct {
	http.ResponseWriter
	edge     *Edge
	request  *http.Request
	rules    rules.Request
	host     string // authority of the key
	uri      string // path and query, byte for byte
	key      string
	began    time.Time
	values   [3]string // values of header fields, to save allocations: request id, Age, Cache-Status
	code     int       // status sent to the client, 0 before WriteHeader
	complete bool      // the complete answer was sent
	cause    error     // why the request failed

	mu     sync.Mutex // guards the sending of informational responses
	closed bool       // the final response begins: no informational response may follow
}

// serve handles one request of a client. It counts and logs the request at its end, after failures too.
func (e *Edge) serve(w http.ResponseWriter, r *http.Request) {
	x := &exchange{ResponseWriter: w, edge: e, request: r, began: time.Now()}
	x.values[0] = e.ids.FromHeader(r.Header)
	defer x.finish()
	switch {
	case e.cfg.Full != nil && e.cfg.Full(r.Context()):
		x.Header().Set("Connection", "close")
		x.Header().Set(headerRetryAfter, "1")
		x.refuse(http.StatusServiceUnavailable, rules.ReasonBypass, "the edge has reached its maximum number of connections")
	case r.Method == http.MethodConnect:
		x.refuse(http.StatusMethodNotAllowed, rules.ReasonMethod, "CONNECT is not supported: request a path of this server")
	case e.passed(r.Header):
		x.refuse(http.StatusLoopDetected, rules.ReasonBypass, "the request has passed this edge before")
	default:
		x.answer()
	}
	x.complete = true
}

// passed reports whether a request has passed this edge before (RFC 9110, 7.6.3). Without this test it would go round
// for ever.
func (e *Edge) passed(header http.Header) bool {
	for _, line := range header[headerVia] {
		for member := range strings.SplitSeq(line, ",") {
			if strings.TrimSpace(member) == e.via {
				return true
			}
		}
	}
	return false
}

// answer prepares the request and answers it.
func (x *exchange) answer() {
	r := x.request
	x.host, x.uri = x.edge.authority(r), r.RequestURI
	if !strings.HasPrefix(x.uri, "/") { // such as "http://host/path"
		x.uri = r.URL.RequestURI()
	}
	x.key = x.edge.keyOf(x.host, x.uri)
	if sut.Shared(r.URL.Path) {
		// Static content does not depend on the user. Without the cookie it cannot, not even by mistake.
		delete(r.Header, headerCookie)
	}
	x.rules = rules.NewRequest(r.Method, r.Header, r.ContentLength != 0)
	x.respond()
}

// WriteHeader records the status that is sent to the client. Informational statuses do not count.
func (x *exchange) WriteHeader(code int) {
	if code >= http.StatusOK {
		x.code = code
	}
	x.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController flush.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// inform sends an informational response of the origin to the client, such as 103 Early Hints. It is called on other
// goroutines, before the final response.
func (x *exchange) inform(code int, header http.Header) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed || code == http.StatusSwitchingProtocols || code == http.StatusContinue {
		return // the server of this edge has sent its own 100
	}
	own := x.Header()
	for name, lines := range header {
		own[name] = lines
	}
	x.ResponseWriter.WriteHeader(code)
	clear(own)
}

// final ends the time of informational responses. It is called before the final response, on the handler's goroutine.
func (x *exchange) final() {
	x.mu.Lock()
	x.closed = true
	x.mu.Unlock()
}

// finish counts the request, and logs it when it failed.
func (x *exchange) finish() {
	x.final()
	e := x.edge
	e.requests.Add(1)
	if x.complete && x.code < http.StatusInternalServerError {
		return
	}
	cause := ""
	switch {
	case x.cause != nil:
		cause = x.cause.Error()
	case !x.complete:
		cause = "the client left"
	}
	if !x.complete && x.code == 0 {
		x.code = sut.StatusClientDisconnected
	}
	e.cfg.Log.LogAttrs(context.Background(), slog.LevelWarn, "request",
		slog.String("request_id", x.values[0]), slog.String("method", x.request.Method),
		slog.String("path", x.request.URL.Path), slog.Int("status", x.code),
		slog.Int64("duration_ns", time.Since(x.began).Nanoseconds()), slog.String("cause", cause))
}

// failure is an answer of the edge itself, because the origin gave none.
type failure struct {
	code   int
	text   string
	cause  error
	header http.Header
}

// unreachable returns the header of a failure for which nothing was sent.
func unreachable() http.Header {
	return http.Header{
		headerRetryAfter: {"1"},   // an origin that refused a connection is tried again within this time
		headerDegraded:   {"web"}, // names the tier that is down, as the web tier does
	}
}

// errorOf returns the answer for those who have waited for a response that is an error. The response itself is for one
// client only.
func errorOf(res *http.Response) *failure {
	f := &failure{code: res.StatusCode, text: "the origin answered with " + res.Status, header: http.Header{}}
	f.cause = errors.New(f.text)
	for _, name := range []string{headerRetryAfter, headerDegraded} {
		if lines := res.Header[name]; lines != nil {
			f.header[name] = lines
		}
	}
	return f
}

// failureOf returns the answer for an error of send.
func failureOf(err error) *failure {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, errNoOrigin):
		return &failure{http.StatusServiceUnavailable, "no origin is reachable", err, unreachable()}
	case errors.Is(err, errClientBody):
		return &failure{http.StatusBadRequest, "the request body is incomplete or malformed", err, nil}
	case errors.As(err, &timeout) && timeout.Timeout():
		return &failure{http.StatusGatewayTimeout, "the origin did not answer in time", err, nil}
	}
	return &failure{http.StatusBadGateway, "the origin sent no valid answer", err, nil}
}

// fail sends a failure. reason is the reason for which the request was forwarded. It ends the handler without an answer
// when the client has left.
func (x *exchange) fail(f *failure, reason string) {
	if x.request.Context().Err() != nil {
		x.abort(errors.New("the client left"))
	}
	x.cause = f.cause
	for name, lines := range f.header {
		x.Header()[name] = lines
	}
	x.refuse(f.code, reason, f.text)
}

// abort breaks the client's connection, so that the client notices that the answer is incomplete.
func (x *exchange) abort(cause error) {
	x.final()
	x.cause = cause
	panic(http.ErrAbortHandler)
}

// refuse sends an error of the edge itself, in the JSON format of all nodes.
func (x *exchange) refuse(code int, reason, text string) {
	x.final()
	header := x.Header()
	header.Set(headerType, "application/json")
	header.Set("Cache-Control", "no-store")
	x.identify(header, "; fwd="+reason)
	x.WriteHeader(code)
	// Encode fails only when the client has left.
	_ = json.NewEncoder(x).Encode(sut.ErrorBody{Error: text})
}

// identify sets the fields that each answer has: the request id, and one more member of Cache-Status (RFC 9211).
// Members of caches behind this one come first.
func (x *exchange) identify(header http.Header, parameters string) {
	header[sut.RequestIDHeader] = x.values[0:1:1]
	x.values[2] = x.edge.name + parameters
	if before := header[headerCacheStatus]; len(before) > 0 {
		header[headerCacheStatus] = append(before[:len(before):len(before)], x.values[2])
		return
	}
	header[headerCacheStatus] = x.values[2:3:3]
}
