package store_test

import (
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut/session/sessiontest"
	"github.com/stagebench/stagebench/sut/store/storetest"
)

// PostgreSQL keeps sessions, also when it is killed.
func TestSessionsInPostgres(t *testing.T) {
	t.Parallel()
	p := startPostgres(t)
	s := storetest.Open(t, p.Address())
	if err := s.CreateSchema(t.Context()); err != nil {
		t.Fatal(err)
	}
	sessiontest.RunShared(t, func(*testing.T, func() time.Time) sessiontest.Table { return s })
	sessiontest.Unavailable(t, s, true, func() { p.Kill(t) }, func() { p.Restart(t) })
}
