package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut"
)

// How long Prepare waits for the primary: one that a replica can do without for
// now, and one that it cannot.
const (
	briefly   = time.Second
	patiently = 20 * time.Second
)

// prepareCopy makes a data directory that of a primary or of a replica, or, for a
// server without copies, one that has no part in a replication any more.
func (s *Server) prepareCopy(ctx context.Context, made bool, state sut.Replication) error {
	if s.cfg.Replication == nil {
		return os.RemoveAll(filepath.Join(s.dir, markerName))
	}
	// The server's programs read it.
	if err := s.owner.own(s.dir); err != nil {
		return err
	}
	if state.Primary == nil {
		return s.preparePrimary(ctx, state)
	}
	return s.prepareReplica(ctx, made, state)
}

// preparePrimary makes a data directory that of a primary.
func (s *Server) preparePrimary(ctx context.Context, state sut.Replication) error {
	standby, err := exists(filepath.Join(s.dir, standbyName))
	if err != nil {
		return err
	}
	if standby {
		return fmt.Errorf("%s is in it: it is that of a replica, which was never promoted\n"+
			"start it as a replica and promote it, or remove the file", standbyName)
	}
	m, found, err := readMarker(s.dir)
	if err != nil {
		return err
	}
	if err := checkEpoch(state, m); err != nil {
		return err
	}
	if !found {
		c, err := s.readControl(ctx, s.dir)
		if err != nil {
			return err
		}
		m.System = c.system
		if c.clean {
			m.Origin = c.checkpoint
		}
	}
	if m.Epoch != 0 && m.Epoch < state.Epoch { // the same one, in a new epoch: nothing was lost between them
		m.From, m.Fork = m.Epoch, math.MaxInt64
	}
	m.Epoch, m.Primary = state.Epoch, true
	return s.writeMarker(s.dir, m)
}

// prepareReplica makes a data directory that of a replica: what is there, when it
// can follow the primary, or a new copy of the whole.
func (s *Server) prepareReplica(ctx context.Context, made bool, state sut.Replication) error {
	m, found, err := readMarker(s.dir) // none when nothing is made
	if err != nil {
		return err
	}
	if err := checkEpoch(state, m); err != nil {
		return err
	}
	verdict, err := s.judge(ctx, state, made, found, m)
	if err != nil {
		return err
	}
	if verdict.reason != "" {
		return s.stage(func(staging string) error { return s.rebuild(ctx, staging, state, made, m, verdict) })
	}
	// The file comes first: a directory with a marker and without the file would
	// be taken for one that had been a primary.
	if err := s.writeOwned(s.dir, standbyName, ""); err != nil {
		return err
	}
	if !found {
		m = verdict.origin
	}
	m.Epoch, m.Primary = state.Epoch, false
	return s.writeMarker(s.dir, m)
}

// checkEpoch refuses an epoch that is over.
func checkEpoch(state sut.Replication, m marker) error {
	if state.Epoch < m.Epoch {
		return fmt.Errorf("%w: epoch %d is over, %d is known", ErrConflict, state.Epoch, m.Epoch)
	}
	return nil
}

// verdict is what is to become of a replica's data directory.
type verdict struct {
	reason string // why it cannot follow the primary; "" = it can
	keep   bool   // it may hold what the primary does not
	origin marker // of a copy of the template that can: what its marker says
}

// judge finds out whether a data directory can follow the primary.
func (s *Server) judge(ctx context.Context, state sut.Replication, made, found bool, m marker) (verdict, error) {
	// Changes of an epoch that is over may have been lost in the promotion.
	keep := !found || m.Primary || m.Diverged || m.Epoch < state.Epoch
	no := func(format string, args ...any) (verdict, error) {
		return verdict{reason: fmt.Sprintf(format, args...), keep: keep}, nil
	}
	switch {
	case !made:
		return verdict{reason: "there is none"}, nil
	case m.Primary:
		return no("it is that of the primary of epoch %d", m.Epoch)
	case m.Lost != "":
		return no("%s", m.Lost)
	}
	c, err := s.readControl(ctx, s.dir)
	if err != nil {
		return verdict{}, err
	}
	standby, err := exists(filepath.Join(s.dir, standbyName))
	if err != nil {
		return verdict{}, err
	}
	if !c.clean && !standby {
		return no("it was not stopped in order")
	}
	// One that has been a replica can wait for its primary while it runs.
	patience := patiently
	if found {
		patience = briefly
	}
	position := max(c.checkpoint, c.recovered)
	p, err := askPrimary(ctx, *state.Primary, patience, position)
	switch {
	case err != nil && found && ctx.Err() == nil:
		s.cfg.Log.Warn("the primary does not answer; the replica starts with what it has",
			"primary", state.Primary.Address, "error", err)
		return verdict{}, nil
	case err != nil:
		return verdict{}, err
	case p.System != c.system:
		return no("it is no copy of the primary's: its identifier is %s, not %s", c.system, p.System)
	case !found && p.Origin != c.checkpoint:
		return no("it is no copy of what the primary began with")
	case p.ahead, found && !p.continues(m.Epoch, position):
		keep = true
		return no("it may hold what the primary does not: of epoch %d, up to %s", m.Epoch, formatPosition(position))
	case !p.kept:
		return no("it is too far behind: the primary has no log any more from %s on", formatPosition(position))
	}
	return verdict{origin: marker{System: p.System, Origin: p.Origin}}, nil
}

// primaryView is what a primary says about a replica's position.
type primaryView struct {
	marker
	ahead bool // the position is after the primary's own
	kept  bool // its log from there on is there still
}

// continues reports whether what a replica of an epoch holds is a beginning of
// what the primary holds. A replica that missed more than one promotion cannot
// know; what it has beyond its position is for the server to find out.
func (m marker) continues(epoch, position int64) bool {
	return epoch == m.Epoch || epoch == m.From && position <= m.Fork
}

// askPrimary asks the primary, again and again for a while: it may be starting.
func askPrimary(ctx context.Context, primary sut.Peer, patience time.Duration, position int64) (primaryView, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		view, err := viewPrimary(ctx, primary, position)
		if err == nil {
			return view, nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return primaryView{}, fmt.Errorf("primary %s: %w", primary.Address, err)
		}
	}
}

// viewPrimary asks the primary once. It says nothing about one that is no
// primary yet: what it holds may still change its course.
func viewPrimary(ctx context.Context, primary sut.Peer, position int64) (primaryView, error) {
	conn, err := pgx.Connect(ctx, urlOf(primary.Address))
	if err != nil {
		return primaryView{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var view primaryView
	var standby bool
	var text string
	err = conn.QueryRow(ctx, "SELECT pg_is_in_recovery(), pg_read_file($1)", markerName).Scan(&standby, &text)
	if err != nil {
		return primaryView{}, err
	}
	if standby {
		return primaryView{}, errors.New("it is a replica itself")
	}
	if view.marker, err = parseMarker([]byte(text)); err != nil {
		return primaryView{}, err
	}
	// A file of the log is named by timeline and place; the place alone counts, as
	// the log of a replica continues through promotions.
	at := formatPosition(position)
	err = conn.QueryRow(ctx, `SELECT $1::text::pg_lsn > pg_current_wal_lsn(), EXISTS (SELECT FROM pg_ls_waldir()
		WHERE length(name) = 24 AND right(name, 16) = right(pg_walfile_name($1::text::pg_lsn + 1), 16))`, at).
		Scan(&view.ahead, &view.kept)
	return view, err
}

// rebuild fetches the whole from the primary. The old directory is replaced only
// when the new one is complete.
func (s *Server) rebuild(
	ctx context.Context, staging string, state sut.Replication, made bool, old marker, v verdict,
) error {
	begin := time.Now()
	s.cfg.Log.Info("fetching the whole copy anew", "dir", s.dir, "primary", state.Primary.Address, "reason", v.reason)
	view, err := askPrimary(ctx, *state.Primary, patiently, 0)
	if err != nil {
		return err
	}
	// The log comes at the end over the same connection. A second one for it would
	// be a process that outlives an interruption, and streams for ever; with a slot
	// it would pass for the replica that a synchronous commit waits for. What the
	// primary keeps of its log is enough for the time between. Without syncs: the
	// server does them when it starts from a backup.
	backup := s.command(ctx, "pg_basebackup", "--dbname="+conninfo(*state.Primary, backupName), "--pgdata="+staging,
		"--checkpoint=fast", "--wal-method=fetch", "--no-sync", "--no-manifest", "--no-password")
	if err := run(backup, ""); err != nil {
		return err
	}
	m := marker{Epoch: state.Epoch, System: view.System, Origin: view.Origin, Rebuilds: old.Rebuilds + 1}
	if err := errors.Join(s.writeOwned(staging, standbyName, ""), s.writeMarker(staging, m)); err != nil {
		return err
	}
	if err := s.putAway(made, old, v); err != nil {
		return err
	}
	s.cfg.Log.Info("fetched the whole copy anew", "dir", s.dir, "took", time.Since(begin))
	return nil
}

// putAway makes room for the new data directory.
func (s *Server) putAway(made bool, old marker, v verdict) error {
	if !made {
		return nil // it is empty
	}
	if err := s.Release(); err != nil {
		return err
	}
	if !v.keep {
		return os.RemoveAll(s.dir)
	}
	earlier, err := s.keptEpochs()
	if err != nil {
		return err
	}
	for _, epoch := range earlier {
		if err := os.RemoveAll(KeptDir(s.dir, epoch)); err != nil {
			return err
		}
	}
	return os.Rename(s.dir, KeptDir(s.dir, old.Epoch))
}

// KeptDir is where a replica keeps the data directory that it had in an earlier
// epoch, when that may hold what its primary does not: that of a primary which
// was replaced, above all. Only the last one is kept. It is as its server left
// it, and can be started as a server without Replication.
func KeptDir(dir string, epoch int64) string { return dir + keptMark + strconv.FormatInt(epoch, 10) }

const keptMark = ".epoch-"

// keptEpochs lists the epochs of the directories that were kept, in no order.
func (s *Server) keptEpochs() (epochs []int64, err error) {
	entries, err := os.ReadDir(filepath.Dir(s.dir))
	for _, entry := range entries {
		if text, found := strings.CutPrefix(entry.Name(), filepath.Base(s.dir)+keptMark); found {
			if epoch, err := strconv.ParseInt(text, 10, 64); err == nil {
				epochs = append(epochs, epoch)
			}
		}
	}
	return epochs, err
}
