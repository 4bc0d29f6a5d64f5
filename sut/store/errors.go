package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stagebench/stagebench/sut/photos"
)

// SQLSTATE codes that a Store tells apart.
// https://www.postgresql.org/docs/15/errcodes-appendix.html
const (
	uniqueViolation      = "23505"
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	lockNotAvailable     = "55P03"
	queryCanceled        = "57014"
)

// read runs an operation that changes nothing, and runs it once more where the
// first attempt hit a broken connection: the database may have been restarted
// between two requests.
func (s *Store) read(ctx context.Context, do func(context.Context) error) error {
	return s.attempt(ctx, do, broken)
}

// write runs an operation that changes something, and runs it once more only
// where it is certain that nothing was changed.
func (s *Store) write(ctx context.Context, do func(context.Context) error) error {
	return s.attempt(ctx, do, func(err error) bool {
		return broken(err) && pgconn.SafeToRetry(err) || isState(err, serializationFailure, deadlockDetected)
	})
}

// attempt runs an operation within its time limit, at most twice.
func (s *Store) attempt(ctx context.Context, do func(context.Context) error, again func(error) bool) error {
	limited, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	err := do(limited)
	if err != nil && limited.Err() == nil && !unconnected(err) && again(err) {
		err = do(limited)
	}
	if err == nil {
		return nil
	}
	return classify(ctx, err)
}

// classify wraps the error that the package photos has for what happened.
func classify(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, photos.ErrNotFound), errors.Is(err, photos.ErrForbidden):
		return err
	case errors.Is(ctx.Err(), context.Canceled):
		// The caller gave up: that says nothing about the database.
		return fmt.Errorf("%w: %w", context.Canceled, err)
	case isState(err, uniqueViolation):
		return fmt.Errorf("%w: %w", photos.ErrConflict, err)
	case unavailable(err):
		return fmt.Errorf("%w: %w", photos.ErrUnavailable, err)
	}
	return err
}

// unavailable reports whether the database could not be reached, did not
// answer, or answered that it cannot work now.
func unavailable(err error) bool {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		switch {
		case strings.HasPrefix(answer.Code, "57P"), // shut down, starting, crashed
			strings.HasPrefix(answer.Code, "08"), // connection exceptions
			strings.HasPrefix(answer.Code, "53"), // out of connections, memory, disk
			strings.HasPrefix(answer.Code, "58"): // I/O errors
			return true
		}
		return slices.Contains([]string{queryCanceled, lockNotAvailable, serializationFailure, deadlockDetected}, answer.Code)
	}
	return errors.Is(err, context.DeadlineExceeded) || unconnected(err) || broken(err)
}

// broken reports whether a connection that had been made broke.
func broken(err error) bool {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return strings.HasPrefix(answer.Code, "57P")
	}
	var network *net.OpError
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, pgconn.ErrConnClosed)
}

// unconnected reports whether no connection could be made.
func unconnected(err error) bool {
	var connect *pgconn.ConnectError
	return errors.As(err, &connect)
}

// isState reports whether the database answered with one of those codes.
func isState(err error, codes ...string) bool {
	var answer *pgconn.PgError
	return errors.As(err, &answer) && slices.Contains(codes, answer.Code)
}
