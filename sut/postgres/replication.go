package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut"
)

// ErrConflict is the error of Prepare and ChangeRole for a role that the known epoch forbids:
// an epoch that is too low, or any change of a running primary. Nothing has changed.
var ErrConflict = errors.New("conflict")

// walKept is the amount of old WAL, in bytes, that a primary keeps for disconnected
// replicas. A replica that needs older WAL fetches a new copy.
const walKept = 64 << 20

// backupName is the application name of a server that fetches a new copy.
const backupName = "stagebench-backup"

// linkTimeout is the timeout of the connection between a primary and a replica. With
// PostgreSQL's default of one minute, the loss of a host would be detected that late.
const linkTimeout = 2 * time.Second

// Replication makes a server the primary or a replica of a database, by physical streaming
// replication.
//
// The primary acknowledges a commit alone, or with SyncCopies after that many replicas have
// the commit on disk. With too few connected replicas such a commit waits without a limit,
// so the client must give up. It must close its connection. It must not send a cancel
// request and then read on: a cancel request, or pg_cancel_backend, makes the server
// acknowledge the commit with a warning although no replica has it. pgx sends a cancel
// request after the deadline of a context, but it has given up the connection before and
// does not read the result. So a client must not use pgconn.CancelRequestContextWatcherHandler,
// which reads on. The unacknowledged write takes effect on the primary in any case. A
// statement_timeout does not interrupt the wait.
//
// Promote the replica with the highest position, compared after all replicas have lost
// their connection to the old primary. Replicas that hold more than the promoted one must
// fetch a new copy.
type Replication struct {
	// Node is the name of the server as a replica: 1 to 63 letters, digits, '-', '_', '.'.
	Node string
	// SyncCopies is the number of replicas that must hold a write before the primary
	// acknowledges it; 0 = none.
	SyncCopies int
	// Members are the names of the replicas whose copies count for SyncCopies; empty = every replica. SetMembers changes
	// them.
	Members []string
	// Lag is the delay with which a replica applies a change after its commit on the
	// primary; 0 = none.
	Lag time.Duration
	// State is the initial role: the epoch, and the primary to follow; without one the
	// server is the primary.
	State sut.Replication
}

// nodeName matches names that need no quotes in a configuration file or connection string.
var nodeName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,63}$`)

// validate returns an error if the configuration is invalid.
func (r Replication) validate() error {
	switch {
	case !nodeName.MatchString(r.Node):
		return fmt.Errorf("replication: name %q: want 1 to 63 letters, digits, '-', '_' and '.'", r.Node)
	case r.SyncCopies < 0:
		return fmt.Errorf("replication: %d synchronous copies: want 0 or more", r.SyncCopies)
	case slices.ContainsFunc(r.Members, func(name string) bool { return !nodeName.MatchString(name) }):
		return fmt.Errorf("replication: members %q: want names of 1 to 63 letters, digits, '-', '_' and '.'", r.Members)
	case r.Lag < 0:
		return fmt.Errorf("replication: lag %v: want 0 or more", r.Lag)
	}
	return validateState(r.State)
}

// validateState returns an error if a role is invalid.
func validateState(state sut.Replication) error {
	if state.Epoch < 1 {
		return fmt.Errorf("replication: epoch %d: want 1 or more", state.Epoch)
	}
	if state.Primary == nil {
		return nil
	}
	host, port, err := net.SplitHostPort(state.Primary.Address)
	if err != nil {
		return fmt.Errorf("replication: address of the primary: %w", err)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 || net.ParseIP(host) == nil {
		return fmt.Errorf("replication: address of the primary %q: want IP:port", state.Primary.Address)
	}
	return nil
}

// settings writes the replication part of postgresql.conf. A replica gets the settings of
// a primary, too: a promotion does not restart the server.
func (r Replication) settings(section func(comment string), set func(name string, value any)) {
	milliseconds := func(d time.Duration) string { return fmt.Sprintf("%dms", d.Milliseconds()) }
	section("Replication, as a primary.")
	set("wal_level", "replica")
	set("max_wal_senders", 24) // 8 replicas, which may reconnect or fetch a copy at the same time
	set("max_replication_slots", 0)
	set("wal_keep_size", fmt.Sprintf("%dMB", walKept>>20))
	set("wal_sender_timeout", milliseconds(linkTimeout))
	names := ""
	if r.SyncCopies > 0 {
		members := "*"
		if len(r.Members) > 0 {
			members = `"` + strings.Join(r.Members, `", "`) + `"`
		}
		names = fmt.Sprintf("ANY %d (%s)", r.SyncCopies, members)
	}
	set("synchronous_standby_names", names)

	section("Replication, as a replica.")
	set("hot_standby", "on")
	set("wal_receiver_timeout", milliseconds(linkTimeout))
	set("wal_receiver_status_interval", "1s")
	set("wal_retrieve_retry_interval", "200ms")
	// With feedback, the primary keeps row versions that a query on a connected replica
	// still reads. Without a connection, the replica cancels queries that delay the WAL
	// for longer than max_standby_streaming_delay. The service's queries are shorter.
	set("hot_standby_feedback", "on")
	set("max_standby_streaming_delay", "2s")
	set("recovery_target_timeline", "latest")
	set("recovery_min_apply_delay", milliseconds(r.Lag))
	if r.State.Primary != nil {
		set("primary_conninfo", conninfo(*r.State.Primary, r.Node))
	}
}

// conninfo returns the connection string for a replica and for pg_basebackup. Commits of
// such a connection do not wait for replicas: a backup would wait for the replica that it
// creates. The password is in the environment.
func conninfo(primary sut.Peer, name string) string {
	host, port, _ := net.SplitHostPort(primary.Address) // validated
	return fmt.Sprintf("host=%s port=%s user=%s dbname=replication application_name=%s connect_timeout=2 "+
		"tcp_user_timeout=%d sslmode=disable gssencmode=disable options='-c synchronous_commit=local'",
		host, port, nodeUser, name, linkTimeout.Milliseconds())
}

// promotionPoll is the interval of the check whether a promotion is complete. PostgreSQL's
// own wait, pg_promote(true), checks every 100 ms.
const promotionPoll = 5 * time.Millisecond

// ChangeRole changes the role of a running replica. Without a Primary in state it promotes the
// replica. When it returns nil, the server takes writes. A configured lag does not delay the
// promotion. With a Primary, the replica follows that primary, without a restart. ChangeRole
// first writes the epoch to the data directory: if the server dies during a promotion,
// Prepare treats the directory as that of a primary.
//
// Before a promotion, all processes of the old primary must have ended. Each of them has its
// own session and process group. A backend that outlives the killed postmaster may still
// acknowledge a commit.
//
// ChangeRole returns ErrConflict, and changes nothing, for an epoch lower than the known one,
// for a promotion with an epoch that is not higher, and on a primary.
func (s *Server) ChangeRole(ctx context.Context, state sut.Replication) error {
	if s.cfg.Replication == nil {
		return errors.New("postgres: change role: the server has no replication")
	}
	if err := validateState(state); err != nil {
		return fmt.Errorf("postgres: change role: %w", err)
	}
	if err := s.roleSem.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("postgres: change role: %w", err)
	}
	defer s.roleSem.Release(1)
	now := s.current()
	switch {
	case now.Primary == nil:
		return fmt.Errorf("postgres: change role: %w: the server is the primary of epoch %d\n"+
			"stop it and start it as a replica", ErrConflict, now.Epoch)
	case state.Epoch < now.Epoch, state.Epoch == now.Epoch && state.Primary == nil:
		return fmt.Errorf("postgres: change role: %w: epoch %d is known, %d is not higher\nuse a higher epoch",
			ErrConflict, now.Epoch, state.Epoch)
	}
	var err error
	if state.Primary == nil {
		err = s.promote(ctx, state)
	} else {
		err = s.follow(ctx, state)
	}
	if err != nil {
		return fmt.Errorf("postgres: change role: %w", err)
	}
	return nil
}

// SetMembers changes the Members of a running server with Replication.
func (s *Server) SetMembers(ctx context.Context, names []string) error {
	if err := s.roleSem.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("postgres: set members: %w", err)
	}
	defer s.roleSem.Release(1)
	s.mu.Lock()
	s.members = names
	s.mu.Unlock()
	if err := errors.Join(s.writeSettings(s.current()), s.reload(ctx)); err != nil {
		return fmt.Errorf("postgres: set members: %w", err)
	}
	return nil
}

// reload makes the server read its settings again.
func (s *Server) reload(ctx context.Context) error {
	return s.withSession(ctx, func(conn *pgx.Conn) error { return reloadOver(ctx, conn) })
}

// reloadOver is reload over an open session.
func reloadOver(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, "SELECT pg_reload_conf()")
	return err
}

// promote promotes a replica.
func (s *Server) promote(ctx context.Context, state sut.Replication) error {
	conn, err := s.connect(ctx, nodeUser, "stagebench-promote")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = s.updateMarker(func(m *marker) {
		if !m.Primary { // else an earlier promotion was interrupted
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
	if err := recordPromotion(ctx, conn, state.Epoch); err != nil {
		return err
	}
	s.setState(state)
	return s.writeSettings(state)
}

// awaitPromotion promotes a server and waits until it takes writes. It returns the last
// position that the server applied as a replica.
func awaitPromotion(ctx context.Context, conn *pgx.Conn) (fork int64, err error) {
	poll := time.NewTicker(promotionPoll)
	defer poll.Stop()
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
		case <-poll.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("the promotion is not complete: %w", context.Cause(ctx))
		}
	}
}

// follow makes a replica follow another primary, or the same one in a later epoch.
func (s *Server) follow(ctx context.Context, state sut.Replication) error {
	diverged, err := s.divergesFrom(ctx, state)
	if err != nil {
		return err
	}
	if diverged {
		// Problem in the status reports it. The marker keeps the epoch of the copy.
		s.markLost("it has diverged: it may hold changes that "+state.Primary.Node+" lacks", true)
	} else if err := s.updateMarker(func(m *marker) { m.Epoch = state.Epoch }); err != nil {
		return err
	}
	s.setState(state)
	if diverged {
		return nil
	}
	if err := s.writeSettings(state); err != nil {
		return err
	}
	// After the reload, the server restarts its WAL receiver with the new primary.
	return s.reload(ctx)
}

// divergesFrom reports whether a running replica may hold changes that its future primary
// lacks. The server detects most cases itself, but not this one: two replicas of the same
// primary were promoted independently. Both use the same timeline number, and the replica
// would apply the WAL of one history to the other.
func (s *Server) divergesFrom(ctx context.Context, state sut.Replication) (bool, error) {
	m, _, err := readMarker(s.dir)
	if err == nil {
		err = checkEpoch(state, m)
	}
	if err != nil || m.Epoch == state.Epoch {
		return false, err
	}
	v, err := s.queryState(ctx)
	if err != nil {
		return false, err
	}
	primary, err := s.awaitPrimary(ctx, *state.Primary, optionalWait, v.applied)
	if err != nil {
		s.cfg.Log.Warn("the new primary did not answer; its history was not checked",
			"primary", state.Primary.Address, "error", err)
		return false, nil
	}
	return !primary.contains(m.Epoch, v.applied), nil
}
