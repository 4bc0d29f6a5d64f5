package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/swap"
)

// Path is where a host answers others about its sessions. The request's header
// names the token, which is the secret: who has it is the user anyway.
const Path = "/internal/session"

// tokenHeader carries the token that is asked about; in an answer, userHeader
// carries whose it is.
const (
	tokenHeader = "X-Session-Token"
	userHeader  = "X-Session-User"
)

// Lookup is sessions that can be asked about.
type Lookup interface {
	User(ctx context.Context, token string) (photos.ID, error)
}

// Handler answers other hosts: 204 with the user, 404 for a token that stands for
// nobody.
func Handler(sessions Lookup) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
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

// Remote is the sessions of other hosts. It starts none.
type Remote struct {
	client    *http.Client
	requestID func(context.Context) string
	peers     swap.Value[[]sut.Peer]
}

// remoteTimeout bounds one question.
const remoteTimeout = time.Second

// remoteIdle is how many connections to one host are kept.
const remoteIdle = 64

// NewRemote returns sessions that are asked for at those hosts, by the names
// that stand in their tokens. requestID returns the id of the request that a
// context belongs to, which goes along; nil = none does. Close it when done.
func NewRemote(peers []sut.Peer, requestID func(context.Context) string) *Remote {
	if requestID == nil {
		requestID = func(context.Context) string { return "" }
	}
	r := &Remote{requestID: requestID, client: &http.Client{
		Timeout:   remoteTimeout,
		Transport: &http.Transport{MaxIdleConnsPerHost: remoteIdle, IdleConnTimeout: time.Minute, DisableCompression: true},
	}}
	_ = r.SetPeers(context.Background(), peers) // nobody is asked yet
	return r
}

// SetPeers replaces the hosts that are asked. It returns when no other one is asked any
// more, or with ctx's error when that ends before.
func (r *Remote) SetPeers(ctx context.Context, peers []sut.Peer) error {
	return r.peers.Replace(slices.Clone(peers), func([]sut.Peer) { r.client.CloseIdleConnections() })(ctx)
}

// Peers returns the hosts that are asked.
func (r *Remote) Peers() []sut.Peer {
	peers, done := r.peers.Use()
	defer done()
	return peers
}

// Start refuses: a session would not be known where the user's next requests go.
func (r *Remote) Start(context.Context, photos.ID) (string, time.Time, error) {
	return "", time.Time{}, errors.New("session: this host holds no sessions, so it starts none")
}

// User asks the host that the token names. A host that is no more has taken its
// sessions with it; one that does not answer is photos.ErrUnavailable.
func (r *Remote) User(ctx context.Context, token string) (photos.ID, error) {
	host, _, _ := strings.Cut(token, ".")
	peers, done := r.peers.Use()
	defer done()
	i := slices.IndexFunc(peers, func(p sut.Peer) bool { return p.Node == host })
	if i < 0 || !plain(token) {
		return 0, fmt.Errorf("session: %w", photos.ErrNotFound)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+peers[i].Address+Path, nil)
	if err != nil {
		return 0, fmt.Errorf("session: %w", err)
	}
	req.Header.Set(tokenHeader, token)
	if id := r.requestID(ctx); id != "" {
		req.Header.Set(sut.RequestIDHeader, id)
	}
	response, err := r.client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("session: %w: %w", photos.ErrUnavailable, err)
	}
	defer func() { _ = response.Body.Close() }()      // read only
	_, _ = io.CopyN(io.Discard, response.Body, 1<<10) // so that the connection can be used again
	switch response.StatusCode {
	case http.StatusNoContent:
		user, err := strconv.ParseInt(response.Header.Get(userHeader), 10, 64)
		if err != nil || user < 1 {
			return 0, fmt.Errorf("session: %s answered with the user %q", host, response.Header.Get(userHeader))
		}
		return photos.ID(user), nil
	case http.StatusNotFound:
		return 0, fmt.Errorf("session: %w", photos.ErrNotFound)
	}
	return 0, fmt.Errorf("session: %s answered %s: %w", host, response.Status, photos.ErrUnavailable)
}

// plain reports whether a token, which somebody made up, can stand in a header.
func plain(token string) bool {
	return !strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })
}

// End refuses: sessions end where they are.
func (r *Remote) End(context.Context, string) error {
	return errors.New("session: this host holds no sessions, so it ends none")
}

// Close closes the connections that are kept.
func (r *Remote) Close() { r.client.CloseIdleConnections() }
