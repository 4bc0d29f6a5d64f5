// Package jobs does the work of workers: it makes the variants of a photo whose original was uploaded. It also finds
// the photos whose job was never put into the queue, or was lost.
//
// The record of a photo in the state photos.StateProcessing is the outbox. A job may come twice, so every effect
// depends on that state: the variants have fixed names and the same bytes each time, and the record is finished once.
// The package does not know the queue, and starts no goroutine that outlives its call. All methods may be called
// concurrently.
package jobs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/stagebench/stagebench/sut/photos"
)

// Records finds and finishes photos. Its errors are those of photos.Records.
type Records interface {
	// Photo reads the primary database: a replica may not have a new photo yet.
	Photo(ctx context.Context, id photos.ID) (photos.Photo, error)
	FinishPhoto(ctx context.Context, end photos.Processed) (version int64, err error)
}

// Blobs stores the bytes of photos. Its errors wrap photos.ErrNotFound or photos.ErrUnavailable.
type Blobs interface {
	Get(ctx context.Context, id photos.ID, v photos.Variant) ([]byte, error)
	photos.BlobWriter
}

// Config is the configuration of a Processor. All fields are required.
type Config struct {
	Records Records
	Blobs   Blobs
	// Inspect and Process are those of package imaging.
	Inspect func(original []byte) (photos.Header, error)
	Process func(original []byte) (photos.Variants, error)
	// MemoryBytes bounds what all pictures in processing take.
	MemoryBytes int64
	Now         func() time.Time
}

// Processor does jobs.
type Processor struct {
	config Config
	memory *semaphore.Weighted // bytes that pictures in processing take
}

// New returns a processor.
func New(c Config) (*Processor, error) {
	if c.Records == nil || c.Blobs == nil || c.Inspect == nil || c.Process == nil || c.MemoryBytes <= 0 || c.Now == nil {
		return nil, errors.New("jobs: all fields of the configuration are required")
	}
	return &Processor{c, semaphore.NewWeighted(c.MemoryBytes)}, nil
}

// failedBefore is the reason of a job whose photo has failed already.
const failedBefore = "it had failed before"

// jobTimeout bounds all calls to other tiers of one job.
const jobTimeout = 30 * time.Second

// Do makes the variants of a photo. It returns an error if it can be tried again: a tier does not answer, or the record
// or the original is not found, because it may have been written to a database or a host that just failed.
func (p *Processor) Do(ctx context.Context, id photos.ID) (end photos.JobEnd, reason string, err error) {
	ctx, cancel := context.WithTimeout(ctx, jobTimeout)
	defer cancel()
	photo, err := p.config.Records.Photo(ctx, id)
	if err != nil {
		return "", "", err
	}
	switch photo.State {
	case photos.StateProcessing:
	case photos.StateFailed: // perhaps the worker died before it said so
		return photos.JobFailed, failedBefore, nil
	default:
		return photos.JobRepeated, "", nil
	}
	original, err := p.config.Blobs.Get(ctx, id, photos.VariantOriginal)
	if err != nil {
		return "", "", fmt.Errorf("the original: %w", err)
	}
	made, err := p.process(ctx, original)
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "", "", err
	case err != nil: // it would fail each time
		reason = err.Error()
		end, err = p.finish(ctx, id, photos.StateFailed)
		return end, reason, err
	}
	if err := photos.PutImages(ctx, p.config.Blobs, id, made.Images()); err != nil {
		return "", "", fmt.Errorf("the variants: %w", err)
	}
	if end, err = p.finish(ctx, id, photos.StateReady); end == photos.JobFailed {
		reason = failedBefore
	}
	return end, reason, err
}

// GiveUp marks a photo as failed whose job has failed too often.
func (p *Processor) GiveUp(ctx context.Context, id photos.ID) (photos.JobEnd, error) {
	ctx, cancel := context.WithTimeout(ctx, jobTimeout)
	defer cancel()
	return p.finish(ctx, id, photos.StateFailed)
}

// process makes the variants. Every error but those of ctx means that the picture is bad.
func (p *Processor) process(ctx context.Context, original []byte) (photos.Variants, error) {
	header, err := p.config.Inspect(original)
	if err == nil && header.Memory > p.config.MemoryBytes {
		err = fmt.Errorf("%w: processing takes %d MB of memory, the limit of this host is %d MB",
			photos.ErrTooManyPixels, header.Memory/1e6, p.config.MemoryBytes/1e6)
	}
	if err != nil {
		return photos.Variants{}, err
	}
	if err := p.memory.Acquire(ctx, header.Memory); err != nil {
		return photos.Variants{}, err
	}
	defer p.memory.Release(header.Memory)
	return p.config.Process(original)
}

// finish ends the processing in the record. If the photo was deleted meanwhile, it removes the variants, because the
// deletion may have come before they were stored. It leaves the original, which was there before the record: if the
// record was not deleted but lost, it can be restored.
func (p *Processor) finish(ctx context.Context, id photos.ID, state string) (photos.JobEnd, error) {
	_, err := p.config.Records.FinishPhoto(ctx, photos.Processed{
		Photo: id, State: state, DoneUS: p.config.Now().UnixMicro(),
	})
	switch {
	case errors.Is(err, photos.ErrConflict): // another delivery was faster
		photo, err := p.config.Records.Photo(ctx, id)
		if err == nil && photo.State == photos.StateFailed {
			return photos.JobFailed, nil
		}
		return photos.JobRepeated, err
	case errors.Is(err, photos.ErrNotFound):
		made := photos.AllVariants()[1:] // without the original
		return photos.JobGone, photos.DeleteImages(ctx, p.config.Blobs, id, made)
	case err != nil:
		return "", err
	case state == photos.StateFailed:
		return photos.JobFailed, nil
	}
	return photos.JobDone, nil
}
