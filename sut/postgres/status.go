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

// lagMargin is what a replica with an artificial lag may be later than that, and
// still be taken for one that has all that it should.
const lagMargin = time.Second

// session is one connection to the server for what is asked again and again: a
// new one each time would cost a process of the server.
type session struct {
	turn *semaphore.Weighted // of one: whoever has it may use the rest
	conn *pgx.Conn
	kept bool // a Watch runs, which closes the connection at its end
}

// ask runs f on the session's connection. It makes a new one when there is none
// or when it turns out that the server has closed it.
func (s *Server) ask(ctx context.Context, f func(conn *pgx.Conn) error) error {
	if err := s.session.turn.Acquire(ctx, 1); err != nil {
		return err
	}
	defer s.session.turn.Release(1)
	if s.session.conn != nil {
		err := f(s.session.conn)
		if err == nil || !s.session.conn.IsClosed() || ctx.Err() != nil {
			return err
		}
	}
	conn, err := s.connect(ctx, "stagebench-watch")
	if err != nil {
		return err
	}
	s.session.conn = conn
	err = f(conn)
	if !s.session.kept {
		s.session.close()
	}
	return err
}

// connect opens a connection of our own. Its commits never wait for replicas.
func (s *Server) connect(ctx context.Context, name string) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(s.url())
	if err != nil {
		return nil, err
	}
	config.RuntimeParams["application_name"] = name
	config.RuntimeParams["synchronous_commit"] = "local"
	return pgx.ConnectConfig(ctx, config)
}

// close ends the connection, if there is one. The caller has the turn.
func (s *session) close() {
	if s.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.conn.Close(ctx) // it says goodbye to a server that may have gone
	s.conn = nil
}

// copyState is what a replica knows of itself, since its server was prepared.
type copyState struct {
	target int64 // what its primary had when it was first asked; 0 = not known yet
	served bool  // it has had all that
	// timeline is the latest of what it held whenever it was asked.
	timeline int64
	lost     string
	beats    beats
}

// begin forgets what was known of the server before this one, and returns what
// the new one is to be.
func (s *Server) begin() sut.Replication {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.copy = copyState{}
	return s.state
}

// current returns what the server is now.
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

// view is what a server says of its own copy.
type view struct {
	standby       bool
	timeline      int64  // of what it holds
	held, applied int64  // what a replica has on disk, and what of it can be read
	receiver      string // state of the link to the primary; "streaming" = in order
	end           int64  // what the primary had when it last sent something; 0 = unknown
	followers     map[string]int64
}

// ReplicationStatus asks the server how far its copy is. It is cheap while a Watch
// runs. Position is what the copy has on disk: with an artificial lag that is more
// than can be read, and all of it is there after a promotion.
func (s *Server) ReplicationStatus(ctx context.Context) (sut.ReplicationStatus, error) {
	if s.cfg.Replication == nil {
		return sut.ReplicationStatus{}, errors.New("postgres: replication status: the server has no copies")
	}
	v, err := s.look(ctx)
	if err != nil {
		return sut.ReplicationStatus{}, fmt.Errorf("postgres: replication status: %w", err)
	}
	m, _, err := readMarker(s.dir)
	if err != nil {
		return sut.ReplicationStatus{}, fmt.Errorf("postgres: replication status: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Who has lost its link does not know any more what came over it.
	s.copy.timeline = max(s.copy.timeline, v.timeline)
	status := sut.ReplicationStatus{
		Node: s.cfg.Replication.Node, Epoch: s.state.Epoch, HeldEpoch: s.copy.timeline,
		Position: v.held, Rebuilds: m.Rebuilds,
	}
	if s.state.Primary != nil {
		status.Following = s.state.Primary.Node
		s.judgeReplica(&status, v, time.Now())
		return status, nil
	}
	status.Primary, status.Serves, status.Followers = true, true, v.followers
	return status, nil
}

// look asks the server for its view.
func (s *Server) look(ctx context.Context) (v view, err error) {
	err = s.ask(ctx, func(conn *pgx.Conn) error { return v.read(ctx, conn) })
	return v, err
}

func (v *view) read(ctx context.Context, conn *pgx.Conn) error {
	err := conn.QueryRow(ctx, `SELECT standby,
		greatest(received_tli, (SELECT timeline_id FROM pg_control_checkpoint())),
		(CASE WHEN standby THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
			ELSE pg_current_wal_lsn() END - '0/0')::bigint,
		coalesce(pg_last_wal_replay_lsn() - '0/0', 0)::bigint,
		coalesce(status, ''), coalesce(latest_end_lsn - '0/0', 0)::bigint
		FROM (SELECT pg_is_in_recovery() AS standby) AS role LEFT JOIN pg_stat_wal_receiver ON true`).
		Scan(&v.standby, &v.timeline, &v.held, &v.applied, &v.receiver, &v.end)
	if err != nil || v.standby {
		return err
	}
	v.followers = map[string]int64{}
	// One that reconnects may be there twice for a moment. What fetches a whole
	// copy has another state.
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

// judgeReplica fills what a replica's status says of its reads. The caller holds
// s.mu.
func (s *Server) judgeReplica(status *sut.ReplicationStatus, v view, now time.Time) {
	c := &s.copy
	status.LagNS = c.beats.lag(now)
	status.Connected = v.receiver == "streaming"
	if c.target == 0 && status.Connected {
		c.target = v.end
	}
	if c.target != 0 && !c.served {
		if lag := s.cfg.Replication.Lag; lag == 0 {
			c.served = v.applied >= c.target
		} else {
			c.served = v.held >= c.target && status.LagNS >= 0 && time.Duration(status.LagNS) <= lag+lagMargin
		}
	}
	status.Serves = c.served && c.lost == ""
	switch {
	case c.lost != "":
		status.Problem = c.lost + "; start it again to fetch the whole anew"
	case !status.Connected:
		status.Problem = "no changes come from " + s.state.Primary.Node + " at " + s.state.Primary.Address
	case !c.served:
		status.Problem = fmt.Sprintf("catching up: %d bytes of log behind", max(c.target-v.applied, 0))
	}
}

// Lost says why a replica cannot follow its primary any more, however long it
// waits; "" = it can. Such a server is to be ended and started again: Prepare then
// fetches the whole anew. It is known only if Printed gets the server's log.
func (s *Server) Lost() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.copy.lost
}

// Printed is to be given each line that the server logs; it finds those that say
// that a replica is lost. It returns false: the line is for people, too.
func (s *Server) Printed(line string) bool {
	if reason, diverged := lostReason(line); reason != "" && s.cfg.Replication != nil {
		s.lose(reason, diverged)
	}
	return false
}

// lose notes that a replica cannot follow its primary any more. Only the first
// reason counts, and a primary follows nobody.
func (s *Server) lose(reason string, diverged bool) {
	s.mu.Lock()
	first := s.copy.lost == "" && s.state.Primary != nil
	if first {
		s.copy.lost = reason
	}
	s.mu.Unlock()
	if !first {
		return
	}
	if err := s.updateMarker(func(m *marker) { m.Lost, m.Diverged = reason, m.Diverged || diverged }); err != nil {
		s.cfg.Log.Error("could not note that the replica is lost", "error", err)
	}
}

// lostReason reads a line of a replica's log. The texts are those of PostgreSQL
// 15 to 18, walreceiver.c, walsender.c and xlogrecovery.c; the language is C.
func lostReason(line string) (reason string, diverged bool) {
	has := func(text string) bool { return strings.Contains(line, text) }
	switch {
	case has("could not receive data from WAL stream") && has("has already been removed"):
		return "it is too far behind: the primary has removed the log that it needs", false
	case has("before current recovery point"),
		has("could not start WAL streaming") && has("is not in this server's history"),
		has("could not start WAL streaming") && has("is ahead of the WAL flush position"),
		has("highest timeline") && has("is behind recovery timeline"),
		has("system identifier differs between the primary and standby"):
		return "it has diverged: it holds what the primary does not", true
	}
	return "", false
}
