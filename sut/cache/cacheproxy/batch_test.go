package cacheproxy_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/cache/cacheproxy"
	"github.com/stagebench/stagebench/sut/photos"
)

// Nothing comes to the records before its time, and then what was written to a photo
// comes as one.
func TestWritesOfAPhotoAreOne(t *testing.T) {
	t.Parallel()
	r := newRig(t, back())
	web, h := r.web(t), r.hosts[0]
	like(t, web, 1, 250)
	for i := range photos.ID(3) {
		must(t)(web.Comment(t.Context(), comment(i+1, 2)))
	}
	must(t)(web.RenamePhoto(t.Context(), 2, 1, "new"))
	if n := h.figure(t, "unflushed"); n != 254 {
		t.Errorf("%v writes wait", n)
	}
	if p := r.records.photo(1); len(r.records.batches()) != 0 || p.Version != 1 {
		t.Errorf("written before it is flushed: %+v", p)
	}
	r.flush(t)
	one, two := r.records.photo(1), r.records.photo(2)
	comments := []photos.Comment{comment(1, 2), comment(2, 2), comment(3, 2)}
	want := [][]photos.PendingWrite{{{Photo: one, Base: 1}, {Photo: two, Base: 1, Comments: comments}}}
	if diff := cmp.Diff(want, r.records.batches()); diff != "" {
		t.Errorf("batches (-want +got)\n%s", diff)
	}
	if one.Likes != 250 || one.Version != 251 ||
		two.Comments != 3 || two.Title != "new" || two.Version != 5 || len(r.records.of(2)) != 3 {
		t.Errorf("%+v, %+v, %+v", one, two, r.records.of(2))
	}
	for name, want := range map[string]float64{
		"unflushed": 0, "flushed_total": 254, "flushes_total": 1, "flush_errors_total": 0, "refused_total": 0,
	} {
		if got := h.figure(t, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

// A record that can never be written is given up, and keeps no other one from being
// flushed.
func TestPoisonedBatch(t *testing.T) {
	t.Parallel()
	o := back()
	o.interval = time.Millisecond
	r := newRig(t, o)
	web, h := r.web(t), r.hosts[0]
	poisoned := func(w photos.PendingWrite) bool { return w.Photo.ID == 2 }
	r.records.set(func(_ context.Context, call string) error {
		sent := r.records.batches()
		if call == "WriteBack" && slices.ContainsFunc(sent[len(sent)-1], poisoned) {
			return errors.New("invalid byte sequence")
		}
		return nil
	}, nil)
	for id := photos.ID(1); id <= 3; id++ {
		like(t, web, id, 2)
	}
	eventually(t, "all is settled", func() bool { return h.figure(t, "unflushed") == 0 })
	if flushed, refused := h.figure(t, "flushed_total"), h.figure(t, "refused_total"); flushed != 4 || refused != 2 {
		t.Errorf("%v writes flushed and %v refused, want 4 and 2", flushed, refused)
	}
	r.records.set(nil, nil)
	if p := photo(t, web, 2); p.Version != 1 {
		t.Errorf("what was given up is shown: %+v", p)
	}
}

// rows is how many rows a batch has, of photos and of comments.
func rows(batch []photos.PendingWrite) int {
	n := len(batch)
	for _, w := range batch {
		n += len(w.Comments)
	}
	return n
}

// Batches are of 200 photos at most, and begin when there is enough for one.
func TestBatches(t *testing.T) {
	t.Parallel()
	o := back()
	o.photos = 450
	r := newRig(t, o)
	web, writing := r.web(t), newOnce("WriteBack")
	r.records.set(writing.hook, nil)
	for id := photos.ID(1); id <= 450; id++ {
		like(t, web, id, 1)
	}
	wait(t, "a batch is written before its time", writing.begun)
	close(writing.released)
	r.flush(t)
	for _, batch := range r.records.batches() {
		if len(batch) > 200 {
			t.Errorf("a batch of %d", len(batch))
		}
	}
	for id := photos.ID(1); id <= 450; id++ {
		if p := r.records.photo(id); p.Version != 2 {
			t.Errorf("%+v", p)
		}
	}
}

// Comments count, too: a batch has 200 rows at most, and 50 comments of each photo.
func TestBatchesOfComments(t *testing.T) {
	t.Parallel()
	r := newRig(t, back())
	web, next := r.web(t), photos.ID(1)
	for id := photos.ID(1); id <= 5; id++ {
		for range 90 * id { // the fifth has more than there may be
			must(t)(web.Comment(t.Context(), comment(next, id)))
			next++
		}
	}
	r.flush(t)
	tooMany := func(w photos.PendingWrite) bool { return len(w.Comments) > 50 }
	for _, batch := range r.records.batches() {
		if n := rows(batch); n > 200 || slices.ContainsFunc(batch, tooMany) {
			t.Errorf("%d photos with %d rows", len(batch), n)
		}
	}
	for id := photos.ID(1); id <= 5; id++ {
		p, n := r.records.photo(id), len(r.records.of(id))
		if n != int(90*id) || p.Comments != int64(n) || p.Version != int64(n)+1 {
			t.Errorf("photo %d has %d comments, want %d: %+v", id, n, 90*id, p)
		}
	}
}

// A write that comes when all is flushed, and nobody would flush it any more, is not
// acknowledged.
func TestWriteAfterTheEnd(t *testing.T) {
	t.Parallel()
	r, h, _ := plain(t, back())
	write := func() error {
		_, err := h.proxy.Apply(t.Context(), "photo:1", cache.Write{Like: &cache.Like{Photo: 1, User: 2}})
		return err
	}
	if err := write(); err != nil {
		t.Fatal(err)
	}
	if err := h.proxy.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := write(); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("a write after the end: %v", err)
	}
	if p := r.records.photo(1); p.Likes != 1 || h.figure(t, "unflushed") != 0 {
		t.Errorf("%+v, %v wait", p, h.figure(t, "unflushed"))
	}
}

// Records that are too slow for a whole batch get smaller ones until they can follow,
// and whole ones again.
func TestBatchesForSlowRecords(t *testing.T) {
	t.Parallel()
	o := withChange(back(), func(c *cacheproxy.Config) { c.Timeout = 100 * time.Millisecond })
	o.photos, o.interval = 200, time.Millisecond
	r := newRig(t, o)
	h := r.hosts[0]
	r.records.set(func(ctx context.Context, call string) error {
		if sent := r.records.batches(); call == "WriteBack" && rows(sent[len(sent)-1]) > 20 {
			<-ctx.Done()
		}
		return nil
	}, nil)
	likeAll := func() {
		t.Helper()
		for id := photos.ID(1); id <= 200; id++ {
			eventually(t, "a like is taken", func() bool {
				w := cache.Write{Like: &cache.Like{Photo: id, User: 2}}
				_, err := h.proxy.Apply(t.Context(), cache.PhotoKey(id).String(), w)
				return err == nil
			})
		}
	}
	flushed := func() bool { return h.figure(t, "unflushed") == 0 }
	likeAll()
	eventually(t, "all is flushed", flushed)
	if h.figure(t, "flush_errors_total") == 0 {
		t.Error("no batch was too large")
	}
	largest := 0
	// What holds the records up halves the batches once more.
	for deadline := time.Now().Add(patience); largest <= 20; {
		if time.Now().After(deadline) {
			t.Fatalf("the largest batch of 200 photos has %d rows", largest)
		}
		r.records.set(fail(photos.ErrUnavailable, "WriteBack"), nil)
		likeAll()
		before := len(r.records.batches())
		r.records.set(nil, nil)
		eventually(t, "all is flushed", flushed)
		for _, batch := range r.records.batches()[before:] {
			largest = max(largest, rows(batch))
		}
	}
	if n := h.figure(t, "refused_total"); n > 0 {
		t.Errorf("%v writes were refused", n)
	}
}
