package store

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut/photos"
)

// AddPhoto stores a new photo and increments the photo counter of its user.
func (s *Store) AddPhoto(ctx context.Context, p photos.Photo) (err error) {
	defer wrap(&err, "add photo %d of user %d", p.ID, p.UserID)
	return s.write(ctx, func(ctx context.Context, d *database) error {
		var b batch
		b.add(sqlAddPhoto, p.ID, p.Title, p.State, p.Width, p.Height, p.Bytes, p.CreatedUS, p.Likes, p.Comments,
			p.Version, p.DoneUS, p.UserID)
		b.add(sqlCountPhoto, p.UserID)
		return b.sendFound(ctx, d)
	})
}

// RenamePhoto changes a photo's title and returns the new version. Only the owner may
// rename it.
func (s *Store) RenamePhoto(ctx context.Context, id, owner photos.ID, title string) (version int64, err error) {
	defer wrap(&err, "rename photo %d for user %d", id, owner)
	err = s.write(ctx, func(ctx context.Context, d *database) error {
		err := d.pool.QueryRow(ctx, sqlRename, title, id, owner).Scan(&version)
		return d.whyNot(ctx, id, err)
	})
	return version, err
}

// DeletePhoto deletes a photo and its comments, and decrements the photo counter of its
// owner. Only the owner may delete it.
func (s *Store) DeletePhoto(ctx context.Context, id, owner photos.ID) (err error) {
	defer wrap(&err, "delete photo %d for user %d", id, owner)
	return s.write(ctx, func(ctx context.Context, d *database) error {
		var b batch
		b.add(sqlLockPhoto, id, owner)
		b.add(sqlUncountPhoto, owner, id)
		b.add(sqlDeleteComments, id, owner)
		b.add(sqlDeletePhoto, id, owner)
		return d.whyNot(ctx, id, b.sendFound(ctx, d))
	})
}

// whyNot replaces pgx.ErrNoRows of a change by its reason: pgx.ErrNoRows if the photo does
// not exist, photos.ErrForbidden if it has another owner.
func (d *database) whyNot(ctx context.Context, id photos.ID, changed error) error {
	if !errors.Is(changed, pgx.ErrNoRows) {
		return changed
	}
	var owner photos.ID
	if err := d.pool.QueryRow(ctx, sqlPhotoOwner, id).Scan(&owner); err != nil {
		return err
	}
	return photos.ErrForbidden
}

// FinishPhoto ends the processing of a photo and returns the new version. It returns photos.ErrConflict if the photo is
// not processing.
func (s *Store) FinishPhoto(ctx context.Context, end photos.Processed) (version int64, err error) {
	defer wrap(&err, "finish photo %d", end.Photo)
	err = s.write(ctx, func(ctx context.Context, d *database) error {
		err := d.pool.QueryRow(ctx, sqlFinish, end.State, end.DoneUS, end.Photo).Scan(&version)
		if err = d.whyNot(ctx, end.Photo, err); errors.Is(err, photos.ErrForbidden) {
			return photos.ErrConflict // it exists
		}
		return err
	})
	return version, err
}

// Like increments a photo's likes and returns the new version. The user is not stored, so
// the same user may like a photo repeatedly.
func (s *Store) Like(ctx context.Context, photo, _ photos.ID) (version int64, err error) {
	defer wrap(&err, "like photo %d", photo)
	err = s.write(ctx, func(ctx context.Context, d *database) error {
		return d.pool.QueryRow(ctx, sqlLike, photo).Scan(&version)
	})
	return version, err
}

// Comment stores a comment, increments the comment counter of its photo and returns the
// photo's new version.
func (s *Store) Comment(ctx context.Context, c photos.Comment) (version int64, err error) {
	defer wrap(&err, "comment %d on photo %d", c.ID, c.PhotoID)
	err = s.write(ctx, func(ctx context.Context, d *database) error {
		var b batch
		b.returning(&version, sqlCountComment, c.PhotoID)
		b.add(sqlAddComment, c.ID, c.UserID, c.Text, c.CreatedUS, c.PhotoID)
		return b.sendFound(ctx, d)
	})
	return version, err
}

// Follow makes one user follow another and increments the counters of both. A repeated
// Follow changes nothing.
func (s *Store) Follow(ctx context.Context, f photos.Follow) (err error) {
	defer wrap(&err, "user %d follows user %d", f.Follower, f.Followee)
	return s.write(ctx, func(ctx context.Context, d *database) error {
		var b batch
		// A repeated insert violates the key, which rolls back the transaction with its
		// counters. With "on conflict do nothing" the counters would be incremented again.
		b.add(sqlAddFollow, f.CreatedUS, f.Follower, f.Followee)
		following := func() { b.add(sqlCountFollowing, f.Follower, f.Followee) }
		follower := func() { b.add(sqlCountFollower, f.Followee, f.Follower) }
		// Users are locked in the order of their ids. Otherwise two users who follow each
		// other at the same time would deadlock.
		if f.Follower < f.Followee {
			following()
			follower()
		} else {
			follower()
			following()
		}
		err := b.sendFound(ctx, d)
		if isState(err, uniqueViolation) {
			return nil
		}
		return err
	})
}

// batch is a pipeline of statements: one round trip and one transaction. Both engines run
// all statements before a Sync message as one transaction.
type batch struct {
	pgx.Batch
	changed []int64 // by statement: rows changed
}

// add queues a statement that returns no rows.
func (b *batch) add(sql string, args ...any) { b.returning(nil, sql, args...) }

// returning queues a statement that returns one column, and stores its value in dest. If
// the statement returns no row, dest is unchanged.
func (b *batch) returning(dest *int64, sql string, args ...any) {
	i := len(b.changed)
	b.changed = append(b.changed, 0)
	b.Queue(sql, args...).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			if err := rows.Scan(dest); err != nil {
				return err
			}
		}
		b.changed[i] = rows.CommandTag().RowsAffected()
		return rows.Err()
	})
}

// send runs the batch and returns the number of rows that each statement changed.
func (b *batch) send(ctx context.Context, d *database) ([]int64, error) {
	// Close runs the callbacks. It also returns an error of the commit.
	return b.changed, d.pool.SendBatch(ctx, &b.Batch).Close()
}

// sendFound runs the batch. It returns pgx.ErrNoRows if the first statement changed no row.
func (b *batch) sendFound(ctx context.Context, d *database) error {
	changed, err := b.send(ctx, d)
	if err == nil && changed[0] == 0 {
		return pgx.ErrNoRows
	}
	return err
}
