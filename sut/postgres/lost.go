package postgres

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
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

// DivergedCopy is a kept data directory (keptDir), with the transactions in its WAL that
// the new primary lacks.
type DivergedCopy struct {
	Dir   string
	epoch int64
	// wrote lists, by id, the files that each committed transaction wrote to.
	wrote map[uint32][]string
}

// DivergedCopy reads the WAL of the kept data directory. It returns nil if there is none. Call
// it before a server is started on that directory, because a server writes to the WAL.
// Pass that server to LostRows.
func (s *Server) DivergedCopy(ctx context.Context) (*DivergedCopy, error) {
	epochs, err := s.keptEpochs()
	if err != nil || epochs == nil {
		return nil, err
	}
	epoch := slices.Max(epochs)
	kept := keptDir(s.dir, epoch)
	own, err := s.readControl(ctx, kept)
	if err != nil {
		return nil, fmt.Errorf("postgres: kept copy: %w", err)
	}
	fork, err := forkPoint(s.dir, own.timeline)
	if err != nil {
		return nil, fmt.Errorf("postgres: kept copy %s: %w", kept, err)
	}
	b := &DivergedCopy{Dir: kept, epoch: epoch, wrote: map[uint32][]string{}}
	dump := s.command(ctx, "pg_waldump", "--path="+filepath.Join(kept, "pg_wal"),
		"--timeline="+strconv.Itoa(own.timeline), "--start="+fork)
	out, err := dump.Output()
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
		return nil, fmt.Errorf("postgres: kept copy: pg_waldump: %w: %s", err, lastLines(stderr, 2))
	}
	return b, b.read(out)
}

// forkPoint returns the position at which a timeline ended, from the timeline history of a
// data directory: the promoted replica had reached that position.
// https://www.postgresql.org/docs/15/continuous-archiving.html#BACKUP-TIMELINES
func forkPoint(dir string, timeline int) (string, error) {
	wal := os.DirFS(filepath.Join(dir, "pg_wal"))
	files, err := fs.Glob(wal, "*.history")
	if err != nil || len(files) == 0 {
		return "", errors.Join(err, errors.New("there is no timeline history file"))
	}
	text, err := fs.ReadFile(wal, slices.Max(files))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) >= 2 && fields[0] == strconv.Itoa(timeline) {
			return fields[1], nil
		}
	}
	return "", fmt.Errorf("timeline %d is not in the timeline history", timeline)
}

// Patterns for the transaction and the relation of a record in pg_waldump's output.
var (
	recordTx  = regexp.MustCompile(`\btx:\s+(\d+),`)
	recordRel = regexp.MustCompile(`\brel (\d+/\d+/\d+)\b`)
)

// read fills wrote from pg_waldump's output. It ignores transactions without a commit.
func (b *DivergedCopy) read(dump []byte) error {
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
			b.wrote[tx] = wrote[tx]
		}
	}
	return lines.Err()
}

// LostRows returns the rows that the transactions after the fork wrote last. kept is a
// running server on the kept directory. s is queried for the rows that exist in its present
// copy, so that updates and inserts can be distinguished.
func (s *Server) LostRows(ctx context.Context, b *DivergedCopy, kept *Server) (sut.Lost, error) {
	lost := sut.Lost{Node: s.cfg.Replication.Node, Epoch: b.epoch, Changes: []sut.LostChange{}, Partial: partial}
	old, err := kept.connect(ctx, User, "stagebench-lost")
	if err != nil {
		return lost, fmt.Errorf("postgres: lost: %w", err)
	}
	defer old.Close(ctx)
	now, err := s.connect(ctx, User, "stagebench-lost")
	if err != nil {
		return lost, fmt.Errorf("postgres: lost: %w", err)
	}
	defer now.Close(ctx)
	heartbeat, err := heartbeatFiles(ctx, old)
	if err != nil {
		return lost, fmt.Errorf("postgres: lost: heartbeats: %w", err)
	}
	var txs []int64
	for tx, files := range b.wrote {
		if slices.ContainsFunc(files, func(f string) bool { return !slices.Contains(heartbeat, f) }) {
			txs = append(txs, int64(tx))
		}
	}
	slices.Sort(txs)
	lost.Commits = len(txs)
	for _, t := range lostTables() {
		changes, err := t.changes(ctx, old, now, txs)
		if err != nil {
			return lost, fmt.Errorf("postgres: lost: %s: %w", t.name, err)
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
	}
}

// changes returns the rows that the transactions wrote last. old is a connection to the
// kept copy, now to the present one.
func (t lostTable) changes(ctx context.Context, old, now *pgx.Conn, txs []int64) (changes []sut.LostChange, err error) {
	// xmin has type xid, which has no order and no cast to bigint.
	rows, err := old.Query(ctx,
		"SELECT * FROM "+t.name+" WHERE xmin::text::bigint = ANY($1) ORDER BY "+strings.Join(t.key, ", "), txs)
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, pgx.RowToMap)
	if err != nil {
		return nil, err
	}
	find := "SELECT EXISTS (SELECT FROM " + t.name + " WHERE id = $1)"
	for _, row := range all {
		var key []string
		for column, value := range row {
			if small, ok := value.(int32); ok {
				row[column] = int64(small)
			}
		}
		for _, column := range t.key {
			key = append(key, fmt.Sprint(row[column]))
		}
		exists := false
		if t.updated { // a row of another table can only have been inserted
			if err := now.QueryRow(ctx, find, row["id"]).Scan(&exists); err != nil {
				return nil, err
			}
		}
		change := sut.LostChange{Table: t.name, Key: strings.Join(key, "/"), Op: sut.Inserted, New: row}
		if exists {
			change.Op = sut.Updated
		}
		changes = append(changes, change)
	}
	return changes, nil
}
