package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut/photos"
)

// AddPhoto stores a new photo and counts it on its user.
func (s *Store) AddPhoto(ctx context.Context, p photos.Photo) error {
	err := s.write(ctx, func(ctx context.Context, d *database) error {
		var b batch
		b.add(sqlAddPhoto, p.ID, p.Title, p.State, p.Width, p.Height, p.Bytes, p.CreatedUS, p.Likes, p.Comments, p.Version, p.UserID)
		b.add(sqlCountPhoto, p.UserID)
		changed, err := b.send(ctx, d)
		if err == nil && changed[0] == 0 {
			return photos.ErrNotFound
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("add photo %d of user %d: %w", p.ID, p.UserID, err)
	}
	return nil
}

// RenamePhoto changes a photo's title for its owner and returns the new
// version.
func (s *Store) RenamePhoto(ctx context.Context, id, owner photos.ID, title string) (version int64, err error) {
	err = s.write(ctx, func(ctx context.Context, d *database) error {
		err := d.pool.QueryRow(ctx, sqlRename, title, id, owner).Scan(&version)
		if errors.Is(err, pgx.ErrNoRows) {
			return d.whyNot(ctx, id)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("rename photo %d for user %d: %w", id, owner, err)
	}
	return version, nil
}

// DeletePhoto deletes a photo with its comments for its owner and uncounts it
// on the owner.
func (s *Store) DeletePhoto(ctx context.Context, id, owner photos.ID) error {
	err := s.write(ctx, func(ctx context.Context, d *database) error {
		var b batch
		b.add(sqlLockPhoto, id, owner)
		b.add(sqlUncountPhoto, owner, id)
		b.add(sqlDeleteComments, id, owner)
		b.add(sqlDeletePhoto, id, owner)
		changed, err := b.send(ctx, d)
		if err == nil && changed[0] == 0 {
			return d.whyNot(ctx, id)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("delete photo %d for user %d: %w", id, owner, err)
	}
	return nil
}

// whyNot says why an owner's change found nothing to change.
func (d *database) whyNot(ctx context.Context, id photos.ID) error {
	var owner photos.ID
	err := d.pool.QueryRow(ctx, sqlPhotoOwner, id).Scan(&owner)
	switch {
	case err == nil:
		return photos.ErrForbidden
	case errors.Is(err, pgx.ErrNoRows):
		return photos.ErrNotFound
	}
	return err
}

// Like adds one to a photo's likes and returns the new version. Who likes it
// is not kept: the same user may do it again.
func (s *Store) Like(ctx context.Context, photo, _ photos.ID) (version int64, err error) {
	err = s.write(ctx, func(ctx context.Context, d *database) error {
		err := d.pool.QueryRow(ctx, sqlLike, photo).Scan(&version)
		if errors.Is(err, pgx.ErrNoRows) {
			return photos.ErrNotFound
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("like photo %d: %w", photo, err)
	}
	return version, nil
}

// Comment stores a comment, counts it on its photo and returns the photo's new
// version.
func (s *Store) Comment(ctx context.Context, c photos.Comment) (version int64, err error) {
	err = s.write(ctx, func(ctx context.Context, d *database) error {
		version = 0
		var b batch
		b.returning(&version, sqlCountComment, c.PhotoID)
		b.add(sqlAddComment, c.ID, c.UserID, c.Text, c.CreatedUS, c.PhotoID)
		changed, err := b.send(ctx, d)
		if err == nil && changed[0] == 0 {
			return photos.ErrNotFound
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("comment %d on photo %d: %w", c.ID, c.PhotoID, err)
	}
	return version, nil
}

// Follow makes one user follow another and counts it on both. Doing so again
// changes nothing.
func (s *Store) Follow(ctx context.Context, f photos.Follow) error {
	err := s.write(ctx, func(ctx context.Context, d *database) error {
		var b batch
		// A plain insert: a second one breaks the key, which takes the whole
		// transaction back, counters included. "On conflict do nothing" would
		// leave the counters without a way to know.
		b.add(sqlAddFollow, f.CreatedUS, f.Follower, f.Followee)
		following := func() { b.add(sqlCountFollowing, f.Follower, f.Followee) }
		follower := func() { b.add(sqlCountFollower, f.Followee, f.Follower) }
		// Users are locked in the order of their ids: two who follow each other
		// at the same moment would otherwise deadlock.
		if f.Follower < f.Followee {
			following()
			follower()
		} else {
			follower()
			following()
		}
		changed, err := b.send(ctx, d)
		switch {
		case isState(err, uniqueViolation):
			return nil
		case err == nil && changed[0] == 0:
			return photos.ErrNotFound
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("user %d follows user %d: %w", f.Follower, f.Followee, err)
	}
	return nil
}

// batch is several statements in one round trip and one transaction: both
// engines run what comes before a Sync as one.
type batch struct {
	pgx.Batch
	changed []int64
}

// add queues a statement that returns no rows.
func (b *batch) add(sql string, args ...any) { b.queue(sql, args, nil) }

// returning queues a statement whose one column goes to dest; no row leaves it
// as it is.
func (b *batch) returning(dest *int64, sql string, args ...any) { b.queue(sql, args, dest) }

func (b *batch) queue(sql string, args []any, dest *int64) {
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

// send runs the batch and returns how many rows each statement changed.
func (b *batch) send(ctx context.Context, d *database) ([]int64, error) {
	// Close runs the callbacks; it also returns what goes wrong at the very
	// end, when the transaction commits.
	return b.changed, d.pool.SendBatch(ctx, &b.Batch).Close()
}
