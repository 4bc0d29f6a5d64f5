package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/stagebench/stagebench/sut/jobs"
	"github.com/stagebench/stagebench/sut/photos"
)

// service is a database and a blob store in memory.
type service struct {
	mu     sync.Mutex
	photos map[photos.ID]photos.Photo
	bytes  map[photos.Variant]string // of photo 1
	fail   map[string]error          // by operation: its error, which comes before any effect
	after  map[string]func()         // by operation: called after it, once

	processed int           // pictures
	takes     time.Duration // processing one picture
}

// newService returns a service with photo 1, which is processing.
func newService() *service {
	return &service{
		photos: map[photos.ID]photos.Photo{1: {ID: 1, State: photos.StateProcessing, Version: 1}},
		bytes:  map[photos.Variant]string{photos.VariantOriginal: "good"}, fail: map[string]error{},
		after: map[string]func(){},
	}
}

// begin locks the service for an operation.
func (s *service) begin(op string) (end func(), err error) {
	s.mu.Lock()
	return func() {
		f := s.after[op]
		delete(s.after, op)
		s.mu.Unlock()
		if f != nil {
			f()
		}
	}, s.fail[op]
}

func (s *service) Photo(_ context.Context, id photos.ID) (photos.Photo, error) {
	end, err := s.begin("photo")
	defer end()
	p, found := s.photos[id]
	if err == nil && !found {
		err = photos.ErrNotFound
	}
	return p, err
}

func (s *service) FinishPhoto(_ context.Context, done photos.Processed) (int64, error) {
	end, err := s.begin("finish")
	defer end()
	p, found := s.photos[done.Photo]
	switch {
	case err != nil:
		return 0, err
	case !found:
		return 0, photos.ErrNotFound
	case p.State != photos.StateProcessing:
		return 0, photos.ErrConflict
	}
	p.State, p.DoneUS, p.Version = done.State, done.DoneUS, p.Version+1
	s.photos[done.Photo] = p
	return p.Version, nil
}

func (s *service) Get(_ context.Context, _ photos.ID, v photos.Variant) ([]byte, error) {
	end, err := s.begin("get")
	defer end()
	data, found := s.bytes[v]
	if err == nil && !found {
		err = photos.ErrNotFound
	}
	return []byte(data), err
}

func (s *service) Put(_ context.Context, _ photos.ID, v photos.Variant, data []byte) error {
	end, err := s.begin("put")
	defer end()
	if err == nil {
		s.bytes[v] = string(data)
	}
	return err
}

func (s *service) Delete(_ context.Context, _ photos.ID, v photos.Variant) error {
	end, err := s.begin("delete")
	defer end()
	if _, found := s.bytes[v]; err == nil && !found {
		err = photos.ErrNotFound
	}
	delete(s.bytes, v)
	return err
}

func (s *service) processor(t *testing.T) *jobs.Processor {
	t.Helper()
	p, err := jobs.New(jobs.Config{
		Records: s, Blobs: s, MemoryBytes: 1000, Now: func() time.Time { return time.UnixMicro(77) },
		Inspect: func(original []byte) (photos.Header, error) {
			switch string(original) {
			case "no picture":
				return photos.Header{}, photos.ErrNotJPEG
			case "huge":
				return photos.Header{Memory: 1001}, nil
			}
			return photos.Header{Memory: 1000}, nil
		},
		Process: func(original []byte) (photos.Variants, error) {
			s.processed++
			working := time.NewTimer(s.takes)
			<-working.C
			if string(original) == "torn" {
				return photos.Variants{}, photos.ErrTruncated
			}
			return photos.Variants{Thumb: []byte("t"), Sharp: []byte("s"), Blur: []byte("b")}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// ready is the bytes of a processed photo.
func ready() map[photos.Variant]string {
	return map[photos.Variant]string{
		photos.VariantOriginal: "good", photos.VariantThumb: "t", photos.VariantSharp: "s", photos.VariantBlur: "b",
	}
}

// A job takes effect once, however often it is delivered.
func TestOnce(t *testing.T) {
	s := newService()
	p := s.processor(t)
	for _, want := range []photos.JobEnd{photos.JobDone, photos.JobRepeated, photos.JobRepeated} {
		if end, _, err := p.Do(t.Context(), 1); err != nil || end != want {
			t.Fatalf("%q, %v, want %q", end, err, want)
		}
	}
	want := photos.Photo{ID: 1, State: photos.StateReady, DoneUS: 77, Version: 2}
	if diff := cmp.Diff(want, s.photos[1]) + cmp.Diff(ready(), s.bytes); diff != "" {
		t.Error(diff)
	}
	if s.processed != 1 {
		t.Errorf("the picture was processed %d times", s.processed)
	}
}

// Two workers that have the same job at the same time: one of them finishes the photo.
func TestTwoWorkers(t *testing.T) {
	s := newService()
	p := s.processor(t)
	s.after["get"] = func() { // another worker is faster
		if end, _, err := p.Do(t.Context(), 1); err != nil || end != photos.JobDone {
			t.Errorf("%q, %v", end, err)
		}
	}
	if end, _, err := p.Do(t.Context(), 1); err != nil || end != photos.JobRepeated || s.photos[1].Version != 2 {
		t.Errorf("%q, %v, photo %+v", end, err, s.photos[1])
	}
}

// What may succeed later is an error and has changed no record: also a photo or an original that is not there, which
// may have been written to a host that has just failed.
func TestTriedAgain(t *testing.T) {
	for op, wrong := range map[string]error{
		"photo": photos.ErrNotFound, "get": photos.ErrNotFound, "put": photos.ErrUnavailable, "finish": photos.ErrUnavailable,
	} {
		s := newService()
		s.fail[op] = wrong
		p := s.processor(t)
		if end, _, err := p.Do(t.Context(), 1); !errors.Is(err, wrong) || s.photos[1].Version != 1 {
			t.Errorf("%s: %q, %v, photo %+v", op, end, err, s.photos[1])
		}
		delete(s.fail, op)
		if end, _, err := p.Do(t.Context(), 1); err != nil || end != photos.JobDone {
			t.Errorf("%s: then %q, %v", op, end, err)
		}
	}
}

// A picture that can never be processed fails at once, and the record says so.
func TestHopeless(t *testing.T) {
	for original, reason := range map[string]string{
		"no picture": photos.ErrNotJPEG.Error(), "torn": photos.ErrTruncated.Error(),
		"huge": "the JPEG has too many pixels: processing takes 0 MB of memory, the limit of this host is 0 MB",
	} {
		s := newService()
		s.bytes[photos.VariantOriginal] = original
		end, got, err := s.processor(t).Do(t.Context(), 1)
		if err != nil || end != photos.JobFailed || got != reason {
			t.Errorf("%s: %q because of %q, %v, want %q", original, end, got, err, reason)
		}
		if p := s.photos[1]; p.State != photos.StateFailed || p.DoneUS != 77 || len(s.bytes) != 1 {
			t.Errorf("%s: %+v with %v", original, p, s.bytes)
		}
	}
}

func TestGiveUp(t *testing.T) {
	s := newService()
	p := s.processor(t)
	for range 2 { // the worker may have died before it stored the dead letter
		end, err := p.GiveUp(t.Context(), 1)
		if err != nil || end != photos.JobFailed || s.photos[1].State != photos.StateFailed || s.photos[1].Version != 2 {
			t.Errorf("%q, %v, photo %+v", end, err, s.photos[1])
		}
	}
	if end, reason, err := p.Do(t.Context(), 1); err != nil || end != photos.JobFailed || reason == "" {
		t.Errorf("%q, %q, %v, want that it failed", end, reason, err)
	}
	s = newService()
	p = s.processor(t)
	if _, _, err := p.Do(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if end, err := p.GiveUp(t.Context(), 1); err != nil || end != photos.JobRepeated {
		t.Errorf("a photo that is ready: %q, %v", end, err)
	}
}

// Pictures that do not fit into the memory together are processed one after the other.
func TestMemoryIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService()
		p := s.processor(t)
		s.photos[2] = photos.Photo{ID: 2, State: photos.StateProcessing, Version: 1}
		s.takes = time.Second
		begin := time.Now()
		var all sync.WaitGroup
		for id := range photos.ID(2) {
			all.Go(func() {
				if end, _, err := p.Do(t.Context(), id+1); err != nil || end != photos.JobDone {
					t.Errorf("%q, %v", end, err)
				}
			})
		}
		all.Wait()
		if took := time.Since(begin); took != 2*time.Second {
			t.Errorf("both took %v, want 2 s", took)
		}
	})
}

// A photo that is deleted while it is processed leaves no variants. The original of a photo whose record is lost stays.
func TestDeletedMeanwhile(t *testing.T) {
	for _, deleted := range []bool{true, false} {
		s := newService()
		s.after["get"] = func() {
			delete(s.photos, 1)
			if deleted {
				clear(s.bytes)
			}
		}
		end, _, err := s.processor(t).Do(t.Context(), 1)
		_, original := s.bytes[photos.VariantOriginal]
		if err != nil || end != photos.JobGone || original == deleted || len(s.bytes) > 1 {
			t.Errorf("deleted %t: %q, %v, bytes %v", deleted, end, err, s.bytes)
		}
	}
}

// The sweeper puts photos again that have been processing for too long, the oldest first, and no others. An error of
// the queue ends the sweep.
func TestSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		waiting := []photos.ID{4, 5, 6}
		var put []photos.ID
		var asked []time.Duration
		var broken error
		s := jobs.Sweeper{
			Processing: func(_ context.Context, before int64, limit int) ([]photos.ID, error) {
				asked = append(asked, time.Since(time.UnixMicro(before)))
				return waiting[:min(limit, len(waiting))], nil
			},
			PutAgain: func(_ context.Context, id photos.ID) (bool, error) {
				if broken != nil && id == 5 {
					return false, broken
				}
				put = append(put, id)
				return id != 6, nil // the queue has the job of photo 6
			},
			Age: 6 * time.Second, Interval: 3 * time.Second, Log: slog.New(slog.DiscardHandler),
			Swept: prometheus.NewCounter(prometheus.CounterOpts{Name: "swept"}),
		}
		if err := s.Sweep(t.Context()); err != nil || !slices.Equal(put, waiting) {
			t.Errorf("put %v, %v", put, err)
		}
		broken, put = fmt.Errorf("queue: %w", photos.ErrUnavailable), nil
		if err := s.Sweep(t.Context()); !errors.Is(err, broken) || !slices.Equal(put, []photos.ID{4}) {
			t.Errorf("put %v, %v", put, err)
		}
		if swept := testutil.ToFloat64(s.Swept); swept != 3 {
			t.Errorf("%v missing jobs, want 3", swept)
		}
		// It goes on after an error. Its times are random, with the interval as their mean.
		asked = nil
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Run(ctx)
		}()
		<-time.After(300 * time.Second)
		cancel()
		<-done
		if len(asked) < 80 || len(asked) > 120 {
			t.Errorf("%d sweeps in 300 s, want about 100", len(asked))
		}
		for _, age := range asked {
			if age.Round(time.Millisecond) != 6*time.Second {
				t.Errorf("asked for photos older than %v, want 6 s", age)
			}
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := jobs.New(jobs.Config{}); err == nil {
		t.Error("an empty configuration is accepted")
	}
}
