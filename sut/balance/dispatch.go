package balance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// errNoUpstream: no host of the route is up, or none could be reached. Nothing
// was sent.
var errNoUpstream = errors.New("no upstream")

// errClientBody: the client's own body broke off or made no sense.
var errClientBody = errors.New("request body")

// lostError: the request was sent to a host and got no answer.
type lostError struct {
	node string
	err  error
}

func (e *lostError) Error() string { return e.node + ": " + e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// RoundTrip implements http.RoundTripper: it picks the host of a request, and
// another one when the first could not be reached. The reverse proxy makes the
// requests that it gets for it alone, so that it may change them.
func (x *exchange) RoundTrip(req *http.Request) (*http.Response, error) {
	b := x.balancer
	e := errand{}
	if b.hashes {
		e.client = hashAddress(req.RemoteAddr)
	}
	routes := b.pool.routes.Load()
	x.route = routes.of(req)
	if b.cfg.Sticky {
		x.held = takeCookie(req.Header, sut.StickyCookie)
		e.held = x.held
	}
	req.Header[sut.RequestIDHeader] = x.id[:]
	body, err := req.Body, errNoUpstream
	// Each host is tried once; one that closed an idle connection meanwhile is
	// tried again, and the bound is for those.
	for bound := len(x.route.group.members) + 4; bound > 0; bound-- {
		u := b.pool.acquire(x.route.group, e)
		if u == nil {
			now := b.pool.routes.Load()
			if now == routes {
				break
			}
			// The membership has changed since, and perhaps all hosts with it.
			routes, x.route = now, now.of(req)
			continue
		}
		x.node = u.node
		res, failure := x.send(req, u, body)
		if failure == nil {
			return x.answer(routes, u, res)
		}
		err, again := x.failed(req.Context(), u, failure)
		if !again {
			return nil, err
		}
		if x.attempt.conn == nil {
			e.tried = append(e.tried, u)
		}
		b.redispatched.Add(1)
		// What is left of the attempt may still hold the request.
		req = req.Clone(req.Context())
	}
	return nil, err
}

// failed gives a host back that did not answer, with what that says about it,
// and reports whether another one may be tried.
func (x *exchange) failed(ctx context.Context, u *upstream, failure error) (err error, again bool) {
	p, took, v := x.balancer.pool, time.Since(x.attempt.began), noVerdict
	switch {
	case x.attempt.clientFailed():
		err = fmt.Errorf("%w: %w", errClientBody, failure)
	case ctx.Err() != nil:
		err = failure
	case x.attempt.sent():
		v, err = failed, &lostError{u.node, failure}
	case x.attempt.conn != nil: // it closed a connection that was idle, which it may
		again, err = true, fmt.Errorf("%w: %w", errNoUpstream, failure)
	default:
		p.unreached(u, failure, took)
		return fmt.Errorf("%w: %w", errNoUpstream, failure), true
	}
	p.release(u, v, failure.Error(), took)
	return err, again
}

// answer finishes the response of a host: its end is the end of the errand, and
// a user who does not hold the host's cookie gets it.
func (x *exchange) answer(routes *routing, u *upstream, res *http.Response) (*http.Response, error) {
	v, cause := judge(res)
	took := time.Since(x.attempt.began)
	x.body = answerBody{ReadCloser: res.Body, exchange: x, upstream: u, verdict: v, cause: cause, took: took}
	res.Body = &x.body
	if res.StatusCode == http.StatusSwitchingProtocols {
		x.body.verdict, x.body.cause = failed, "it switched protocols unasked"
		_ = res.Body.Close()
		return nil, &lostError{u.node, errors.New(x.body.cause)}
	}
	if x.balancer.cfg.Sticky && !holds(x.held, u.node) {
		setCookie(res.Header, sut.StickyCookie, holdInstead(x.held, routes, x.route.group, u.node))
	}
	res.Header[sut.RequestIDHeader] = x.id[:]
	return res, nil
}

// judge says what an answer tells about its host. A 503 is how a host says that
// it is full, or that another tier is away.
func judge(res *http.Response) (verdict, string) {
	switch res.StatusCode {
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		return failed, res.Status
	case http.StatusServiceUnavailable:
		return noVerdict, ""
	}
	return succeeded, ""
}

// answerBody gives its host back when it is closed, and notices when it breaks
// off.
type answerBody struct {
	io.ReadCloser
	exchange *exchange
	upstream *upstream
	verdict  verdict
	cause    string
	took     time.Duration // to the first byte
	closed   atomic.Bool
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	// The client's leaving breaks the body, too.
	if err != nil && err != io.EOF && b.exchange.client.Err() == nil {
		b.verdict, b.cause = failed, "its answer broke off: "+err.Error()
		b.exchange.cause = fmt.Errorf("the answer of %s broke off: %w", b.upstream.node, err)
	}
	return n, err
}

func (b *answerBody) Close() error {
	if !b.closed.CompareAndSwap(false, true) {
		return b.ReadCloser.Close()
	}
	err := b.ReadCloser.Close()
	b.exchange.balancer.pool.release(b.upstream, b.verdict, b.cause, b.took)
	return err
}

// attempt is one try to send a request to one host. It knows whether anything
// left for the host.
type attempt struct {
	began  time.Time
	conn   *countedConn // what the request went out on; nil: there was no connection
	before int64        // writes begun on it by earlier requests
	body   *attemptBody // nil: none
}

// send sends the request to the host, once.
func (x *exchange) send(req *http.Request, u *upstream, body io.ReadCloser) (*http.Response, error) {
	x.attempt = attempt{began: time.Now()}
	// The reverse proxy traces each request that it makes; to add to its trace is
	// much cheaper than to compose one with it.
	if trace := httptrace.ContextClientTrace(req.Context()); trace != nil {
		trace.GotConn = x.gotConn
	} else {
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: x.gotConn}))
	}
	req.URL.Host = u.address
	if body != nil {
		x.attempt.body = &attemptBody{client: body}
		req.Body = x.attempt.body
	} else {
		sendOnce(req, x.balancer.identity)
	}
	return u.transport.RoundTrip(req)
}

// gotConn is called before the first byte is written.
func (x *exchange) gotConn(info httptrace.GotConnInfo) {
	x.attempt.conn = info.Conn.(*countedConn)
	x.attempt.before = x.attempt.conn.writes.Load()
}

// sent reports, after a failure, whether the host may have seen any of the
// request. When it says no, the attempt will never touch the client's body.
func (a *attempt) sent() bool {
	if a.conn != nil && a.conn.writes.Load() != a.before {
		return true
	}
	return a.body != nil && !a.body.state.CompareAndSwap(bodyUntouched, bodyDetached)
}

// clientFailed reports whether the client's own body was what failed.
func (a *attempt) clientFailed() bool { return a.body != nil && a.body.failed.Load() }

// sendOnce keeps the transport from sending a request without a body a second
// time on its own. It does that for methods that it holds idempotent, when an
// idle connection dies under them: but the host may have carried the request
// out, and its work would be done twice and counted twice.
//
// The transport cannot repeat a request whose body it cannot rewind, so that it
// gets one, which is empty and leaves no trace in the request.
func sendOnce(req *http.Request, identity []string) {
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		// Without this, the transport would look for the body's first byte before
		// it decides to send none, at the price of a goroutine and a timer.
		req.TransferEncoding = identity
		req.Body = emptyBody{}
	default:
		// Here an empty body shows, as one chunked of no length, which is why only
		// those get it that the transport would repeat.
		if req.Header["Idempotency-Key"] != nil || req.Header["X-Idempotency-Key"] != nil {
			req.Body = emptyBody{}
		}
	}
}

// emptyBody is a body without bytes that is not http.NoBody.
type emptyBody struct{}

func (emptyBody) Read([]byte) (int, error)         { return 0, io.EOF }
func (emptyBody) WriteTo(io.Writer) (int64, error) { return 0, nil }
func (emptyBody) Close() error                     { return nil }

// States of an attemptBody.
const (
	bodyUntouched int32 = iota
	bodyReading         // the transport has begun to read it
	bodyDetached        // the attempt is over and the body belongs to the next
)

// attemptBody lends the client's body to one attempt.
type attemptBody struct {
	client io.ReadCloser
	state  atomic.Int32
	failed atomic.Bool // the client's body broke
}

func (b *attemptBody) Read(p []byte) (int, error) {
	if !b.state.CompareAndSwap(bodyUntouched, bodyReading) && b.state.Load() == bodyDetached {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.client.Read(p)
	if err != nil && err != io.EOF {
		b.failed.Store(true)
	}
	return n, err
}

// Close leaves the client's body open: the next attempt may need it, and the
// reverse proxy closes it at the end.
func (b *attemptBody) Close() error { return nil }
