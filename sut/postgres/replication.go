package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut"
)

// ErrConflict is what a server answers that is told something its epochs forbid:
// an epoch lower than one that it has known, or anything when it is a primary. It
// has changed nothing.
var ErrConflict = errors.New("conflict")

// walKept bounds the log that a primary keeps for replicas that are away. One
// that is away for longer fetches its copy anew, which then costs less.
const walKept = 64 << 20

// backupName is what a server calls itself while it fetches a whole copy.
const backupName = "stagebench-backup"

// linkTimeout is after how long of silence a primary and a replica give each
// other up. PostgreSQL's own minute would hide the death of a host for as long.
const linkTimeout = 2 * time.Second

// Replication makes a server one of several copies of a database: one primary
// and its replicas, by physical streaming replication.
//
// Commits are acknowledged by the primary alone, or with SyncCopies after that
// many replicas have them on disk. With too few replicas such a commit waits for
// ever; its client has to give up. It must do so by ending its connection or its
// wait: a cancel request, which pgx sends after the deadline of a context, makes
// the server end the wait with success and a mere warning. It is harmless there,
// as pgx has given the connection up before it cancels, and nobody reads the
// answer. The write then has taken effect at the primary without having been
// acknowledged. A client must therefore not be configured to read on after its
// cancel request (pgconn.CancelRequestContextWatcherHandler), and a cancel by
// anybody else (pg_cancel_backend) acknowledges what no replica has. A
// statement_timeout does not reach that wait.
//
// Of several replicas the one to promote is that with the highest position, asked
// for when none of them is connected any more. Those that hold more than the
// promoted one have to fetch the whole anew.
type Replication struct {
	// Node is the name that the server has as a replica: 1 to 63 letters, digits,
	// '-', '_' and '.'.
	Node string
	// SyncCopies is how many replicas must hold a write before it is acknowledged;
	// 0 = none.
	SyncCopies int
	// Lag is how long after its commit at the primary a replica applies a change,
	// on purpose; 0 = at once.
	Lag time.Duration
	// State is the epoch, and whom the server follows: nobody as a primary.
	State sut.Replication
}

// nodeName is what a name needs no quotes for, wherever it appears.
var nodeName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,63}$`)

// validate says what is wrong.
func (r Replication) validate() error {
	switch {
	case !nodeName.MatchString(r.Node):
		return fmt.Errorf("replication: name %q: want 1 to 63 letters, digits, '-', '_' and '.'", r.Node)
	case r.SyncCopies < 0:
		return fmt.Errorf("replication: %d synchronous copies", r.SyncCopies)
	case r.Lag < 0:
		return fmt.Errorf("replication: lag %v", r.Lag)
	}
	return validateState(r.State)
}

// validateState says what is wrong with a document that a server is told.
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

// settings is the part of postgresql.conf about copies. A replica has those of
// a primary, too, for the day on which it becomes one.
func (r Replication) settings(section func(comment string), set func(name string, value any)) {
	milliseconds := func(d time.Duration) string { return fmt.Sprintf("%dms", d.Milliseconds()) }
	section("Replication, as a primary.")
	set("wal_level", "replica")
	set("max_wal_senders", 24) // 8 replicas, some of which fetch a copy or connect anew, too
	set("max_replication_slots", 0)
	set("wal_keep_size", fmt.Sprintf("%dMB", walKept>>20))
	set("wal_sender_timeout", milliseconds(linkTimeout))
	names := ""
	if r.SyncCopies > 0 {
		names = fmt.Sprintf("ANY %d (*)", r.SyncCopies)
	}
	set("synchronous_standby_names", names)

	section("Replication, as a replica.")
	set("hot_standby", "on")
	set("wal_receiver_timeout", milliseconds(linkTimeout))
	set("wal_receiver_status_interval", "1s")
	set("wal_retrieve_retry_interval", "200ms")
	// Reads of ours are short. What a long one still sees the primary keeps, for
	// as long as the link lives; without one the changes win after this time.
	set("hot_standby_feedback", "on")
	set("max_standby_streaming_delay", "2s")
	set("recovery_target_timeline", "latest")
	set("recovery_min_apply_delay", milliseconds(r.Lag))
	if r.State.Primary != nil {
		set("primary_conninfo", conninfo(*r.State.Primary, r.Node))
	}
}

// conninfo is how a server's own programs connect to a primary. A commit of
// theirs never waits for replicas: it would wait for the one that it is to make.
func conninfo(primary sut.Peer, name string) string {
	host, port, _ := net.SplitHostPort(primary.Address) // validated
	return fmt.Sprintf("host=%s port=%s user=%s dbname=replication application_name=%s connect_timeout=2 "+
		"tcp_user_timeout=%d sslmode=disable gssencmode=disable options='-c synchronous_commit=local'",
		host, port, User, name, linkTimeout.Milliseconds())
}

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
// commit acknowledges it after the first process has been killed.
//
// The error is an ErrConflict for an epoch lower than one that is known, for a
// promotion in one that is not higher, and always for a primary; nothing has
// changed then.
func (s *Server) Become(ctx context.Context, state sut.Replication) error {
	if s.cfg.Replication == nil {
		return errors.New("postgres: become: the server has no copies")
	}
	if err := validateState(state); err != nil {
		return fmt.Errorf("postgres: become: %w", err)
	}
	if err := s.becoming.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("postgres: become: %w", err)
	}
	defer s.becoming.Release(1)
	now := s.current()
	switch {
	case now.Primary == nil:
		return fmt.Errorf("postgres: become: %w: it is the primary of epoch %d\n"+
			"end it and start it as a replica", ErrConflict, now.Epoch)
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
	s.setState(state)
	return s.writeSettings(state)
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
	s.setState(state)
	if diverged {
		return nil
	}
	if err := s.writeSettings(state); err != nil {
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
	v, err := s.look(ctx)
	if err != nil {
		return false, err
	}
	primary, err := askPrimary(ctx, *state.Primary, briefly, v.applied)
	if err != nil {
		s.cfg.Log.Warn("the primary to follow does not answer; what it holds is not compared",
			"primary", state.Primary.Address, "error", err)
		return false, nil
	}
	return !primary.continues(m.Epoch, v.applied), nil
}
