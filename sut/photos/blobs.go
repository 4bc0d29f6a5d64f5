package photos

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"
)

// BlobWriter changes the bytes of photos. Its errors wrap ErrNotFound or ErrUnavailable. All methods may be called
// concurrently.
type BlobWriter interface {
	Put(ctx context.Context, id ID, v Variant, data []byte) error
	Delete(ctx context.Context, id ID, v Variant) error
}

// PutImages stores images of a photo, all at the same time. It returns the first error, and then ends the others.
func PutImages(ctx context.Context, blobs BlobWriter, id ID, images map[Variant][]byte) error {
	group, ctx := errgroup.WithContext(ctx)
	for v, data := range images {
		group.Go(func() error { return blobs.Put(ctx, id, v, data) })
	}
	return group.Wait()
}

// DeleteImages removes those of the variants that exist, all at the same time. It tries all of them, and returns the
// first error.
func DeleteImages(ctx context.Context, blobs BlobWriter, id ID, variants []Variant) error {
	var group errgroup.Group
	for _, v := range variants {
		group.Go(func() error {
			if err := blobs.Delete(ctx, id, v); err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
			return nil
		})
	}
	return group.Wait()
}
