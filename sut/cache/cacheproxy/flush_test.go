package cacheproxy_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut/photos"
)

// TestFailedFlush: the proxy resends a failed batch unchanged, whether the database has
// stored it or not.
func TestFailedFlush(t *testing.T) {
	t.Parallel()
	o := writeBackOptions()
	o.interval = time.Millisecond
	r := newRig(t, o)
	web, h := r.web(t), r.hosts[0]
	unavailable := fail(photos.ErrUnavailable, "WriteBack")
	r.records.setHooks(unavailable, nil)
	like(t, web, 1, 3)
	must(t)(web.Comment(t.Context(), comment(1, 1)))
	retried := func() func() bool {
		before := len(r.records.batches())
		// The first new batch may belong to a flush that started before the call of retried.
		return func() bool { return len(r.records.batches()) >= before+2 }
	}
	eventually(t, "the flush is retried", retried())
	first := r.records.batches()[len(r.records.batches())-1]
	r.records.setHooks(nil, unavailable)
	eventually(t, "the flush is retried", retried())
	eventually(t, "the database has stored the failed batch", func() bool { return r.records.photo(1).Version > 1 })
	if n := h.metric(t, "unflushed"); n != 4 {
		t.Errorf("got %v unflushed writes, want 4", n)
	}
	// The next flush must not add the stored comment a second time.
	must(t)(web.Comment(t.Context(), comment(2, 1)))
	r.records.setHooks(nil, nil)
	h.awaitFlushed(t)
	want := photos.Photo{ID: 1, UserID: 1, Title: "photo 1", State: photos.StateReady, Likes: 3, Comments: 2, Version: 6}
	if diff := cmp.Diff(want, r.records.photo(1)); diff != "" {
		t.Errorf("photo in the database (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]photos.Comment{comment(1, 1), comment(2, 1)}, r.records.commentsOf(1)); diff != "" {
		t.Errorf("comments in the database (-want +got):\n%s", diff)
	}
	same := func(b []photos.PendingWrite) bool { return cmp.Equal(b, first) }
	if batches := r.records.batches(); !slices.ContainsFunc(batches[1:], same) {
		t.Errorf("got batches %+v, want %+v resent", batches, first)
	}
	if failed, refused := h.metric(t, "flush_errors_total"), h.metric(t, "refused_total"); failed < 3 || refused != 0 {
		t.Errorf("got %v failed flushes and %v refused writes, want at least 3 and 0", failed, refused)
	}
}

// TestFullDatabase: writes that need space in a full database stay in memory, and do not hold up those that need none.
func TestFullDatabase(t *testing.T) {
	t.Parallel()
	o := writeBackOptions()
	o.interval = time.Millisecond
	r := newRig(t, o)
	web, h := r.web(t), r.hosts[0]
	r.records.setHooks(func(_ context.Context, call string) error {
		if call != "WriteBack" {
			return nil
		}
		all := r.records.batches()
		for _, w := range all[len(all)-1] {
			if len(w.Comments) > 0 {
				return photos.ErrFull
			}
		}
		return nil
	}, nil)
	must(t)(web.Comment(t.Context(), comment(1, 1)))
	like(t, web, 2, 2)
	like(t, web, 3, 1)
	eventually(t, "the likes are stored", func() bool {
		return r.records.photo(2).Likes == 2 && r.records.photo(3).Likes == 1
	})
	if n := h.metric(t, "unflushed"); n != 1 || len(r.records.commentsOf(1)) != 0 {
		t.Errorf("got %v unflushed writes, want the comment", n)
	}
	r.records.setHooks(nil, nil)
	h.awaitFlushed(t)
	if refused := h.metric(t, "refused_total"); refused != 0 || len(r.records.commentsOf(1)) != 1 {
		t.Errorf("%v refused writes, comments %+v", refused, r.records.commentsOf(1))
	}
}
