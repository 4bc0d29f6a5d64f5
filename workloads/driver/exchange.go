package driver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads"
)

// VersionHeader is the response header with the version of the record in the response.
const VersionHeader = "X-Record-Version"

// CacheHeader is the response header that reports whether the target read the record
// from a cache.
const (
	CacheHeader = "X-Cache"
	CacheHit    = "hit" // its value when the record came from a cache
)

// CacheStatusHeader is the response header in which each HTTP cache on the way says what it did (RFC 9211).
const CacheStatusHeader = "Cache-Status"

// edgeAnswer returns what the HTTP cache nearest to the client did: "hit", the reason why it forwarded the request,
// such as "uri-miss" or "bypass", "" if no cache was on the way, or "other" if its report is not one that RFC 9211
// defines. The cache nearest to the client is the last member of the last line. Node names and details need no quotes
// there, so a comma or a semicolon always separates.
func edgeAnswer(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	last := lines[len(lines)-1]
	last = last[strings.LastIndexByte(last, ',')+1:]
	_, parameters, _ := strings.Cut(last, ";")
	for parameter := range strings.SplitSeq(parameters, ";") {
		name, value, _ := strings.Cut(textproto.TrimString(parameter), "=")
		switch {
		case name == "hit":
			return name
		case name == "fwd":
			switch value { // RFC 9211, section 2.2
			case "bypass", "method", "uri-miss", "vary-miss", "miss", "request", "stale", "partial":
				return value
			}
		}
	}
	return "other"
}

// Request builds the HTTP request of an op.
func (c *Clients) Request(op workloads.Op) (*http.Request, error) {
	u, err := url.Parse(c.URL(op))
	if err != nil {
		return nil, err
	}
	req := &http.Request{
		Method: op.Method, URL: u, Host: u.Host, Header: c.Header(op),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host // net/http ignores a Host header and sends this field
	}
	if len(op.Body) > 0 {
		req.ContentLength = int64(len(op.Body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(op.Body)), nil }
		req.Body = io.NopCloser(bytes.NewReader(op.Body))
	}
	return req, nil
}

// Header returns the headers of an op: the headers of all requests, replaced by the
// op's own headers of the same name. The caller may change the result.
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

// URL returns the absolute URL of an op.
func (c *Clients) URL(op workloads.Op) string { return c.base + op.Path }

// Carry sends the request, reads the complete response, delivers the outcome and frees
// the slot. If the op lost its session, Carry first logs the user in again over the same
// slot. It returns status and headers of the response, or the error of the op.
func (t *Ticket) Carry(req *http.Request) (status int, header http.Header, err error) {
	f, o := t.flight, &t.outcome
	// The slot counts as free from the end of its op. Any later delay, such as waiting for
	// a slow sink, is counted as lag of the client. The user of a journey thinks from then on.
	freeAt := o.Dispatched
	defer func() {
		f.agenda.settle(t.due, freeAt, !t.Op.Login || o.Fate == results.OK)
		f.free.put(freed{slot: t.slot, at: freeAt})
	}()
	if t.malformed != nil {
		t.failMalformed()
		return 0, nil, t.malformed
	}
	login := t.session.attach(req)
	header, err = t.exchange(req)
	if header != nil {
		t.session.keep(req, header, t.Op.Login && o.Fate == results.OK)
	}
	o.SessionLost = o.Fate == results.HTTPError && o.Status == http.StatusUnauthorized && login > 0
	freeAt = o.Done
	f.outcomes <- *o
	// After a logout nobody needs the session any more.
	if o.SessionLost && !t.Op.Logout && t.session.claimLogin(login) {
		freeAt = t.login()
	}
	f.clients.renew(t.slot)
	return o.Status, header, err
}

// failMalformed delivers the outcome of an op that cannot be built as a request.
func (t *Ticket) failMalformed() {
	o := &t.outcome
	o.Fate, o.Error, o.Done = results.ConnectError, "invalid request: "+t.malformed.Error(), t.flight.Now()
	t.flight.outcomes <- *o
}

// login logs the user in again and returns the time at which the login ended. Its
// intended time is now, because it is not part of the schedule.
func (t *Ticket) login() (done int64) {
	f, session := t.flight, t.session
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
		session.releaseLogin()
		again.failMalformed()
		return now
	}
	session.attach(req)
	header, err := again.exchange(req)
	if err == nil {
		session.keep(req, header, again.outcome.Fate == results.OK)
	}
	if again.outcome.Fate != results.OK {
		session.releaseLogin()
	}
	f.outcomes <- again.outcome
	return again.outcome.Done
}

// exchange sends the request, reads the complete response and fills in the outcome.
func (t *Ticket) exchange(req *http.Request) (http.Header, error) {
	f, o := t.flight, &t.outcome
	body := newSlowBody(f.ctx, t.Op)
	ctx, cancel := context.WithTimeout(f.ctx, f.plan.Timeout+body.lasts())
	defer cancel()
	if body != nil {
		req.Body = body
	}
	var written int64 // writes of the slot before this request
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) {
		written = t.slot.writes.Load()
		// GotConn can run twice: for a connection that the server has just closed, and
		// for its replacement. The op counts as sent from the first.
		if o.Sent < 0 {
			o.Sent = f.Now()
			f.inFlight.Add(-o.Sent)
		}
	}}
	req = req.WithContext(httptrace.WithClientTrace(ctx, trace))
	sendOnce(req)
	response, err := t.slot.transport.RoundTrip(req)
	if err != nil && o.Sent >= 0 && ctx.Err() == nil && t.slot.writes.Load() == written {
		// The server closed the idle connection before any byte was written. Sending the
		// request now does not make the server handle it twice.
		switch {
		case body != nil:
			// The first body was not read, so it has used none of the upload time.
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
		o.BytesIn, err = t.slot.drain(response, t.Op.Check.NeedsBody())
		if version := header[VersionHeader]; len(version) == 1 {
			o.Version, _ = strconv.ParseInt(version[0], 10, 64)
		}
		if cache := header[CacheHeader]; len(cache) == 1 {
			o.Cached = cache[0] == CacheHit
		}
		o.Edge = edgeAnswer(header[CacheStatusHeader])
	}
	o.Done = f.Now()
	if o.Sent >= 0 {
		f.inFlight.Add(o.Done)
	}
	o.Paced = body.slept()
	if err == nil {
		t.judge(header)
	} else {
		o.Fate = fate(o, err, f.ctx.Err() != nil)
		o.Error = cause(o.Fate, err, f.plan.Timeout+body.lasts())
	}
	return header, err
}

// judge sets the fate of an op with a complete response.
func (t *Ticket) judge(header http.Header) {
	o, check := &t.outcome, t.Op.Check
	if check.Accepts(o.Status) {
		o.Error = check.Failure(header, t.slot.kept, o.BytesIn)
	} else {
		o.Error = "HTTP " + strconv.Itoa(o.Status)
	}
	if o.Error != "" {
		o.Fate, o.CheckFailed = results.HTTPError, check != nil && o.Status < http.StatusBadRequest
		return
	}
	o.Fate = results.OK
	if location := header["Location"]; o.Status == http.StatusCreated && len(location) == 1 {
		o.Created = location[0]
	}
	if check == nil || len(check.Status) == 0 {
		switch o.Status {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
			http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
			o.Redirected = true
		}
	}
}

// sendOnce disables the automatic retries of the transport. The transport retries
// idempotent methods when a connection breaks before the response. The server would then
// get the request twice, and the failure would be hidden. The transport cannot retry a
// request whose body it cannot rewind. So a request without a body gets an empty body
// that cannot be rewound; the bytes sent do not change.
func sendOnce(req *http.Request) {
	req.GetBody = nil
	if req.Body == nil || req.Body == http.NoBody {
		switch req.Method {
		case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
			// Without this the transport probes the body for a first byte, which costs a
			// goroutine and a timer.
			req.TransferEncoding = []string{"identity"}
			req.Body = emptyBody{}
		}
	}
}

// emptyBody is an empty body that the transport does not recognize as http.NoBody.
type emptyBody struct{}

func (emptyBody) Read([]byte) (int, error)         { return 0, io.EOF }
func (emptyBody) WriteTo(io.Writer) (int64, error) { return 0, nil }
func (emptyBody) Close() error                     { return nil }

// drain reads the body of a response to its end, closes it and returns its length. With keep it stores
// the first MaxCheckedBody bytes in s.kept.
func (s *slot) drain(response *http.Response, keep bool) (int64, error) {
	body := response.Body
	defer func() { _ = body.Close() }() // the body was read to the end or is broken: no error to report
	s.kept = s.kept[:0]
	if response.StatusCode == http.StatusSwitchingProtocols {
		return 0, nil // what follows is another protocol, without an end
	}
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

// fate returns the fate of an op without a complete response.
func fate(o *results.Outcome, err error, givenUp bool) results.Fate {
	var network net.Error
	switch {
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

// cause describes why an op got no complete response within a timeout. It contains no addresses and is short, so that
// equal causes can be counted together.
func cause(fate results.Fate, err error, timeout time.Duration) string {
	switch {
	case fate == results.InFlight:
		return "not answered before the run ended"
	case fate == results.Timeout:
		return "timeout: no complete response within " + timeout.Round(time.Millisecond).String()
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET):
		return "connection reset"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "connection closed before the response was complete"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "no local port free" // results/validity.go looks for this text
	case errors.Is(err, syscall.EMFILE):
		return "too many open files"
	}
	text := err.Error()
	switch {
	// The first frame of HTTP/2 begins with its length, in three bytes, of which the first is 0.
	case strings.Contains(text, `malformed HTTP response "\x00\x00`), strings.Contains(text, "no application protocol"):
		return "the server speaks HTTP/2 but no HTTP/1.1, which is needed here"
	case strings.Contains(text, "malformed HTTP"):
		return "the answer is not HTTP/1.1"
	}
	var op *net.OpError
	if errors.As(err, &op) {
		text = op.Op + ": " + op.Err.Error()
	}
	return strings.ToValidUTF8(text[:min(len(text), maxCause)], "")
}

// maxCause is the maximum length of a cause in bytes.
const maxCause = 200
