package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stagebench/stagebench/sut/photos"
)

// SQLSTATE codes that a Store tells apart.
// https://www.postgresql.org/docs/15/errcodes-appendix.html
const (
	uniqueViolation      = "23505"
	readOnly             = "25006"
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	lockNotAvailable     = "55P03"
	queryCanceled        = "57014"
)

// operation does something on one database.
type operation func(context.Context, *database) error

// read runs an operation that changes nothing, on the first database that
// answers. On each it runs once more where the first attempt hit a broken
// connection: the database may have been restarted between two requests.
func (s *Store) read(ctx context.Context, do operation) error {
	limited, cancel := context.WithTimeout(ctx, s.config.QueryTimeout)
	defer cancel()
	order := s.readable()
	for i, d := range order {
		last := i == len(order)-1
		s.reads.Inc()
		err := d.attempt(limited, do, broken, !last)
		switch {
		case err == nil:
			if d.silent.Load() != 0 {
				d.silent.Store(0)
			}
			return nil
		case last || limited.Err() != nil || !unavailable(err):
			return classify(ctx, err)
		}
		d.silent.Store(time.Now().Add(replicaSilence).UnixNano())
	}
	return nil // there is always a last one
}

// write runs an operation that changes something on the primary, and runs it
// once more only where it is certain that nothing was changed.
func (s *Store) write(ctx context.Context, do operation) error {
	limited, cancel := context.WithTimeout(ctx, s.config.QueryTimeout)
	defer cancel()
	s.writes.Inc()
	err := s.used.Load().primary.attempt(limited, do, func(err error) bool {
		return broken(err) && pgconn.SafeToRetry(err) || isState(err, serializationFailure, deadlockDetected)
	}, false)
	return classify(ctx, err)
}

// attempt runs an operation on one database, at most twice, and ends it when the
// database is given up. Impatient, it leaves time to ask another one.
func (d *database) attempt(ctx context.Context, do operation, again func(error) bool, impatient bool) error {
	if impatient {
		bounded, stop := context.WithTimeout(ctx, replicaPatience)
		defer stop()
		ctx = bounded
	}
	limited, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.life, cancel)()
	err := do(limited, d)
	if err != nil && limited.Err() == nil && !unconnected(err) && again(err) {
		err = do(limited, d)
	}
	if err != nil && d.life.Err() != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return err
}

// wrap says of an error what was being done.
func wrap(err *error, format string, args ...any) {
	if *err != nil {
		*err = fmt.Errorf(format+": %w", append(args, *err)...)
	}
}

// classify wraps the error that the package photos has for what happened, if any did.
func classify(ctx context.Context, err error) error {
	switch {
	case err == nil, errors.Is(err, photos.ErrNotFound), errors.Is(err, photos.ErrForbidden):
		return err
	case errors.Is(err, pgx.ErrNoRows):
		return photos.ErrNotFound
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
		// A read-only database is not the primary any more, or not yet.
		return slices.Contains([]string{readOnly, queryCanceled, lockNotAvailable, serializationFailure, deadlockDetected}, answer.Code)
	}
	return errors.Is(err, errGone) || errors.Is(err, context.DeadlineExceeded) || unconnected(err) || broken(err)
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
