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

// partial is what cannot be seen of what a server lost: the log names the rows by
// their place only, and the rows themselves know who changed them last.
const partial = "of a row that was changed several times the last state is known and no earlier one; " +
	"rows that were deleted are not listed"

// Beheaded is a data directory that was kept when its server began to follow the
// primary of a later epoch, with what its log says of the transactions behind the
// point where the histories part.
type Beheaded struct {
	Dir   string
	epoch int64
	// wrote are the files that each committed transaction wrote to.
	wrote map[uint32][]string
}

// KeptCopy reads the log of the data directory that was kept, if there is one.
// After that a server may be started on it, which LostFrom asks for the rows. It
// is to be called before: a server that starts writes to the log.
func (s *Server) KeptCopy(ctx context.Context) (*Beheaded, error) {
	epochs, err := s.keptEpochs()
	if err != nil || epochs == nil {
		return nil, err
	}
	epoch := slices.Max(epochs)
	kept := KeptDir(s.dir, epoch)
	own, err := s.readControl(ctx, kept)
	if err != nil {
		return nil, fmt.Errorf("postgres: kept copy: %w", err)
	}
	fork, err := forkPoint(s.dir, own.timeline)
	if err != nil {
		return nil, fmt.Errorf("postgres: kept copy %s: %w", kept, err)
	}
	b := &Beheaded{Dir: kept, epoch: epoch, wrote: map[uint32][]string{}}
	dump := s.command(ctx, "pg_waldump", "--path="+filepath.Join(kept, "pg_wal"),
		"--timeline="+strconv.Itoa(own.timeline), "--start="+fork)
	out, err := dump.Output()
	said := ""
	failed, ended := errors.AsType[*exec.ExitError](err)
	if ended {
		said = string(failed.Stderr)
	}
	// It ends with an error where the log does, which may be at once: then it finds
	// no record where it is to begin.
	atOnce := strings.Contains(said, "could not find a valid record") || strings.Contains(said, "invalid record length")
	if err != nil && (!ended || len(out) == 0 && !atOnce) {
		return nil, fmt.Errorf("postgres: kept copy: pg_waldump: %w: %s", err, lastLines(said, 2))
	}
	return b, b.read(out)
}

// forkPoint is where a timeline ended in the history of a data directory: the
// log position that the one who was promoted had reached.
// https://www.postgresql.org/docs/15/continuous-archiving.html#BACKUP-TIMELINES
func forkPoint(dir string, timeline int) (string, error) {
	wal := os.DirFS(filepath.Join(dir, "pg_wal"))
	files, err := fs.Glob(wal, "*.history")
	if err != nil || len(files) == 0 {
		return "", errors.Join(err, errors.New("there is no history of timelines"))
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
	return "", fmt.Errorf("timeline %d is not in the history", timeline)
}

// What pg_waldump prints of a record.
var (
	recordTx  = regexp.MustCompile(`\btx:\s+(\d+),`)
	recordRel = regexp.MustCompile(`\brel (\d+/\d+/\d+)\b`)
)

// read finds the transactions that were committed, and what they wrote.
func (b *Beheaded) read(dump []byte) error {
	wrote := map[uint32][]string{}
	lines := bufio.NewScanner(bytes.NewReader(dump))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		found := recordTx.FindStringSubmatch(lines.Text())
		if found == nil {
			continue
		}
		number, err := strconv.ParseUint(found[1], 10, 32)
		if err != nil || number == 0 { // 0: of no transaction
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

// LostFrom asks a server on the kept directory for the rows that the transactions
// behind the fork left, and the one that replaced it which of them exist there.
func (s *Server) LostFrom(ctx context.Context, b *Beheaded, kept *Server) (sut.Lost, error) {
	lost := sut.Lost{Node: s.cfg.Replication.Node, Epoch: b.epoch, Changes: []sut.LostChange{}, Partial: partial}
	old, err := kept.connect(ctx, "stagebench-lost")
	if err != nil {
		return lost, fmt.Errorf("postgres: lost: %w", err)
	}
	defer old.Close(ctx)
	now, err := s.connect(ctx, "stagebench-lost")
	if err != nil {
		return lost, fmt.Errorf("postgres: lost: %w", err)
	}
	defer now.Close(ctx)
	beats, err := beatFiles(ctx, old)
	if err != nil {
		return lost, fmt.Errorf("postgres: lost: heartbeats: %w", err)
	}
	var txs []int64
	for tx, files := range b.wrote {
		if slices.ContainsFunc(files, func(f string) bool { return !slices.Contains(beats, f) }) {
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

// beatFiles are the files of the heartbeat, as the log names them.
func beatFiles(ctx context.Context, conn *pgx.Conn) (files []string, err error) {
	rows, err := conn.Query(ctx, `SELECT
		concat_ws('/', coalesce(nullif(c.reltablespace, 0), d.dattablespace), d.oid, c.relfilenode)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, pg_database d
		WHERE n.nspname = 'stagebench_replication' AND d.datname = current_database() AND c.relkind IN ('r', 'i')`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// lostTable is a table of the service whose rows are looked for.
type lostTable struct {
	name string
	key  []string
	// updated: its rows, whose key is id, may be updated, so that one that was changed
	// last may have been there.
	updated bool
}

// lostTables lists them, what others refer to first.
func lostTables() []lostTable {
	return []lostTable{
		{"users", []string{"id"}, true},
		{"photos", []string{"id"}, true},
		{"comments", []string{"id"}, false},
		{"follows", []string{"follower", "followee"}, false},
	}
}

// changes lists the rows that these transactions changed last.
func (t lostTable) changes(ctx context.Context, old, now *pgx.Conn, txs []int64) (changes []sut.LostChange, err error) {
	// A transaction id has 32 bits, and xmin has no comparison.
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
		if t.updated { // else there is nothing to ask: it was inserted
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
