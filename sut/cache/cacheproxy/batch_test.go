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

// TestFlushMergesWrites: the database gets no write before the flush. The flush sends all
// writes of a photo as one record.
func TestFlushMergesWrites(t *testing.T) {
	t.Parallel()
	r := newRig(t, writeBackOptions())
	web, h := r.web(t), r.hosts[0]
	like(t, web, 1, 250)
	for i := range photos.ID(3) {
		must(t)(web.Comment(t.Context(), comment(i+1, 2)))
	}
	must(t)(web.RenamePhoto(t.Context(), 2, 1, "new"))
	if n := h.metric(t, "unflushed"); n != 254 {
		t.Errorf("got %v unflushed writes, want 254", n)
	}
	if p, n := r.records.photo(1), len(r.records.batches()); n != 0 || p.Version != 1 {
		t.Errorf("before the flush: got %d batches and %+v, want no batch and version 1", n, p)
	}
	r.stopHosts(t)
	one, two := r.records.photo(1), r.records.photo(2)
	comments := []photos.Comment{comment(1, 2), comment(2, 2), comment(3, 2)}
	want := [][]photos.PendingWrite{{{Photo: one, Base: 1}, {Photo: two, Base: 1, Comments: comments}}}
	if diff := cmp.Diff(want, r.records.batches()); diff != "" {
		t.Errorf("batches (-want +got):\n%s", diff)
	}
	if one.Likes != 250 || one.Version != 251 ||
		two.Comments != 3 || two.Title != "new" || two.Version != 5 || len(r.records.commentsOf(2)) != 3 {
		t.Errorf("got %+v and %+v with comments %+v,\n"+
			"want 250 likes at version 251, and 3 comments and title \"new\" at version 5",
			one, two, r.records.commentsOf(2))
	}
	for name, want := range map[string]float64{
		"unflushed": 0, "flushed_total": 254, "flushes_total": 1, "flush_errors_total": 0, "refused_total": 0,
	} {
		if got := h.metric(t, name); got != want {
			t.Errorf("metric %s: got %v, want %v", name, got, want)
		}
	}
}

// TestRecordThatAlwaysFails: the proxy drops the writes of a record that the database can
// never store. The other records of the batch are flushed.
func TestRecordThatAlwaysFails(t *testing.T) {
	t.Parallel()
	o := writeBackOptions()
	o.interval = time.Millisecond
	r := newRig(t, o)
	web, h := r.web(t), r.hosts[0]
	failing := func(w photos.PendingWrite) bool { return w.Photo.ID == 2 }
	r.records.setHooks(func(_ context.Context, call string) error {
		sent := r.records.batches()
		if call == "WriteBack" && slices.ContainsFunc(sent[len(sent)-1], failing) {
			return errors.New("invalid byte sequence")
		}
		return nil
	}, nil)
	for id := photos.ID(1); id <= 3; id++ {
		like(t, web, id, 2)
	}
	h.awaitFlushed(t)
	if flushed, refused := h.metric(t, "flushed_total"), h.metric(t, "refused_total"); flushed != 4 || refused != 2 {
		t.Errorf("got %v writes flushed and %v refused, want 4 and 2", flushed, refused)
	}
	r.records.setHooks(nil, nil)
	if p := photo(t, web, 2); p.Version != 1 {
		t.Errorf("read after the writes were dropped: got %+v, want version 1", p)
	}
}

// rowCount returns the number of rows in a batch: photos and comments.
func rowCount(batch []photos.PendingWrite) int {
	n := len(batch)
	for _, w := range batch {
		n += len(w.Comments)
	}
	return n
}

// TestBatchLimitOfPhotos: a batch has at most 200 photos. A flush starts before its
// interval ends when the backlog has enough photos for a batch.
func TestBatchLimitOfPhotos(t *testing.T) {
	t.Parallel()
	o := writeBackOptions()
	o.photos = 450
	r := newRig(t, o)
	web, flush := r.web(t), pauseFirst("WriteBack")
	r.records.setHooks(flush.hook, nil)
	for id := photos.ID(1); id <= 450; id++ {
		like(t, web, id, 1)
	}
	waitClosed(t, "a flush starts before the interval ends", flush.started)
	close(flush.release)
	r.stopHosts(t)
	for _, batch := range r.records.batches() {
		if len(batch) > 200 {
			t.Errorf("got a batch of %d photos, want at most 200", len(batch))
		}
	}
	for id := photos.ID(1); id <= 450; id++ {
		if p := r.records.photo(id); p.Version != 2 {
			t.Errorf("in the database: got %+v, want version 2", p)
		}
	}
}

// TestBatchLimitOfComments: a batch has at most 200 rows, comments included, and at most
// 50 comments of one photo.
func TestBatchLimitOfComments(t *testing.T) {
	t.Parallel()
	r := newRig(t, writeBackOptions())
	web, next := r.web(t), photos.ID(1)
	for id := photos.ID(1); id <= 5; id++ {
		for range 90 * id { // photo 5 has more comments than a batch has rows
			must(t)(web.Comment(t.Context(), comment(next, id)))
			next++
		}
	}
	r.stopHosts(t)
	tooMany := func(w photos.PendingWrite) bool { return len(w.Comments) > 50 }
	for _, batch := range r.records.batches() {
		if n := rowCount(batch); n > 200 || slices.ContainsFunc(batch, tooMany) {
			t.Errorf("got a batch of %d rows: %+v, want at most 200 rows and 50 comments of one photo", n, batch)
		}
	}
	for id := photos.ID(1); id <= 5; id++ {
		p, n := r.records.photo(id), len(r.records.commentsOf(id))
		if n != int(90*id) || p.Comments != int64(n) || p.Version != int64(n)+1 {
			t.Errorf("photo %d: got %d comments and %+v, want %d comments", id, n, p, 90*id)
		}
	}
}

// TestWriteAfterClose: after Close, nothing flushes the backlog. The proxy must refuse a
// write then, because it would acknowledge a write that is lost.
func TestWriteAfterClose(t *testing.T) {
	t.Parallel()
	r, h, _ := newProxyRig(t, writeBackOptions())
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
		t.Errorf("write after Close: got %v, want %v", err, photos.ErrUnavailable)
	}
	if p, n := r.records.photo(1), h.metric(t, "unflushed"); p.Likes != 1 || n != 0 {
		t.Errorf("got %+v and %v unflushed writes, want 1 like and 0 unflushed writes", p, n)
	}
}

// TestBatchLimitAdapts: when a batch times out, the next batches are smaller. When the
// database is fast again, they grow.
func TestBatchLimitAdapts(t *testing.T) {
	t.Parallel()
	o := withChange(writeBackOptions(), func(c *cacheproxy.Config) { c.Timeout = 100 * time.Millisecond })
	o.photos, o.interval = 200, time.Millisecond
	r := newRig(t, o)
	h := r.hosts[0]
	r.records.setHooks(func(ctx context.Context, call string) error {
		if sent := r.records.batches(); call == "WriteBack" && rowCount(sent[len(sent)-1]) > 20 {
			<-ctx.Done()
		}
		return nil
	}, nil)
	likeAll := func() {
		t.Helper()
		for id := photos.ID(1); id <= 200; id++ {
			eventually(t, "a like is acknowledged", func() bool {
				w := cache.Write{Like: &cache.Like{Photo: id, User: 2}}
				_, err := h.proxy.Apply(t.Context(), cache.PhotoKey(id).String(), w)
				return err == nil
			})
		}
	}
	likeAll()
	h.awaitFlushed(t)
	if h.metric(t, "flush_errors_total") == 0 {
		t.Error("got no flush errors, want a batch that timed out")
	}
	// One round is not always enough: on a busy machine another batch can time out, which
	// makes the next batches smaller again.
	eventually(t, "a batch has more than 20 rows", func() bool {
		r.records.setHooks(fail(photos.ErrUnavailable, "WriteBack"), nil)
		likeAll()
		before := len(r.records.batches())
		r.records.setHooks(nil, nil)
		h.awaitFlushed(t)
		large := func(batch []photos.PendingWrite) bool { return rowCount(batch) > 20 }
		return slices.ContainsFunc(r.records.batches()[before:], large)
	})
	if n := h.metric(t, "refused_total"); n > 0 {
		t.Errorf("got %v refused writes, want 0", n)
	}
}
