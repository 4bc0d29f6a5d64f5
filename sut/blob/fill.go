package blob

import (
	"context"
	"fmt"
	"iter"

	"github.com/stagebench/stagebench/sut/photos"
)

// Fill puts the bytes of a seeded data set into an empty directory. shown says
// which image of a pool each photo shows; image is asked for every variant of a
// pool image once, when the first photo that shows it comes. The other photos
// get links, so that 200,000 photos of 256 images cost 256 times the work of
// processing and one system call per name.
func Fill(
	ctx context.Context, dir *Dir, shown iter.Seq2[photos.ID, int], image func(i int) (map[photos.Variant][]byte, error),
) error {
	first := map[int]photos.ID{} // by image: the photo that holds its bytes
	for photo, i := range shown {
		if err := ctx.Err(); err != nil {
			return err
		}
		if holder, filled := first[i]; filled {
			if err := dir.Link(holder, photo); err != nil {
				return err
			}
			continue
		}
		variants, err := image(i)
		if err != nil {
			return fmt.Errorf("make pool image %d: %w", i, err)
		}
		for _, v := range photos.AllVariants() {
			if err := dir.Put(ctx, photo, v, variants[v]); err != nil {
				return err
			}
		}
		first[i] = photo
	}
	return nil
}
