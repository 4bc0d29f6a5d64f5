package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/stagebench/stagebench/sut/photos"
)

// WriteBack stores the results of writes that only a cache holds so far: photos, each
// with the comments that were added. The batch is one round trip and one transaction, of each shard if there are
// several, regardless of the number of writes. WriteBack stores the title, the counters and the
// version of a photo, because the other fields never change.
//
// After an error the batch may or may not have been stored. The caller must send the
// same batch again, marked as Resent; photos that were stored then stay unchanged. An
// error other than ErrUnavailable is permanent, for example an invalid text.
//
// refused lists, in ascending order, the photos that do not exist or that another writer
// has changed since Written.Base. Nothing of them is stored, including their comments. A
// batch may contain a photo only once.
func (s *Store) WriteBack(ctx context.Context, written []photos.PendingWrite) (refused []photos.ID, err error) {
	if len(written) == 0 {
		return nil, nil
	}
	defer wrap(&err, "write back %d photos", len(written))
	// Rows are locked in the order of their ids. Otherwise two batches that share photos
	// would deadlock.
	written = slices.SortedFunc(slices.Values(written), byPhoto)
	for i, w := range written[1:] {
		if w.Photo.ID == written[i].Photo.ID {
			return nil, fmt.Errorf("the batch has photo %d twice", w.Photo.ID)
		}
	}
	if !s.used.Load().sharded() {
		return s.writeBackTo(ctx, s.first(), guard{}, written)
	}
	// A part that is stored stays so when another part is refused, because its photos are not in the next attempt.
	err = s.repeat(ctx, func(ctx context.Context, m *owners) error {
		parts := map[int][]photos.PendingWrite{}
		for _, w := range written {
			shard := m.owner[w.Photo.ID.Bucket()]
			parts[shard] = append(parts[shard], w)
		}
		written = nil
		var errs []error
		for shard, part := range parts {
			kept, err := []photos.ID(nil), errRefused
			if d := s.used.Load().of(shard); d != nil {
				kept, err = s.writeBackTo(ctx, d, guardOf(part), part)
			}
			if errs = append(errs, err); err != nil {
				written = append(written, part...)
			}
			refused = append(refused, kept...)
		}
		slices.SortFunc(written, byPhoto)
		return firstError(errs)
	})
	slices.Sort(refused)
	return refused, err
}

// guardOf returns the guard of the buckets of some photos.
func guardOf(written []photos.PendingWrite) (g guard) {
	for _, w := range written {
		if b := w.Photo.ID.Bucket(); !slices.Contains(g.buckets, b) {
			g.buckets = append(g.buckets, b)
		}
	}
	return g
}

// firstError returns an error that is not a refusal, or else any of them.
func firstError(errs []error) (first error) {
	for _, err := range errs {
		if err != nil && (first == nil || refused(first)) {
			first = err
		}
	}
	return first
}

func byPhoto(a, b photos.PendingWrite) int { return cmp.Compare(a.Photo.ID, b.Photo.ID) }

// writeBackTo stores a batch in one database.
func (s *Store) writeBackTo(
	ctx context.Context, to *databases, g guard, written []photos.PendingWrite,
) (refused []photos.ID, err error) {
	err = s.writeTo(ctx, to, g, func(ctx context.Context, d on) error {
		b := d.batch()
		at := make([]int, len(written)) // index of each photo's update
		for i, w := range written {
			p, resent := w.Photo, int32(0)
			if w.Resent {
				resent = 1
			}
			if len(w.Comments) > 0 {
				b.add(sqlWriteBackLock, p.ID, w.Base, p.Version, p.Title, p.Likes, p.Comments, resent)
			}
			for _, c := range w.Comments {
				b.add(sqlWriteBackComment, c.ID, c.UserID, c.Text, c.CreatedUS, p.ID, w.Base, p.Version, p.Title, p.Likes,
					p.Comments, resent)
			}
			at[i] = len(b.changed)
			b.add(sqlWriteBack, p.Title, p.Likes, p.Comments, p.Version, p.ID, w.Base, resent)
		}
		changed, err := b.send(ctx, d)
		if err != nil {
			return err
		}
		refused = nil
		for i, w := range written {
			if changed[at[i]] == 0 {
				refused = append(refused, w.Photo.ID)
			}
		}
		return nil
	})
	return refused, err
}
