package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/semaphore"

	"github.com/stagebench/stagebench/sut"
)

// lagMargin is added to the configured lag of a replica. A replica whose measured lag is
// within the sum has caught up.
const lagMargin = time.Second

// session is a connection for frequent queries. A new connection for each query would cost
// a process of the server.
type session struct {
	sem      *semaphore.Weighted // weight 1; guards conn and keepOpen
	conn     *pgx.Conn           // nil = none
	keepOpen bool                // a Watch runs and will close the connection
}

// withSession calls f with the session's connection. It connects if there is no connection
// or if the server has closed it.
func (s *Server) withSession(ctx context.Context, f func(conn *pgx.Conn) error) error {
	if err := s.session.sem.Acquire(ctx, 1); err != nil {
		return err
	}
	defer s.session.sem.Release(1)
	if s.session.conn != nil {
		err := f(s.session.conn)
		if err == nil || !s.session.conn.IsClosed() || ctx.Err() != nil {
			return err
		}
	}
	conn, err := s.connect(ctx, nodeUser, "stagebench-watch")
	if err != nil {
		return err
	}
	s.session.conn = conn
	err = f(conn)
	if !s.session.keepOpen {
		s.session.close()
	}
	return err
}

// connect opens a connection of a role whose commits do not wait for replicas.
func (s *Server) connect(ctx context.Context, role, name string) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(s.url(role))
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["application_name"] = name
	config.RuntimeParams["synchronous_commit"] = "local"
	return pgx.ConnectConfig(ctx, config)
}

// close closes the connection, if there is one. The caller holds sem.
func (s *session) close() {
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.conn.Close(ctx) // the server may have ended
	s.conn = nil
}

// replicaState is what was observed of a replica since Prepare.
type replicaState struct {
	target     int64  // end of the primary's WAL at the first query while connected; 0 = not known
	caughtUp   bool   // the replica has reached target
	timeline   int64  // highest timeline of the WAL that it has held
	lost       string // reason why it cannot follow its primary; "" = it can
	heartbeats heartbeats
	replays    bool  // it has begun to apply WAL
	lagSince   int64 // earlier heartbeats were applied without the configured lag; Unix µs
}

// resetReplica clears the observations of the previous run of the server. It returns the
// role for the next run.
func (s *Server) resetReplica() sut.Replication {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replica = replicaState{}
	return s.state
}

// current returns the current role of the server.
func (s *Server) current() sut.Replication {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

func (s *Server) setState(state sut.Replication) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = state
}

// serverState is the replication state that a server reports.
type serverState struct {
	standby    bool             // it is a replica
	timeline   int64            // of the WAL that it holds
	held       int64            // end of its WAL on disk
	applied    int64            // end of the WAL that a replica has applied, so that reads see it
	receiver   string           // state of a replica's WAL receiver; "streaming" = connected
	primaryEnd int64            // end of the primary's WAL in its last message; 0 = unknown
	followers  map[string]int64 // flushed position of each connected replica, by name
}

// ReplicationStatus queries the server for the status of its copy. It uses an open
// connection while Watch runs, so that it is cheap. Position is the end of the WAL on disk.
// With a configured lag a replica has not yet applied all of it. A promotion applies the
// rest.
func (s *Server) ReplicationStatus(ctx context.Context) (sut.ReplicationStatus, error) {
	if s.cfg.Replication == nil {
		return sut.ReplicationStatus{}, errors.New("postgres: replication status: the server has no replication")
	}
	v, err := s.queryState(ctx)
	if err != nil {
		return sut.ReplicationStatus{}, fmt.Errorf("postgres: replication status: %w", err)
	}
	m, _, err := readMarker(s.dir)
	if err != nil {
		return sut.ReplicationStatus{}, fmt.Errorf("postgres: replication status: %w", err)
	}
	kept, err := s.KeptCopies()
	if err != nil {
		return sut.ReplicationStatus{}, fmt.Errorf("postgres: replication status: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// A replica that lost its connection no longer reports the timeline that it received.
	s.replica.timeline = max(s.replica.timeline, v.timeline)
	status := sut.ReplicationStatus{
		Node: s.cfg.Replication.Node, Epoch: s.state.Epoch, HeldEpoch: s.replica.timeline,
		Position: v.held, Rebuilds: m.Rebuilds,
	}
	for _, k := range kept {
		status.Kept = append(status.Kept, k.Name)
	}
	if s.state.Primary != nil {
		status.Following = s.state.Primary.Node
		s.fillReplicaStatus(&status, v, time.Now())
		return status, nil
	}
	status.Primary, status.Serves, status.Followers = true, true, v.followers
	return status, nil
}

// queryState queries the server for its replication state.
func (s *Server) queryState(ctx context.Context) (v serverState, err error) {
	err = s.withSession(ctx, func(conn *pgx.Conn) error { return v.query(ctx, conn) })
	return v, err
}

func (v *serverState) query(ctx context.Context, conn *pgx.Conn) error {
	err := conn.QueryRow(ctx, `SELECT standby,
		greatest(received_tli, (SELECT timeline_id FROM pg_control_checkpoint())),
		(CASE WHEN standby THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
			ELSE pg_current_wal_lsn() END - '0/0')::bigint,
		coalesce(pg_last_wal_replay_lsn() - '0/0', 0)::bigint,
		coalesce(status, ''), coalesce(latest_end_lsn - '0/0', 0)::bigint
		FROM (SELECT pg_is_in_recovery() AS standby) AS role LEFT JOIN pg_stat_wal_receiver ON true`).
		Scan(&v.standby, &v.timeline, &v.held, &v.applied, &v.receiver, &v.primaryEnd)
	if err != nil || v.standby {
		return err
	}
	v.followers = map[string]int64{}
	// A reconnecting replica may have two rows for a moment. A backup (pg_basebackup) has
	// another state.
	rows, err := conn.Query(ctx, `SELECT application_name, coalesce(max(flush_lsn) - '0/0', 0)::bigint
		FROM pg_stat_replication WHERE state IN ('catchup', 'streaming') GROUP BY 1`)
	if err != nil {
		return err
	}
	var name string
	var position int64
	_, err = pgx.ForEachRow(rows, []any{&name, &position}, func() error {
		v.followers[name] = position
		return nil
	})
	return err
}

// fillReplicaStatus sets LagNS, Connected, Serves and Problem. The caller holds s.mu.
func (s *Server) fillReplicaStatus(status *sut.ReplicationStatus, v serverState, now time.Time) {
	c := &s.replica
	status.LagNS = c.heartbeats.lag(now)
	// The receiver of a lost replica reconnects and is refused, again and again.
	status.Connected = v.receiver == "streaming" && c.lost == ""
	if c.target == 0 && status.Connected {
		c.target = v.primaryEnd
	}
	if c.target != 0 && !c.caughtUp {
		if lag := s.cfg.Replication.Lag; lag == 0 {
			c.caughtUp = v.applied >= c.target
		} else {
			c.caughtUp = v.held >= c.target && status.LagNS >= 0 && time.Duration(status.LagNS) <= lag+lagMargin
		}
	}
	status.Serves, status.CatchingUp = c.caughtUp && c.lost == "", !c.caughtUp && c.lost == ""
	switch {
	case c.lost != "":
		status.Problem = c.lost + "; restart the node to fetch a new copy"
	case !status.Connected:
		status.Problem = "not connected to primary " + s.state.Primary.Node + " at " + s.state.Primary.Address
	case !c.caughtUp:
		status.Problem = fmt.Sprintf("catching up: %d bytes of WAL behind", max(c.target-v.applied, 0))
	}
}

// Lost returns the reason why a replica can never catch up with its primary again; "" = it
// can. Stop such a server and call Prepare, which fetches a new copy. Lost depends on
// HandleLogLine, which must receive the server's log.
func (s *Server) Lost() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replica.lost
}

// replays reports whether a replica has begun to apply WAL since Prepare.
func (s *Server) replays() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replica.replays
}

// HandleLogLine must be called for each line of the server's log. It detects the lines that mean
// that a replica applies WAL or is lost. It returns false: the caller should log the line, too.
func (s *Server) HandleLogLine(line string) bool {
	if strings.Contains(line, "redo starts at") {
		s.mu.Lock()
		s.replica.replays = true
		s.mu.Unlock()
	}
	if reason, diverged := lostReason(line); reason != "" && s.cfg.Replication != nil {
		s.markLost(reason, diverged)
	}
	return false
}

// markLost records that a replica cannot follow its primary, in the marker, too. It keeps
// the first reason, and does nothing on a primary.
func (s *Server) markLost(reason string, diverged bool) {
	s.mu.Lock()
	first := s.replica.lost == "" && s.state.Primary != nil
	if first {
		s.replica.lost = reason
	}
	s.mu.Unlock()
	if !first {
		return
	}
	if err := s.updateMarker(func(m *marker) { m.Lost, m.Diverged = reason, m.Diverged || diverged }); err != nil {
		s.cfg.Log.Error("mark the replica as lost", "error", err)
	}
}

// lostReason returns the reason if a log line means that a replica is lost, else "". The
// texts are those of PostgreSQL 15 to 18 (walreceiver.c, walsender.c, xlogrecovery.c) with
// LC_MESSAGES=C.
func lostReason(line string) (reason string, diverged bool) {
	has := func(text string) bool { return strings.Contains(line, text) }
	switch {
	case has("could not receive data from WAL stream") && has("has already been removed"):
		return "it is too far behind: the primary has removed WAL that the replica needs", false
	case has("before current recovery point"),
		has("could not start WAL streaming") && has("is not in this server's history"),
		has("could not start WAL streaming") && has("is ahead of the WAL flush position"),
		has("highest timeline") && has("is behind recovery timeline"),
		has("system identifier differs between the primary and standby"):
		return "it has diverged: it holds changes that the primary lacks", true
	}
	return "", false
}
