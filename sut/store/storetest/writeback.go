package storetest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

// writeBack sends a batch to the store and checks which photos it refuses.
func (k kit) writeBack(t *testing.T, what string, written []photos.PendingWrite, refused ...photos.ID) {
	t.Helper()
	got, err := k.WriteBack(within(t), written)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	same(t, what+": refused", got, refused)
}

// comments returns the ids of a photo's stored comments.
func (k kit) comments(t *testing.T, photo photos.ID) (ids []photos.ID) {
	t.Helper()
	for _, part := range k.parts() {
		if err := part.Rows(t.Context(), "comments", func(r store.Row) error {
			if r.Values["photo_id"] == int64(photo) {
				ids = append(ids, photos.ID(r.Values["id"].(int64)))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return ids
}

// changed returns a photo after writes that only a cache holds: one new title, likes and
// comments.
func (k kit) changed(p photos.Photo, likes, comments int) photos.PendingWrite {
	base := p.Version
	p.Title = "title after " + fmt.Sprint(base)
	p.Likes += int64(likes)
	p.Comments += int64(comments)
	p.Version += int64(likes+comments) + 1
	w := photos.PendingWrite{Photo: p, Base: base}
	for i := range comments {
		w.Comments = append(w.Comments, photos.Comment{
			ID: k.ids.next(), PhotoID: p.ID, UserID: 2, Text: "it's late", CreatedUS: int64(i),
		})
	}
	return w
}

func idsOf(comments []photos.Comment) (list []photos.ID) {
	for _, c := range comments {
		list = append(list, c.ID)
	}
	return list
}

// A batch that is resent, as after a lost response, is stored only once.
func batchResent(t *testing.T, k kit) {
	liked := k.changed(k.newPhoto(t, 1), 1000, 0)
	both := k.changed(k.newPhoto(t, 1), 2, 3)
	alone := k.newPhoto(t, 1)
	for _, what := range []string{"a batch", "the batch resent", "the batch resent twice"} {
		k.writeBack(t, what, []photos.PendingWrite{both, liked})
		both.Resent, liked.Resent = true, true
		for _, w := range []photos.PendingWrite{liked, both} {
			same(t, what, k.photo(t, w.Photo.ID), w.Photo)
			same(t, what+": comments", k.comments(t, w.Photo.ID), idsOf(w.Comments))
		}
	}
	same(t, "a photo outside the batch", k.photo(t, alone.ID), alone)

	// Direct writes continue from the version of the batch.
	version, err := k.Like(t.Context(), liked.Photo.ID, 2)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "version after a like", version, liked.Photo.Version+1)
	next := k.changed(k.photo(t, liked.Photo.ID), 1, 1)
	k.writeBack(t, "the next batch", []photos.PendingWrite{next})
	same(t, "the photo after the next batch", k.photo(t, next.Photo.ID), next.Photo)
	k.writeBack(t, "no photos", nil)
}

// A photo that another writer has changed is refused. The rest of the batch is stored.
func batchRefused(t *testing.T, k kit) {
	ctx := t.Context()
	missing := k.changed(photos.Photo{ID: nothing, UserID: 1, Version: 1}, 1, 1)
	deleted := k.changed(k.newPhoto(t, 1), 1, 2)
	if err := k.DeletePhoto(ctx, deleted.Photo.ID, 1); err != nil {
		t.Fatal(err)
	}
	// behind: another writer has made more changes. level: another writer has made the
	// same number of changes, but different ones.
	behind, level := k.changed(k.newPhoto(t, 1), 1, 1), k.changed(k.newPhoto(t, 1), 0, 1)
	for id, likes := range map[photos.ID]int64{behind.Photo.ID: 4, level.Photo.ID: 2} {
		for range likes {
			if _, err := k.Like(ctx, id, 2); err != nil {
				t.Fatal(err)
			}
		}
	}
	same(t, "the version of the other writer", k.photo(t, level.Photo.ID).Version, level.Photo.Version)
	theirs := []photos.Photo{k.photo(t, behind.Photo.ID), k.photo(t, level.Photo.ID)}
	good := k.changed(k.newPhoto(t, 1), 1, 1)
	// twin: another writer has reached the same state with another comment.
	twin := k.changed(k.newPhoto(t, 1), 0, 1)
	theirTwin := twin
	theirTwin.Comments = []photos.Comment{
		{ID: k.ids.next(), PhotoID: twin.Photo.ID, UserID: 3, Text: "first", CreatedUS: 7},
	}
	k.writeBack(t, "the twin", []photos.PendingWrite{theirTwin})
	// ahead: another writer has made fewer changes than the batch.
	ahead := k.changed(k.newPhoto(t, 1), 5, 0)
	if _, err := k.Like(ctx, ahead.Photo.ID, 2); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"a batch with conflicts", "the same batch again"} {
		k.writeBack(t, what, []photos.PendingWrite{missing, level, good, twin, ahead, behind, deleted},
			deleted.Photo.ID, behind.Photo.ID, level.Photo.ID, twin.Photo.ID, ahead.Photo.ID, missing.Photo.ID)
		good.Resent = true
		same(t, what+": comments of the twin", k.comments(t, twin.Photo.ID), idsOf(theirTwin.Comments))
		same(t, what+": version of ahead", k.photo(t, ahead.Photo.ID).Version, ahead.Base+1)
		same(t, what+": good", k.photo(t, good.Photo.ID), good.Photo)
		same(t, what+": comments of good", k.comments(t, good.Photo.ID), idsOf(good.Comments))
		same(t, what+": photos of the other writer",
			[]photos.Photo{k.photo(t, behind.Photo.ID), k.photo(t, level.Photo.ID)}, theirs)
		for _, w := range []photos.PendingWrite{missing, deleted, behind, level} {
			same(t, what+": comments of a refused photo", k.comments(t, w.Photo.ID), idsOf(nil))
		}
	}
	_, err := k.Photo(ctx, deleted.Photo.ID)
	wants(t, "the deleted photo", err, photos.ErrNotFound)
}

// A batch that fails changes nothing.
func batchAtomic(t *testing.T, k kit) {
	good, bad := k.newPhoto(t, 1), k.newPhoto(t, 1)
	broken := k.changed(bad, 1, 1)
	broken.Comments[0].Text = "a\x00b"
	for what, batch := range map[string][]photos.PendingWrite{
		"invalid text":  {k.changed(good, 1, 1), broken},
		"a photo twice": {k.changed(good, 1, 0), k.changed(good, 2, 0)},
	} {
		refused, err := k.WriteBack(t.Context(), batch)
		if err == nil || refused != nil {
			t.Errorf("%s: refused %v, error %v", what, refused, err)
		}
		wants(t, what, err, nil)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.WriteBack(ended, []photos.PendingWrite{k.changed(good, 1, 0)}); err == nil {
		t.Error("a batch with a cancelled context succeeded")
	}
	same(t, "the photos", []photos.Photo{k.photo(t, good.ID), k.photo(t, bad.ID)}, []photos.Photo{good, bad})
	same(t, "comments", k.comments(t, good.ID), idsOf(nil))
}

// A batch that exceeds the buffers between the store and the database is stored.
func batchLarge(t *testing.T, k kit) {
	const size = 500
	var batch []photos.PendingWrite
	for i := range size {
		w := k.changed(k.newPhoto(t, 118), i%7, i%3)
		for j := range w.Comments {
			w.Comments[j].Text = fmt.Sprintf("%0500d", i)
		}
		batch = append(batch, w)
	}
	before := slices.Clone(batch)
	slices.Reverse(batch)
	k.writeBack(t, "500 photos", batch)
	for _, w := range before {
		same(t, "one of 500", k.photo(t, w.Photo.ID), w.Photo)
	}
	same(t, "comments of the last", k.comments(t, before[size-1].Photo.ID), idsOf(before[size-1].Comments))
}

// Concurrent batches of the same photos in opposite orders do not deadlock, and count
// nothing twice. Direct writes run at the same time.
func batchesCrossed(t *testing.T, k kit) {
	ctx := within(t)
	var batch []photos.PendingWrite
	for range 20 {
		batch = append(batch, k.changed(k.newPhoto(t, 1), 2, 1))
	}
	other := k.newPhoto(t, 1)
	concurrently(t, 16, func(i int) error {
		mine := slices.Clone(batch)
		if i%2 == 0 {
			slices.Reverse(mine)
		}
		if i%4 == 3 {
			_, err := k.Like(ctx, other.ID, 2)
			return err
		}
		for i := range mine {
			mine[i].Resent = true // another goroutine may have sent it first
		}
		refused, err := k.WriteBack(ctx, mine)
		if err == nil && len(refused) > 0 {
			return fmt.Errorf("refused %v", refused)
		}
		return err
	})
	for _, w := range batch {
		same(t, "a photo of the batch", k.photo(t, w.Photo.ID), w.Photo)
		same(t, "its comments", k.comments(t, w.Photo.ID), idsOf(w.Comments))
	}
	same(t, "direct likes", k.photo(t, other.ID).Likes, other.Likes+4)
}

// A batch that is interrupted by a crash and resent after the restart is stored once.
func batchDuringCrash(t *testing.T, k kit, db Database) {
	p := k.newPhoto(t, 1)
	for range 3 {
		var batch []photos.PendingWrite
		for range 50 {
			batch = append(batch, k.changed(k.newPhoto(t, 1), 3, 1))
		}
		ctx, sent := within(t), make(chan error, 1)
		go func() {
			_, err := k.WriteBack(ctx, batch)
			sent <- err
		}()
		db.Kill(t)
		if err := <-sent; err != nil {
			wants(t, "a batch interrupted by the crash", err, photos.ErrUnavailable)
		}
		_, err := k.WriteBack(t.Context(), batch)
		wants(t, "a batch while the database is down", err, photos.ErrUnavailable)
		db.Restart(t)
		for i := range batch {
			batch[i].Resent = true
		}
		k.writeBack(t, "the batch resent", batch)
		for _, w := range batch {
			same(t, "a photo of the batch", k.photo(t, w.Photo.ID), w.Photo)
			same(t, "its comments", k.comments(t, w.Photo.ID), idsOf(w.Comments))
		}
	}
	same(t, "a photo outside the batch", k.photo(t, p.ID), p)
}

// WriteBack is a benchmark. It compares a batch of 100 photos with one like each to 100
// direct likes, sent one by one or 16 at once. The metrics are the microseconds for all
// 100, and the ratio of both.
func WriteBack(b *testing.B, s *Store) {
	const size = 100
	k := kit{Store: s, data: newData()}
	if err := s.CreateSchema(b.Context()); err != nil {
		b.Fatal(err)
	}
	if err := s.Load(b.Context(), k.data); err != nil {
		b.Fatal(err)
	}
	for _, all := range []struct {
		name   string
		atOnce int
	}{{"one by one", 1}, {"16 at once", 16}} {
		b.Run(all.name, func(b *testing.B) {
			var single, batched time.Duration
			for b.Loop() {
				began := time.Now()
				k.likes(b, size, all.atOnce)
				single += time.Since(began)
				batch := make([]photos.PendingWrite, 0, size)
				for id := range size {
					p, err := s.Photo(b.Context(), k.data.photos[id].ID)
					if err != nil {
						b.Fatal(err)
					}
					p.Likes++
					p.Version++
					batch = append(batch, photos.PendingWrite{Photo: p, Base: p.Version - 1})
				}
				began = time.Now()
				if refused, err := s.WriteBack(b.Context(), batch); err != nil || len(refused) > 0 {
					b.Fatalf("refused %v, error %v", refused, err)
				}
				batched += time.Since(began)
			}
			b.ReportMetric(float64(single.Microseconds())/float64(b.N), "likes-us")
			b.ReportMetric(float64(batched.Microseconds())/float64(b.N), "batch-us")
			b.ReportMetric(single.Seconds()/batched.Seconds(), "times-faster")
			b.ReportMetric(0, "ns/op") // hidden: it would include the reads between the two
		})
	}
}

// likes likes each of the first size photos once.
func (k kit) likes(b *testing.B, size, atOnce int) {
	next := make(chan photos.ID)
	done := make(chan error, atOnce)
	for range atOnce {
		go func() {
			var failed error
			for id := range next {
				if _, err := k.Like(b.Context(), id, 1); err != nil {
					failed = err
				}
			}
			done <- failed
		}()
	}
	for id := range size {
		next <- k.data.photos[id].ID
	}
	close(next)
	for range atOnce {
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
}
