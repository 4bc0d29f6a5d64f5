package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/swap"
)

// Path is the path at which a web host serves Handler to other hosts.
const Path = "/internal/session"

// A request has the token in tokenHeader. The response has the user in userHeader.
const (
	tokenHeader = "X-Session-Token"
	userHeader  = "X-Session-User"
)

// Lookup looks up the user of a session.
type Lookup interface {
	User(ctx context.Context, token string) (photos.ID, error)
}

// Owner is the sessions that a host has in its memory.
type Owner interface {
	Lookup
	End(ctx context.Context, token string) error
}

// Handler serves other hosts of the system. GET looks a session up: 204 with the user, or 404 for an unknown token.
// DELETE ends a session: 204, also for an unknown token. It shares the
// address of the service with everybody, so it answers 404 to whoever does not have the secret, and logs that.
func Handler(sessions Owner, secret sut.Secret, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		switch {
		case !secret.Authorizes(r.Header.Get("Authorization")):
			log.Warn("refused a session lookup without the secret of the system", "client", r.RemoteAddr)
			w.WriteHeader(http.StatusNotFound)
			return
		case r.Method == http.MethodDelete:
			status := http.StatusNoContent
			if err := sessions.End(r.Context(), r.Header.Get(tokenHeader)); err != nil {
				status = http.StatusServiceUnavailable
			}
			w.WriteHeader(status)
			return
		case r.Method != http.MethodGet:
			w.Header().Set("Allow", "GET, DELETE")
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		switch user, err := sessions.User(r.Context(), r.Header.Get(tokenHeader)); {
		case errors.Is(err, photos.ErrNotFound):
			w.WriteHeader(http.StatusNotFound)
		case err != nil:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			w.Header().Set(userHeader, strconv.FormatInt(int64(user), 10))
			w.WriteHeader(http.StatusNoContent)
		}
	})
}

// Remote looks up and ends sessions at other hosts. It cannot start a session.
type Remote struct {
	requestID func(context.Context) string
	secret    sut.Secret
	hosts     swap.Value[hosts]
}

// hosts are the peers that are asked at one time, with a client of their own. A client that
// outlived them would break lookups at the next hosts: closing idle connections fails a
// lookup whose response has arrived but has not been delivered.
type hosts struct {
	peers  []sut.Peer
	client *http.Client
}

// remoteTimeout bounds one lookup.
const remoteTimeout = time.Second

// remoteIdle is the maximum number of idle connections to one host.
const remoteIdle = 64

// NewRemote returns a Remote for these hosts of the system with a secret. Tokens name the hosts by Peer.Node.
// requestID returns the id of the request that a context belongs to, and Remote sends it
// with each lookup; nil = no id is sent. The caller must close the Remote.
func NewRemote(peers []sut.Peer, secret sut.Secret, requestID func(context.Context) string) *Remote {
	if requestID == nil {
		requestID = func(context.Context) string { return "" }
	}
	r := &Remote{requestID: requestID, secret: secret}
	_ = r.SetPeers(context.Background(), peers) // cannot fail: there are no earlier lookups
	return r
}

// SetPeers replaces the hosts. It waits until all lookups at earlier hosts have ended, or
// returns the error of ctx.
func (r *Remote) SetPeers(ctx context.Context, peers []sut.Peer) error {
	next := hosts{slices.Clone(peers), &http.Client{
		Timeout:   remoteTimeout,
		Transport: &http.Transport{MaxIdleConnsPerHost: remoteIdle, IdleConnTimeout: time.Minute, DisableCompression: true},
	}}
	return r.hosts.Replace(next, func(before hosts) { before.client.CloseIdleConnections() })(ctx)
}

// Peers returns the hosts. The caller must not modify them.
func (r *Remote) Peers() []sut.Peer {
	hosts, done := r.hosts.Use()
	defer done()
	return hosts.peers
}

// Start always returns an error, because this host cannot store a session.
func (r *Remote) Start(context.Context, photos.ID) (string, time.Time, error) {
	return "", time.Time{}, errors.New("session: this host stores no sessions, so it cannot start one")
}

// User asks the host that the token names. If that host is not one of the peers, the error
// is photos.ErrNotFound. If it does not answer, the error is photos.ErrUnavailable.
func (r *Remote) User(ctx context.Context, token string) (photos.ID, error) {
	response, host, err := r.ask(ctx, http.MethodGet, token)
	switch {
	case err != nil:
		return 0, err
	case response.StatusCode == http.StatusNoContent:
		user, err := strconv.ParseInt(response.Header.Get(userHeader), 10, 64)
		if err != nil || user < 1 {
			return 0, fmt.Errorf("session: %s answered with the user %q", host, response.Header.Get(userHeader))
		}
		return photos.ID(user), nil
	case response.StatusCode == http.StatusNotFound:
		return 0, fmt.Errorf("session: %w", photos.ErrNotFound)
	}
	return 0, fmt.Errorf("session: %s answered %s: %w", host, response.Status, photos.ErrUnavailable)
}

// End ends a session at the host that the token names. It does nothing if that host is not one of the peers.
func (r *Remote) End(ctx context.Context, token string) error {
	response, host, err := r.ask(ctx, http.MethodDelete, token)
	switch {
	case errors.Is(err, photos.ErrNotFound):
		return nil
	case err != nil:
		return err
	case response.StatusCode != http.StatusNoContent:
		return fmt.Errorf("session: %s answered %s: %w", host, response.Status, photos.ErrUnavailable)
	}
	return nil
}

// ask sends a request to the host that the token names. The body of the response is already read.
func (r *Remote) ask(ctx context.Context, method, token string) (response *http.Response, host string, err error) {
	host, _, _ = strings.Cut(token, ".")
	hosts, done := r.hosts.Use()
	defer done()
	i := slices.IndexFunc(hosts.peers, func(p sut.Peer) bool { return p.Node == host })
	if i < 0 || !plain(token) {
		return nil, host, fmt.Errorf("session: %w", photos.ErrNotFound)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+hosts.peers[i].Address+Path, nil)
	if err != nil {
		return nil, host, fmt.Errorf("session: %w", err)
	}
	req.Header.Set(tokenHeader, token)
	req.Header.Set("Authorization", r.secret.Bearer())
	if id := r.requestID(ctx); id != "" {
		req.Header.Set(sut.RequestIDHeader, id)
	}
	response, err = hosts.client.Do(req)
	if err != nil {
		return nil, host, fmt.Errorf("session: %w: %w", photos.ErrUnavailable, err)
	}
	_, _ = io.CopyN(io.Discard, response.Body, 1<<10) // a read body allows to reuse the connection
	_ = response.Body.Close()                         // only read, so Close loses nothing
	return response, host, nil
}

// plain reports whether a token has only characters that a header may have. A client may
// have sent any text.
func plain(token string) bool {
	return !strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })
}

// Close closes idle connections.
func (r *Remote) Close() {
	hosts, done := r.hosts.Use()
	defer done()
	hosts.client.CloseIdleConnections()
}
