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
)

// HTTP is a group of HTTP servers that stop together.
type HTTP struct {
	Died    chan error // delivers the error of a server that ended without Stop
	servers []*http.Server
}

// NewHTTP returns an empty group.
func NewHTTP() *HTTP { return &HTTP{Died: make(chan error, 4)} }

// maxHeaderBytes is the size of the headers of a request above which it gets 431. Each connection may hold as much
// memory before its request is complete.
const maxHeaderBytes = 32 << 10

// Serve adds a server to the group and serves the listener in a goroutine. It sets the
// server's timeouts and the limit of headers.
func (h *HTTP) Serve(listener net.Listener, server *http.Server) {
	server.ReadHeaderTimeout, server.IdleTimeout = 10*time.Second, 5*time.Minute
	server.MaxHeaderBytes = maxHeaderBytes
	h.servers = append(h.servers, server)
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
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
