package app_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/photos"
)

// A picture that takes more memory than the host has for it is refused before it is processed. The answer names the
// limit.
func TestAPictureThatNeverFits(t *testing.T) {
	s := newService(t, func(c *app.Config) {
		c.MemoryBytes = 100 << 20
		c.Inspect = func([]byte) (photos.Header, error) { return photos.Header{Memory: 41 << 20}, nil }
		c.Process = func([]byte) (photos.Variants, error) {
			t.Error("the picture was processed")
			return photos.Variants{}, nil
		}
	})
	w := s.do(uploadOf(sampleJPEG(8, 8)))
	const limit = "takes 42 MB of memory, the limit is 41 MB"
	if w.Code != http.StatusRequestEntityTooLarge || !strings.Contains(w.Body.String(), limit) {
		t.Errorf("%d %s, want 413 that names the limit", w.Code, w.Body)
	}
}

// Pictures that do not fit together are processed one after the other. One that waits longer than a request may take
// gets 503.
func TestPicturesWaitForMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each = 30 << 20
		var inProcess, most atomic.Int64
		takes := 2 * time.Second
		s := newService(t, func(c *app.Config) {
			c.MemoryBytes = 100 << 20 // 40 MiB for pictures
			c.Inspect = func([]byte) (photos.Header, error) { return photos.Header{Memory: each}, nil }
			c.Process = func(original []byte) (photos.Variants, error) {
				most.Store(max(most.Load(), inProcess.Add(1)))
				defer inProcess.Add(-1)
				<-time.After(takes)
				return fakeProcess(original)
			}
		})
		statuses := map[int]int{}
		var mu sync.Mutex
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				w := s.do(uploadOf(sampleJPEG(8, 8)))
				mu.Lock()
				defer mu.Unlock()
				statuses[w.Code]++
				if w.Code == http.StatusServiceUnavailable && w.Header().Get("Retry-After") == "" {
					t.Error("503 without Retry-After")
				}
			})
		}
		all.Wait()
		if most.Load() != 1 {
			t.Errorf("%d pictures of %d bytes were processed at once, want 1", most.Load(), each)
		}
		// The third begins after 4 s. The fourth would begin after 6 s, and a request has 5 s.
		if statuses[201] != 2 && statuses[201] != 3 || statuses[201]+statuses[503] != 4 {
			t.Errorf("statuses %v, want 201 and 503", statuses)
		}
	})
}

// Large images share a bound, and give their memory back at the end of their requests. Small ones are not counted.
func TestImagesAreBounded(t *testing.T) {
	const large, small = 12 << 20, 60 << 10
	s := newService(t, func(c *app.Config) { c.MemoryBytes = 100 << 20 }) // 16 MiB for images
	reading, release := make(chan struct{}), make(chan struct{})
	s.blobs.onGet = func(ctx context.Context) error {
		size := int64(large)
		if app.RequestID(ctx) == "small" {
			size = small
		}
		if err := app.ReserveImage(ctx, size); err != nil {
			return err
		}
		if app.RequestID(ctx) == "slow" {
			close(reading)
			<-release
		}
		return nil
	}
	image := func(id string) *httptest.ResponseRecorder {
		r := get("/img/1/original.jpg")
		r.header = map[string]string{sut.RequestIDHeader: id}
		return s.do(r)
	}
	ended := make(chan int)
	go func() { ended <- image("slow").Code }()
	<-reading
	if w := image("large"); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("a second large image: %d %s, want 503 with Retry-After", w.Code, w.Body)
	}
	if w := image("small"); w.Code != http.StatusOK {
		t.Errorf("a small image: %d %s", w.Code, w.Body)
	}
	close(release)
	if code := <-ended; code != http.StatusOK {
		t.Errorf("the first image: %d", code)
	}
	if w := image("large"); w.Code != http.StatusOK {
		t.Errorf("after the first image: %d %s", w.Code, w.Body)
	}
	if err := app.ReserveImage(context.Background(), 1<<40); err != nil {
		t.Errorf("outside of a request: %v", err)
	}
}
