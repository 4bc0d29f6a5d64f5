package store

import (
	"context"
	"fmt"
	"iter"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut/photos"
)

// Data is a seeded data set. Its counters are taken as they are: a user says
// how many photos and followers it has, a photo how many comments.
type Data interface {
	Users() iter.Seq[photos.User]
	Photos() iter.Seq[photos.Photo]
	Comments() iter.Seq[photos.Comment]
	Follows() iter.Seq[photos.Follow]
}

// The sizes of bulk loading, in rows and bytes.
const (
	rowsPerTransaction = 50_000   // bounds the log that one transaction leaves
	rowsPerPipeline    = 1_000    // in one round trip
	textPerInsert      = 16 << 10 // of one statement: a node refuses messages of 64 KiB
)

// CreateSchema makes the tables and indexes that are not there yet.
func (s *Store) CreateSchema(ctx context.Context) error {
	for _, statement := range schema() {
		if _, err := s.used.Load().primary.pool.Exec(ctx, statement.SQL); err != nil {
			return fmt.Errorf("%s: %w", statement.Name, classify(ctx, err))
		}
	}
	return nil
}

// Load fills an empty database in a few large transactions, not bound by
// QueryTimeout, and lets the database count what it has, so that its plans do
// not change during a measurement. After an error the database holds a part of
// the data and should be thrown away.
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
			return []any{p.ID, p.UserID, p.Title, p.State, p.Width, p.Height, p.Bytes, p.CreatedUS, p.Likes, p.Comments, p.Version}
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

// loader turns rows into statements.
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

// flush queues the pending rows: a full set as one statement, others one by
// one, since the catalogue has no more than these two.
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

// textOf returns the bytes of a row's texts.
func textOf(row []any) (n int) {
	for _, v := range row {
		if s, ok := v.(string); ok {
			n += len(s)
		}
	}
	return n
}
