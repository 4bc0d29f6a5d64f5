package session_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/session"
	"github.com/stagebench/stagebench/sut/session/sessiontest"
)

// twoHosts starts and ends sessions on one host and looks them up from another.
type twoHosts struct {
	*session.Memory
	remote *session.Remote
}

func (h twoHosts) User(ctx context.Context, token string) (photos.ID, error) {
	return userOf(ctx, h.remote, token)
}

// userOf looks up the user of a token. It retries timeouts, because a busy test machine may
// exceed the timeout of one lookup.
func userOf(ctx context.Context, remote *session.Remote, token string) (user photos.ID, err error) {
	for range 10 {
		if user, err = remote.User(ctx, token); !errors.Is(err, context.DeadlineExceeded) {
			break
		}
	}
	return user, err
}

// peer serves the sessions of a host until the test ends.
func peer(t *testing.T, name string, sessions session.Owner) sut.Peer {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(session.Path, session.Handler(sessions, secret, discard()))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return sut.Peer{Node: name, Address: server.Listener.Addr().String()}
}

func TestRemoteConforms(t *testing.T) {
	sessiontest.Run(t, func(t *testing.T, now func() time.Time) sessiontest.Sessions {
		m := newMemory(t, session.MemoryConfig{Now: now, Host: "web-1"})
		remote := session.NewRemote([]sut.Peer{peer(t, "web-1", m)}, secret, nil)
		t.Cleanup(remote.Close)
		return twoHosts{m, remote}
	})
}

// A lookup asks only the host that the token names.
func TestRemoteAsksTheHostOfTheToken(t *testing.T) {
	one := newMemory(t, session.MemoryConfig{Host: "web-1"})
	two := newMemory(t, session.MemoryConfig{Host: "web-2"})
	first, second := peer(t, "web-1", one), peer(t, "web-2", two)
	remote := session.NewRemote([]sut.Peer{first, second}, secret, nil)
	t.Cleanup(remote.Close)
	token, _, err := two.Start(t.Context(), 42)
	if err != nil {
		t.Fatal(err)
	}
	if user, err := userOf(t.Context(), remote, token); err != nil || user != 42 {
		t.Errorf("user %d, %v, want 42", user, err)
	}
	otherHost := strings.Replace(token, "web-2", "web-1", 1)
	for _, forged := range []string{otherHost, "web-9" + token[5:], "", "web-2.", token + "0"} {
		if user, err := userOf(t.Context(), remote, forged); !errors.Is(err, photos.ErrNotFound) {
			t.Errorf("token %q is user %d, %v; want not found", forged, user, err)
		}
	}
	// SetPeers removes and adds hosts.
	if err := remote.SetPeers(t.Context(), []sut.Peer{first}); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.User(t.Context(), token); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("error %v, want not found", err)
	}
	if err := remote.SetPeers(t.Context(), []sut.Peer{{Node: "web-2", Address: "127.0.0.1:1"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.User(t.Context(), token); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("error %v, want unavailable", err)
	}
	if _, _, err := remote.Start(t.Context(), 1); err == nil {
		t.Error("Remote started a session")
	}
	if err := remote.End(t.Context(), token); err == nil {
		t.Error("Remote ended a session")
	}
}

// An unexpected response is an error, but never "not found": it says nothing about the
// session.
func TestRemoteRejectsBadResponses(t *testing.T) {
	redirect := func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }
	for name, test := range map[string]struct {
		answer      http.HandlerFunc
		unavailable bool
	}{
		"overloaded":        {answerStatus(http.StatusServiceUnavailable), true},
		"another service":   {answerStatus(http.StatusMisdirectedRequest), true},
		"connection broken": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, true},
		"redirect loop":     {redirect, true},
		"no user":           {answerStatus(http.StatusNoContent), false},
		"user 0":            {answerUser("0"), false},
		"user -1":           {answerUser("-1"), false},
		"user is text":      {answerUser("bob"), false},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(test.answer)
			defer server.Close()
			remote := session.NewRemote([]sut.Peer{{Node: "web-1", Address: server.Listener.Addr().String()}}, secret, nil)
			defer remote.Close()
			user, err := userOf(t.Context(), remote, "web-1.0123")
			if err == nil || user != 0 || errors.Is(err, photos.ErrNotFound) ||
				errors.Is(err, photos.ErrUnavailable) != test.unavailable {
				t.Errorf("user %d, %v", user, err)
			}
		})
	}
}

func answerStatus(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

func answerUser(user string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Session-User", user)
		w.WriteHeader(http.StatusNoContent)
	}
}

// A lookup at a host that hangs ends with the context of the request.
func TestRemoteIsCancelled(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(asked)
		<-release
	}))
	defer server.Close()
	defer close(release)
	remote := session.NewRemote([]sut.Peer{{Node: "web-1", Address: server.Listener.Addr().String()}}, secret, nil)
	defer remote.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	_, err := remote.User(ctx, "web-1.0123")
	if !errors.Is(err, photos.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// A lookup carries the request's id, so that the logs of all hosts have it.
func TestRemoteSendsRequestID(t *testing.T) {
	got := make(chan string, 2)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header.Get(sut.RequestIDHeader)
		w.WriteHeader(http.StatusNotFound)
	}))
	defer server.Close()
	type key struct{}
	requestID := func(ctx context.Context) string {
		id, _ := ctx.Value(key{}).(string)
		return id
	}
	remote := session.NewRemote([]sut.Peer{{Node: "web-1", Address: server.Listener.Addr().String()}}, secret, requestID)
	defer remote.Close()
	for _, id := range []string{"upload-17", ""} {
		ctx := context.WithValue(t.Context(), key{}, id)
		if _, err := remote.User(ctx, "web-1.0123"); !errors.Is(err, photos.ErrNotFound) {
			t.Error(err)
		}
		if sent := <-got; sent != id {
			t.Errorf("id %q was sent as %q", id, sent)
		}
	}
}

// Lookups succeed while other hosts are added and removed.
func TestSetPeersDuringLookups(t *testing.T) {
	m := newMemory(t, session.MemoryConfig{Host: "web-1"})
	first := peer(t, "web-1", m)
	token, _, err := m.Start(t.Context(), 42)
	if err != nil {
		t.Fatal(err)
	}
	remote := session.NewRemote([]sut.Peer{first}, secret, nil)
	t.Cleanup(remote.Close)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 50 {
				if user, err := userOf(t.Context(), remote, token); err != nil || user != 42 {
					t.Errorf("user %d, %v", user, err)
				}
			}
		})
	}
	group.Go(func() {
		for range 50 {
			more := []sut.Peer{first, {Node: "web-9", Address: "127.0.0.1:1"}}
			err := errors.Join(remote.SetPeers(t.Context(), more), remote.SetPeers(t.Context(), []sut.Peer{first}))
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	group.Wait()
	if peers := remote.Peers(); len(peers) != 1 || peers[0] != first {
		t.Errorf("peers %v", peers)
	}
}

// The handler answers 405 to methods other than GET and DELETE.
func TestHandlerRefusesOtherMethods(t *testing.T) {
	m := newMemory(t, session.MemoryConfig{Host: "web-1"})
	for method, want := range map[string]int{
		http.MethodGet: 404, http.MethodPost: 405, http.MethodPut: 405, http.MethodDelete: 204,
	} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(method, session.Path, nil)
		r.Header.Set("Authorization", secret.Bearer())
		session.Handler(m, secret, discard()).ServeHTTP(w, r)
		if w.Code != want || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v, want %d", method, w.Code, w.Header(), want)
		}
	}
}

// secret is that of the system in these tests.
const secret sut.Secret = "of the system"

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// Whoever has a session's token but not the secret of the system learns nothing: not even that this path exists.
func TestLookupsNeedTheSecret(t *testing.T) {
	m := newMemory(t, session.MemoryConfig{Host: "web-1"})
	token, _, err := m.Start(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	for authorization, want := range map[string]int{
		"": http.StatusNotFound, "Bearer of another system": http.StatusNotFound, secret.Bearer(): http.StatusNoContent,
	} {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, session.Path, nil)
		r.Header.Set("X-Session-Token", token)
		r.Header.Set("Authorization", authorization)
		session.Handler(m, secret, discard()).ServeHTTP(w, r)
		if w.Code != want || want != http.StatusNoContent && w.Header().Get("X-Session-User") != "" {
			t.Errorf("with %q: %d %v, want %d", authorization, w.Code, w.Header(), want)
		}
	}
}
