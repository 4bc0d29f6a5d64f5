package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut"
)

// promotionPoll is how often a server is asked whether its promotion is over.
// PostgreSQL's own wait looks every 100 ms.
const promotionPoll = 5 * time.Millisecond

// Become makes a running replica what the document says. Without a Primary the
// replica is promoted, and takes writes when this returns nil; an artificial lag
// does not hold that up. With one it follows that one from now on, without a
// restart. The epoch is remembered in the data directory, and first: a server that
// dies half way through a promotion is that of a primary for Prepare.
//
// Before a promotion the old primary must have been ended, all its processes: each
// of them is a session and a group of its own, and one that is in the middle of a
// commit acknowledges it after the first process has been killed. The error is an ErrConflict for an epoch
// lower than one that is known, for a promotion in one that is not higher, and
// always for a primary; nothing has changed then.
func (s *Server) Become(ctx context.Context, state sut.Replication) error {
	if s.cfg.Replication == nil {
		return errors.New("postgres: become: the server has no copies")
	}
	if err := validateState(state); err != nil {
		return fmt.Errorf("postgres: become: %w", err)
	}
	if err := s.becoming.take(ctx); err != nil {
		return fmt.Errorf("postgres: become: %w", err)
	}
	defer s.becoming.give()
	now := s.current()
	switch {
	case now.Primary == nil:
		return fmt.Errorf("postgres: become: %w: it is the primary of epoch %d\nend it and start it as a replica", ErrConflict, now.Epoch)
	case state.Epoch < now.Epoch, state.Epoch == now.Epoch && state.Primary == nil:
		return fmt.Errorf("postgres: become: %w: epoch %d is known, %d is not newer", ErrConflict, now.Epoch, state.Epoch)
	}
	var err error
	if state.Primary == nil {
		err = s.promote(ctx, state)
	} else {
		err = s.follow(ctx, state)
	}
	if err != nil {
		return fmt.Errorf("postgres: become: %w", err)
	}
	return nil
}

// promote makes a replica the primary.
func (s *Server) promote(ctx context.Context, state sut.Replication) error {
	conn, err := s.connect(ctx, "stagebench-promote")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = s.updateMarker(func(m *marker) {
		if !m.Primary { // else an earlier attempt was interrupted
			m.From = m.Epoch
		}
		m.Epoch, m.Primary, m.Fork = state.Epoch, true, 0
	})
	if err != nil {
		return err
	}
	fork, err := awaitPromotion(ctx, conn)
	if err != nil {
		return err
	}
	if err := s.updateMarker(func(m *marker) { m.Fork = fork }); err != nil {
		return err
	}
	s.mu.Lock()
	s.state = state
	s.mu.Unlock()
	return s.writeOwned(s.dir, "postgresql.conf", s.cfg.settings(state))
}

// awaitPromotion promotes a server and waits until it takes writes. It returns
// the position at which the server left the primary that it followed.
func awaitPromotion(ctx context.Context, conn *pgx.Conn) (fork int64, err error) {
	begun := false
	for {
		var standby bool
		if err := conn.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&standby); err != nil {
			return 0, err
		}
		if !standby {
			err := conn.QueryRow(ctx, "SELECT coalesce(pg_last_wal_replay_lsn() - '0/0', 0)::bigint").Scan(&fork)
			return fork, err
		}
		if !begun {
			if _, err := conn.Exec(ctx, "SELECT pg_promote(false)"); err != nil {
				return 0, err
			}
			begun = true
		}
		select {
		case <-time.After(promotionPoll):
		case <-ctx.Done():
			return 0, fmt.Errorf("promotion goes on: %w", context.Cause(ctx))
		}
	}
}

// follow makes a replica follow another primary, or the same in a later epoch.
func (s *Server) follow(ctx context.Context, state sut.Replication) error {
	diverged, err := s.divergesFrom(ctx, state)
	if err != nil {
		return err
	}
	if diverged {
		// Its status says so. What it holds remains that of the epoch before.
		s.lose("it has diverged: it may hold what "+state.Primary.Node+" does not", true)
	} else if err := s.updateMarker(func(m *marker) { m.Epoch = state.Epoch }); err != nil {
		return err
	}
	s.mu.Lock()
	s.state = state
	s.mu.Unlock()
	if diverged {
		return nil
	}
	if err := s.writeOwned(s.dir, "postgresql.conf", s.cfg.settings(state)); err != nil {
		return err
	}
	// The server starts its receiver anew when it finds another primary.
	return s.ask(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SELECT pg_reload_conf()")
		return err
	})
}

// divergesFrom reports whether a running replica may hold what its primary to be
// does not. The server finds most such cases itself, but not that of two replicas
// that were promoted one after the other without knowing of each other: both call
// their history by the same number, and one's would be applied to the other's.
func (s *Server) divergesFrom(ctx context.Context, state sut.Replication) (bool, error) {
	m, _, err := readMarker(s.dir)
	if err != nil || m.Epoch == state.Epoch {
		return false, err
	}
	var v view
	err = s.ask(ctx, func(conn *pgx.Conn) (err error) {
		v, err = look(ctx, conn)
		return err
	})
	if err != nil {
		return false, err
	}
	primary, err := askPrimary(ctx, *state.Primary, briefly, v.applied)
	if err != nil {
		s.cfg.Log.Warn("the primary to follow does not answer; what it holds is not compared", "primary", state.Primary.Address, "error", err)
		return false, nil
	}
	return !primary.continues(m.Epoch, v.applied), nil
}
