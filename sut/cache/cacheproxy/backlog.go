package cacheproxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/photos"
)

const (
	// maxBatchRows is the most rows (photos and comments) in one transaction. A larger
	// transaction would block other users of the primary for too long.
	maxBatchRows = 200
	// maxBatchComments is the most comments of one photo in a batch. A failed batch is
	// resent unchanged, so it cannot be made smaller later.
	maxBatchComments = 50
	// maxUnflushed is the capacity of the backlog, in records. A write to another record
	// then waits for a flush.
	maxUnflushed = 10_000
	// maxFailures is how often in a row a record may fail, while the database is
	// available, before its writes are dropped.
	maxFailures = 10
)

// backlog holds the acknowledged writes that are not in the database yet. The methods
// value, count and accepting may be called on nil, which is an empty backlog that
// accepts nothing.
type backlog struct {
	mu      sync.Mutex
	records map[photos.ID]*dirtyRecord
	byKey   map[string]*dirtyRecord // the same records by cache key
	writes  int64                   // total over all records
	closed  bool                    // refuses writes for good
	paused  bool                    // refuses writes while keys move
	freed   chan struct{}           // closed when a record leaves; nil = no writer waits
}

// dirtyRecord is a record with unflushed writes.
type dirtyRecord struct {
	photos.PendingWrite
	value  []byte // the encoded photo
	writes int64
	// inDoubt is the batch content of a flush that failed: the database may have stored
	// it or not. It is resent unchanged, so that the database can recognise it. Later
	// writes wait for the next flush.
	inDoubt  *dirtyRecord
	failures int // consecutive failures of this record alone
}

func newBacklog() *backlog {
	return &backlog{records: map[photos.ID]*dirtyRecord{}, byKey: map[string]*dirtyRecord{}}
}

// value returns the encoded record of a cache key.
func (b *backlog) value(key string) (value []byte, found bool) {
	if b == nil {
		return nil, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if r := b.byKey[key]; r != nil {
		return r.value, true
	}
	return nil, false
}

// count returns the number of unflushed writes.
func (b *backlog) count() int64 {
	if b == nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.writes
}

func (b *backlog) photo(id photos.ID) (photo photos.Photo, found bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r := b.records[id]; r != nil {
		return r.Photo, true
	}
	return photo, false
}

// closeIfEmpty refuses all further writes if there are no unflushed ones. It reports
// whether the backlog is closed.
func (b *backlog) closeIfEmpty() (closed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = b.closed || b.writes == 0
	return b.closed
}

// setPaused refuses writes until it is called with false.
func (b *backlog) setPaused(paused bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.paused = paused
}

// accepting reports whether writes should go to the backlog. It is true for a closed
// backlog: add then returns errClosing, so the caller does not write through.
func (b *backlog) accepting() bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.paused
}

// Reasons why add refuses a write.
var (
	errClosing = fmt.Errorf("%w: the cache host is shutting down", photos.ErrUnavailable)
	errPaused  = errors.New("write-back is paused: write through")
)

// add adds one write. photo and value are the record after the write. batchFull is true
// when the backlog has grown to a multiple of maxBatchRows records. The error is
// errClosing or errPaused.
func (b *backlog) add(photo photos.Photo, value []byte, w cache.Write) (batchFull bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return false, errClosing
	case b.paused:
		return false, errPaused
	}
	r := b.records[photo.ID]
	if r == nil {
		r = &dirtyRecord{PendingWrite: photos.PendingWrite{Base: photo.Version - 1}}
		b.records[photo.ID], b.byKey[cache.PhotoKey(photo.ID).String()] = r, r
		batchFull = len(b.records)%maxBatchRows == 0
	}
	r.Photo, r.value = photo, value
	if w.Comment != nil {
		r.Comments = append(r.Comments, *w.Comment)
	}
	r.writes++
	b.writes++
	return batchFull, nil
}

// ids lists the records, in ascending order. All flushes lock records in this order,
// which prevents deadlocks in the database.
func (b *backlog) ids() []photos.ID {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(maps.Keys(b.records))
}

// nextBatch returns a snapshot of the first of the given records, with at most maxRows
// rows but at least one record. left are the ids that did not fit. partial are the ids
// in the batch that have more writes than the batch contains.
func (b *backlog) nextBatch(ids []photos.ID, maxRows int) (batch []dirtyRecord, left, partial []photos.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, id := range ids {
		r := b.records[id]
		if r == nil {
			continue
		}
		next := r.firstComments()
		if r.inDoubt != nil {
			next = *r.inDoubt
		}
		if maxRows -= 1 + len(next.Comments); maxRows < 0 && len(batch) > 0 {
			return batch, ids[i:], partial
		}
		batch = append(batch, next)
		if next.writes < r.writes {
			partial = append(partial, id)
		}
	}
	return batch, nil, partial
}

// firstComments returns the record with at most maxBatchComments comments. The other
// comments are left out, as if they had not been written yet.
func (r *dirtyRecord) firstComments() dirtyRecord {
	first := *r
	left := max(len(r.Comments)-maxBatchComments, 0)
	first.Comments = slices.Clip(r.Comments[:len(r.Comments)-left])
	first.Photo.Comments -= int64(left)
	first.Photo.Version -= int64(left)
	first.writes -= int64(left)
	return first
}

// markInDoubt records that the flush of a batch failed. The database may have stored
// the batch all the same.
func (b *backlog) markInDoubt(batch []dirtyRecord) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range batch {
		r.Resent = true
		b.records[r.Photo.ID].inDoubt = &r
	}
}

// countFailure counts a failure of one record while the database is available. It
// returns the number of consecutive failures.
func (b *backlog) countFailure(id photos.ID) (failures int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records[id].failures++
	return b.records[id].failures
}

// markFlushed removes the flushed writes of a record. Later writes of the record stay.
func (b *backlog) markFlushed(flushed dirtyRecord) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.records[flushed.Photo.ID]
	r.Comments = r.Comments[len(flushed.Comments):]
	r.writes -= flushed.writes
	b.writes -= flushed.writes
	r.Base, r.inDoubt, r.failures = flushed.Photo.Version, nil, 0
	if r.writes == 0 {
		b.remove(r)
	}
}

// discard removes a record with all its unflushed writes. It returns the number of
// these writes.
func (b *backlog) discard(id photos.ID) (writes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.records[id]
	b.writes -= r.writes
	b.remove(r)
	return r.writes
}

// remove removes a record and wakes waiting writers. The caller holds mu.
func (b *backlog) remove(r *dirtyRecord) {
	delete(b.records, r.Photo.ID)
	delete(b.byKey, cache.PhotoKey(r.Photo.ID).String())
	if b.freed != nil {
		close(b.freed)
		b.freed = nil
	}
}

// waitForCapacity waits until the backlog can take a write to a record. It calls
// requestFlush each time before it waits.
func (b *backlog) waitForCapacity(ctx context.Context, id photos.ID, requestFlush func()) error {
	for {
		b.mu.Lock()
		if len(b.records) < maxUnflushed || b.records[id] != nil {
			b.mu.Unlock()
			return nil
		}
		if b.freed == nil {
			b.freed = make(chan struct{})
		}
		freed := b.freed
		b.mu.Unlock()
		requestFlush()
		select {
		case <-freed:
		case <-ctx.Done():
			return fmt.Errorf("%w: the write-back backlog is full, %d records wait for a flush: %w",
				photos.ErrUnavailable, maxUnflushed, ctx.Err())
		}
	}
}
