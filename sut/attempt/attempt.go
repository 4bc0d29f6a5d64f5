// Package attempt knows whether a failed attempt to send a request may have reached the server. A proxy may send a
// request again if it has not: nothing was executed.
//
// The transport must use connections of Count. The trace of the request must have GotConn.
package attempt

import (
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
)

// countedConn counts the writes that were started on a connection. If no write was
// started for a request, no byte of it was sent.
type countedConn struct {
	net.Conn
	writes atomic.Int64
}

func (c *countedConn) Write(p []byte) (int, error) {
	// Count before the write: a write in progress may already have sent bytes.
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// Count returns a connection that counts its writes.
func Count(conn net.Conn) net.Conn { return &countedConn{Conn: conn} }

// Attempt is one attempt to send a request to one server.
type Attempt struct {
	conn   *countedConn // nil when no connection was made
	before int64        // writes started on conn by earlier requests
	body   *lentBody    // nil when the request has no body
}

// GotConn is for the trace of the request. It is called before the first byte is written.
func (a *Attempt) GotConn(info httptrace.GotConnInfo) {
	a.conn = info.Conn.(*countedConn)
	a.before = a.conn.writes.Load()
}

// Connected reports whether there was a connection.
func (a *Attempt) Connected() bool { return a.conn != nil }

// Lend gives the body of the client's request to the request of this attempt. The transport does not close it: the next
// attempt may need it.
func (a *Attempt) Lend(req *http.Request, body io.ReadCloser) {
	a.body = &lentBody{client: body}
	req.Body = a.body
}

// Sent reports, after a failure, whether the server may have received a part of the
// request. When it returns false, the attempt can no longer read the client's body.
func (a *Attempt) Sent() bool {
	if a.conn != nil && a.conn.writes.Load() != a.before {
		return true
	}
	return a.body != nil && !a.body.state.CompareAndSwap(bodyUntouched, bodyDetached)
}

// ClientFailed reports whether the failure was in the client's body.
func (a *Attempt) ClientFailed() bool { return a.body != nil && a.body.failed.Load() }

// Repeats reports whether the transport repeats a request without a body because of its header, when an idle connection
// dies: with an unsafe method, too.
func Repeats(header http.Header) bool {
	return header["Idempotency-Key"] != nil || header["X-Idempotency-Key"] != nil
}

// EmptyBody is an empty body. The transport treats it differently from http.NoBody: it
// does not repeat a request whose body it cannot rewind.
type EmptyBody struct{}

func (EmptyBody) Read([]byte) (int, error)         { return 0, io.EOF }
func (EmptyBody) WriteTo(io.Writer) (int64, error) { return 0, nil }
func (EmptyBody) Close() error                     { return nil }

// States of a lentBody.
const (
	bodyUntouched int32 = iota
	bodyReading         // the transport has started to read it
	bodyDetached        // the attempt has ended, and the next attempt owns the body
)

// lentBody lends the client's body to one attempt.
type lentBody struct {
	client io.ReadCloser
	state  atomic.Int32
	failed atomic.Bool // reading the client's body failed
}

func (b *lentBody) Read(p []byte) (int, error) {
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
// server closes it at the end.
func (b *lentBody) Close() error { return nil }
