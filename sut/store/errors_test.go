package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

func TestClassify(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	answer := func(code string) error { return fmt.Errorf("wrapped: %w", &pgconn.PgError{Code: code}) }
	for _, c := range []struct {
		name string
		ctx  context.Context
		err  error
		want error // nil = no error of package photos
	}{
		{"not found", t.Context(), photos.ErrNotFound, photos.ErrNotFound},
		{"forbidden", t.Context(), photos.ErrForbidden, photos.ErrForbidden},
		{"unique violation", t.Context(), answer("23505"), photos.ErrConflict},
		{"not null violation", t.Context(), answer("23502"), nil},
		{"syntax error", t.Context(), answer("42601"), nil},
		{"admin shutdown", t.Context(), answer("57P01"), photos.ErrUnavailable},
		{"crash shutdown", t.Context(), answer("57P02"), photos.ErrUnavailable},
		{"starting up", t.Context(), answer("57P03"), photos.ErrUnavailable},
		{"cancelled by the database", t.Context(), answer("57014"), photos.ErrUnavailable},
		{"too many connections", t.Context(), answer("53300"), photos.ErrUnavailable},
		{"disk full", t.Context(), answer("53100"), photos.ErrFull},
		{"lock not available", t.Context(), answer("55P03"), photos.ErrUnavailable},
		{"serialization failure", t.Context(), answer("40001"), photos.ErrUnavailable},
		{"time-out", t.Context(), context.DeadlineExceeded, photos.ErrUnavailable},
		{"end of connection", t.Context(), io.ErrUnexpectedEOF, photos.ErrUnavailable},
		{"reset", t.Context(), &net.OpError{Op: "read", Err: errors.New("reset")}, photos.ErrUnavailable},
		{"cancelled by the caller", cancelled, io.ErrUnexpectedEOF, nil},
		{"not found, then cancelled by the caller", cancelled, photos.ErrNotFound, photos.ErrNotFound},
		{"a bug", t.Context(), errors.New("cannot scan"), nil},
	} {
		got := classify(c.ctx, c.err)
		if !errors.Is(got, c.err) {
			t.Errorf("%s: %v does not wrap its cause", c.name, got)
		}
		for _, e := range []error{
			photos.ErrNotFound, photos.ErrForbidden, photos.ErrConflict, photos.ErrUnavailable, photos.ErrFull,
		} {
			if errors.Is(got, e) != errors.Is(c.want, e) {
				t.Errorf("%s: got %v, want %v", c.name, got, c.want)
			}
		}
	}
}

// A write is retried only if it certainly had no effect.
func TestWritesAreNotRepeated(t *testing.T) {
	s, err := Open(Config{Databases: []sut.Peer{{Node: "db-1", Address: "127.0.0.1:1"}}, QueryTimeout: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	for _, c := range []struct {
		name          string
		err           error
		reads, writes int
	}{
		{"success", nil, 1, 1},
		{"the response was lost", io.ErrUnexpectedEOF, 2, 1},
		{"closed by the database", &pgconn.PgError{Code: "57P01"}, 2, 1},
		{"rolled back for certain", &pgconn.PgError{Code: "40001"}, 1, 2},
		{"deadlock", &pgconn.PgError{Code: "40P01"}, 1, 2},
		{"nothing was sent", unsent{io.ErrUnexpectedEOF}, 2, 2},
		{"conflict", &pgconn.PgError{Code: "23505"}, 1, 1},
		{"not found", photos.ErrNotFound, 1, 1},
		{"no connection", &pgconn.ConnectError{Config: &pgconn.Config{}}, 1, 1},
	} {
		var reads, writes int
		_ = s.read(t.Context(), 0, func(context.Context, on) error { reads++; return c.err })
		_ = s.write(t.Context(), 0, func(context.Context, on) error { writes++; return c.err })
		if reads != c.reads || writes != c.writes {
			t.Errorf("%s: read %d and written %d times, want %d and %d", c.name, reads, writes, c.reads, c.writes)
		}
	}
}

// unsent is an error that pgx reports as safe to retry.
type unsent struct{ error }

func (unsent) SafeToRetry() bool { return true }
func (u unsent) Unwrap() error   { return u.error }
