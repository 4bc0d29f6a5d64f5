package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/attempt"
)

// errNoOrigin means that no origin is reachable. No byte of the request was sent.
var errNoOrigin = errors.New("no origin is reachable")

// errClientBody means that the client's body was truncated or malformed.
var errClientBody = errors.New("request body")

// refusalPause is the time in which an origin gets no requests after it refused a connection.
const refusalPause = time.Second

// maxResponseHeader bounds the header of an origin's response.
const maxResponseHeader = 64 << 10

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// origins is a set of origins. Requests go to each in turn.
type origins struct {
	list []*origin
	turn atomic.Uint64
}

// origin is one server.
type origin struct {
	peer      sut.Peer
	transport *http.Transport
	downUntil atomic.Int64 // Unix time in nanoseconds
}

// newOrigins makes a set. It keeps the connections of servers that are in the set before, too.
func (e *Edge) newOrigins(peers []sut.Peer, before *origins) *origins {
	set := &origins{}
	for _, peer := range peers {
		set.list = append(set.list, e.newOrigin(peer, before))
	}
	return set
}

func (e *Edge) newOrigin(peer sut.Peer, before *origins) *origin {
	if before != nil {
		for _, o := range before.list {
			if o.peer == peer {
				return o
			}
		}
	}
	return &origin{peer: peer, transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := e.dial(ctx, network, address)
			if err != nil {
				return nil, &dialError{err}
			}
			return attempt.Count(conn), nil
		},
		MaxIdleConnsPerHost: sut.MaxIdlePerUpstream,
		// Shorter than the idle timeout of the origin. Otherwise requests would be sent on connections that it is closing.
		IdleConnTimeout:        30 * time.Second,
		ResponseHeaderTimeout:  sut.ResponseTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxResponseHeader,
		DisableCompression:     true, // bodies pass unchanged
	}}
}

// closeIdle closes the idle connections of the origins that are not in the next set.
func (o *origins) closeIdle(next *origins) {
	for _, old := range o.list {
		if next == nil || !slices.Contains(next.list, old) {
			old.transport.CloseIdleConnections()
		}
	}
}

// pick returns the next origin that is neither tried nor down; nil = there is none.
func (o *origins) pick(tried []*origin, now time.Time) *origin {
	first := o.turn.Add(1)
	for i := range uint64(len(o.list)) {
		candidate := o.list[(first+i)%uint64(len(o.list))]
		if candidate.downUntil.Load() <= now.UnixNano() && !slices.Contains(tried, candidate) {
			return candidate
		}
	}
	return nil
}

// dialError means that no connection was made.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// send sends a request to an origin, and to another one when the first is unreachable. A request that may have
// reached an origin is not sent again, except that the transport repeats a GET or HEAD without a body when an idle
// connection was closed. inform receives informational responses; nil = they are dropped. The caller must close the
// body of the response.
func (e *Edge) send(req *http.Request, inform func(int, http.Header)) (*http.Response, error) {
	set, done := e.origins.Use()
	body, err := req.Body, error(errNoOrigin)
	var tried []*origin
	for limit := len(set.list) + 4; limit > 0; limit-- {
		o := set.pick(tried, time.Now())
		if o == nil {
			break
		}
		var a attempt.Attempt
		res, failure := e.try(req, o, body, &a, inform)
		if failure == nil {
			res.Body = &originBody{ReadCloser: res.Body, edge: e, done: done}
			return res, nil
		}
		var dial *dialError
		switch {
		case a.ClientFailed():
			done()
			return nil, fmt.Errorf("%w: %w", errClientBody, failure)
		case req.Context().Err() != nil:
			done()
			return nil, failure
		case errors.As(failure, &dial):
			e.refused(o, failure)
			tried = append(tried, o)
			err = fmt.Errorf("%w: %w", errNoOrigin, failure)
		case a.Sent():
			done()
			return nil, fmt.Errorf("%s: %w", o.peer.Node, failure)
		default: // an idle connection was closed before a byte was sent
			err = failure
		}
		req = req.Clone(req.Context()) // a goroutine of the failed attempt may still read the request
	}
	done()
	return nil, err
}

// try sends the request to one origin.
func (e *Edge) try(
	req *http.Request, o *origin, body io.ReadCloser, a *attempt.Attempt, inform func(int, http.Header),
) (*http.Response, error) {
	trace := &httptrace.ClientTrace{GotConn: a.GotConn}
	if inform != nil {
		trace.Got1xxResponse = func(code int, header textproto.MIMEHeader) error {
			inform(code, http.Header(header))
			return nil
		}
	}
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), trace))
	req.URL.Host = o.peer.Address
	switch {
	case body != nil && body != http.NoBody:
		a.Lend(req, body)
	case req.Method != http.MethodGet && req.Method != http.MethodHead && attempt.Repeats(req.Header):
		// The transport would repeat the request. It does not when it cannot rewind the body.
		req.Body = attempt.EmptyBody{}
	}
	res, err := o.transport.RoundTrip(req)
	if err == nil && res.StatusCode == http.StatusSwitchingProtocols {
		_ = res.Body.Close()
		err = errors.New("the origin switched protocols without a request to do so")
	}
	var dial *dialError
	if err == nil || !errors.As(err, &dial) {
		e.fetched.Add(1)
	}
	return res, err
}

// refused takes an origin out of the turn for a while.
func (e *Edge) refused(o *origin, err error) {
	now := time.Now()
	if o.downUntil.Swap(now.Add(refusalPause).UnixNano()) <= now.Add(-refusalPause).UnixNano() {
		e.cfg.Log.Warn("origin unreachable", "origin", o.peer.Node, "error", err)
	}
}

// originBody is the body of an origin's response. It counts bytes, and Close ends the use of the origin.
type originBody struct {
	io.ReadCloser
	edge   *Edge
	done   func()
	closed atomic.Bool
}

func (b *originBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.edge.fetchedBy.Add(int64(n))
	return n, err
}

func (b *originBody) Close() error {
	err := b.ReadCloser.Close()
	if b.closed.CompareAndSwap(false, true) {
		b.done()
	}
	return err
}
