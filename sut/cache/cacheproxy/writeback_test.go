package cacheproxy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/cache/cacheproxy"
	"github.com/stagebench/stagebench/sut/photos"
)

// writeBackOptions returns the options of a write-back tier on embedded nodes.
func writeBackOptions() options {
	return options{engine: engine{name: "resp"}, strategy: strategy{"read_through", "write_back"}}
}

// like adds likes to a photo. It returns the version after the last like.
func like(t testing.TB, web photos.Records, id photos.ID, times int) (version int64) {
	t.Helper()
	for range times {
		version = must(t)(web.Like(t.Context(), id, 2))
	}
	return version
}

func comment(id, photo photos.ID) photos.Comment {
	return photos.Comment{ID: id, PhotoID: photo, UserID: 2, Text: fmt.Sprint("comment ", id)}
}

// TestEqualWriteByAnotherWriter: another writer makes an equal write without the proxy.
// These are two different writes. The database must refuse the write of the proxy, and the
// proxy must count it as lost.
func TestEqualWriteByAnotherWriter(t *testing.T) {
	t.Parallel()
	r := newRig(t, writeBackOptions())
	web, h := r.web(t), r.hosts[0]
	like(t, web, 1, 1)
	must(t)(r.records.Like(t.Context(), 1, 2))
	r.stopHosts(t)
	if p, refused := r.records.photo(1), h.metric(t, "refused_total"); p.Likes != 1 || refused != 1 {
		t.Errorf("got %+v and %v refused writes, want 1 like and 1 refused write", p, refused)
	}
}

// TestFlushAtInterval: the proxy flushes at its interval. After a flush, reads get the
// flushed record from the cached values.
func TestFlushAtInterval(t *testing.T) {
	t.Parallel()
	o := writeBackOptions()
	o.interval = time.Millisecond
	r := newRig(t, o)
	web, h := r.web(t), r.hosts[0]
	for round := range int64(3) {
		like(t, web, 1, 1)
		must(t)(web.Comment(t.Context(), comment(photos.ID(round+1), 1)))
		h.awaitFlushed(t)
		if p := photo(t, web, 1); p.Likes != round+1 || p.Comments != round+1 || p.Version != 2*round+3 || !p.Cached {
			t.Errorf("read: got %+v, want %d likes and comments, version %d, Cached true", p, round+1, 2*round+3)
		}
		if p := r.records.photo(1); p.Version != 2*round+3 || len(r.records.commentsOf(1)) != int(round)+1 {
			t.Errorf("in the database: got %+v, comments %+v, want version %d and %d comments",
				p, r.records.commentsOf(1), 2*round+3, round+1)
		}
	}
}

// TestConflictingWrites: a flush does not overwrite a write of another writer. The proxy
// drops and counts its own writes of that record, and loads the record again. The other
// records of the batch are stored.
func TestConflictingWrites(t *testing.T) {
	t.Parallel()
	o := writeBackOptions()
	o.photos = 220
	r := newRig(t, o)
	web, h := r.web(t), r.hosts[0]
	photo(t, web, 1) // caches the record before the other writer changes it
	photo(t, web, 2)
	like(t, web, 1, 2)
	like(t, web, 2, 1)
	like(t, web, 3, 1)
	like(t, r.records, 1, 5)
	if err := r.records.DeletePhoto(t.Context(), 2, 1); err != nil {
		t.Fatal(err)
	}
	for id := photos.ID(4); id <= 200; id++ { // enough for a batch, so a flush starts
		like(t, web, id, 1)
	}
	eventually(t, "3 writes are refused", func() bool { return h.metric(t, "refused_total") == 3 })
	if p := photo(t, web, 1); p.Version != 6 || p.Likes != 5 || p.Cached {
		t.Errorf("photo 1: got %+v, want 5 likes, version 6, Cached false", p)
	}
	if _, err := web.Photo(t.Context(), 2); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("photo that another writer has deleted: got %v, want %v", err, photos.ErrNotFound)
	}
	if version := like(t, web, 1, 1); version != 7 {
		t.Errorf("next write: got version %d, want 7", version)
	}
	r.stopHosts(t)
	if one, three := r.records.photo(1), r.records.photo(3); one.Likes != 6 || three.Likes != 1 {
		t.Errorf("in the database: got %+v and %+v, want 6 likes and 1 like", one, three)
	}
	if n := h.metric(t, "unflushed"); n != 0 {
		t.Errorf("got %v unflushed writes, want 0", n)
	}
}

// TestWriteDuringFlush: a write during a flush is stored by the next flush. When the
// database refuses the batch, that write is lost too, because it builds on the batch.
func TestWriteDuringFlush(t *testing.T) {
	t.Parallel()
	for _, refused := range []bool{false, true} {
		o := writeBackOptions()
		o.interval = time.Millisecond
		r, h, _ := newProxyRig(t, o)
		apply := func(w cache.Write, want int64) {
			t.Helper()
			if version, err := h.proxy.Apply(t.Context(), "photo:1", w); err != nil || version != want {
				t.Errorf("Apply: got version %d, %v, want version %d", version, err, want)
			}
		}
		one, two := comment(1, 1), comment(2, 1)
		flush := pauseFirst("WriteBack")
		r.records.setHooks(flush.hook, nil)
		apply(cache.Write{Comment: &one}, 2)
		waitClosed(t, "a flush has started", flush.started)
		apply(cache.Write{Comment: &two}, 3)
		apply(cache.Write{Like: &cache.Like{Photo: 1, User: 1}}, 4)
		if n := h.metric(t, "unflushed"); n != 3 {
			t.Errorf("got %v unflushed writes, want 3", n)
		}
		if refused {
			like(t, r.records, 1, 9)
		}
		close(flush.release)
		h.awaitFlushed(t)
		if refused {
			if n := h.metric(t, "refused_total"); n != 3 {
				t.Errorf("got %v refused writes, want 3", n)
			}
			apply(cache.Write{Like: &cache.Like{Photo: 1, User: 1}}, 11)
			continue
		}
		batches := r.records.batches()
		last := batches[len(batches)-1][0]
		if len(batches) != 2 || !cmp.Equal(last.Comments, []photos.Comment{two}) || last.Photo.Version != 4 {
			t.Errorf("got %d batches: %+v, want 2, the last with the second comment and version 4", len(batches), batches)
		}
		if p := r.records.photo(1); p.Comments != 2 || p.Likes != 1 ||
			len(r.records.commentsOf(1)) != 2 || h.metric(t, "flushed_total") != 3 {
			t.Errorf("in the database: got %+v, comments %+v, %v flushed writes, want 2 comments, 1 like, 3 flushed writes",
				p, r.records.commentsOf(1), h.metric(t, "flushed_total"))
		}
	}
}

// TestUnflushedWritesAreNotEvicted: memory pressure evicts cached values, but no unflushed
// writes. A client cannot replace an unflushed record with an older value either.
func TestUnflushedWritesAreNotEvicted(t *testing.T) {
	t.Parallel()
	o := writeBackOptions()
	o.maxBytes = 1 << 20
	r := newRig(t, o)
	web, client := r.web(t), r.client(t)
	photo(t, web, 2)
	like(t, web, 1, 1)
	large := bytes.Repeat([]byte("x"), 10_000)
	for i := range 500 {
		if err := client.Set(t.Context(), fmt.Sprint("photo:", 1000+i), large, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if p := photo(t, web, 2); p.Cached {
		t.Fatal("photo 2: got Cached true, want it evicted")
	}
	if p := photo(t, web, 1); p.Version != 2 || !p.Cached {
		t.Errorf("photo 1: got %+v, want version 2, Cached true", p)
	}
	if version := like(t, web, 1, 1); version != 3 {
		t.Errorf("next write: got version %d, want 3", version)
	}
	// A look-aside client fills the cache with the record that it read before the writes.
	old := []byte(`{"id":1,"user_id":1,"version":1}`)
	if err := client.Set(t.Context(), "photo:1", old, time.Minute); err != nil {
		t.Fatal(err)
	}
	if p := photo(t, web, 1); p.Version != 3 {
		t.Errorf("photo 1 after Set with an older value: got %+v, want version 3", p)
	}
}

// TestBackpressure: when the backlog is full, a write to another record waits for a flush.
// It fails when its context ends first. Records in the backlog accept more writes.
func TestBackpressure(t *testing.T) {
	t.Parallel()
	const capacity = 10_000
	o := writeBackOptions()
	o.photos = capacity + 1
	r := newRig(t, o)
	web, proxy := r.web(t), r.hosts[0].proxy
	r.records.setHooks(fail(photos.ErrUnavailable, "WriteBack"), nil)
	for id := photos.ID(1); id <= capacity; id++ {
		w := cache.Write{Like: &cache.Like{Photo: id, User: 1}}
		must(t)(proxy.Apply(t.Context(), cache.PhotoKey(id).String(), w))
	}
	shortCtx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	extraKey := cache.PhotoKey(capacity + 1).String()
	extra := cache.Write{Like: &cache.Like{Photo: capacity + 1, User: 1}}
	_, err := proxy.Apply(shortCtx, extraKey, extra)
	if !errors.Is(err, photos.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("record over the capacity: got %v, want %v and %v", err, photos.ErrUnavailable, context.DeadlineExceeded)
	}
	like(t, web, 5, 1)
	acknowledged := make(chan error, 1)
	go func() {
		_, err := proxy.Apply(t.Context(), extraKey, extra)
		acknowledged <- err
	}()
	r.records.setHooks(nil, nil)
	// A deletion first flushes its photo, which frees capacity.
	if err := web.DeletePhoto(t.Context(), 1, 1); err != nil {
		t.Error(err)
	}
	select {
	case err := <-acknowledged:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(testTimeout):
		t.Fatal("timed out waiting until the write over the capacity is acknowledged")
	}
	r.stopHosts(t)
	if p := r.records.photo(capacity + 1); p.Likes != 1 {
		t.Errorf("in the database: got %+v, want 1 like", p)
	}
}

func withChange(o options, change func(*cacheproxy.Config)) options {
	o.change = change
	return o
}

// TestDeleteWithUnflushedWrites: the owner can delete a photo that has unflushed writes, and
// a photo with the same id can be added again.
func TestDeleteWithUnflushedWrites(t *testing.T) {
	t.Parallel()
	r := newRig(t, writeBackOptions())
	web, h := r.web(t), r.hosts[0]
	like(t, web, 1, 3)
	must(t)(web.Comment(t.Context(), comment(1, 1)))
	like(t, web, 2, 1)
	r.records.setHooks(fail(photos.ErrUnavailable, "WriteBack"), nil)
	if err := web.DeletePhoto(t.Context(), 1, 1); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("delete while flushes fail: got %v, want %v", err, photos.ErrUnavailable)
	}
	if p := photo(t, web, 1); p.Version != 5 {
		t.Errorf("after the failed deletion: got %+v, want version 5", p)
	}
	r.records.setHooks(nil, nil)
	if err := web.DeletePhoto(t.Context(), 1, 2); !errors.Is(err, photos.ErrForbidden) {
		t.Errorf("delete by another user: got %v, want %v", err, photos.ErrForbidden)
	}
	if p := photo(t, web, 1); p.Version != 5 || r.records.photo(1).Version != 5 {
		t.Errorf("after the refused deletion: got %+v, in the database %+v, want version 5", p, r.records.photo(1))
	}
	like(t, web, 1, 1)
	if err := web.DeletePhoto(t.Context(), 1, 1); err != nil {
		t.Error(err)
	}
	if _, err := web.Photo(t.Context(), 1); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("read of a deleted photo: got %v, want %v", err, photos.ErrNotFound)
	}
	if _, err := web.Like(t.Context(), 1, 1); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("like of a deleted photo: got %v, want %v", err, photos.ErrNotFound)
	}
	if n := h.metric(t, "unflushed"); n != 1 {
		t.Errorf("got %v unflushed writes, want 1, of photo 2", n)
	}
	if err := web.AddPhoto(t.Context(), photos.Photo{ID: 1, UserID: 2, Title: "again", Version: 1}); err != nil {
		t.Error(err)
	}
	if version := like(t, web, 1, 1); version != 2 {
		t.Errorf("like of the new photo: got version %d, want 2", version)
	}
	r.stopHosts(t)
	if p := r.records.photo(1); p.Title != "again" || p.Likes != 1 || h.metric(t, "refused_total") != 0 {
		t.Errorf("in the database: got %+v, %v refused writes, want the new photo with 1 like, 0 refused writes",
			p, h.metric(t, "refused_total"))
	}
}

// TestLossIsReported: when Close cannot flush, the number of writes in its error is the
// number of acknowledged writes that the database does not have.
func TestLossIsReported(t *testing.T) {
	t.Parallel()
	registry, r := prometheus.NewRegistry(), &rig{options: writeBackOptions(), records: newRecords(300)}
	h := &host{registry: registry}
	proxy, err := cacheproxy.New(cacheproxy.Config{
		Values: newValues(), Records: r.records, TTL: time.Minute, FlushInterval: time.Millisecond,
		Registry: registry, Log: discard(),
	})
	if err != nil {
		t.Fatal(err)
	}
	acknowledged := 0
	for i := range 1000 {
		if i == 500 { // flushes fail from now on
			r.records.setHooks(fail(photos.ErrUnavailable, "WriteBack"), nil)
		}
		id := photos.ID(i%300 + 1)
		w := cache.Write{Like: &cache.Like{Photo: id, User: 1}}
		must(t)(proxy.Apply(t.Context(), cache.PhotoKey(id).String(), w))
		acknowledged++
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	err = proxy.Close(canceled)
	lost := h.metric(t, "unflushed")
	want := fmt.Sprintf("%v acknowledged writes were not flushed", lost)
	if err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, context.Canceled) {
		t.Errorf("Close: got %v, want %q and %v", err, want, context.Canceled)
	}
	stored := 0
	for id := photos.ID(1); id <= 300; id++ {
		stored += int(r.records.photo(id).Likes)
	}
	if lost < 500 || acknowledged-stored != int(lost) {
		t.Errorf("got %v unflushed writes, want %d acknowledged - %d stored, and at least 500", lost, acknowledged, stored)
	}
	// A second Close flushes the rest.
	r.records.setHooks(nil, nil)
	if err := proxy.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if n := h.metric(t, "unflushed"); n != 0 {
		t.Errorf("got %v unflushed writes, want 0", n)
	}
}

// TestWriteBackReadsTheDatabase: a cached value may be stale, because a client has stored an
// old value or another host has written since. The first write to a record must build on
// the record in the database. Otherwise the database would refuse the flush.
func TestWriteBackReadsTheDatabase(t *testing.T) {
	t.Parallel()
	for _, read := range []string{"look_aside", "read_through"} {
		o := writeBackOptions()
		o.read = read
		r := newRig(t, o)
		web, client := r.web(t), r.client(t)
		photo(t, web, 1)
		like(t, r.records, 1, 4)
		if err := client.Set(t.Context(), "photo:1", []byte(`{"id":1,"user_id":1,"version":1}`), time.Minute); err != nil {
			t.Fatal(err)
		}
		before := r.records.callCount("Photo")
		const want = 7
		if version, reads := like(t, web, 1, 2), r.records.callCount("Photo")-before; version != want || reads != 1 {
			t.Errorf("%s: got version %d after %d database reads, want %d after 1", read, version, reads, want)
		}
		if p := photo(t, web, 1); p.Version != want {
			t.Errorf("%s: got %+v, want version %d", read, p, want)
		}
		r.stopHosts(t)
		if p := r.records.photo(1); p.Version != want || r.hosts[0].metric(t, "refused_total") != 0 {
			t.Errorf("%s: in the database: got %+v, want version %d and no refused writes", read, p, want)
		}
	}
}

// TestMoving: SetMoving(ctx, true) returns when the backlog is flushed. From then on, writes
// are written through until SetMoving(ctx, false).
func TestMoving(t *testing.T) {
	t.Parallel()
	r := newRig(t, writeBackOptions())
	web, h := r.web(t), r.hosts[0]
	like(t, web, 1, 3)
	must(t)(web.Comment(t.Context(), comment(1, 1)))
	r.records.setHooks(fail(photos.ErrUnavailable, "WriteBack"), nil)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.proxy.SetMoving(canceled, true); !errors.Is(err, context.Canceled) {
		t.Errorf("SetMoving while flushes fail: got %v, want %v", err, context.Canceled)
	}
	r.records.setHooks(nil, nil)
	like(t, web, 1, 1) // written through, after a flush of the record
	if err := h.proxy.SetMoving(t.Context(), true); err != nil || h.metric(t, "unflushed") != 0 {
		t.Errorf("SetMoving: got %v, %v unflushed writes, want no error, 0 writes", err, h.metric(t, "unflushed"))
	}
	if p := r.records.photo(1); p.Likes != 4 || p.Comments != 1 {
		t.Errorf("in the database: got %+v, want 4 likes and 1 comment", p)
	}
	like(t, web, 2, 1)
	if p := r.records.photo(2); p.Likes != 1 {
		t.Errorf("write while keys move: got %+v in the database, want 1 like", p)
	}
	if err := h.proxy.SetMoving(t.Context(), false); err != nil {
		t.Error(err)
	}
	like(t, web, 2, 1)
	if p := r.records.photo(2); p.Likes != 1 || h.metric(t, "unflushed") != 1 {
		t.Errorf("write after the move: got %+v in the database, %v unflushed writes, want 1 like, 1 unflushed write",
			p, h.metric(t, "unflushed"))
	}
}

// TestMovingUnderLoad: no acknowledged write is lost when write-back is turned off and on
// during writes.
func TestMovingUnderLoad(t *testing.T) {
	t.Parallel()
	o := writeBackOptions()
	o.interval = time.Millisecond
	r := newRig(t, o)
	web, h := r.web(t), r.hosts[0]
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var likes atomic.Int64
	for range 4 {
		all.Go(func() {
			for ctx.Err() == nil {
				if _, err := web.Like(t.Context(), 1, 2); err != nil {
					t.Error(err)
				}
				likes.Add(1)
			}
		})
	}
	for range 20 {
		for _, moving := range []bool{true, false} {
			if err := h.proxy.SetMoving(t.Context(), moving); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop()
	all.Wait()
	r.stopHosts(t)
	if p := r.records.photo(1); p.Likes != likes.Load() || h.metric(t, "refused_total") != 0 {
		t.Errorf("got %d likes in the database and %v refused writes, want %d likes and 0 refused writes",
			p.Likes, h.metric(t, "refused_total"), likes.Load())
	}
}
