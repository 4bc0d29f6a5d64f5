package store

import (
	"context"
	"crypto/rand"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut/photos"
)

// AddPhoto stores a new photo and increments the photo counter of its user.
func (s *Store) AddPhoto(ctx context.Context, p photos.Photo) (err error) {
	defer wrap(&err, "add photo %d of user %d", p.ID, p.UserID)
	return s.write(ctx, p.ID.Bucket(), func(ctx context.Context, d on) error {
		b := d.batch()
		b.add(sqlAddPhoto, p.ID, p.Title, p.State, p.Width, p.Height, p.Bytes, p.CreatedUS, p.Likes, p.Comments,
			p.Version, p.DoneUS, p.UserID)
		b.add(sqlCountPhoto, p.UserID)
		if s.denormalised() {
			b.add(sqlAddPush, p.ID, p.CreatedUS, p.UserID, s.config.PushBelow)
		}
		return b.sendFound(ctx, d)
	})
}

// RenamePhoto changes a photo's title and returns the new version. Only the owner may
// rename it.
func (s *Store) RenamePhoto(ctx context.Context, id, owner photos.ID, title string) (version int64, err error) {
	defer wrap(&err, "rename photo %d for user %d", id, owner)
	err = s.write(ctx, id.Bucket(), func(ctx context.Context, d on) error {
		err := d.value(ctx, &version, sqlRename, title, id, owner)
		return d.whyNot(ctx, id, err)
	})
	return version, err
}

// DeletePhoto deletes a photo and its comments, and decrements the photo counter of its
// owner. Only the owner may delete it.
func (s *Store) DeletePhoto(ctx context.Context, id, owner photos.ID) (err error) {
	defer wrap(&err, "delete photo %d for user %d", id, owner)
	return s.write(ctx, id.Bucket(), func(ctx context.Context, d on) error {
		b := d.batch()
		b.add(sqlLockPhoto, id, owner)
		b.add(sqlUncountPhoto, owner, id)
		b.add(sqlDeleteComments, id, owner)
		b.add(sqlDeletePhoto, id, owner)
		return d.whyNot(ctx, id, b.sendFound(ctx, d))
	})
}

// whyNot replaces pgx.ErrNoRows of a change by its reason: pgx.ErrNoRows if the photo does
// not exist, photos.ErrForbidden if it has another owner.
func (d on) whyNot(ctx context.Context, id photos.ID, changed error) error {
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
	err = s.write(ctx, end.Photo.Bucket(), func(ctx context.Context, d on) error {
		err := d.value(ctx, &version, sqlFinish, end.State, end.DoneUS, end.Photo)
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
	err = s.write(ctx, photo.Bucket(), func(ctx context.Context, d on) error {
		return d.value(ctx, &version, sqlLike, photo)
	})
	return version, err
}

// Comment stores a comment, increments the comment counter of its photo and returns the
// photo's new version.
func (s *Store) Comment(ctx context.Context, c photos.Comment) (version int64, err error) {
	defer wrap(&err, "comment %d on photo %d", c.ID, c.PhotoID)
	err = s.write(ctx, c.PhotoID.Bucket(), func(ctx context.Context, d on) error {
		b := d.batch()
		b.returning(&version, sqlCountComment, c.PhotoID)
		b.add(sqlAddComment, c.ID, c.UserID, c.Text, c.CreatedUS, c.PhotoID)
		return b.sendFound(ctx, d)
	})
	return version, err
}

// Follow makes one user follow another and increments the counters of both. A repeated
// Follow changes nothing. If the two users are on different shards, RelayFollows increments the followers later.
func (s *Store) Follow(ctx context.Context, f photos.Follow) (err error) {
	defer wrap(&err, "user %d follows user %d", f.Follower, f.Followee)
	follower, followee := photos.BucketOf(f.Follower), photos.BucketOf(f.Followee)
	return s.route(ctx, follower, func(ctx context.Context, m *owners, d *databases, g guard) error {
		if m != nil && m.owner[followee] != d.shard {
			return s.followElsewhere(ctx, d, g, f)
		}
		if m != nil {
			g.buckets = append(g.buckets, followee)
		}
		return s.followHere(ctx, d, g, f)
	})
}

// followHere adds a follow to a database that has both users.
func (s *Store) followHere(ctx context.Context, d *databases, g guard, f photos.Follow) error {
	return s.writeTo(ctx, d, g, func(ctx context.Context, d on) error {
		b := d.batch()
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
		if s.denormalised() { // a build that is under way may not have seen the follow
			b.add(sqlOutdateFeed, f.Follower, rand.Text())
			b.add(sqlAddPull, f.Followee, s.config.PushBelow)
		}
		return ignoreRepeated(b.sendFound(ctx, d))
	})
}

// followElsewhere adds a follow to the shard of the follower. The followee is at another shard.
func (s *Store) followElsewhere(ctx context.Context, d *databases, g guard, f photos.Follow) error {
	if _, err := s.User(ctx, f.Followee); err != nil {
		return err
	}
	return s.writeTo(ctx, d, g, func(ctx context.Context, d on) error {
		b := d.batch()
		b.add(sqlFollowElsewhere, f.Followee, f.CreatedUS, f.Follower)
		b.add(sqlCountFollowing, f.Follower, f.Followee)
		b.add(sqlAddOutbox, f.Follower, f.Followee)
		return ignoreRepeated(b.sendFound(ctx, d))
	})
}

// ignoreRepeated returns nil for the error of a follow that is there already.
func ignoreRepeated(err error) error {
	if isState(err, uniqueViolation) {
		return nil
	}
	return err
}

// RelayFollows brings at most limit follows of each shard to the shards of their followees, and returns how many. Each
// of them is counted once, however often and by however many callers it is relayed.
func (s *Store) RelayFollows(ctx context.Context, limit int) (relayed int, err error) {
	defer wrap(&err, "relay follows")
	return relayAll(ctx, s, sqlOutbox, limit, func(row pgx.CollectableRow) (f photos.Follow, err error) {
		err = row.Scan(&f.Follower, &f.Followee, &f.CreatedUS)
		return f, err
	}, s.relay)
}

// relayAll relays at most limit rows of the outbox of each shard, which a query lists, and returns how many.
func relayAll[T any](
	ctx context.Context, s *Store, sql string, limit int, scan pgx.RowToFunc[T], relay func(context.Context, T) error,
) (relayed int, err error) {
	var errs []error // those of one shard must not hold up the rows of others
	for _, d := range *s.used.Load() {
		var waiting []T
		errs = append(errs, s.readFrom(ctx, []*database{d.primary}, guard{}, func(ctx context.Context, d on) error {
			rows, err := d.pool.Query(ctx, sql, limit)
			if err != nil {
				return err
			}
			waiting, err = pgx.CollectRows(rows, scan)
			return err
		}))
		for _, row := range waiting {
			if err := relay(ctx, row); err != nil {
				errs = append(errs, err)
				continue
			}
			relayed++
		}
	}
	return relayed, errors.Join(errs...)
}

// relay mirrors a follow, and then deletes it from the outbox.
func (s *Store) relay(ctx context.Context, f photos.Follow) error {
	if err := s.MirrorFollow(ctx, f); err != nil {
		return err
	}
	return s.write(ctx, photos.BucketOf(f.Follower), func(ctx context.Context, d on) error {
		b := d.batch()
		b.add(sqlDeleteOutbox, f.Follower, f.Followee)
		if s.denormalised() { // what was built before the mirror lacks the photos of the followee
			b.add(sqlForgetFeed, f.Follower)
		}
		_, err := b.send(ctx, d)
		return err
	})
}

// MirrorFollow adds the mirror of a follow to the shard of the followee, and counts it there. A repeated MirrorFollow
// changes nothing.
func (s *Store) MirrorFollow(ctx context.Context, f photos.Follow) (err error) {
	defer wrap(&err, "mirror that user %d follows user %d", f.Follower, f.Followee)
	return s.write(ctx, photos.BucketOf(f.Followee), func(ctx context.Context, d on) error {
		b := d.batch()
		b.add(sqlAddMirror, f.Follower, f.Followee, f.CreatedUS) // fails if it was counted
		b.add(sqlMirrorFollow, f.Follower, f.Followee, f.CreatedUS)
		b.add(sqlCountFollower, f.Followee, f.Follower)
		if s.denormalised() {
			b.add(sqlAddPull, f.Followee, s.config.PushBelow)
		}
		_, err := b.send(ctx, d)
		return ignoreRepeated(err)
	})
}

// batch is a pipeline of statements: one round trip and one transaction. Both engines run
// all statements before a Sync message as one transaction.
type batch struct {
	pgx.Batch
	changed []int64 // by statement: rows changed
}

// batch returns a batch that begins with the guards of the operation.
func (d on) batch() *batch {
	b := new(batch)
	d.guard.queue(&b.Batch)
	return b
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
func (b *batch) send(ctx context.Context, d on) ([]int64, error) {
	// Close runs the callbacks. It also returns an error of the commit.
	return b.changed, d.pool.SendBatch(ctx, &b.Batch).Close()
}

// sendFound runs the batch. It returns pgx.ErrNoRows if the first statement changed no row.
func (b *batch) sendFound(ctx context.Context, d on) error {
	changed, err := b.send(ctx, d)
	if err == nil && changed[0] == 0 {
		return pgx.ErrNoRows
	}
	return err
}
