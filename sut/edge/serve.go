package edge

import (
	"net/http"
	"strconv"
	"time"

	"github.com/stagebench/stagebench/sut/edge/rules"
	"github.com/stagebench/stagebench/sut/edge/store"
)

// serveEntry answers with a stored response, or with the part of it that the request asks for. parameters are those of
// Cache-Status.
func (x *exchange) serveEntry(e *store.Entry, parameters string) {
	x.final()
	now := time.Now()
	x.values[1] = strconv.FormatInt(int64(e.Age(now)/time.Second), 10)
	if rules.NotModified(x.request.Header, e.Status, e.Header, now) {
		x.notModified(e.Header, parameters)
		return
	}
	header := x.Header()
	for name, lines := range e.Header {
		header[name] = lines
	}
	header[headerAge] = x.values[1:2:2]
	x.identify(header, parameters)
	content := e.Body
	status := e.Status
	if x.request.Method == http.MethodGet && status == http.StatusOK {
		part, result := rules.SelectRange(x.request.Header, e.Header, int64(len(content)), now)
		size := strconv.Itoa(len(content))
		switch result {
		case rules.Part:
			status, content = http.StatusPartialContent, content[part.Start:part.End]
			header["Content-Range"] = []string{
				"bytes " + strconv.FormatInt(part.Start, 10) + "-" + strconv.FormatInt(part.End-1, 10) + "/" + size,
			}
			header[headerLength] = []string{strconv.Itoa(len(content))}
		case rules.Unsatisfiable:
			status, content = http.StatusRequestedRangeNotSatisfiable, nil
			header["Content-Range"] = []string{"bytes */" + size}
			header[headerLength] = []string{"0"}
			delete(header, "Content-Encoding")
		}
	}
	x.WriteHeader(status)
	if x.request.Method == http.MethodHead || len(content) == 0 {
		return
	}
	if _, err := x.Write(content); err != nil {
		x.abort(err)
	}
}

// notModified sends a 304 about a response with that header. values[1] is its age, "" = the response is new.
func (x *exchange) notModified(about http.Header, parameters string) {
	header := x.Header()
	for name, lines := range rules.NotModifiedHeader(about) {
		header[name] = lines
	}
	header[headerVia] = about[headerVia]
	if x.values[1] != "" {
		header[headerAge] = x.values[1:2:2]
	}
	x.identify(header, parameters)
	x.WriteHeader(http.StatusNotModified)
}

// stream answers with the response of a fill while its body arrives.
func (x *exchange) stream(f *fill, r *reader, parameters string) {
	header := x.Header()
	for name, lines := range f.header {
		header[name] = lines
	}
	x.identify(header, parameters)
	x.WriteHeader(f.status)
	flush := func() {
		if flusher, ok := x.ResponseWriter.(http.Flusher); ok {
			flusher.Flush()
		}
	}
	for {
		part, last, err := r.next(x.request.Context(), flush)
		if err != nil {
			x.abort(err)
		}
		if len(part) > 0 {
			if _, err := x.Write(part); err != nil {
				x.abort(err)
			}
			r.advance(len(part))
		}
		if last {
			return
		}
	}
}
