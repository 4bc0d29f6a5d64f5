package sessiontest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/session"
)

// Table is the interface of a table of sessions.
type Table = session.Table

// RunShared checks a table of sessions: it runs Run, and the checks of what only a shared store can do. open returns a
// table that uses now as its clock, if it has one. The table may have sessions of earlier calls.
func RunShared(t *testing.T, open func(t *testing.T, now func() time.Time) Table) {
	shared := func(t *testing.T, now func() time.Time) (*session.Shared, Table) {
		table := open(t, now)
		return session.NewShared(table, sut.Session, now), table
	}
	Run(t, func(t *testing.T, now func() time.Time) Sessions {
		s, _ := shared(t, now)
		return s
	})
	for _, test := range []struct {
		name  string
		check func(*testing.T, *session.Shared, Table, *clock)
	}{
		{"a session of another store keeps its remaining life", adoption},
		{"a token may be any text", anyText},
		{"another client of the table knows the sessions", secondClient},
		{"the table does not have the token", noToken},
		{"sessions that have ended are removed in batches", batches},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := &clock{at: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
			s, table := shared(t, c.now)
			test.check(t, s, table, c)
		})
	}
}

func adopt(t *testing.T, s *session.Shared, token string, user photos.ID, expires time.Time) {
	t.Helper()
	if err := s.Adopt(t.Context(), token, user, expires); err != nil {
		t.Fatalf("adopt %q: %v", token, err)
	}
}

func adoption(t *testing.T, s *session.Shared, _ Table, c *clock) {
	ends := c.now().Add(time.Hour)
	for range 2 { // again changes nothing
		adopt(t, s, "web-1.adopted", 42, ends)
	}
	want(t, s, "web-1.adopted", 42)
	c.set(ends.Add(-time.Millisecond))
	want(t, s, "web-1.adopted", 42)
	c.set(ends)
	wantNone(t, s, "web-1.adopted")
	adopt(t, s, "web-1.over", 42, c.now()) // it has ended already
	wantNone(t, s, "web-1.over")
}

func anyText(t *testing.T, s *session.Shared, _ Table, c *clock) {
	tokens := []string{
		"", " ", "\x00", "\xff\xfe", "é", "a\r\nb", "'; drop table sessions; --", "$1", "*", "web-1.0123",
		strings.Repeat("x", 8<<10), strings.Repeat("x", 8<<10) + "y",
	}
	for i, token := range tokens {
		adopt(t, s, token, photos.ID(i+1), c.now().Add(time.Hour))
	}
	for i, token := range tokens {
		want(t, s, token, photos.ID(i+1))
	}
	for _, token := range tokens {
		if err := s.End(t.Context(), token); err != nil {
			t.Errorf("end %q: %v", token, err)
		}
		wantNone(t, s, token)
	}
}

func secondClient(t *testing.T, s *session.Shared, table Table, c *clock) {
	token, _ := start(t, s, 42)
	other := session.NewShared(table, sut.Session, c.now)
	want(t, other, token, 42)
	if err := other.End(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	wantNone(t, s, token)
}

func noToken(t *testing.T, s *session.Shared, table Table, _ *clock) {
	token, _ := start(t, s, 42)
	if user, _, err := table.Session(t.Context(), token); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("the table has user %d under the token itself, error %v", user, err)
	}
}

// batches removes sessions that ended in 1970. Other checks have none.
func batches(t *testing.T, _ *session.Shared, table Table, _ *clock) {
	expirer, ok := table.(session.Expirer)
	if !ok {
		return // the table removes them itself
	}
	const ended, lasting, at = 700, 300, 1000
	id := func(i int) string { return fmt.Sprintf("%032x", 0x9e3779b97f4a7c15*uint64(i+1)) }
	for i := range ended + lasting {
		expires := int64(at)
		if i >= ended {
			expires++
		}
		if err := table.AddSession(t.Context(), id(i), 42, expires); err != nil {
			t.Fatal(err)
		}
	}
	sum := 0
	for after, calls := "", 0; ; calls++ {
		last, removed, err := expirer.ExpireSessions(t.Context(), after, at)
		if err != nil {
			t.Fatal(err)
		}
		if removed > ended/2 {
			t.Errorf("one batch removed %d sessions", removed)
		}
		if sum += removed; last == "" {
			break
		}
		if after >= last || calls > 10_000 {
			t.Fatalf("the batch after %q ended at %q", after, last)
		}
		after = last
	}
	if sum != ended {
		t.Errorf("%d sessions were removed, want %d", sum, ended)
	}
	for i := range ended + lasting {
		user, expires, err := table.Session(t.Context(), id(i))
		if i < ended && !errors.Is(err, photos.ErrNotFound) ||
			i >= ended && (err != nil || user != 42 || expires != at+1) {
			t.Fatalf("session %d: user %d, %d, %v", i, user, expires, err)
		}
		if err := table.RemoveSession(t.Context(), id(i)); err != nil {
			t.Fatal(err)
		}
	}
}

// Unavailable checks what a shared store says while its table is down: that it is unavailable, never that a session
// does not exist. stop takes the table down, and start brings it back. durable means that it then still has its
// sessions.
func Unavailable(t *testing.T, table Table, durable bool, stop, start func()) {
	t.Helper()
	s := session.NewShared(table, sut.Session, nil)
	token, _, err := s.Start(t.Context(), 42)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, unknown := s.User(ctx, token)
		_, _, login := s.Start(ctx, 43)
		for name, err := range map[string]error{"user": unknown, "start": login, "end": s.End(ctx, "other")} {
			if !errors.Is(err, photos.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) ||
				errors.Is(err, photos.ErrNotFound) || sut.TierOf(err) != sut.Session {
				t.Errorf("%s of a store that is down: error %v of tier %q", name, err, sut.TierOf(err))
			}
		}
		cancel()
	}
	start()
	for deadline := time.Now().Add(20 * time.Second); ; { // clients may need some attempts
		another, _, err := s.Start(t.Context(), 44)
		if err == nil {
			want(t, s, another, 44)
			break
		}
		if !errors.Is(err, photos.ErrUnavailable) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if durable {
		want(t, s, token, 42)
	} else {
		wantNone(t, s, token)
	}
}
