package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"iter"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// Data is a seeded data set. Load stores its counters unchanged and does not verify
// them.
type Data interface {
	Users() iter.Seq[photos.User]
	Photos() iter.Seq[photos.Photo]
	Comments() iter.Seq[photos.Comment]
	Follows() iter.Seq[photos.Follow]
}

// The sizes of bulk loading.
const (
	rowsPerTransaction = 50_000   // bounds the size of a transaction in the database's log
	rowsPerPipeline    = 1_000    // rows per round trip
	textPerInsert      = 16 << 10 // bytes of text per statement; the embedded node refuses messages of 64 KiB
)

// CreateSchema creates the tables and indexes that do not exist.
func (s *Store) CreateSchema(ctx context.Context) error {
	for _, statement := range schema() {
		if _, err := s.first().primary.pool.Exec(ctx, statement.SQL); err != nil {
			return fmt.Errorf("%s: %w", statement.Name, classify(ctx, err))
		}
	}
	return nil
}

// CreateShard creates a shard that owns these buckets, without rows: the tables of CreateSchema and those that only
// shards have.
func (s *Store) CreateShard(ctx context.Context, owned []photos.Bucket) error {
	if err := s.CreateSchema(ctx); err != nil {
		return err
	}
	for _, statement := range shardSchema() {
		if _, err := s.first().primary.pool.Exec(ctx, statement.SQL); err != nil {
			return fmt.Errorf("%s: %w", statement.Name, classify(ctx, err))
		}
	}
	rows := func(yield func([]any) bool) {
		for _, b := range owned {
			if !yield([]any{int64(b), int64(firstEpoch), string(sut.BucketOwned), int64(0)}) {
				return
			}
		}
	}
	if err := s.loadTable(ctx, ownedTable(), rows); err != nil {
		return fmt.Errorf("load owned: %w", classify(ctx, err))
	}
	return nil
}

// firstEpoch is the epoch of the buckets of a new system.
const firstEpoch = 1

// LoadShard is like Load, but it loads only the rows of the buckets that a shard owns.
func (s *Store) LoadShard(ctx context.Context, data Data, owns func(photos.Bucket) bool) error {
	added := shardTables()[:2]
	for i, rows := range []iter.Seq[[]any]{
		rows(data.Users(), func(u photos.User) []any {
			b := photos.BucketOf(u.ID)
			return only(owns(b), u.ID, int64(b))
		}),
		rows(data.Users(), func(u photos.User) []any {
			b := photos.BucketOfLogin(u.Login)
			return only(owns(b), u.Login, int64(b), u.ID)
		}),
	} {
		if err := s.loadTable(ctx, added[i].table, rows); err != nil {
			return fmt.Errorf("load %s: %w", added[i].name, classify(ctx, err))
		}
	}
	return s.Load(ctx, part{data, owns})
}

// only returns a row, or nil to leave it out.
func only(wanted bool, row ...any) []any {
	if !wanted {
		return nil
	}
	return row
}

// part is the data of some buckets.
type part struct {
	Data
	owns func(photos.Bucket) bool
}

// Users implements Data.
func (p part) Users() iter.Seq[photos.User] {
	return filter(p.Data.Users(), func(u photos.User) bool { return p.owns(photos.BucketOf(u.ID)) })
}

// Photos implements Data.
func (p part) Photos() iter.Seq[photos.Photo] {
	return filter(p.Data.Photos(), func(v photos.Photo) bool { return p.owns(v.ID.Bucket()) })
}

// Comments implements Data.
func (p part) Comments() iter.Seq[photos.Comment] {
	return filter(p.Data.Comments(), func(c photos.Comment) bool { return p.owns(c.ID.Bucket()) })
}

// Follows implements Data. A follow is at the shards of both users.
func (p part) Follows() iter.Seq[photos.Follow] {
	return filter(p.Data.Follows(), func(f photos.Follow) bool {
		return p.owns(photos.BucketOf(f.Follower)) || p.owns(photos.BucketOf(f.Followee))
	})
}

func filter[T any](all iter.Seq[T], keep func(T) bool) iter.Seq[T] {
	return func(yield func(T) bool) {
		for v := range all {
			if keep(v) && !yield(v) {
				return
			}
		}
	}
}

// Load fills an empty database in a few large transactions, without QueryTimeout. It
// analyzes the tables that it fills, so that query plans do not change during a measurement.
// It does not analyze empty ones: PostgreSQL would go on planning for an empty table.
// After an error the database holds a part of the data and must be discarded.
func (s *Store) Load(ctx context.Context, data Data) error {
	for i, t := range tables() {
		if err := s.loadTable(ctx, t, rowsOf(data)[i]); err != nil {
			return fmt.Errorf("load %s: %w", t.name, classify(ctx, err))
		}
	}
	return nil
}

// rowsOf returns the rows of each table, in the order of tables.
func rowsOf(data Data) []iter.Seq[[]any] {
	return []iter.Seq[[]any]{
		rows(data.Users(), func(u photos.User) []any {
			return []any{u.ID, u.Login, u.Name, u.Password, u.CreatedUS, u.Photos, u.Followers, u.Following, u.Version}
		}),
		rows(data.Photos(), func(p photos.Photo) []any {
			return []any{
				p.ID, p.UserID, p.Title, p.State, p.Width, p.Height, p.Bytes, p.CreatedUS, p.Likes, p.Comments, p.Version,
				p.DoneUS,
			}
		}),
		rows(data.Comments(), func(c photos.Comment) []any {
			return []any{c.ID, c.PhotoID, c.UserID, c.Text, c.CreatedUS}
		}),
		rows(data.Follows(), func(f photos.Follow) []any {
			return []any{f.Follower, f.Followee, f.CreatedUS}
		}),
	}
}

// rows returns the rows of records. It leaves out those that are nil.
func rows[T any](records iter.Seq[T], row func(T) []any) iter.Seq[[]any] {
	return func(yield func([]any) bool) {
		for r := range records {
			if values := row(r); values != nil && !yield(values) {
				return
			}
		}
	}
}

// loadTable inserts the rows of one table, and analyzes it.
func (s *Store) loadTable(ctx context.Context, t table, all iter.Seq[[]any]) error {
	next, stop := iter.Pull(all)
	defer stop()
	l := loader{one: t.insert(1).SQL, many: t.insert(rowsPerInsert).SQL, next: next}
	loaded := 0
	for !l.done {
		err := pgx.BeginFunc(ctx, s.first().primary.pool, func(tx pgx.Tx) error {
			for sent := 0; sent < rowsPerTransaction && !l.done; {
				batch, rows := l.pipeline()
				if rows == 0 {
					return nil
				}
				if err := tx.SendBatch(ctx, batch).Close(); err != nil {
					return err
				}
				sent += rows
				loaded += rows
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if loaded > 0 {
		if _, err := s.first().primary.pool.Exec(ctx, t.analyze().SQL); err != nil {
			return err
		}
	}
	return nil
}

// loader turns rows into insert statements.
type loader struct {
	one, many string
	next      func() ([]any, bool)
	done      bool
}

// pipeline takes the next rows and returns the statements that insert them.
func (l *loader) pipeline() (batch *pgx.Batch, rows int) {
	batch = &pgx.Batch{}
	var pending [][]any
	var text int
	for rows < rowsPerPipeline {
		row, ok := l.next()
		if !ok {
			l.done = true
			break
		}
		rows++
		pending = append(pending, row)
		text += textOf(row)
		if len(pending) == rowsPerInsert || text > textPerInsert {
			l.flush(batch, pending)
			pending, text = pending[:0], 0
		}
	}
	l.flush(batch, pending)
	return batch, rows
}

// flush queues the pending rows: rowsPerInsert rows as one statement, fewer rows one by
// one. The catalogue has only these two inserts.
func (l *loader) flush(batch *pgx.Batch, pending [][]any) {
	if len(pending) < rowsPerInsert {
		for _, row := range pending {
			batch.Queue(l.one, row...)
		}
		return
	}
	args := make([]any, 0, len(pending)*len(pending[0]))
	for _, row := range pending {
		args = append(args, row...)
	}
	batch.Queue(l.many, args...)
}

// textOf returns the number of bytes of a row's texts.
func textOf(row []any) (n int) {
	for _, v := range row {
		if s, ok := v.(string); ok {
			n += len(s)
		}
	}
	return n
}

// rowsPerPage is the number of rows that one statement of Rows reads.
const rowsPerPage = 500

// Row is one row of a table.
type Row struct {
	Key    string         // primary key as text; a slash separates the columns of a composite key
	Values map[string]any // by column: int64 or string
}

// Rows reads a table of the only database, in the order of its key, page by page, and calls do with each row.
// The table may change between two pages. Rows returns the first error of do.
func (s *Store) Rows(ctx context.Context, name string, do func(Row) error) error {
	for _, t := range tables() {
		if t.name != name {
			continue
		}
		last := make([]int64, t.key)
		for {
			page, err := s.page(ctx, t, last)
			if err != nil {
				return fmt.Errorf("rows of %s: %w", name, err)
			}
			for _, row := range page {
				if err := do(row); err != nil {
					return err
				}
			}
			if len(page) < rowsPerPage {
				return nil
			}
		}
	}
	return fmt.Errorf("unknown table %q", name)
}

// page reads a page of rows after the key after, and sets after to the last key read.
func (s *Store) page(ctx context.Context, t table, after []int64) (page []Row, err error) {
	var args []any
	for _, k := range after {
		args = append(args, k)
	}
	statement := t.pages()
	err = s.readFrom(ctx, s.readable(s.first()), guard{}, func(ctx context.Context, d on) error {
		rows, err := d.pool.Query(ctx, statement.SQL, append(args, int64(rowsPerPage))...)
		if err != nil {
			return err
		}
		page, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (Row, error) {
			return scanRow(row, statement.Columns, t.key)
		})
		return err
	})
	if len(page) > 0 {
		for i, c := range statement.Columns[:t.key] {
			after[i] = page[len(page)-1].Values[c.Name].(int64)
		}
	}
	return page, err
}

func scanRow(scanned pgx.Row, columns []Column, key int) (Row, error) {
	row := Row{Values: make(map[string]any, len(columns))}
	values := make([]any, len(columns))
	for i, c := range columns {
		if c.Type == Text {
			values[i] = new(string)
		} else {
			values[i] = new(int64)
		}
	}
	if err := scanned.Scan(values...); err != nil {
		return row, err
	}
	for i, c := range columns {
		switch v := values[i].(type) {
		case *string:
			row.Values[c.Name] = *v
		case *int64:
			row.Values[c.Name] = *v
		}
		if i < key {
			if i > 0 {
				row.Key += "/"
			}
			row.Key += fmt.Sprint(row.Values[c.Name])
		}
	}
	return row, nil
}

// Digest returns a hash of all tables. Equal contents have equal digests on every
// engine.
func (s *Store) Digest(ctx context.Context) (string, error) {
	sum := sha256.New()
	for _, t := range tables() {
		columns := t.pages().Columns
		if err := s.Rows(ctx, t.name, func(r Row) error { return r.write(sum, columns) }); err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "end of %s\n", t.name)
	}
	return hex.EncodeToString(sum.Sum(nil)[:16]), nil
}

func (r Row) write(sum hash.Hash, columns []Column) error {
	for _, c := range columns {
		if _, err := fmt.Fprintf(sum, "%q ", fmt.Sprint(r.Values[c.Name])); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(sum)
	return err
}
