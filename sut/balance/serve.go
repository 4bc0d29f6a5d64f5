package balance

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
)

// serve handles one request of a client and counts it when it has come to its
// end, however it ended.
func (b *Balancer) serve(w http.ResponseWriter, r *http.Request) {
	t := &tally{ResponseWriter: w}
	defer func() { b.finished[t.code].Add(1) }()
	if r.Method == http.MethodConnect {
		// A tunnel has no end that could be counted, and no host of ours wants one.
		writeError(t, http.StatusMethodNotAllowed, "CONNECT is not supported: ask for a path of this server")
		return
	}
	b.proxy.ServeHTTP(t, r)
}

// tally notes the status that a client was sent.
type tally struct {
	http.ResponseWriter
	code int // 100 to 999, once WriteHeader was called
}

func (t *tally) WriteHeader(code int) {
	// 103 Early Hints and the like come before the status.
	if code >= http.StatusOK {
		t.code = code
	}
	t.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController flush.
func (t *tally) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// rewrite turns the client's request into the one for a host. What it leaves
// out, the dispatcher does once it knows the host. Hop-by-hop headers are gone
// when it is called.
func rewrite(pr *httputil.ProxyRequest) {
	pr.Out.URL.Scheme = "http"
	// The reverse proxy drops what it cannot parse; that is for the host to judge.
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery
	pr.Out.Header["X-Forwarded-For"] = pr.In.Header["X-Forwarded-For"]
	pr.SetXForwarded() // appends the client's address
	// No switching of protocols; without these, a host answers as usual.
	pr.Out.Header.Del("Connection")
	pr.Out.Header.Del("Upgrade")
}

// fail answers a request that no host answered.
func (b *Balancer) fail(w http.ResponseWriter, r *http.Request, err error) {
	var timeout net.Error
	var lost *lostError
	switch {
	case errors.Is(err, errNoUpstream):
		w.Header().Set("Retry-After", b.retryAfter)
		writeError(w, http.StatusServiceUnavailable, "no web host is up, try again later")
	case r.Context().Err() != nil:
		// Nobody is left to read an answer. serve counts the request all the same.
		w.(*tally).code = statusClientGone
		panic(http.ErrAbortHandler)
	case errors.Is(err, errClientBody):
		writeError(w, http.StatusBadRequest, "the request body could not be read to its end")
	case errors.As(err, &timeout) && timeout.Timeout():
		writeError(w, http.StatusGatewayTimeout, "the web host did not answer in time")
	case errors.As(err, &lost):
		writeError(w, http.StatusBadGateway, fmt.Sprintf("web host %s did not answer the request, which may have taken effect", lost.node))
	default:
		writeError(w, http.StatusBadGateway, "the web host sent no valid answer")
	}
	b.cfg.Log.Debug("request failed", "method", r.Method, "path", r.URL.Path, "cause", err)
}

// writeError answers with an error as all our services do.
func writeError(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// The client may have gone; there is nobody else to tell.
	_ = json.NewEncoder(w).Encode(map[string]string{"error": text})
}

// bufferPool lends the buffers that bodies are copied through.
type bufferPool struct{ pool sync.Pool }

// bufferSize is the size of a buffer in bytes: io.Copy's.
const bufferSize = 32 << 10

func (p *bufferPool) Get() []byte {
	if buffer, ok := p.pool.Get().(*[bufferSize]byte); ok {
		return buffer[:]
	}
	return make([]byte, bufferSize)
}

// Put keeps the array and not the slice, whose header would cost an allocation.
func (p *bufferPool) Put(buffer []byte) { p.pool.Put((*[bufferSize]byte)(buffer)) }
