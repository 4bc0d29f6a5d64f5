package driver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"syscall"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads"
)

// VersionHeader is the response header that carries the version of the record
// shown.
const VersionHeader = "X-Record-Version"

// Request builds the HTTP request of an op against the endpoint.
func (c *Clients) Request(op workloads.Op) (*http.Request, error) {
	u, err := url.Parse(c.URL(op))
	if err != nil {
		return nil, err
	}
	req := &http.Request{Method: op.Method, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header, len(op.Header)+1)}
	for name, value := range op.Header {
		req.Header.Set(name, value)
	}
	if len(op.Body) > 0 {
		req.ContentLength = int64(len(op.Body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(op.Body)), nil }
		req.Body = io.NopCloser(bytes.NewReader(op.Body))
	}
	return req, nil
}

// URL is the whole address of an op.
func (c *Clients) URL(op workloads.Op) string {
	return c.config.Endpoint.Scheme + "://" + c.config.Endpoint.Host + c.config.Endpoint.Path + op.Path
}

// Carry sends the ticket's request, reads the whole answer, delivers the
// outcome and gives the slot back. It returns what the target answered, without
// the body, or the error that the op ended with. A session found lost is
// started again in the same slot before that.
func (t *Ticket) Carry(req *http.Request) (status int, header http.Header, err error) {
	f := t.flight
	defer func() { f.free <- freed{slot: t.slot, at: f.Now()} }()
	if t.refused != nil {
		t.outcome.Fate, t.outcome.Error, t.outcome.Done = results.ConnectError, "not a request: "+t.refused.Error(), f.Now()
		f.finish(t.outcome)
		return 0, nil, t.refused
	}
	session := f.clients.user(t.Op.User)
	login := session.attach(req.Header)
	header, err = t.exchange(req)
	status = t.outcome.Status
	if header != nil {
		session.keep(header, false)
	}
	t.outcome.SessionLost = status == http.StatusUnauthorized && login > 0
	lost := t.outcome.SessionLost
	f.finish(t.outcome)
	if lost && session.stale(login) {
		t.login(session)
	}
	f.clients.renew(t.slot)
	return status, header, err
}

// login starts the user's session again. It is a step that follows from the one
// that failed, so its intended time is now.
func (t *Ticket) login(session *session) {
	f := t.flight
	workload, ok := f.plan.Workload.(workloads.Login)
	if !ok {
		return
	}
	op := workload.LoginOp(t.Op.User)
	now := f.Now()
	again := &Ticket{Op: op, slot: t.slot, flight: f, outcome: results.Outcome{
		Index: t.Op.Index, Class: string(op.Class), Intended: now, Free: now, Dispatched: now, Sent: -1, BytesOut: int64(len(op.Body)),
	}}
	f.extra.Add(1)
	req, err := f.clients.Request(op)
	if err != nil {
		again.outcome.Fate, again.outcome.Error, again.outcome.Done = results.ConnectError, "not a request: "+err.Error(), now
		f.finish(again.outcome)
		return
	}
	session.attach(req.Header)
	header, err := again.exchange(req)
	if err == nil {
		session.keep(header, again.outcome.Fate == results.OK)
	}
	f.finish(again.outcome)
}

// exchange is one request and its whole response. It fills in the outcome.
func (t *Ticket) exchange(req *http.Request) (http.Header, error) {
	f, o := t.flight, &t.outcome
	ctx, cancel := context.WithTimeout(f.ctx, f.plan.Timeout)
	defer cancel()
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) {
		// A request that met a connection which the server had just closed is
		// handed to a second one; it was sent when the first one got it.
		if o.Sent < 0 {
			o.Sent = f.Now()
			f.meter.change(o.Sent, 1)
		}
	}}
	response, err := t.slot.transport.RoundTrip(req.WithContext(httptrace.WithClientTrace(ctx, trace)))
	var header http.Header
	if err == nil {
		header = response.Header
		o.Status = response.StatusCode
		o.BytesIn, err = drain(response.Body, t.slot.buffer)
		if version := header[VersionHeader]; len(version) == 1 {
			o.Version, _ = strconv.ParseInt(version[0], 10, 64)
		}
	}
	o.Done = f.Now()
	if o.Sent >= 0 {
		f.meter.change(o.Done, -1)
	}
	o.Fate = fate(o, err, f.ctx.Err() != nil)
	o.Error = cause(o, err)
	return header, err
}

// drain reads a body to its end and counts it.
func drain(body io.ReadCloser, buffer []byte) (int64, error) {
	defer func() { _ = body.Close() }() // it was read to the end, or is already broken
	var total int64
	for {
		n, err := body.Read(buffer)
		total += int64(n)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func fate(o *results.Outcome, err error, givenUp bool) results.Fate {
	var network net.Error
	switch {
	case err == nil && o.Status < 400:
		return results.OK
	case err == nil:
		return results.HTTPError
	case o.Sent < 0:
		return results.ConnectError
	case givenUp:
		return results.InFlight
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return results.Timeout
	default:
		return results.TransportError
	}
}

// cause says in a few words, without addresses, why an op failed, so that equal
// causes can be counted together.
func cause(o *results.Outcome, err error) string {
	switch {
	case err == nil && o.Status < 400:
		return ""
	case err == nil:
		return "HTTP " + strconv.Itoa(o.Status)
	case o.Fate == results.InFlight:
		return "not answered before the run was ended"
	case o.Fate == results.Timeout:
		return "timeout"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET):
		return "connection reset"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "connection closed before the end of the response"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "no local port free"
	case errors.Is(err, syscall.EMFILE):
		return "too many open files"
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}
