package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/stagebench/stagebench/sut/photos"
)

// WriteBack stores records as writes have left them that only a cache has seen,
// each with the comments that those writes added: one round trip and one
// transaction for all of them, no matter how many writes they stand for. Of a
// record it takes the title, the counters and the version; the others never
// change.
//
// After an error, which leaves open whether the batch was stored, the same must
// come again, marked as Resent: what is there already stays as it is. An error
// that is not ErrUnavailable will come again, too, for a text that is none for
// example.
//
// Refused are, by rising id, the photos that are gone and those that are not what
// the writes were made to, because somebody else has written meanwhile: nothing of
// them is stored, no comment either. A photo may be in a batch once.
func (s *Store) WriteBack(ctx context.Context, written []photos.Written) (refused []photos.ID, err error) {
	if len(written) == 0 {
		return nil, nil
	}
	defer wrap(&err, "write back %d photos", len(written))
	// Rows are locked in the order of their ids: two batches that share photos
	// would otherwise deadlock.
	written = slices.SortedFunc(slices.Values(written), func(a, b photos.Written) int { return cmp.Compare(a.Photo.ID, b.Photo.ID) })
	for i, w := range written[1:] {
		if w.Photo.ID == written[i].Photo.ID {
			return nil, fmt.Errorf("photo %d is there twice", w.Photo.ID)
		}
	}
	err = s.write(ctx, func(ctx context.Context, d *database) error {
		var b batch
		at := make([]int, len(written)) // of the photo's own statement
		for i, w := range written {
			p, resent := w.Photo, int32(0)
			if w.Resent {
				resent = 1
			}
			if len(w.Comments) > 0 {
				b.add(sqlWriteBackLock, p.ID, w.Base, p.Version, p.Title, p.Likes, p.Comments, resent)
			}
			for _, c := range w.Comments {
				b.add(sqlWriteBackComment, c.ID, c.UserID, c.Text, c.CreatedUS, p.ID, w.Base, p.Version, p.Title, p.Likes, p.Comments, resent)
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
