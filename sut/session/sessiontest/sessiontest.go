// Package sessiontest is the conformance kit of session stores. Every implementation must
// pass Run.
//
// It keeps no state and starts nothing. Each subtest opens a new session store.
package sessiontest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut/photos"
)

// Sessions is the interface of a session store.
type Sessions interface {
	Start(ctx context.Context, user photos.ID) (token string, expires time.Time, err error)
	User(ctx context.Context, token string) (photos.ID, error)
	End(ctx context.Context, token string) error
}

// Run checks a session store. open returns an empty one that uses now as its clock.
func Run(t *testing.T, open func(t *testing.T, now func() time.Time) Sessions) {
	for _, test := range []struct {
		name  string
		check func(*testing.T, Sessions, *clock)
	}{
		{"a session identifies its user until it ends", lifecycle},
		{"an expired session is not found", expiry},
		{"a guessed token is not found", guesses},
		{"a user may have two sessions", twoSessions},
		{"sessions are safe for concurrent use", concurrent},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &clock{at: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
			test.check(t, open(t, c.now), c)
		})
	}
}

// clock is a clock that the test sets.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) set(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = at
}

func lifecycle(t *testing.T, s Sessions, c *clock) {
	token, expires := start(t, s, 42)
	if !expires.After(c.now()) {
		t.Errorf("the session expires at %s, and now is %s", expires, c.now())
	}
	want(t, s, token, 42)
	want(t, s, token, 42)
	for range 2 { // ending it twice is not an error
		if err := s.End(t.Context(), token); err != nil {
			t.Errorf("end: %v", err)
		}
		wantNone(t, s, token)
	}
}

func expiry(t *testing.T, s Sessions, c *clock) {
	token, expires := start(t, s, 42)
	c.set(expires.Add(-time.Second))
	want(t, s, token, 42)
	later, _ := start(t, s, 43)
	c.set(expires)
	wantNone(t, s, token)
	want(t, s, later, 43)
}

func guesses(t *testing.T, s Sessions, _ *clock) {
	token, _ := start(t, s, 42)
	if len(token) < 22 {
		t.Errorf("token %q has less than 128 bits", token)
	}
	for _, guess := range []string{
		"", " ", "0", token[1:], token + "0", "00000000000000000000000000000000", "zz" + token[2:], "\x00\xff", token + "\n",
	} {
		wantNone(t, s, guess)
		if err := s.End(t.Context(), guess); err != nil {
			t.Errorf("end %q: %v", guess, err)
		}
	}
	want(t, s, token, 42)
}

func twoSessions(t *testing.T, s Sessions, _ *clock) {
	first, _ := start(t, s, 42)
	second, _ := start(t, s, 42)
	if first == second {
		t.Fatal("two sessions have the same token")
	}
	if err := s.End(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	want(t, s, second, 42)
}

func concurrent(t *testing.T, s Sessions, _ *clock) {
	var group sync.WaitGroup
	failed := make(chan error, 8)
	for worker := range 8 {
		group.Go(func() {
			for n := range 50 {
				user := photos.ID(1000*worker + n + 1)
				token, _, err := s.Start(t.Context(), user)
				if err != nil {
					failed <- err
					return
				}
				if got, err := s.User(t.Context(), token); err != nil || got != user {
					failed <- fmt.Errorf("the session of user %d identifies user %d, error %w", user, got, err)
					return
				}
				if err := s.End(t.Context(), token); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	group.Wait()
	close(failed)
	for err := range failed {
		t.Error(err)
	}
}

func start(t *testing.T, s Sessions, user photos.ID) (string, time.Time) {
	t.Helper()
	token, expires, err := s.Start(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	return token, expires
}

func want(t *testing.T, s Sessions, token string, user photos.ID) {
	t.Helper()
	if got, err := s.User(t.Context(), token); err != nil || got != user {
		t.Errorf("the session identifies user %d, error %v, want user %d", got, err, user)
	}
}

func wantNone(t *testing.T, s Sessions, token string) {
	t.Helper()
	if got, err := s.User(t.Context(), token); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("token %q identifies user %d, error %v, want not found", token, got, err)
	}
}
