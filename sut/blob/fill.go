package blob

import (
	"context"
	"fmt"
	"iter"

	"github.com/stagebench/stagebench/sut/photos"
)

// Fill writes the objects of a seeded data set into an empty directory. images yields
// each photo with the index of its image in a pool. render returns all variants of a
// pool image. Fill calls it once per image and gives hard links to the other photos of
// that image: 200,000 photos of 256 images need 256 calls of render.
func Fill(
	ctx context.Context, dir *Dir, images iter.Seq2[photos.ID, int],
	render func(i int) (map[photos.Variant][]byte, error),
) error {
	first := map[int]photos.ID{} // by image: the first photo, which holds its bytes
	for photo, i := range images {
		if err := ctx.Err(); err != nil {
			return err
		}
		if holder, filled := first[i]; filled {
			if err := dir.Link(holder, photo); err != nil {
				return err
			}
			continue
		}
		variants, err := render(i)
		if err != nil {
			return fmt.Errorf("render pool image %d: %w", i, err)
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
