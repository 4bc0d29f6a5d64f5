package store

import (
	"context"
	"fmt"
	"iter"

	"github.com/jackc/pgx/v5"

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
		if _, err := s.used.Load().primary.pool.Exec(ctx, statement.SQL); err != nil {
			return fmt.Errorf("%s: %w", statement.Name, classify(ctx, err))
		}
	}
	return nil
}

// Load fills an empty database in a few large transactions, without QueryTimeout. It
// then analyzes the tables, so that query plans do not change during a measurement.
// After an error the database holds a part of the data and must be discarded.
func (s *Store) Load(ctx context.Context, data Data) error {
	for i, t := range tables() {
		if err := s.loadTable(ctx, t, rowsOf(data)[i]); err != nil {
			return fmt.Errorf("load %s: %w", t.name, classify(ctx, err))
		}
	}
	if _, err := s.used.Load().primary.pool.Exec(ctx, sqlAnalyze); err != nil {
		return fmt.Errorf("analyze: %w", classify(ctx, err))
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

func rows[T any](records iter.Seq[T], row func(T) []any) iter.Seq[[]any] {
	return func(yield func([]any) bool) {
		for r := range records {
			if !yield(row(r)) {
				return
			}
		}
	}
}

// loadTable inserts the rows of one table.
func (s *Store) loadTable(ctx context.Context, t table, all iter.Seq[[]any]) error {
	next, stop := iter.Pull(all)
	defer stop()
	l := loader{one: t.insert(1).SQL, many: t.insert(rowsPerInsert).SQL, next: next}
	for !l.done {
		err := pgx.BeginFunc(ctx, s.used.Load().primary.pool, func(tx pgx.Tx) error {
			for sent := 0; sent < rowsPerTransaction && !l.done; {
				batch, rows := l.pipeline()
				if rows == 0 {
					return nil
				}
				if err := tx.SendBatch(ctx, batch).Close(); err != nil {
					return err
				}
				sent += rows
			}
			return nil
		})
		if err != nil {
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
