package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut"
)

// Timeouts of a wait for the primary: with optionalWait the replica can continue without
// an answer, with requiredWait it cannot.
const (
	optionalWait = time.Second
	requiredWait = 20 * time.Second
)

// prepareCopy makes the data directory that of a primary or of a replica. Without
// Replication it removes the marker.
func (s *Server) prepareCopy(ctx context.Context, initialized bool, state sut.Replication) error {
	if s.cfg.Replication == nil {
		return os.RemoveAll(filepath.Join(s.dir, markerName))
	}
	// pg_controldata, run as the server's user, reads the directory.
	if err := s.owner.own(s.dir); err != nil {
		return err
	}
	if state.Primary == nil {
		return s.preparePrimary(ctx, state)
	}
	return s.prepareReplica(ctx, initialized, state)
}

// preparePrimary makes the data directory that of a primary.
func (s *Server) preparePrimary(ctx context.Context, state sut.Replication) error {
	standby, err := exists(filepath.Join(s.dir, standbyName))
	if err != nil {
		return err
	}
	if standby {
		return fmt.Errorf("it has the file %s: it belongs to a replica that was never promoted\n"+
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
	if m.Epoch != 0 && m.Epoch < state.Epoch { // the same server in a new epoch: no WAL was lost
		m.From, m.Fork = m.Epoch, math.MaxInt64
	}
	m.Epoch, m.Primary = state.Epoch, true
	return s.writeMarker(s.dir, m)
}

// prepareReplica makes the data directory that of a replica. It keeps the directory if it
// can follow the primary, else it fetches a new copy.
func (s *Server) prepareReplica(ctx context.Context, initialized bool, state sut.Replication) error {
	m, found, err := readMarker(s.dir) // not found in an empty directory
	if err != nil {
		return err
	}
	if err := checkEpoch(state, m); err != nil {
		return err
	}
	check, err := s.checkCopy(ctx, state, initialized, found, m)
	if err != nil {
		return err
	}
	if check.reason != "" {
		return s.buildDir(func(tempDir string) error {
			return s.rebuild(ctx, tempDir, state, initialized, m, check)
		})
	}
	// standby.signal comes before the marker. After an interruption, a directory with a
	// marker and without standby.signal would be taken for that of a primary.
	if err := s.writeOwned(s.dir, standbyName, ""); err != nil {
		return err
	}
	if !found {
		m = check.template
	}
	m.Epoch, m.Primary = state.Epoch, false
	return s.writeMarker(s.dir, m)
}

// checkEpoch returns ErrConflict if the marker has a higher epoch.
func checkEpoch(state sut.Replication, m marker) error {
	if state.Epoch < m.Epoch {
		return fmt.Errorf("%w: epoch %d is lower than the known epoch %d", ErrConflict, state.Epoch, m.Epoch)
	}
	return nil
}

// copyCheck is the result of checkCopy.
type copyCheck struct {
	reason   string // why the data directory cannot follow the primary; "" = it can
	keep     bool   // the directory may hold changes that the primary lacks
	template marker // System and Origin of a new copy of the template
}

// checkCopy checks whether a data directory can follow the primary. m is its marker, if
// found.
func (s *Server) checkCopy(
	ctx context.Context, state sut.Replication, initialized, found bool, m marker,
) (copyCheck, error) {
	// A promotion may have lost changes of an earlier epoch.
	keep := !found || m.Primary || m.Diverged || m.Epoch < state.Epoch
	no := func(format string, args ...any) (copyCheck, error) {
		return copyCheck{reason: fmt.Sprintf(format, args...), keep: keep}, nil
	}
	switch {
	case !initialized:
		return copyCheck{reason: "it is empty"}, nil
	case m.Primary:
		return no("it belongs to the primary of epoch %d", m.Epoch)
	case m.Lost != "":
		return no("%s", m.Lost)
	}
	c, err := s.readControl(ctx, s.dir)
	if err != nil {
		return copyCheck{}, err
	}
	standby, err := exists(filepath.Join(s.dir, standbyName))
	if err != nil {
		return copyCheck{}, err
	}
	if !c.clean && !standby {
		return no("it was not shut down cleanly")
	}
	// A directory that was a replica before can start without its primary.
	timeout := requiredWait
	if found {
		timeout = optionalWait
	}
	position := max(c.checkpoint, c.recovered)
	p, err := s.awaitPrimary(ctx, *state.Primary, timeout, position)
	switch {
	case err != nil && found && ctx.Err() == nil:
		s.cfg.Log.Warn("the primary did not answer; the replica starts with its present copy",
			"primary", state.Primary.Address, "error", err)
		return copyCheck{}, nil
	case err != nil:
		return copyCheck{}, err
	case p.System != c.system:
		return no("it is not a copy of the primary: its system identifier is %s, want %s", c.system, p.System)
	case !found && p.Origin != c.checkpoint:
		return no("it is not a copy of the primary's template")
	case p.ahead, found && !p.contains(m.Epoch, position):
		keep = true
		return no("it may hold changes that the primary lacks: it is at %s of epoch %d", formatPosition(position), m.Epoch)
	case !p.hasWAL:
		return no("it is too far behind: the primary has removed WAL after %s", formatPosition(position))
	}
	return copyCheck{template: marker{System: p.System, Origin: p.Origin}}, nil
}

// primaryState is the state of a primary in relation to a replica's position.
type primaryState struct {
	marker
	ahead  bool // the position is after the end of the primary's WAL
	hasWAL bool // the primary still has its WAL from the position on
}

// contains reports whether the primary, whose marker is m, holds the history of a replica
// of an epoch up to a position. For a replica that missed more than one promotion it
// returns false, because m does not record earlier promotions. The server itself checks
// the replica's WAL after the position.
func (m marker) contains(epoch, position int64) bool {
	return epoch == m.Epoch || epoch == m.From && position <= m.Fork
}

// awaitPrimary queries the primary until it answers or until the timeout: the primary may
// still be starting.
func (s *Server) awaitPrimary(
	ctx context.Context, primary sut.Peer, timeout time.Duration, position int64,
) (primaryState, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	retry := time.NewTicker(100 * time.Millisecond)
	defer retry.Stop()
	for {
		p, err := s.queryPrimary(ctx, primary, position)
		if err == nil {
			return p, nil
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return primaryState{}, fmt.Errorf("primary %s: %w", primary.Address, err)
		}
	}
}

// queryPrimary queries the primary once. It returns an error for a server that is not yet
// promoted: that server's history may still change.
func (s *Server) queryPrimary(ctx context.Context, primary sut.Peer, position int64) (primaryState, error) {
	conn, err := pgx.Connect(ctx, s.urlOf(primary.Address, nodeUser))
	if err != nil {
		return primaryState{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var p primaryState
	var standby bool
	var text string
	err = conn.QueryRow(ctx, "SELECT pg_is_in_recovery(), stagebench_replication.marker()").Scan(&standby, &text)
	if err != nil {
		return primaryState{}, err
	}
	if standby {
		return primaryState{}, errors.New("it is still a replica")
	}
	if p.marker, err = parseMarker([]byte(text)); err != nil {
		return primaryState{}, err
	}
	// The name of a WAL file contains its timeline and its position. The query compares the
	// position only, because a replica follows the WAL across timelines.
	at := formatPosition(position)
	err = conn.QueryRow(ctx, `SELECT $1::text::pg_lsn > pg_current_wal_lsn(), EXISTS (SELECT FROM pg_ls_waldir()
		WHERE length(name) = 24 AND right(name, 16) = right(pg_walfile_name($1::text::pg_lsn + 1), 16))`, at).
		Scan(&p.ahead, &p.hasWAL)
	return p, err
}

// rebuild fetches a new copy from the primary into tempDir. It moves the old directory away
// after the new one is complete.
func (s *Server) rebuild(
	ctx context.Context, tempDir string, state sut.Replication, initialized bool, old marker, check copyCheck,
) error {
	begin := time.Now()
	s.cfg.Log.Info("fetching a new copy", "dir", s.dir, "primary", state.Primary.Address, "reason", check.reason)
	p, err := s.awaitPrimary(ctx, *state.Primary, requiredWait, 0)
	if err != nil {
		return err
	}
	// --wal-method=fetch copies the WAL at the end, over the same connection: wal_keep_size
	// is enough until then. The alternative, stream, starts a second process. It survives
	// an interruption, and its connection counts as a replica for synchronous commits.
	// --no-sync: the server syncs the directory when it starts from a backup.
	backup := s.command(ctx, "pg_basebackup", "--dbname="+conninfo(*state.Primary, backupName), "--pgdata="+tempDir,
		"--checkpoint=fast", "--wal-method=fetch", "--no-sync", "--no-manifest", "--no-password")
	if err := run(backup, ""); err != nil {
		return err
	}
	// The primary may have been promoted again since the wiring with state was made.
	m := marker{
		Epoch: max(state.Epoch, p.Epoch), System: p.System, Origin: p.Origin, Rebuilds: old.Rebuilds + 1,
	}
	if err := errors.Join(s.writeOwned(tempDir, standbyName, ""), s.writeMarker(tempDir, m)); err != nil {
		return err
	}
	if err := s.moveOldDir(initialized, old, check); err != nil {
		return err
	}
	s.cfg.Log.Info("fetched a new copy", "dir", s.dir, "took", time.Since(begin))
	return nil
}

// moveOldDir keeps the old data directory, or removes it if it holds no changes of its own. If too
// many copies are kept already, an empty directory takes its place.
func (s *Server) moveOldDir(initialized bool, old marker, check copyCheck) error {
	if !initialized {
		return nil // it is empty
	}
	if err := s.Release(); err != nil {
		return err
	}
	if !check.keep {
		return os.RemoveAll(s.dir)
	}
	kept, err := s.KeptCopies()
	if err != nil {
		return err
	}
	to := fmt.Sprintf("%s%s%d-%d", s.dir, keptSuffix, old.Epoch, time.Now().UnixMicro())
	if len(kept) >= sut.MaxKept {
		return errors.Join(os.Mkdir(to, 0o700), os.RemoveAll(s.dir))
	}
	return os.Rename(s.dir, to)
}

// keptSuffix is followed by the epoch of a kept copy, '-' and the time in microseconds.
const keptSuffix = ".epoch-"

// KeptCopy is an old data directory that may hold changes that the present primary lacks, for
// example that of a primary that was replaced. A server without Replication can be started on it.
type KeptCopy struct {
	Name, Dir string
	Epoch     int64 // of its marker
	Empty     bool  // too many copies were kept already
}

// KeptCopies lists the copies that Prepare kept and that DropCopy has not removed, oldest first.
func (s *Server) KeptCopies() (all []KeptCopy, err error) {
	entries, err := os.ReadDir(filepath.Dir(s.dir))
	for _, entry := range entries {
		text, found := strings.CutPrefix(entry.Name(), filepath.Base(s.dir)+keptSuffix)
		var epoch, at int64
		if _, err := fmt.Sscanf(text, "%d-%d", &epoch, &at); !found || err != nil {
			continue
		}
		dir := filepath.Join(filepath.Dir(s.dir), entry.Name())
		files, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		all = append(all, KeptCopy{Name: keptSuffix[1:] + text, Dir: dir, Epoch: epoch, Empty: len(files) == 0})
	}
	slices.SortStableFunc(all, func(a, b KeptCopy) int { return cmp.Compare(a.Epoch, b.Epoch) })
	return all, err
}

// DropCopy removes a kept copy. It does nothing if there is none with this name.
func (s *Server) DropCopy(name string) error {
	kept, err := s.KeptCopies()
	for _, k := range kept {
		if k.Name != name {
			continue
		}
		// A directory that is removed in part must not be taken for a copy.
		dropped := s.dir + ".dropped"
		if err := os.RemoveAll(dropped); err != nil {
			return err
		}
		if err := errors.Join(ReleaseAll(k.Dir), os.Rename(k.Dir, dropped)); err != nil {
			return err
		}
		return os.RemoveAll(dropped)
	}
	return err
}
