package postgres

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut"
)

// partial says which lost changes cannot be listed. A WAL record names a row by its place
// in a file only, so the rows come from the tables. A row contains only the id of the
// transaction that changed it last.
const partial = "for a row that was changed more than once, only the last state is listed; " +
	"deleted rows are not listed"

// DivergedCopy is a kept copy with the transactions in its WAL that the present copy lacks.
type DivergedCopy struct {
	KeptCopy
	commits map[uint32]commit // by transaction id
	primary bool              // it belonged to a primary
	gap     bool              // its WAL begins after the fork
}

// commit is a committed transaction.
type commit struct {
	timeline int
	files    []string // that it wrote to
}

// span is the part of a history that is on one timeline.
type span struct {
	timeline   int
	start, end int64 // positions; end math.MaxInt64 = the history ends on this timeline
}

// DivergedCopy reads the WAL of a kept copy. Call it before a server is started on that copy,
// because a server writes to the WAL. Pass that server to LostRows.
func (s *Server) DivergedCopy(ctx context.Context, k KeptCopy) (*DivergedCopy, error) {
	own, err := s.readControl(ctx, k.Dir)
	if err != nil {
		return nil, err
	}
	present, err := s.readControl(ctx, s.dir)
	if err != nil {
		return nil, err
	}
	if own.system != present.system {
		return nil, errors.New("it is not a copy of this database")
	}
	old, err := history(k.Dir)
	if err != nil {
		return nil, err
	}
	now, err := history(s.dir)
	if err != nil {
		return nil, err
	}
	conn, err := s.connect(ctx, nodeUser, "stagebench-lost")
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	epochs, err := s.promotions(ctx)
	if err != nil {
		return nil, fmt.Errorf("promotions: %w", err)
	}
	heartbeat, err := heartbeatFiles(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("heartbeats: %w", err)
	}
	m, found, err := readMarker(k.Dir)
	if err != nil {
		return nil, err
	}
	d := &DivergedCopy{KeptCopy: k, commits: map[uint32]commit{}, primary: m.Primary || !found}
	fork := forkOf(old, now, epochs, k.Epoch)
	for _, part := range old {
		if part.end <= fork {
			continue
		}
		if err := d.readWAL(ctx, s, part, max(part.start, fork)); err != nil {
			return nil, err
		}
	}
	maps.DeleteFunc(d.commits, func(_ uint32, c commit) bool {
		return !slices.ContainsFunc(c.files, func(f string) bool { return !slices.Contains(heartbeat, f) })
	})
	// A server would start as a replica.
	return d, os.RemoveAll(filepath.Join(k.Dir, standbyName))
}

// walSegment is PostgreSQL's default size of a WAL file, in bytes.
const walSegment = 16 << 20

// Lost reports whether changes are lost, or may be. Heartbeats do not count.
func (d *DivergedCopy) Lost() bool { return len(d.commits) > 0 || d.gap && d.primary }

// readWAL reads the committed transactions of a timeline from a position on.
func (d *DivergedCopy) readWAL(ctx context.Context, s *Server, part span, from int64) error {
	segments, err := fs.Glob(os.DirFS(filepath.Join(d.Dir, "pg_wal")), fmt.Sprintf("%08X????????????????", part.timeline))
	if err != nil {
		return err
	}
	// The name of a segment is its timeline and its number, of which 8 digits count units of 4 GiB.
	first, nameOf := from/walSegment, func(number int64) string {
		return fmt.Sprintf("%08X%08X%08X", part.timeline, number>>8, number&0xff)
	}
	if len(segments) == 0 || slices.Max(segments) < nameOf(first) {
		return nil // it ends before
	}
	for !slices.Contains(segments, nameOf(first)) {
		d.gap, first = true, first+1
		from = first * walSegment
	}
	args := []string{
		"--path=" + filepath.Join(d.Dir, "pg_wal"), "--timeline=" + strconv.Itoa(part.timeline),
		"--start=" + formatPosition(from),
	}
	if part.end != math.MaxInt64 {
		args = append(args, "--end="+formatPosition(part.end))
	}
	out, err := s.command(ctx, "pg_waldump", args...).Output()
	stderr := ""
	exit, exited := errors.AsType[*exec.ExitError](err)
	if exited {
		stderr = string(exit.Stderr)
	}
	// pg_waldump exits with an error at the end of the WAL. If the WAL ends at the fork, it
	// prints no records, only one of these errors.
	noRecord := strings.Contains(stderr, "could not find a valid record") ||
		strings.Contains(stderr, "invalid record length")
	if err != nil && (!exited || len(out) == 0 && !noRecord) {
		return fmt.Errorf("pg_waldump: %w: %s", err, lastLines(stderr, 2))
	}
	return d.read(out, part.timeline)
}

// history returns the timelines of a data directory in order. The last one is the newest of which it has WAL: the
// control data names it only after a checkpoint.
// https://www.postgresql.org/docs/15/continuous-archiving.html#BACKUP-TIMELINES
func history(dir string) (all []span, err error) {
	wal := os.DirFS(filepath.Join(dir, "pg_wal"))
	segments, err := fs.Glob(wal, strings.Repeat("[0-9A-F]", 24))
	if err != nil || len(segments) == 0 {
		return nil, errors.Join(err, errors.New("there is no WAL"))
	}
	newest, err := strconv.ParseInt(slices.Max(segments)[:8], 16, 32)
	if err != nil {
		return nil, err
	}
	text, err := fs.ReadFile(wal, fmt.Sprintf("%08X.history", newest))
	if err != nil && newest > 1 {
		return nil, err
	}
	start := int64(0)
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		timeline, err := strconv.Atoi(fields[0])
		if err != nil {
			continue // a comment
		}
		end, err := parsePosition(fields[1])
		if err != nil {
			return nil, err
		}
		all, start = append(all, span{timeline, start, end}), end
	}
	return append(all, span{int(newest), start, math.MaxInt64}), nil
}

// forkOf returns the position at which an old history parts from the present one; math.MaxInt64 = the present one
// contains it. Two replicas that were promoted independently use the same timeline number, so the number alone
// identifies no timeline. epochs has the epochs of the present history by timeline, and epoch is that of the old one.
func forkOf(old, now []span, epochs map[int]int64, epoch int64) (fork int64) {
	for i, part := range old {
		if i == len(now) || now[i].timeline != part.timeline || epochs[part.timeline] > epoch {
			return fork
		}
		if fork = min(part.end, now[i].end); part.end != now[i].end {
			return fork
		}
	}
	return fork
}

// promotions returns the epochs of the promotions in a copy, by timeline. Clients may not read them.
func (s *Server) promotions(ctx context.Context) (map[int]int64, error) {
	conn, err := s.connect(ctx, nodeUser, "stagebench-lost")
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	epochs := map[int]int64{1: 1}
	rows, err := conn.Query(ctx, `SELECT timeline, epoch FROM stagebench_replication.promotion`)
	if err != nil {
		return nil, err
	}
	var timeline int
	var epoch int64
	_, err = pgx.ForEachRow(rows, []any{&timeline, &epoch}, func() error {
		epochs[timeline] = epoch
		return nil
	})
	return epochs, err
}

// recordPromotion writes the epoch of a new timeline into the database, before clients write to it. A copy with this
// row has the history of that primary.
func recordPromotion(ctx context.Context, conn *pgx.Conn, epoch int64) error {
	_, err := conn.Exec(ctx, `INSERT INTO stagebench_replication.promotion VALUES (
		('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int, $1)
		ON CONFLICT (timeline) DO UPDATE SET epoch = excluded.epoch`, epoch)
	return err
}

// Patterns for the transaction and the relation of a record in pg_waldump's output.
var (
	recordTx  = regexp.MustCompile(`\btx:\s+(\d+),`)
	recordRel = regexp.MustCompile(`\brel (\d+/\d+/\d+)\b`)
)

// read fills commits from pg_waldump's output. It ignores transactions without a commit.
func (d *DivergedCopy) read(dump []byte, timeline int) error {
	wrote := map[uint32][]string{}
	lines := bufio.NewScanner(bytes.NewReader(dump))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		found := recordTx.FindStringSubmatch(lines.Text())
		if found == nil {
			continue
		}
		number, err := strconv.ParseUint(found[1], 10, 32)
		if err != nil || number == 0 { // 0 = no transaction
			continue
		}
		tx := uint32(number)
		for _, rel := range recordRel.FindAllStringSubmatch(lines.Text(), -1) {
			wrote[tx] = append(wrote[tx], rel[1])
		}
		if strings.Contains(lines.Text(), "desc: COMMIT") {
			d.commits[tx] = commit{timeline, wrote[tx]}
		}
	}
	return lines.Err()
}

// LostRows returns the rows that the transactions after the fork wrote last. kept is a
// running server on the kept copy. s is queried for the rows that exist in its present
// copy, so that updates and inserts can be distinguished.
func (s *Server) LostRows(ctx context.Context, d *DivergedCopy, kept *Server) (sut.Lost, error) {
	lost := sut.Lost{
		Node: s.cfg.Replication.Node, Copy: d.Name, Epoch: d.Epoch, Changes: []sut.LostChange{}, Partial: partial,
	}
	old, err := kept.connect(ctx, User, "stagebench-lost")
	if err != nil {
		return lost, err
	}
	defer old.Close(ctx)
	now, err := s.connect(ctx, User, "stagebench-lost")
	if err != nil {
		return lost, err
	}
	defer now.Close(ctx)
	epochs, err := kept.promotions(ctx)
	if err != nil {
		return lost, fmt.Errorf("promotions: %w", err)
	}
	ids := map[int64]string{} // by transaction: LostChange.Commit
	for tx, c := range d.commits {
		ids[int64(tx)] = fmt.Sprintf("%d/%d", cmp.Or(epochs[c.timeline], d.Epoch), tx)
	}
	lost.Commits = len(ids)
	switch {
	case d.gap && d.primary:
		lost.Unknown, lost.Partial = true, "the old copy does not have the WAL from the position at which the copies diverged"
	case d.gap: // a replica has nothing that its primary did not have
		lost.Partial = "the old copy of a replica lacks WAL: the loss of its primary lists these changes; " + partial
	}
	for _, t := range lostTables() {
		changes, err := t.changes(ctx, old, now, ids)
		if err != nil {
			return lost, fmt.Errorf("%s: %w", t.name, err)
		}
		lost.Changes = append(lost.Changes, changes...)
	}
	return lost, nil
}

// heartbeatFiles returns the files of the heartbeat table and its index, as the WAL names
// them.
func heartbeatFiles(ctx context.Context, conn *pgx.Conn) (files []string, err error) {
	rows, err := conn.Query(ctx, `SELECT
		concat_ws('/', coalesce(nullif(c.reltablespace, 0), d.dattablespace), d.oid, c.relfilenode)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, pg_database d
		WHERE n.nspname = 'stagebench_replication' AND d.datname = current_database() AND c.relkind IN ('r', 'i')`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// lostTable is a table of the service in which LostRows looks for lost rows.
type lostTable struct {
	name    string
	key     []string
	updated bool // the service updates rows of this table; its key is id
}

// lostTables returns the tables in the order of their references: a table comes after those
// that it refers to.
func lostTables() []lostTable {
	return []lostTable{
		{"users", []string{"id"}, true},
		{"photos", []string{"id"}, true},
		{"comments", []string{"id"}, false},
		{"follows", []string{"follower", "followee"}, false},
		{"sessions", []string{"id"}, false},
	}
}

// changes returns the rows that the transactions wrote last. old is a connection to the
// kept copy, now to the present one. ids has the transactions.
func (t lostTable) changes(
	ctx context.Context, old, now *pgx.Conn, ids map[int64]string,
) (changes []sut.LostChange, err error) {
	// xmin has type xid, which has no order and no cast to bigint.
	rows, err := old.Query(ctx, "SELECT xmin::text::bigint AS written_by, * FROM "+t.name+
		" WHERE xmin::text::bigint = ANY($1) ORDER BY "+strings.Join(t.key, ", "), slices.Collect(maps.Keys(ids)))
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, pgx.RowToMap)
	if err != nil {
		return nil, err
	}
	var terms []string
	for i, column := range t.key {
		terms = append(terms, fmt.Sprintf("%s = $%d", column, i+1))
	}
	find := "SELECT EXISTS (SELECT FROM " + t.name + " WHERE " + strings.Join(terms, " AND ") + ")"
	for _, row := range all {
		tx, _ := row["written_by"].(int64)
		delete(row, "written_by")
		var key []string
		var values []any
		for column, value := range row {
			if small, ok := value.(int32); ok {
				row[column] = int64(small)
			}
		}
		for _, column := range t.key {
			key, values = append(key, fmt.Sprint(row[column])), append(values, row[column])
		}
		exists := false
		if err := now.QueryRow(ctx, find, values...).Scan(&exists); err != nil {
			return nil, err
		}
		change := sut.LostChange{
			Commit: ids[tx], Table: t.name, Key: strings.Join(key, "/"), Op: sut.Inserted, New: row,
		}
		switch {
		case exists && !t.updated:
			continue // a row of this table can only have been inserted, so it is not lost
		case exists:
			change.Op = sut.Updated
		}
		changes = append(changes, change)
	}
	return changes, nil
}
