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

// A target that reads records from a cache says so in a header of the response.
const (
	CacheHeader = "X-Cache"
	CacheHit    = "hit" // its value when the record shown was read from a cache
)

// Request builds the HTTP request of an op against the endpoint.
func (c *Clients) Request(op workloads.Op) (*http.Request, error) {
	u, err := url.Parse(c.URL(op))
	if err != nil {
		return nil, err
	}
	req := &http.Request{Method: op.Method, URL: u, Host: u.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: c.Header(op)}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host // the library takes it from here, and not from the header
	}
	if len(op.Body) > 0 {
		req.ContentLength = int64(len(op.Body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(op.Body)), nil }
		req.Body = io.NopCloser(bytes.NewReader(op.Body))
	}
	return req, nil
}

// Header is what an op is sent with: the headers of all requests and its own,
// which win. The caller may change it.
func (c *Clients) Header(op workloads.Op) http.Header {
	header := make(http.Header, len(c.config.Header)+len(op.Header)+2)
	for name, value := range c.config.Header {
		header.Set(name, value)
	}
	for name, value := range op.Header {
		header.Set(name, value)
	}
	return header
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
	// The slot is free from the end of its op on. What comes after that, such as
	// waiting for whoever takes the outcomes, is the client's own lateness.
	freeAt := t.outcome.Dispatched
	defer func() { f.free <- freed{slot: t.slot, at: freeAt} }()
	if t.refused != nil {
		t.refuse()
		return 0, nil, t.refused
	}
	session := f.clients.user(t.Op.User)
	login := session.attach(req.Header)
	header, err = t.exchange(req)
	o := &t.outcome
	if header != nil {
		session.keep(header, false)
	}
	o.SessionLost = o.Fate == results.HTTPError && o.Status == http.StatusUnauthorized && login > 0
	freeAt = o.Done
	f.outcomes <- *o
	if o.SessionLost && session.stale(login) {
		freeAt = t.login(session)
	}
	f.clients.renew(t.slot)
	return o.Status, header, err
}

// refuse accounts for an op that cannot be made into a request.
func (t *Ticket) refuse() {
	t.outcome.Fate, t.outcome.Error, t.outcome.Done = results.ConnectError, "not a request: "+t.refused.Error(), t.flight.Now()
	t.flight.outcomes <- t.outcome
}

// login starts the user's session again and returns when it was done. It is a
// step that follows from the one that failed, so its intended time is now.
func (t *Ticket) login(session *session) (done int64) {
	f := t.flight
	workload, ok := f.plan.Workload.(workloads.Login)
	if !ok {
		return t.outcome.Done
	}
	op := workload.LoginOp(t.Op.User)
	op.Index = t.Op.Index
	now := f.Now()
	req, err := f.clients.Request(op)
	again := f.ticket(op, err, freed{t.slot, now}, now, now)
	f.extra.Add(1)
	if err != nil {
		session.notRenewed()
		again.refuse()
		return now
	}
	session.attach(req.Header)
	header, err := again.exchange(req)
	if err == nil {
		session.keep(header, again.outcome.Fate == results.OK)
	}
	if again.outcome.Fate != results.OK {
		session.notRenewed()
	}
	f.outcomes <- again.outcome
	return again.outcome.Done
}

// exchange is one request and its whole response. It fills in the outcome.
func (t *Ticket) exchange(req *http.Request) (http.Header, error) {
	f, o := t.flight, &t.outcome
	body := newSlowBody(f.ctx, t.Op)
	ctx, cancel := context.WithTimeout(f.ctx, f.plan.Timeout+body.lasts())
	defer cancel()
	if body != nil {
		req.Body = body
	}
	var written int64 // on the connection, before this request
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) {
		written = t.slot.writes.Load()
		// A request that met a connection which the server had just closed is
		// handed to a second one; it was sent when the first one got it.
		if o.Sent < 0 {
			o.Sent = f.Now()
			f.meter.change(o.Sent, 1)
		}
	}}
	req = req.WithContext(httptrace.WithClientTrace(ctx, trace))
	sendOnce(req)
	response, err := t.slot.transport.RoundTrip(req)
	if err != nil && o.Sent >= 0 && ctx.Err() == nil && t.slot.writes.Load() == written {
		// Nothing had left for the server, so this is the same request, not a
		// second one: the connection was closed while it was idle.
		switch {
		case body != nil:
			// Of the first one nothing was read, so it took none of the time.
			body = newSlowBody(f.ctx, t.Op)
			req.Body = body
		case len(t.Op.Body) > 0:
			req.Body = io.NopCloser(bytes.NewReader(t.Op.Body))
		}
		response, err = t.slot.transport.RoundTrip(req)
	}
	var header http.Header
	if err == nil {
		header = response.Header
		o.Status = response.StatusCode
		o.BytesIn, err = t.slot.drain(response.Body, t.Op.Check.NeedsBody())
		if version := header[VersionHeader]; len(version) == 1 {
			o.Version, _ = strconv.ParseInt(version[0], 10, 64)
		}
		if cache := header[CacheHeader]; len(cache) == 1 {
			o.Cached = cache[0] == CacheHit
		}
	}
	o.Done = f.Now()
	if o.Sent >= 0 {
		f.meter.change(o.Done, -1)
	}
	o.Paced = body.slept()
	o.Fate = fate(o, err, f.ctx.Err() != nil)
	o.Error = cause(o, err)
	if err == nil {
		t.check(header)
	}
	return header, err
}

// check judges a complete response by what the op asks for.
func (t *Ticket) check(header http.Header) {
	o, asked := &t.outcome, t.Op.Check
	if asked == nil {
		return
	}
	wrong := "HTTP " + strconv.Itoa(o.Status)
	if asked.Accepts(o.Status) {
		wrong = asked.Fails(header, t.slot.kept, o.BytesIn)
	}
	o.Fate, o.Error, o.CheckFailed = results.OK, wrong, wrong != "" && o.Status < 400
	if wrong != "" {
		o.Fate = results.HTTPError
	}
}

// sendOnce keeps the transport from sending a request a second time on its own.
// It does that for methods that it holds idempotent, when a connection dies
// before the answer: the server would be asked twice, and the failure hidden.
// The transport cannot repeat a request whose body it cannot rewind, so a
// request without one gets an empty one, which leaves no trace in what is sent.
func sendOnce(req *http.Request) {
	req.GetBody = nil
	if req.Body == nil || req.Body == http.NoBody {
		switch req.Method {
		case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
			// Without this the transport would look for the body's first byte before
			// it decides to send none, at the price of a goroutine and a timer.
			req.TransferEncoding = []string{"identity"}
			req.Body = emptyBody{}
		}
	}
}

// emptyBody is a body without bytes that is not http.NoBody.
type emptyBody struct{}

func (emptyBody) Read([]byte) (int, error)         { return 0, io.EOF }
func (emptyBody) WriteTo(io.Writer) (int64, error) { return 0, nil }
func (emptyBody) Close() error                     { return nil }

// drain reads a body to its end and counts it; the beginning is kept if asked
// for.
func (s *slot) drain(body io.ReadCloser, keep bool) (int64, error) {
	defer func() { _ = body.Close() }() // it was read to the end, or is already broken
	s.kept = s.kept[:0]
	var total int64
	for {
		n, err := body.Read(s.buffer)
		total += int64(n)
		if keep {
			s.kept = append(s.kept, s.buffer[:min(n, workloads.MaxCheckedBody-len(s.kept))]...)
		}
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
