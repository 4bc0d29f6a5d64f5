package cacheproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/photos"
)

// applyWriteBack acknowledges a write and adds it to the backlog.
func (p *Proxy) applyWriteBack(
	ctx context.Context, id photos.ID, key string, w cache.Write,
) (version int64, err error) {
	// This must come before the stripe lock. The flusher needs that lock to free
	// capacity.
	if err := p.backlog.waitForCapacity(ctx, id, p.requestFlush); err != nil {
		return 0, err
	}
	s := p.stripe(key)
	if err := s.lock(ctx); err != nil {
		return 0, err
	}
	defer s.unlock()
	defer p.discardLoads(s, key)
	photo, err := p.currentPhoto(ctx, id)
	if err != nil {
		return 0, err
	}
	if w.Rename != nil && w.Rename.Owner != photo.UserID {
		return 0, fmt.Errorf("rename photo %d for user %d: %w", id, w.Rename.Owner, photos.ErrForbidden)
	}
	applyTo(&photo, w)
	value, err := json.Marshal(photo)
	if err != nil {
		return 0, fmt.Errorf("cacheproxy: photo %d: %w", id, err)
	}
	batchFull, err := p.backlog.add(photo, value, w)
	if err != nil {
		return 0, err
	}
	if batchFull {
		p.requestFlush()
	}
	return photo.Version, nil
}

// requestFlush wakes the flusher.
func (p *Proxy) requestFlush() {
	select {
	case p.flushRequested <- struct{}{}:
	default: // a request is pending already
	}
}

// currentPhoto returns a photo's record including all unflushed writes. Without
// unflushed writes it reads the database: the cached value may be older than a write
// of another host, and the database would refuse writes that build on it. When the
// database is unavailable, it returns the cached value.
func (p *Proxy) currentPhoto(ctx context.Context, id photos.ID) (photo photos.Photo, err error) {
	if photo, found := p.backlog.photo(id); found {
		return photo, nil
	}
	p.metrics.loads.Inc()
	photo, err = p.config.Records.Photo(ctx, id)
	if !errors.Is(err, photos.ErrUnavailable) {
		return photo, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.config.Timeout)
	defer cancel()
	value, found, valueErr := p.config.Values.Get(ctx, cache.PhotoKey(id).String())
	if valueErr == nil && found && json.Unmarshal(value, &photo) == nil {
		return photo, nil
	}
	return photo, err
}

// flushLoop flushes at each interval, and when the backlog has enough for a batch.
func (p *Proxy) flushLoop(ctx context.Context) {
	tick := time.NewTicker(p.config.FlushInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-p.flushRequested:
		case <-ctx.Done():
			return
		}
		if err := p.flush(ctx); err != nil && ctx.Err() == nil {
			p.config.Log.Warn("flushing writes to the database failed; they stay in memory and are retried",
				"writes", p.backlog.count(), "error", err.Error())
		}
	}
}

// flush writes the backlog to the database, batch by batch. It stops early when the
// database is unavailable.
func (p *Proxy) flush(ctx context.Context) error {
	var all error
	for ids := p.backlog.ids(); len(ids) > 0; {
		var err error
		ids, err = p.flushBatch(ctx, ids)
		all = errors.Join(all, err)
		if away(err) || ctx.Err() != nil {
			break
		}
	}
	return all
}

// away reports whether the database does not answer. A full one does.
func away(err error) bool {
	return errors.Is(err, photos.ErrUnavailable) && !errors.Is(err, photos.ErrFull)
}

// flushBatch writes one batch of the given records to the database. It returns the ids
// that still need a flush; records that were flushed in part come last. The caller
// must hold no stripe, because flushBatch locks the stripes of the batch.
func (p *Proxy) flushBatch(ctx context.Context, ids []photos.ID) (left []photos.ID, err error) {
	select {
	case p.flushLock <- struct{}{}:
		defer func() { <-p.flushLock }()
	case <-ctx.Done():
		return ids, fmt.Errorf("%w: timed out waiting for another flush: %w", photos.ErrUnavailable, ctx.Err())
	}
	batch, left, partial := p.backlog.nextBatch(ids, p.batchLimit)
	if err := p.writeBatch(ctx, batch); err != nil {
		return left, err
	}
	return slices.Concat(left, partial), nil
}

// writeBatch writes a batch in one transaction. When the transaction fails although
// the database is available, one of the records must be the cause: it needs space in a full database, or it is wrong.
// writeBatch then writes each record in a transaction of its own. The caller holds flushLock.
func (p *Proxy) writeBatch(ctx context.Context, batch []dirtyRecord) error {
	if len(batch) == 0 {
		return nil
	}
	written := make([]photos.PendingWrite, len(batch))
	for i, r := range batch {
		written[i] = r.PendingWrite
	}
	bounded, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	refused, err := p.config.Records.WriteBack(bounded, written)
	if err == nil {
		p.batchLimit = min(p.batchLimit+maxBatchRows/10, maxBatchRows)
		p.metrics.batches.Inc()
		for _, r := range batch {
			if slices.Contains(refused, r.Photo.ID) {
				p.drop(ctx, r)
			} else {
				p.complete(ctx, r)
			}
		}
		return nil
	}
	p.metrics.failed.Inc()
	p.backlog.markInDoubt(batch)
	if bounded.Err() != nil && ctx.Err() == nil { // the batch was too large for the timeout
		p.batchLimit = max(1, p.batchLimit/2)
	}
	switch {
	case errors.Is(err, photos.ErrFull) && len(batch) == 1: // it stays in memory
		return err
	case away(err) || bounded.Err() != nil:
		return err
	case len(batch) > 1:
		var all error
		for _, r := range batch {
			r.Resent = true
			all = errors.Join(all, p.writeBatch(ctx, []dirtyRecord{r}))
		}
		return all
	case p.backlog.countFailure(batch[0].Photo.ID) >= maxFailures:
		p.config.Log.Error("a record could not be written back, and its writes are dropped",
			"photo", int64(batch[0].Photo.ID), "attempts", maxFailures, "error", err.Error())
		p.drop(ctx, batch[0])
	}
	return err
}

// complete moves a flushed record from the backlog to the cached values.
func (p *Proxy) complete(ctx context.Context, r dirtyRecord) {
	key := cache.PhotoKey(r.Photo.ID).String()
	ctx, release := p.lockFlushed(ctx, key)
	defer release()
	p.metrics.flushed.Add(float64(r.writes))
	// The value must be stored before the record leaves the backlog. Otherwise a
	// client could read an older value in between.
	p.store(ctx, key, r.value, p.config.TTL)
	p.backlog.markFlushed(r)
}

// drop removes all unflushed writes of a record. The database has refused them,
// because another writer has changed or deleted the record, or has failed to store
// them too often. Writes that came after the batch are lost too: they build on the
// refused state.
func (p *Proxy) drop(ctx context.Context, r dirtyRecord) {
	key := cache.PhotoKey(r.Photo.ID).String()
	ctx, release := p.lockFlushed(ctx, key)
	defer release()
	lost := p.backlog.discard(r.Photo.ID)
	p.metrics.refused.Add(float64(lost))
	p.config.Log.Warn("acknowledged writes are lost: the database did not accept them",
		"photo", int64(r.Photo.ID), "writes", lost)
	p.remove(ctx, key)
}

// lockFlushed locks the stripe of a record after its flush. The returned context is
// bounded by the timeout of the proxy and does not end with ctx: the result of the flush
// has to be recorded. The wait for the stripe is bounded because all its holders are.
func (p *Proxy) lockFlushed(ctx context.Context, key string) (bounded context.Context, release func()) {
	ctx = context.WithoutCancel(ctx)
	s := p.stripe(key)
	_ = s.lock(ctx) // cannot fail: ctx never ends
	bounded, cancel := context.WithTimeout(ctx, p.config.Timeout)
	return bounded, func() {
		cancel()
		s.unlock()
	}
}
