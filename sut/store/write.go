package store

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut/photos"
)

// AddPhoto stores a new photo and counts it on its user.
func (s *Store) AddPhoto(ctx context.Context, p photos.Photo) (err error) {
	defer wrap(&err, "add photo %d of user %d", p.ID, p.UserID)
	return s.write(ctx, func(ctx context.Context, d *database) error {
		var b batch
		b.add(sqlAddPhoto, p.ID, p.Title, p.State, p.Width, p.Height, p.Bytes, p.CreatedUS, p.Likes, p.Comments, p.Version, p.UserID)
		b.add(sqlCountPhoto, p.UserID)
		return b.sendFound(ctx, d)
	})
}

// RenamePhoto changes a photo's title for its owner and returns the new
// version.
func (s *Store) RenamePhoto(ctx context.Context, id, owner photos.ID, title string) (version int64, err error) {
	defer wrap(&err, "rename photo %d for user %d", id, owner)
	err = s.write(ctx, func(ctx context.Context, d *database) error {
		err := d.pool.QueryRow(ctx, sqlRename, title, id, owner).Scan(&version)
		return d.whyNot(ctx, id, err)
	})
	return version, err
}

// DeletePhoto deletes a photo with its comments for its owner and uncounts it
// on the owner.
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

// whyNot says why an owner's change found nothing to change, if that is how it ended.
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

// Like adds one to a photo's likes and returns the new version. Who likes it
// is not kept: the same user may do it again.
func (s *Store) Like(ctx context.Context, photo, _ photos.ID) (version int64, err error) {
	defer wrap(&err, "like photo %d", photo)
	err = s.write(ctx, func(ctx context.Context, d *database) error {
		return d.pool.QueryRow(ctx, sqlLike, photo).Scan(&version)
	})
	return version, err
}

// Comment stores a comment, counts it on its photo and returns the photo's new
// version.
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

// Follow makes one user follow another and counts it on both. Doing so again
// changes nothing.
func (s *Store) Follow(ctx context.Context, f photos.Follow) (err error) {
	defer wrap(&err, "user %d follows user %d", f.Follower, f.Followee)
	return s.write(ctx, func(ctx context.Context, d *database) error {
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
		err := b.sendFound(ctx, d)
		if isState(err, uniqueViolation) {
			return nil
		}
		return err
	})
}

// batch is several statements in one round trip and one transaction: both
// engines run what comes before a Sync as one.
type batch struct {
	pgx.Batch
	changed []int64
}

// add queues a statement that returns no rows.
func (b *batch) add(sql string, args ...any) { b.returning(nil, sql, args...) }

// returning queues a statement whose one column goes to dest; no row leaves it
// as it is.
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

// send runs the batch and returns how many rows each statement changed.
func (b *batch) send(ctx context.Context, d *database) ([]int64, error) {
	// Close runs the callbacks; it also returns what goes wrong at the very
	// end, when the transaction commits.
	return b.changed, d.pool.SendBatch(ctx, &b.Batch).Close()
}

// sendFound runs the batch, and fails with pgx.ErrNoRows when its first statement
// changed nothing.
func (b *batch) sendFound(ctx context.Context, d *database) error {
	changed, err := b.send(ctx, d)
	if err == nil && changed[0] == 0 {
		return pgx.ErrNoRows
	}
	return err
}
