package process

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/conns"
)

// HTTP is a group of HTTP servers that stop together.
type HTTP struct {
	Died    chan error // delivers the error of a server that ended without Stop
	servers []*http.Server
}

// NewHTTP returns an empty group.
func NewHTTP() *HTTP { return &HTTP{Died: make(chan error, 4)} }

// HTTPConnBytes is the memory that a connection may take before its request is complete. Headers of 8 KiB take twenty
// times as much if they are thousands of empty ones.
const HTTPConnBytes = 192 << 10

// maxAdminConns is the maximum number of connections of an admin address. Each client there uses one at a time.
const maxAdminConns = 64

// Serve adds a server to the group and serves the listener in a goroutine. It sets the
// server's timeouts and the limits of headers and connections. It closes a connection over
// the limit after one response.
func (h *HTTP) Serve(listener net.Listener, server *http.Server, bound *conns.Bound) {
	handler := server.Handler
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if conns.Refused(r.Context()) {
			w.Header().Set("Connection", "close")
		}
		handler.ServeHTTP(w, r)
	})
	bound.Attach(server)
	server.ReadHeaderTimeout, server.IdleTimeout = 10*time.Second, 5*time.Minute
	server.MaxHeaderBytes = sut.MaxHeaderBytes
	h.servers = append(h.servers, server)
	go func() {
		if err := server.Serve(bound.Listen(listener)); !errors.Is(err, http.ErrServerClosed) {
			h.Died <- err
		}
	}()
}

// Stop waits for the requests in flight. When ctx ends, it closes their connections.
func (h *HTTP) Stop(ctx context.Context) error {
	var errs error
	for _, server := range h.servers {
		if err := server.Shutdown(ctx); err != nil {
			errs = errors.Join(errs, err, server.Close())
		}
	}
	return errs
}

// SendJSON answers a request of an operator.
func SendJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // it can only fail if the client is gone
}

// SendError answers a request of an operator with an error. hint says what to send
// instead; "" = no hint.
func SendError(w http.ResponseWriter, status int, err error, hint string) {
	SendJSON(w, status, sut.ErrorBody{Error: err.Error(), Hint: hint})
}

// DecodeStrictly reads one JSON document of at most 1 MiB. An unknown field, and text
// after the document, are errors.
func DecodeStrictly(body io.Reader, into any) error {
	decoder := json.NewDecoder(io.LimitReader(body, 1<<20))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("unexpected text after the JSON document: send one document")
	}
	return nil
}
