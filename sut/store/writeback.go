package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/stagebench/stagebench/sut/photos"
)

// WriteBack stores the results of writes that only a cache holds so far: photos, each
// with the comments that were added. The batch is one round trip and one transaction,
// regardless of the number of writes. WriteBack stores the title, the counters and the
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
	written = slices.SortedFunc(slices.Values(written),
		func(a, b photos.PendingWrite) int { return cmp.Compare(a.Photo.ID, b.Photo.ID) })
	for i, w := range written[1:] {
		if w.Photo.ID == written[i].Photo.ID {
			return nil, fmt.Errorf("the batch has photo %d twice", w.Photo.ID)
		}
	}
	err = s.write(ctx, func(ctx context.Context, d *database) error {
		var b batch
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
