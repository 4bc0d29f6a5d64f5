package app_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/photos"
)

// newQueuedService returns a service with workers, which inspects uploads only.
func newQueuedService(t *testing.T) (*service, *fakeJobs) {
	jobs := &fakeJobs{}
	s := newService(t, func(c *app.Config) {
		c.Jobs = jobs
		c.Inspect = func(original []byte) (photos.Header, error) {
			made, err := fakeProcess(original)
			return photos.Header{Width: made.Width, Height: made.Height, Memory: 1 << 20}, err
		}
		c.Process = func([]byte) (photos.Variants, error) {
			t.Error("the picture was processed while its client waited")
			return photos.Variants{}, errors.New("processed")
		}
	})
	return s, jobs
}

// With workers, an upload stores the original and the record, puts the job, and is answered. Until it is processed, the
// original can be read, and no variant.
func TestQueuedUpload(t *testing.T) {
	s, jobs := newQueuedService(t)
	before := s.blobs.count()
	w := s.do(uploadOf(sampleJPEG(16, 12)))
	var made photos.Photo
	if err := json.Unmarshal(w.Body.Bytes(), &made); err != nil || w.Code != http.StatusCreated {
		t.Fatalf("%d %s, %v", w.Code, w.Body, err)
	}
	if made.State != photos.StateProcessing || made.Width != 16 || made.Height != 12 || made.DoneUS != 0 {
		t.Errorf("uploaded %+v, want 16x12 in processing", made)
	}
	if !slices.Equal(jobs.put, []photos.ID{made.ID}) || s.blobs.count() != before+1 {
		t.Errorf("jobs %v and %d new objects, want the photo and its original", jobs.put, s.blobs.count()-before)
	}
	for variant, status := range map[string]int{"original": http.StatusOK, "thumb": http.StatusNotFound} {
		w := s.do(get(fmt.Sprintf("/img/%d/%s.jpg?v=1", made.ID, variant)))
		if w.Code != status || status == http.StatusNotFound && w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d, Cache-Control %q", variant, w.Code, w.Header().Get("Cache-Control"))
		}
	}
}

// A queue that does not answer fails no upload: the record is the outbox. The answer names the queue. A bad picture is
// refused before anything is stored.
func TestQueuedUploadWithoutQueue(t *testing.T) {
	s, jobs := newQueuedService(t)
	jobs.fail = fmt.Errorf("broker: %w", photos.ErrUnavailable)
	w := s.do(uploadOf(sampleJPEG(16, 12)))
	if w.Code != http.StatusCreated || w.Header().Get(app.HeaderDegraded) != "queue" {
		t.Errorf("%d, %s %q", w.Code, app.HeaderDegraded, w.Header().Get(app.HeaderDegraded))
	}
	if !strings.Contains(s.log.String(), `"tier":"queue"`) {
		t.Errorf("the log does not name the queue: %s", s.log)
	}
	bytes := s.blobs.count()
	if w := s.do(uploadOf(sampleJPEG(16, 12)[:40])); w.Code != http.StatusBadRequest || s.blobs.count() != bytes {
		t.Errorf("half a picture: %d, %d objects stored", w.Code, s.blobs.count()-bytes)
	}
}

// An upload whose record cannot be stored puts no job: a worker would find no photo.
func TestNoJobWithoutRecord(t *testing.T) {
	s, jobs := newQueuedService(t)
	s.store.breakWith(photos.ErrUnavailable)
	if w := s.do(uploadOf(sampleJPEG(16, 12))); w.Code != http.StatusServiceUnavailable || jobs.put != nil {
		t.Errorf("%d, jobs %v", w.Code, jobs.put)
	}
}
