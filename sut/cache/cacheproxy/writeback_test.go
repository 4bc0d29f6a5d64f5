package cacheproxy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
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

// back are the options of a tier that writes back on embedded nodes.
func back() options {
	return options{engine: engine{name: "resp"}, strategy: strategy{"read_through", "write_back"}}
}

// like likes a photo so many times.
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

// Somebody else, who cannot reach the proxy, makes the very same write: that is another
// one, and the one that was acknowledged here is refused and counted.
func TestTheSameWriteElsewhere(t *testing.T) {
	t.Parallel()
	r := newRig(t, back())
	web, h := r.web(t), r.hosts[0]
	like(t, web, 1, 1)
	must(t)(r.records.Like(t.Context(), 1, 2))
	r.flush(t)
	if p, refused := r.records.photo(1), h.figure(t, "refused_total"); p.Likes != 1 || refused != 1 {
		t.Errorf("%+v, %v refused", p, refused)
	}
}

// What is written in its time is read from the values afterwards.
func TestFlushesByItself(t *testing.T) {
	t.Parallel()
	o := back()
	o.interval = time.Millisecond
	r := newRig(t, o)
	web, h := r.web(t), r.hosts[0]
	for round := range int64(3) {
		like(t, web, 1, 1)
		must(t)(web.Comment(t.Context(), comment(photos.ID(round+1), 1)))
		eventually(t, "it is flushed", func() bool { return h.figure(t, "unflushed") == 0 })
		if p := photo(t, web, 1); p.Likes != round+1 || p.Comments != round+1 || p.Version != 2*round+3 || !p.Cached {
			t.Errorf("read: %+v", p)
		}
		if p := r.records.photo(1); p.Version != 2*round+3 || len(r.records.of(1)) != int(round)+1 {
			t.Errorf("the records: %+v, %+v", p, r.records.of(1))
		}
	}
}

// A batch that fails comes again as it was, whether it was written or not.
func TestFailedFlush(t *testing.T) {
	t.Parallel()
	o := back()
	o.interval = time.Millisecond
	r := newRig(t, o)
	web, h := r.web(t), r.hosts[0]
	down := fail(photos.ErrUnavailable, "WriteBack")
	r.records.set(down, nil)
	like(t, web, 1, 3)
	must(t)(web.Comment(t.Context(), comment(1, 1)))
	tried := func() func() bool {
		before := len(r.records.batches())
		return func() bool { return len(r.records.batches()) >= before+2 } // the first may have begun before
	}
	eventually(t, "it is tried again", tried())
	first := r.records.batches()[len(r.records.batches())-1]
	r.records.set(nil, down)
	eventually(t, "it is tried again", tried())
	eventually(t, "it is written, as far as it was tried first", func() bool { return r.records.photo(1).Version > 1 })
	if n := h.figure(t, "unflushed"); n != 4 {
		t.Errorf("%v writes wait", n)
	}
	// More of the same photo: what was written and not answered is not added again.
	must(t)(web.Comment(t.Context(), comment(2, 1)))
	r.records.set(nil, nil)
	eventually(t, "it is flushed", func() bool { return h.figure(t, "unflushed") == 0 })
	want := photos.Photo{ID: 1, UserID: 1, Title: "photo 1", State: photos.StateReady, Likes: 3, Comments: 2, Version: 6}
	if diff := cmp.Diff(want, r.records.photo(1)); diff != "" {
		t.Errorf("the records (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]photos.Comment{comment(1, 1), comment(2, 1)}, r.records.of(1)); diff != "" {
		t.Errorf("comments (-want +got)\n%s", diff)
	}
	same := func(b []photos.PendingWrite) bool { return cmp.Equal(b, first) }
	if again := r.records.batches(); !slices.ContainsFunc(again[1:], same) {
		t.Errorf("%+v did not come again: %+v", first, again)
	}
	if failed, refused := h.figure(t, "flush_errors_total"), h.figure(t, "refused_total"); failed < 3 || refused != 0 {
		t.Errorf("%v errors, %v refused", failed, refused)
	}
}

// What somebody else has written is not overwritten: what was acknowledged is lost,
// counted, and the record read anew. The rest of the batch is written.
func TestRefused(t *testing.T) {
	t.Parallel()
	o := back()
	o.photos = 220
	r := newRig(t, o)
	web, h := r.web(t), r.hosts[0]
	photo(t, web, 1) // what the values have then is old
	photo(t, web, 2)
	like(t, web, 1, 2)
	like(t, web, 2, 1)
	like(t, web, 3, 1)
	like(t, r.records, 1, 5)
	if err := r.records.DeletePhoto(t.Context(), 2, 1); err != nil {
		t.Fatal(err)
	}
	for id := photos.ID(4); id <= 200; id++ { // which is enough for a batch
		like(t, web, id, 1)
	}
	eventually(t, "writes are refused", func() bool { return h.figure(t, "refused_total") == 3 })
	if p := photo(t, web, 1); p.Version != 6 || p.Likes != 5 || p.Cached {
		t.Errorf("read: %+v", p)
	}
	if _, err := web.Photo(t.Context(), 2); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("deleted elsewhere: %v", err)
	}
	if version := like(t, web, 1, 1); version != 7 {
		t.Errorf("the next version is %d", version)
	}
	r.flush(t)
	if one, three := r.records.photo(1), r.records.photo(3); one.Likes != 6 || three.Likes != 1 {
		t.Errorf("%+v, %+v", one, three)
	}
	if n := h.figure(t, "unflushed"); n != 0 {
		t.Errorf("%v writes wait", n)
	}
}

// What is written while a batch is under way is not of it, and comes with the next one;
// when the batch is refused it is lost with the rest, as it is built upon it.
func TestWriteDuringAFlush(t *testing.T) {
	t.Parallel()
	for _, refused := range []bool{false, true} {
		o := back()
		o.interval = time.Millisecond
		r, h, _ := plain(t, o)
		apply := func(w cache.Write, want int64) {
			t.Helper()
			if version, err := h.proxy.Apply(t.Context(), "photo:1", w); err != nil || version != want {
				t.Errorf("version %d, %v, want %d", version, err, want)
			}
		}
		one, two := comment(1, 1), comment(2, 1)
		writing := newOnce("WriteBack")
		r.records.set(writing.hook, nil)
		apply(cache.Write{Comment: &one}, 2)
		wait(t, "it is flushed", writing.begun)
		apply(cache.Write{Comment: &two}, 3)
		apply(cache.Write{Like: &cache.Like{Photo: 1, User: 1}}, 4)
		if n := h.figure(t, "unflushed"); n != 3 {
			t.Errorf("%v writes wait", n)
		}
		if refused {
			like(t, r.records, 1, 9)
		}
		close(writing.released)
		eventually(t, "nothing waits", func() bool { return h.figure(t, "unflushed") == 0 })
		if refused {
			if n := h.figure(t, "refused_total"); n != 3 {
				t.Errorf("%v writes were refused", n)
			}
			apply(cache.Write{Like: &cache.Like{Photo: 1, User: 1}}, 11)
			continue
		}
		batches := r.records.batches()
		last := batches[len(batches)-1][0]
		if len(batches) != 2 || !cmp.Equal(last.Comments, []photos.Comment{two}) || last.Photo.Version != 4 {
			t.Errorf("%d batches: %+v", len(batches), batches)
		}
		if p := r.records.photo(1); p.Comments != 2 || p.Likes != 1 ||
			len(r.records.of(1)) != 2 || h.figure(t, "flushed_total") != 3 {
			t.Errorf("%+v, %+v", p, r.records.of(1))
		}
	}
}

// What is not flushed is not among the values that go for others.
func TestUnflushedIsNotEvicted(t *testing.T) {
	t.Parallel()
	o := back()
	o.bytes = 1 << 20
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
		t.Fatal("nothing was evicted")
	}
	if p := photo(t, web, 1); p.Version != 2 || !p.Cached {
		t.Errorf("%+v", p)
	}
	if version := like(t, web, 1, 1); version != 3 {
		t.Errorf("the next version is %d", version)
	}
	// Nor covered by what somebody else had read before.
	old := []byte(`{"id":1,"user_id":1,"version":1}`)
	if err := client.Set(t.Context(), "photo:1", old, time.Minute); err != nil {
		t.Fatal(err)
	}
	if p := photo(t, web, 1); p.Version != 3 {
		t.Errorf("covered by an old value: %+v", p)
	}
}

// When as many records wait as may, another one has to wait until some are written, and
// is refused when that takes too long; those that wait already may be written to.
func TestBackpressure(t *testing.T) {
	t.Parallel()
	const capacity = 10_000
	o := back()
	o.photos = capacity + 1
	r := newRig(t, o)
	web, f := r.web(t), r.hosts[0].proxy
	r.records.set(fail(photos.ErrUnavailable, "WriteBack"), nil)
	for id := photos.ID(1); id <= capacity; id++ {
		w := cache.Write{Like: &cache.Like{Photo: id, User: 1}}
		must(t)(f.Apply(t.Context(), cache.PhotoKey(id).String(), w))
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	extraKey := cache.PhotoKey(capacity + 1).String()
	extra := cache.Write{Like: &cache.Like{Photo: capacity + 1, User: 1}}
	_, err := f.Apply(short, extraKey, extra)
	if !errors.Is(err, photos.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a record over the capacity: %v", err)
	}
	like(t, web, 5, 1)
	waited := make(chan error, 1)
	go func() {
		_, err := f.Apply(t.Context(), extraKey, extra)
		waited <- err
	}()
	r.records.set(nil, nil)
	// A deletion has its photo written first, which makes room.
	if err := web.DeletePhoto(t.Context(), 1, 1); err != nil {
		t.Error(err)
	}
	select {
	case err := <-waited:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("nobody has said that there is room")
	}
	r.flush(t)
	if p := r.records.photo(capacity + 1); p.Likes != 1 {
		t.Errorf("%+v", p)
	}
}

func withChange(o options, change func(*cacheproxy.Config)) options {
	o.change = change
	return o
}

// Photos with writes that wait may be deleted, by their owners, and come again.
func TestDeleteUnflushed(t *testing.T) {
	t.Parallel()
	r := newRig(t, back())
	web, h := r.web(t), r.hosts[0]
	like(t, web, 1, 3)
	must(t)(web.Comment(t.Context(), comment(1, 1)))
	like(t, web, 2, 1)
	r.records.set(fail(photos.ErrUnavailable, "WriteBack"), nil)
	if err := web.DeletePhoto(t.Context(), 1, 1); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("what cannot be flushed: %v", err)
	}
	if p := photo(t, web, 1); p.Version != 5 {
		t.Errorf("after a deletion that failed: %+v", p)
	}
	r.records.set(nil, nil)
	if err := web.DeletePhoto(t.Context(), 1, 2); !errors.Is(err, photos.ErrForbidden) {
		t.Errorf("somebody else: %v", err)
	}
	if p := photo(t, web, 1); p.Version != 5 || r.records.photo(1).Version != 5 {
		t.Errorf("after a deletion that was refused: %+v; %+v", p, r.records.photo(1))
	}
	like(t, web, 1, 1)
	if err := web.DeletePhoto(t.Context(), 1, 1); err != nil {
		t.Error(err)
	}
	if _, err := web.Photo(t.Context(), 1); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
	if _, err := web.Like(t.Context(), 1, 1); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("like of what is deleted: %v", err)
	}
	if n := h.figure(t, "unflushed"); n != 1 {
		t.Errorf("%v writes wait, of the other photo", n)
	}
	if err := web.AddPhoto(t.Context(), photos.Photo{ID: 1, UserID: 2, Title: "again", Version: 1}); err != nil {
		t.Error(err)
	}
	if version := like(t, web, 1, 1); version != 2 {
		t.Errorf("version %d of the new photo", version)
	}
	r.flush(t)
	if p := r.records.photo(1); p.Title != "again" || p.Likes != 1 || h.figure(t, "refused_total") != 0 {
		t.Errorf("%+v, %v refused", p, h.figure(t, "refused_total"))
	}
}

// A host that dies loses exactly what it says it holds.
func TestKilled(t *testing.T) {
	t.Parallel()
	registry, r := prometheus.NewRegistry(), &rig{options: back(), records: newRecords(300)}
	h := &host{registry: registry}
	f, err := cacheproxy.New(cacheproxy.Config{
		Values: newValues(), Records: r.records, TTL: time.Minute, FlushInterval: time.Millisecond,
		Registry: registry, Log: discard(),
	})
	if err != nil {
		t.Fatal(err)
	}
	acknowledged := 0
	for i := range 1000 {
		if i == 500 { // from here on nothing is flushed
			r.records.set(fail(photos.ErrUnavailable, "WriteBack"), nil)
		}
		id := photos.ID(i%300 + 1)
		w := cache.Write{Like: &cache.Like{Photo: id, User: 1}}
		must(t)(f.Apply(t.Context(), cache.PhotoKey(id).String(), w))
		acknowledged++
	}
	dead, kill := context.WithCancel(t.Context())
	kill()
	err = f.Close(dead)
	lost := h.figure(t, "unflushed")
	want := fmt.Sprintf("%v acknowledged writes were not flushed", lost)
	if err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %q", err, want)
	}
	stored := 0
	for id := photos.ID(1); id <= 300; id++ {
		stored += int(r.records.photo(id).Likes)
	}
	if lost < 500 || acknowledged-stored != int(lost) {
		t.Errorf("%d writes were acknowledged, %d are stored, and %v were lost", acknowledged, stored, lost)
	}
	// It is not too late yet.
	r.records.set(nil, nil)
	if err := f.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if n := h.figure(t, "unflushed"); n != 0 {
		t.Errorf("%v writes wait", n)
	}
}

// Values may be old: others stored them, or another host has written since. No write is
// built upon them while the records can be read.
func TestOldValuesAreNotBuiltUpon(t *testing.T) {
	t.Parallel()
	for _, read := range []string{"look_aside", "read_through"} {
		o := back()
		o.read = read
		r := newRig(t, o)
		web, client := r.web(t), r.client(t)
		photo(t, web, 1)
		like(t, r.records, 1, 4)
		if err := client.Set(t.Context(), "photo:1", []byte(`{"id":1,"user_id":1,"version":1}`), time.Minute); err != nil {
			t.Fatal(err)
		}
		before := r.records.called("Photo")
		const want = 7
		if version, reads := like(t, web, 1, 2), r.records.called("Photo")-before; version != want || reads != 1 {
			t.Errorf("%s: version %d after %d reads, want %d after one", read, version, reads, want)
		}
		if p := photo(t, web, 1); p.Version != want {
			t.Errorf("%s: %+v", read, p)
		}
		r.flush(t)
		if p := r.records.photo(1); p.Version != want || r.hosts[0].figure(t, "refused_total") != 0 {
			t.Errorf("%s: %+v", read, p)
		}
	}
}

// While keys move, nothing is held back: the answer comes when all is flushed, and
// writes go through until it is over. None is lost, whenever it comes.
func TestMoving(t *testing.T) {
	t.Parallel()
	r := newRig(t, back())
	web, h := r.web(t), r.hosts[0]
	like(t, web, 1, 3)
	must(t)(web.Comment(t.Context(), comment(1, 1)))
	r.records.set(fail(photos.ErrUnavailable, "WriteBack"), nil)
	ended, end := context.WithCancel(t.Context())
	end()
	if err := h.proxy.SetMoving(ended, true); !errors.Is(err, context.Canceled) {
		t.Errorf("without records: %v", err)
	}
	r.records.set(nil, nil)
	like(t, web, 1, 1) // after what waits
	if err := h.proxy.SetMoving(t.Context(), true); err != nil || h.figure(t, "unflushed") != 0 {
		t.Errorf("%v, %v writes are held back", err, h.figure(t, "unflushed"))
	}
	if p := r.records.photo(1); p.Likes != 4 || p.Comments != 1 {
		t.Errorf("the records have %+v", p)
	}
	like(t, web, 2, 1)
	if p := r.records.photo(2); p.Likes != 1 {
		t.Errorf("a write while keys move: %+v", p)
	}
	if err := h.proxy.SetMoving(t.Context(), false); err != nil {
		t.Error(err)
	}
	like(t, web, 2, 1)
	if p := r.records.photo(2); p.Likes != 1 || h.figure(t, "unflushed") != 1 {
		t.Errorf("a write after it: %+v, %v writes are held back", p, h.figure(t, "unflushed"))
	}
}

func TestMovingUnderLoad(t *testing.T) {
	t.Parallel()
	o := back()
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
	r.flush(t)
	if p := r.records.photo(1); p.Likes != likes.Load() || h.figure(t, "refused_total") != 0 {
		t.Errorf("%d likes were acknowledged, the records have %d, %v were refused",
			likes.Load(), p.Likes, h.figure(t, "refused_total"))
	}
}
