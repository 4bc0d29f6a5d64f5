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

// SQLSTATE codes that a Store distinguishes.
// https://www.postgresql.org/docs/15/errcodes-appendix.html
const (
	uniqueViolation      = "23505"
	checkViolation       = "23514"
	readOnly             = "25006"
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	diskFull             = "53100"
	lockNotAvailable     = "55P03"
	queryCanceled        = "57014"
)

// operation runs statements on one database.
type operation func(context.Context, on) error

// read runs a read-only operation on the rows of a bucket. It uses the first database that answers.
func (s *Store) read(ctx context.Context, b photos.Bucket, do operation) error {
	return s.route(ctx, b, func(ctx context.Context, _ *owners, d *databases, g guard) error {
		return s.readFrom(ctx, s.readable(d), g, do)
	})
}

// readFrom runs a read-only operation on the first of these databases that answers. It retries once
// on the same database if a connection was broken, because a database that was
// restarted breaks the connections in the pool.
func (s *Store) readFrom(ctx context.Context, order []*database, g guard, do operation) error {
	limited, cancel := context.WithTimeout(ctx, s.config.QueryTimeout)
	defer cancel()
	var refusal error
	for i, d := range order {
		last := i == len(order)-1
		s.reads.Inc()
		err := on{d, g}.attempt(limited, do, broken, !last)
		switch {
		case err == nil:
			if d.backoff.Load() != 0 {
				d.backoff.Store(0)
			}
			return nil
		case refused(err): // a replica may learn late that its shard owns a bucket
			refusal = err
		case !last && limited.Err() == nil && unavailable(err):
			d.backoff.Store(time.Now().Add(replicaBackoff).UnixNano())
		case refusal == nil:
			return classify(ctx, err)
		}
		if last || limited.Err() != nil {
			return refusal // who asks the owners again may find a shard that answers
		}
	}
	return nil // not reached: order is never empty
}

// write runs an operation on the rows of a bucket at the primary.
func (s *Store) write(ctx context.Context, b photos.Bucket, do operation) error {
	return s.route(ctx, b, func(ctx context.Context, _ *owners, d *databases, g guard) error {
		return s.writeTo(ctx, d, g, do)
	})
}

// writeTo runs an operation on a primary. It retries once, and only if the first attempt certainly changed nothing.
func (s *Store) writeTo(ctx context.Context, to *databases, g guard, do operation) error {
	limited, cancel := context.WithTimeout(ctx, s.config.QueryTimeout)
	defer cancel()
	s.writes.Inc()
	g.writes = true
	err := on{to.primary, g}.attempt(limited, do, func(err error) bool {
		return broken(err) && pgconn.SafeToRetry(err) || isState(err, serializationFailure, deadlockDetected)
	}, false)
	return classify(ctx, err)
}

// attempt runs an operation on one database. It runs it a second time if retry returns
// true for the error. It cancels the operation when the database is removed. If
// alternative is true, another database can serve the operation, so the attempt takes
// at most replicaTimeout.
func (d on) attempt(ctx context.Context, do operation, retry func(error) bool, alternative bool) error {
	if alternative {
		bounded, stop := context.WithTimeout(ctx, replicaTimeout)
		defer stop()
		ctx = bounded
	}
	limited, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.life, cancel)()
	err := do(limited, d)
	if err != nil && limited.Err() == nil && !unconnected(err) && retry(err) {
		err = do(limited, d)
	}
	if err != nil && d.life.Err() != nil {
		return fmt.Errorf("%w: %w", errRemoved, err)
	}
	return err
}

// wrap adds the operation and its object to an error.
func wrap(err *error, format string, args ...any) {
	if *err != nil {
		*err = fmt.Errorf(format+": %w", append(args, *err)...)
	}
}

// classify wraps an error with the matching error of package photos, if there is one.
func classify(ctx context.Context, err error) error {
	switch {
	case err == nil, errors.Is(err, photos.ErrNotFound), errors.Is(err, photos.ErrForbidden):
		return err
	case errors.Is(err, pgx.ErrNoRows):
		return photos.ErrNotFound
	case errors.Is(ctx.Err(), context.Canceled):
		// The caller cancelled. The database is not necessarily unavailable.
		return fmt.Errorf("%w: %w", context.Canceled, err)
	case isState(err, uniqueViolation):
		return fmt.Errorf("%w: %w", photos.ErrConflict, err)
	case isState(err, diskFull):
		return fmt.Errorf("%w: %w", photos.ErrFull, err)
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
		// A read-only database is no longer the primary, or not yet promoted.
		return isState(err, readOnly, queryCanceled, lockNotAvailable, serializationFailure, deadlockDetected)
	}
	return errors.Is(err, errRemoved) || errors.Is(err, context.DeadlineExceeded) || unconnected(err) || broken(err)
}

// broken reports whether an established connection broke.
func broken(err error) bool {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return strings.HasPrefix(answer.Code, "57P")
	}
	var network *net.OpError
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, pgconn.ErrConnClosed)
}

// nobodyThere reports whether no server listens at the address of a database.
func nobodyThere(err error) bool {
	var answer *pgconn.PgError
	return unconnected(err) && !errors.As(err, &answer)
}

// unconnected reports whether no connection could be made.
func unconnected(err error) bool {
	var connect *pgconn.ConnectError
	return errors.As(err, &connect)
}

// isState reports whether the database answered with one of these SQLSTATE codes.
func isState(err error, codes ...string) bool {
	var answer *pgconn.PgError
	return errors.As(err, &answer) && slices.Contains(codes, answer.Code)
}
