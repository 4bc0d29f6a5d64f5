package balance

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"syscall"
)

// errNoUpstream: no host is up, or none could be reached. Nothing was sent.
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

// dispatcher is the reverse proxy's transport: it picks the host of a request,
// and another one when the first could not be reached. The reverse proxy makes
// the requests that it gets for it alone, so that it may change them.
type dispatcher struct {
	pool         *pool
	sticky       bool
	redispatched *atomic.Uint64
}

// RoundTrip implements http.RoundTripper.
func (d *dispatcher) RoundTrip(req *http.Request) (*http.Response, error) {
	held := ""
	if d.sticky {
		held = takeCookie(req.Header, CookieName)
	}
	var tried []*upstream
	err := errNoUpstream
	// Each host is tried once; one that closed an idle connection meanwhile is
	// tried again, and the bound is for those.
	for range len(d.pool.upstreams) + 4 {
		u := d.pool.acquire(held, tried)
		if u == nil {
			break
		}
		a := newAttempt(req.Body)
		res, failure := a.send(req, u)
		if failure == nil {
			return d.answer(u, res, held)
		}
		d.pool.release(u)
		switch {
		case a.clientFailed():
			return nil, fmt.Errorf("%w: %w", errClientBody, failure)
		case req.Context().Err() != nil:
			return nil, failure
		case a.sent():
			return nil, &lostError{u.peer.Node, failure}
		case errors.Is(failure, syscall.ECONNREFUSED):
			d.pool.refused(u, failure)
		}
		if a.conn == nil {
			tried = append(tried, u)
		}
		d.redispatched.Add(1)
		err = fmt.Errorf("%w: %w", errNoUpstream, failure)
	}
	return nil, err
}

// answer finishes the response of a host: its end is the end of the request,
// and a user who does not hold the host's cookie gets it.
func (d *dispatcher) answer(u *upstream, res *http.Response, held string) (*http.Response, error) {
	res.Body = &releasingBody{ReadCloser: res.Body, release: func() { d.pool.release(u) }}
	if res.StatusCode == http.StatusSwitchingProtocols {
		_ = res.Body.Close()
		return nil, &lostError{u.peer.Node, errors.New("it switched protocols unasked")}
	}
	if d.sticky && held != u.peer.Node {
		setCookie(res.Header, CookieName, u.peer.Node)
	}
	return res, nil
}

// releasingBody gives its host back when it is closed.
type releasingBody struct {
	io.ReadCloser
	release func()
	closed  atomic.Bool
}

func (b *releasingBody) Close() error {
	if b.closed.CompareAndSwap(false, true) {
		defer b.release()
	}
	return b.ReadCloser.Close()
}

// attempt is one try to send a request to one host. It knows whether anything
// left for the host.
type attempt struct {
	conn   *countedConn // what the request went out on; nil: there was no connection
	before int64        // writes begun on it by earlier requests
	body   *attemptBody // nil: none
}

func newAttempt(body io.ReadCloser) *attempt {
	if body == nil {
		return &attempt{}
	}
	return &attempt{body: &attemptBody{client: body}}
}

// send sends the request to the host, once.
func (a *attempt) send(req *http.Request, u *upstream) (*http.Response, error) {
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: a.gotConn})
	out := req.WithContext(ctx)
	url := *req.URL
	url.Host = u.peer.Address
	out.URL = &url
	if a.body != nil {
		out.Body = a.body
	} else {
		sendOnce(out)
	}
	return u.transport.RoundTrip(out)
}

// gotConn is called before the first byte is written.
func (a *attempt) gotConn(info httptrace.GotConnInfo) {
	a.conn = info.Conn.(*countedConn)
	a.before = a.conn.writes.Load()
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
func sendOnce(req *http.Request) {
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		// Without this, the transport would look for the body's first byte before
		// it decides to send none, at the price of a goroutine and a timer.
		req.TransferEncoding = []string{"identity"}
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
