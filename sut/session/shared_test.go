package session_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/resp/resptest"
	"github.com/stagebench/stagebench/sut/session"
	"github.com/stagebench/stagebench/sut/session/sessiontest"
)

// respHosts returns the address of a session host of each engine.
func respHosts() map[string]func(t *testing.T) string {
	return map[string]func(t *testing.T) string{
		"embedded": func(t *testing.T) string {
			return resptest.Serve(t, resptest.Config{Evict: "noeviction"}).Addr().String()
		},
		"redis": func(t *testing.T) string { return resptest.Redis(t, "--maxmemory-policy", "noeviction") },
	}
}

func newRESP(t *testing.T, address string, now func() time.Time) *session.RESP {
	t.Helper()
	r := session.NewRESP(session.RESPConfig{
		Host: sut.Peer{Node: "session-1", Address: address}, Now: now, Timeout: 10 * time.Second,
	})
	t.Cleanup(r.Close)
	return r
}

func TestRESPConforms(t *testing.T) {
	t.Parallel()
	for name, serve := range respHosts() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := serve(t)
			sessiontest.RunShared(t, func(t *testing.T, now func() time.Time) sessiontest.Table {
				return newRESP(t, address, now)
			})
		})
	}
}

// A key of the session host ends with its session, to the second, and a look-up does not prolong it.
func TestRESPSessionsExpire(t *testing.T) {
	t.Parallel()
	for name, serve := range respHosts() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := serve(t)
			s := session.NewShared(newRESP(t, address, nil), sut.Session, nil)
			if err := s.Adopt(t.Context(), "short", 42, time.Now().Add(90*time.Second)); err != nil {
				t.Fatal(err)
			}
			c := resptest.Client(address)
			defer func() { _ = c.Close() }()
			sum := sha256.Sum256([]byte("short"))
			key := "session:" + hex.EncodeToString(sum[:16])
			for range 2 {
				if life := c.TTL(t.Context(), key).Val(); life < 60*time.Second || life > 91*time.Second {
					t.Errorf("the key lives for %v, want 90 s", life)
				}
				if user, err := s.User(t.Context(), "short"); err != nil || user != 42 {
					t.Errorf("user %d, %v", user, err)
				}
			}
		})
	}
}

// A full host refuses logins and keeps every session.
func TestRESPIsFull(t *testing.T) {
	t.Parallel()
	for name, serve := range map[string]func() string{
		"embedded": func() string {
			return resptest.Serve(t, resptest.Config{Evict: "noeviction", MaxBytes: 100_000}).Addr().String()
		},
		"redis": func() string {
			return resptest.Redis(t, "--maxmemory-policy", "noeviction", "--maxmemory", "1400000")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := session.NewShared(newRESP(t, serve(), nil), sut.Session, nil)
			var tokens []string
			var err error
			for len(tokens) < 50_000 && err == nil {
				var token string
				if token, _, err = s.Start(t.Context(), photos.ID(len(tokens)+1)); err == nil {
					tokens = append(tokens, token)
				}
			}
			if !errors.Is(err, photos.ErrFull) || len(tokens) < 100 {
				t.Fatalf("after %d sessions: %v", len(tokens), err)
			}
			for i, token := range tokens {
				if user, err := s.User(t.Context(), token); err != nil || user != photos.ID(i+1) {
					t.Fatalf("session %d of %d: user %d, %v", i+1, len(tokens), user, err)
				}
			}
			if err := s.End(t.Context(), tokens[0]); err != nil { // a full host still removes sessions
				t.Error(err)
			}
		})
	}
}

func TestRESPUnavailable(t *testing.T) {
	t.Parallel()
	address, stop, start := resptest.Restarting(t)
	sessiontest.Unavailable(t, newRESP(t, address, nil), false, stop, start)
}

// A table that has another host asks only that one, as after a restart at another address. Nothing fails meanwhile.
func TestRESPSetHost(t *testing.T) {
	t.Parallel()
	first := resptest.Serve(t, resptest.Config{}).Addr().String()
	second := resptest.Serve(t, resptest.Config{}).Addr().String()
	table := newRESP(t, first, nil)
	s := session.NewShared(table, sut.Session, nil)
	token, _, err := s.Start(t.Context(), 42)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for ctx.Err() == nil {
				if _, _, err := s.Start(t.Context(), 43); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 3 {
		if err := table.SetHost(t.Context(), sut.Peer{Node: "session-1", Address: second}); err != nil {
			t.Error(err)
		}
	}
	cancel()
	group.Wait()
	if user, err := s.User(t.Context(), token); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("the new host has user %d, %v", user, err)
	}
	if table.Host().Address != second {
		t.Errorf("host %+v", table.Host())
	}
}

// A host that demands the secret gets it. Without it, or with another one, no session is found or added.
func TestRESPNeedsTheSecret(t *testing.T) {
	t.Parallel()
	address := resptest.Serve(t, resptest.Config{Secret: secret}).Addr().String()
	for with, want := range map[sut.Secret]bool{"": false, "another": false, secret: true} {
		table := session.NewRESP(session.RESPConfig{Host: sut.Peer{Address: address}, Secret: with})
		_, _, err := session.NewShared(table, sut.Session, nil).Start(t.Context(), 42)
		if got := err == nil; got != want {
			t.Errorf("with %q: %v", with, err)
		}
		table.Close()
	}
}

// expirer is a table of ids that records the batches.
type expirer struct {
	ids     []string
	batches []string
	fails   int // the number of batches that fail
}

func (e *expirer) ExpireSessions(_ context.Context, after string, _ int64) (last string, removed int, err error) {
	e.batches = append(e.batches, after)
	if len(e.batches) <= e.fails {
		return after, 0, errors.New("broken")
	}
	for _, id := range e.ids {
		if id > after {
			return id, 0, nil
		}
	}
	return "", 0, nil
}

// Expire walks through the table in circles, one batch per interval, and repeats a batch that failed.
func TestExpire(t *testing.T) {
	e := &expirer{ids: []string{"\x01", "zzz"}, fails: 2}
	var reported []error
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			session.Expire(ctx, e, time.Minute, func(err error) { reported = append(reported, err) })
		}()
		time.Sleep(7*time.Minute + time.Second)
		cancel()
		<-ended
	})
	random := e.batches[0]
	if want := []string{random, random, random, "zzz", "", "\x01", "zzz"}; !slices.Equal(e.batches, want) {
		t.Errorf("batches after %q, want %q", e.batches, want)
	}
	if len(reported) != 2 {
		t.Errorf("reported %v, want two errors", reported)
	}
}
