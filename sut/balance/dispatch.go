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
	"github.com/stagebench/stagebench/sut/attempt"
)

// errNoUpstream means that no host of the route is up or reachable. No byte of the
// request was sent.
var errNoUpstream = errors.New("no upstream")

// errClientBody means that the client's body was truncated or malformed.
var errClientBody = errors.New("request body")

// lostError means that the request was sent to a host and got no answer.
type lostError struct {
	node string
	err  error
}

func (e *lostError) Error() string { return e.node + ": " + e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// RoundTrip implements http.RoundTripper. It picks a host for the request, and another
// one when the first is unreachable. It may change the request, because the reverse
// proxy makes a copy for each call.
func (x *exchange) RoundTrip(req *http.Request) (*http.Response, error) {
	b := x.balancer
	want := pick{}
	if b.hashes {
		want.client = hashAddress(req.RemoteAddr)
	}
	routes := b.pool.routes.Load()
	x.route = routes.of(req)
	if b.cfg.Sticky {
		x.sticky = takeCookie(req.Header, sut.StickyCookie)
		// A response that is the same for all users needs no particular host. With a cookie, no shared cache could store it.
		if x.keeps = !b.unsticky.Load() && !sut.Shared(req.URL.Path); x.keeps {
			want.sticky = x.sticky
		}
	}
	req.Header[sut.RequestIDHeader] = x.id[:]
	body, err := req.Body, errNoUpstream
	// Each host is tried once. A host that had closed an idle connection is tried
	// again. The limit prevents an endless loop of such retries.
	for limit := len(x.route.group.members) + 4; limit > 0; limit-- {
		u := b.pool.acquire(x.route.group, want)
		if u == nil {
			now := b.pool.routes.Load()
			if now == routes {
				break
			}
			// The members have changed. The new ones may include hosts that are up.
			routes, x.route = now, now.of(req)
			continue
		}
		x.node = u.node
		res, failure := x.send(req, u, body)
		if failure == nil {
			return x.answer(routes, u, res)
		}
		err, retry := x.failed(req.Context(), u, failure)
		if !retry {
			return nil, err
		}
		if !x.attempt.Connected() {
			want.tried = append(want.tried, u)
		}
		b.redispatched.Add(1)
		// A goroutine of the failed attempt may still read the request.
		req = req.Clone(req.Context())
	}
	return nil, err
}

// failed releases a host that sent no answer. It returns the error for the client and
// whether the request may be sent to a host again.
func (x *exchange) failed(ctx context.Context, u *upstream, failure error) (err error, retry bool) {
	p, took, v := x.balancer.pool, time.Since(x.sent), noVerdict
	switch {
	case x.attempt.ClientFailed():
		err = fmt.Errorf("%w: %w", errClientBody, failure)
	case ctx.Err() != nil:
		err = failure
	case x.attempt.Sent():
		v, err = failed, &lostError{u.node, failure}
	case x.attempt.Connected(): // the host closed an idle connection, which is no failure
		retry, err = true, fmt.Errorf("%w: %w", errNoUpstream, failure)
	default:
		p.unreachable(u, failure, took)
		return fmt.Errorf("%w: %w", errNoUpstream, failure), true
	}
	p.release(u, v, failure.Error(), took)
	return err, retry
}

// answer prepares the response of a host for the client. The end of its body releases
// the host. The answer sets the sticky cookie if the user shall stay, unless the client's cookie lists the host.
func (x *exchange) answer(routes *routing, u *upstream, res *http.Response) (*http.Response, error) {
	v, cause := judge(res)
	took := time.Since(x.sent)
	x.body = answerBody{ReadCloser: res.Body, exchange: x, upstream: u, verdict: v, cause: cause, took: took}
	res.Body = &x.body
	if res.StatusCode == http.StatusSwitchingProtocols {
		x.body.verdict, x.body.cause = failed, "it switched protocols without a request to do so"
		_ = res.Body.Close()
		return nil, &lostError{u.node, errors.New(x.body.cause)}
	}
	if x.keeps && !listsNode(x.sticky, u.node) {
		setCookie(res.Header, sut.StickyCookie, stickyValue(x.sticky, routes, x.route.group, u.node))
	}
	res.Header[sut.RequestIDHeader] = x.id[:]
	return res, nil
}

// judge returns the verdict on a host that sent an answer. A 503 is no failure of the
// host: it means that the host is at capacity or that another tier is down.
func judge(res *http.Response) (verdict, string) {
	switch res.StatusCode {
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		return failed, res.Status
	case http.StatusServiceUnavailable:
		return noVerdict, ""
	}
	return succeeded, ""
}

// answerBody is the body of a host's answer. Close releases the host. Read detects
// an answer that breaks off.
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
	// When the client leaves, Read fails too. That is no failure of the host.
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

// send sends the request to the host, once.
func (x *exchange) send(req *http.Request, u *upstream, body io.ReadCloser) (*http.Response, error) {
	x.attempt, x.sent = attempt.Attempt{}, time.Now()
	// The reverse proxy traces each of its requests. Adding to its trace is much
	// cheaper than combining it with a second one.
	if trace := httptrace.ContextClientTrace(req.Context()); trace != nil {
		trace.GotConn = x.attempt.GotConn
	} else {
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: x.attempt.GotConn}))
	}
	req.URL.Host = u.address
	if body != nil {
		x.attempt.Lend(req, body)
	} else {
		sendOnce(req, x.balancer.identity)
	}
	return u.transport.RoundTrip(req)
}

// sendOnce prevents the transport from retrying a request without a body. The
// transport retries idempotent methods when an idle connection dies. But the host may
// have executed the request, so a retry could execute and count it twice.
//
// The transport does not retry a request whose body it cannot rewind. So sendOnce adds
// an empty body, which does not change the bytes of the request.
func sendOnce(req *http.Request, identity []string) {
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		// Without this, the transport would probe the body for its first byte, which
		// costs a goroutine and a timer.
		req.TransferEncoding = identity
		req.Body = attempt.EmptyBody{}
	default:
		// With these methods an empty body changes the request: it is sent chunked.
		// So only requests that the transport would retry get one.
		if attempt.Repeats(req.Header) {
			req.Body = attempt.EmptyBody{}
		}
	}
}
