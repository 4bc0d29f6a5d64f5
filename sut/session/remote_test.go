package session_test

import (
	"context"
	"errors"
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

// elsewhere is sessions that one host starts and another asks for.
type elsewhere struct {
	*session.Memory
	remote *session.Remote
}

func (e elsewhere) User(ctx context.Context, token string) (photos.ID, error) {
	return userOf(ctx, e.remote, token)
}

// userOf asks whose a token is, and again as long as nobody answers in time: the
// bound of one question is that of a host, and not of a machine that does other things.
func userOf(ctx context.Context, remote *session.Remote, token string) (user photos.ID, err error) {
	for range 10 {
		if user, err = remote.User(ctx, token); !errors.Is(err, context.DeadlineExceeded) {
			break
		}
	}
	return user, err
}

// peer serves the sessions of a host to others until the test ends.
func peer(t *testing.T, name string, sessions session.Lookup) sut.Peer {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(session.Path, session.Handler(sessions))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return sut.Peer{Node: name, Address: server.Listener.Addr().String()}
}

func TestRemoteConforms(t *testing.T) {
	sessiontest.Run(t, func(t *testing.T, now func() time.Time) sessiontest.Sessions {
		m := newMemory(t, session.MemoryConfig{Now: now, Host: "web-1"})
		remote := session.NewRemote([]sut.Peer{peer(t, "web-1", m)}, nil)
		t.Cleanup(remote.Close)
		return elsewhere{m, remote}
	})
}

// The host that a token names is asked, and no other.
func TestRemoteAsksTheHostOfTheToken(t *testing.T) {
	one := newMemory(t, session.MemoryConfig{Host: "web-1"})
	two := newMemory(t, session.MemoryConfig{Host: "web-2"})
	first, second := peer(t, "web-1", one), peer(t, "web-2", two)
	remote := session.NewRemote([]sut.Peer{first, second}, nil)
	t.Cleanup(remote.Close)
	token, _, err := two.Start(t.Context(), 42)
	if err != nil {
		t.Fatal(err)
	}
	if user, err := userOf(t.Context(), remote, token); err != nil || user != 42 {
		t.Errorf("user %d, %v, want 42", user, err)
	}
	for _, forged := range []string{strings.Replace(token, "web-2", "web-1", 1), "web-9" + token[5:], "", "web-2.", token + "0"} {
		if user, err := userOf(t.Context(), remote, forged); !errors.Is(err, photos.ErrNotFound) {
			t.Errorf("token %q is user %d, %v; want nobody", forged, user, err)
		}
	}
	// A host that is no more is asked no more; one that is told of later is.
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
		t.Errorf("error %v, want that it does not answer", err)
	}
	if _, _, err := remote.Start(t.Context(), 1); err == nil {
		t.Error("a session was started where it would not be found again")
	}
	if err := remote.End(t.Context(), token); err == nil {
		t.Error("a session was ended where it is not")
	}
}

// What a host answers that is none of ours, or in trouble, is no verdict on the
// user: the tier is away.
func TestRemoteMistrustsAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		answer      http.HandlerFunc
		unavailable bool
	}{
		"it is overloaded":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, true},
		"it is another one":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusMisdirectedRequest) }, true},
		"it breaks off":       {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, true},
		"it names nobody":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, false},
		"it names user 0":     {answerUser("0"), false},
		"it names user -1":    {answerUser("-1"), false},
		"it names a man":      {answerUser("bob"), false},
		"it sends on forever": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(test.answer)
			defer server.Close()
			remote := session.NewRemote([]sut.Peer{{Node: "web-1", Address: server.Listener.Addr().String()}}, nil)
			defer remote.Close()
			user, err := userOf(t.Context(), remote, "web-1.0123")
			if err == nil || user != 0 || errors.Is(err, photos.ErrNotFound) || errors.Is(err, photos.ErrUnavailable) != test.unavailable {
				t.Errorf("user %d, %v", user, err)
			}
		})
	}
}

func answerUser(user string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Session-User", user)
		w.WriteHeader(http.StatusNoContent)
	}
}

// A host that hangs is waited for no longer than the request may take.
func TestRemoteGivesUp(t *testing.T) {
	asked, release := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(asked)
		<-release
	}))
	defer server.Close()
	defer close(release)
	remote := session.NewRemote([]sut.Peer{{Node: "web-1", Address: server.Listener.Addr().String()}}, nil)
	defer remote.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := remote.User(ctx, "web-1.0123"); !errors.Is(err, photos.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// The id of the user's request goes along, so that it is found in all logs.
func TestRemotePassesRequestIDsOn(t *testing.T) {
	got := make(chan string, 2)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header.Get(sut.RequestIDHeader)
		w.WriteHeader(http.StatusNotFound)
	}))
	defer server.Close()
	type key struct{}
	remote := session.NewRemote([]sut.Peer{{Node: "web-1", Address: server.Listener.Addr().String()}}, func(ctx context.Context) string {
		id, _ := ctx.Value(key{}).(string)
		return id
	})
	defer remote.Close()
	for _, id := range []string{"upload-17", ""} {
		if _, err := remote.User(context.WithValue(t.Context(), key{}, id), "web-1.0123"); !errors.Is(err, photos.ErrNotFound) {
			t.Error(err)
		}
		if sent := <-got; sent != id {
			t.Errorf("id %q was sent as %q", id, sent)
		}
	}
}

// Hosts come and go while sessions are asked for, and a session is found whenever
// its host is among them.
func TestPeersAreExchangedLive(t *testing.T) {
	m := newMemory(t, session.MemoryConfig{Host: "web-1"})
	first := peer(t, "web-1", m)
	token, _, err := m.Start(t.Context(), 42)
	if err != nil {
		t.Fatal(err)
	}
	remote := session.NewRemote([]sut.Peer{first}, nil)
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
			if err := remote.SetPeers(t.Context(), []sut.Peer{first, {Node: "web-9", Address: "127.0.0.1:1"}}); err != nil {
				t.Fatal(err)
			}
			if err := remote.SetPeers(t.Context(), []sut.Peer{first}); err != nil {
				t.Fatal(err)
			}
		}
	})
	group.Wait()
	if peers := remote.Peers(); len(peers) != 1 || peers[0] != first {
		t.Errorf("peers %v", peers)
	}
}

// Who may ask is everybody who has the token; what else is asked is refused.
func TestHandlerAnswersGETOnly(t *testing.T) {
	m := newMemory(t, session.MemoryConfig{Host: "web-1"})
	for method, want := range map[string]int{http.MethodGet: 404, http.MethodPost: 405, http.MethodDelete: 405} {
		w := httptest.NewRecorder()
		session.Handler(m).ServeHTTP(w, httptest.NewRequest(method, session.Path, nil))
		if w.Code != want || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v, want %d", method, w.Code, w.Header(), want)
		}
	}
}
