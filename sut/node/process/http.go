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

// HTTP is servers of HTTP that end together.
type HTTP struct {
	Died    chan error // delivers why one has ended without being asked
	servers []*http.Server
}

// NewHTTP returns no servers.
func NewHTTP() *HTTP { return &HTTP{Died: make(chan error, 4)} }

// Serve has a server serve a listener.
func (h *HTTP) Serve(listener net.Listener, server *http.Server) {
	server.ReadHeaderTimeout, server.IdleTimeout = 10*time.Second, 5*time.Minute
	h.servers = append(h.servers, server)
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			h.Died <- err
		}
	}()
}

// Stop lets the requests in flight finish, and closes what is left in the end.
func (h *HTTP) Stop(ctx context.Context) error {
	var errs error
	for _, server := range h.servers {
		if err := server.Shutdown(ctx); err != nil {
			errs = errors.Join(errs, err, server.Close())
		}
	}
	return errs
}

// SendJSON answers operators.
func SendJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // an error is the client's connection
}

// SendError answers operators with an error; hint says what to send instead, "" = nothing.
func SendError(w http.ResponseWriter, status int, err error, hint string) {
	SendJSON(w, status, sut.ErrorBody{Error: err.Error(), Hint: hint})
}

// DecodeStrictly reads one JSON document, bounded, of known fields only.
func DecodeStrictly(body io.Reader, into any) error {
	decoder := json.NewDecoder(io.LimitReader(body, 1<<20))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the JSON document")
	}
	return nil
}
