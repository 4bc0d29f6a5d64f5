package edge

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/edge/rules"
)

// outgoing returns the request for the origin. Its context is ctx. Its body is that of the client's request.
func (x *exchange) outgoing(ctx context.Context) *http.Request {
	r := x.request
	out := r.Clone(ctx)
	out.URL.Scheme = "http"
	out.Host = r.Host
	if x.edge.cfg.Site != "" {
		out.Host = x.edge.cfg.Site
	}
	out.RequestURI, out.Close = "", false
	if r.ContentLength == 0 {
		out.Body = nil
	}
	header := out.Header
	removeHopByHop(header)
	if header["User-Agent"] == nil {
		header["User-Agent"] = []string{""} // otherwise the transport would add its own
	}
	if address, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		// An edge is the first server that a client reaches. What the client says about the way before it may be forged.
		header[headerForwardedFor] = []string{address}
	}
	header["X-Forwarded-Host"] = []string{r.Host}
	header["X-Forwarded-Proto"] = []string{"http"}
	header[sut.RequestIDHeader] = []string{x.values[0]}
	appendMember(header, headerVia, x.edge.via)
	return out
}

// appendMember adds a member to a list field.
func appendMember(header http.Header, name, member string) {
	if before := header[name]; len(before) > 0 {
		member = strings.Join(before, ", ") + ", " + member
	}
	header[name] = []string{member}
}

// removeHopByHop removes the fields that hold for one connection only (RFC 9110, 7.6.1).
func removeHopByHop(header http.Header) {
	for _, line := range header["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.TrimSpace(name); name != "" {
				header.Del(name)
			}
		}
	}
	for _, name := range []string{
		"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authentication-Info",
		"Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	} {
		delete(header, name)
	}
}

// clean turns the header of an origin's response into one that the edge may send and store.
func (e *Edge) clean(res *http.Response, received time.Time) {
	removeHopByHop(res.Header)
	delete(res.Header, sut.RequestIDHeader)
	if res.Header[headerDate] == nil {
		res.Header[headerDate] = []string{received.UTC().Format(http.TimeFormat)} // RFC 9110, 6.6.1
	}
	if res.Header[headerType] == nil {
		res.Header[headerType] = nil // otherwise the server would guess a type
	}
	appendMember(res.Header, headerVia, e.via)
}

// forward sends the request to the origin and the response to the client. Nothing is stored.
func (x *exchange) forward(reason string) {
	ctx, cancel := context.WithCancel(x.request.Context())
	defer cancel()
	res, err := x.edge.send(x.outgoing(ctx), x.inform)
	x.final()
	if err != nil {
		x.fail(failureOf(err), reason)
		return
	}
	defer res.Body.Close()
	x.edge.clean(res, time.Now())
	if rules.Invalidates(x.request.Method, res.StatusCode) {
		x.invalidate(res.Header)
	}
	x.relay(res, reason)
}

// invalidate removes what an unsafe request has changed (RFC 9111, 4.4; RFC 9875, 3). It is done before the client
// gets the response, so that the client's next request sees its own change.
func (x *exchange) invalidate(header http.Header) {
	e := x.edge
	keys, groups := []string{x.key}, []string(nil)
	for _, name := range []string{"Location", "Content-Location"} {
		if uri, ok := sameOrigin(x.request, x.host, header.Get(name)); ok {
			keys = append(keys, e.keyOf(x.host, uri))
		}
	}
	for _, group := range rules.InvalidatedGroups(header) {
		if e.cfg.Site != "" {
			groups = append(groups, namedGroup(group))
		} else {
			groups = append(groups, hostGroup(x.host, group))
		}
	}
	e.store.Purge(keys, groups)
}

// sameOrigin returns the path and query of a reference in a response to a request, if it has the same origin.
func sameOrigin(r *http.Request, host, reference string) (string, bool) {
	target, err := url.Parse(reference)
	if reference == "" || err != nil {
		return "", false
	}
	base := url.URL{Scheme: "http", Host: host, Path: r.URL.Path, RawPath: r.URL.RawPath}
	target = base.ResolveReference(target)
	same := strings.EqualFold(target.Host, host) || strings.EqualFold(target.Host, r.Host)
	return target.RequestURI(), same && target.Scheme == "http"
}

// relay sends a response that is for this client only.
func (x *exchange) relay(res *http.Response, reason string) {
	header := x.Header()
	for name, lines := range res.Header {
		header[name] = lines
	}
	x.identify(header, "; fwd="+reason+"; fwd-status="+itoa(res.StatusCode))
	x.WriteHeader(res.StatusCode)
	if err := x.copy(res); err != nil {
		x.abort(err)
	}
	for name, lines := range res.Trailer {
		header[http.TrailerPrefix+name] = lines
	}
}

// buffer returns a buffer of the pool.
func (e *Edge) buffer() *[]byte {
	if buffer, ok := e.buffers.Get().(*[]byte); ok {
		return buffer
	}
	buffer := make([]byte, chunkBytes)
	return &buffer
}

// copy copies the body. A body without a length is flushed as it arrives.
func (x *exchange) copy(res *http.Response) error {
	buffer := x.edge.buffer()
	defer x.edge.buffers.Put(buffer)
	flusher, _ := x.ResponseWriter.(http.Flusher)
	for {
		n, err := res.Body.Read(*buffer)
		if n > 0 {
			if _, err := x.Write((*buffer)[:n]); err != nil {
				return errors.New("the client left")
			}
			if res.ContentLength < 0 && flusher != nil {
				flusher.Flush()
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
