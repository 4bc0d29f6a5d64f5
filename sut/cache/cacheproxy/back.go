package cacheproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/photos"
)

const (
	// batchRows is how many rows, of photos and of comments, are written in one
	// transaction at most: few enough that nobody else waits long for the primary.
	batchRows = 200
	// portion is how many comments of one photo are in a batch at most. What was sent and
	// not answered comes again as it was, so it has to be small from the beginning.
	portion = 50
)

// pending is what was acknowledged and is not in the records yet. All methods but
// the constructor may be called on nil, which holds nothing.
type pending struct {
	max int

	mu      sync.Mutex
	records map[photos.ID]*unflushed
	keys    map[string]*unflushed // the same, by the key of the cache
	writes  int64                 // in all of them
	sealed  bool                  // nothing is taken any more
	through bool                  // nothing is taken for now
	room    chan struct{}         // closed when records have gone; nil = nobody waits
}

// unflushed is a record with the writes that the records do not have.
type unflushed struct {
	photos.Written
	text   []byte // of the photo
	writes int64
	// tried is what was sent and not answered: it goes again as it was, and what was
	// written since then later.
	tried    *unflushed
	failures int // of this record alone, one after the other
}

// patience is how often a record may fail by itself, for another reason than that the
// records are not there, before it is given up.
const patience = 10

func newPending(most int) *pending {
	return &pending{max: most, records: map[photos.ID]*unflushed{}, keys: map[string]*unflushed{}}
}

// text is the text of a record that waits.
func (p *pending) text(key string) (value []byte, found bool) {
	if p == nil {
		return nil, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if u := p.keys[key]; u != nil {
		return u.text, true
	}
	return nil, false
}

// count is how many writes wait.
func (p *pending) count() int64 {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.writes
}

func (p *pending) get(id photos.ID) (photo photos.Photo, found bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if u := p.records[id]; u != nil {
		return u.Photo, true
	}
	return photo, false
}

// seal ends the taking of writes, unless there are some that wait.
func (p *pending) seal() (sealed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sealed = p.sealed || p.writes == 0
	return p.sealed
}

// pause ends the taking of writes, or has them taken again.
func (p *pending) pause(through bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.through = through
}

// takes reports whether writes are taken.
func (p *pending) takes() bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.through
}

// Why a write is not taken.
var (
	errEnds    = fmt.Errorf("%w: the cache host ends", photos.ErrUnavailable)
	errThrough = errors.New("everything is written through for now")
)

// add takes a write that made a record what it is now; full says that there is enough
// for one more batch since. It is not taken when nobody would flush it any more, or for
// now.
func (p *pending) add(photo photos.Photo, text []byte, w cache.Write) (full bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.sealed:
		return false, errEnds
	case p.through:
		return false, errThrough
	}
	u := p.records[photo.ID]
	if u == nil {
		u = &unflushed{Written: photos.Written{Base: photo.Version - 1}}
		p.records[photo.ID], p.keys[cache.PhotoKey(photo.ID).String()] = u, u
		full = len(p.records)%batchRows == 0
	}
	u.Photo, u.text = photo, text
	if w.Comment != nil {
		u.Comments = append(u.Comments, *w.Comment)
	}
	u.writes++
	p.writes++
	return full, nil
}

// ids lists the records that wait.
func (p *pending) ids() []photos.ID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.records)) // so that whoever locks several records locks them in one order
}

// now is what waits of the first of some records, at this moment; the rest are those that
// did not find room among so many rows, and of some in the batch there is more.
func (p *pending) now(ids []photos.ID, rows int) (batch []unflushed, rest, more []photos.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, id := range ids {
		u := p.records[id]
		if u == nil {
			continue
		}
		part := u.part()
		if u.tried != nil {
			part = *u.tried
		}
		if rows -= 1 + len(part.Comments); rows < 0 && len(batch) > 0 {
			return batch, ids[i:], more
		}
		batch = append(batch, part)
		if part.writes < u.writes {
			more = append(more, id)
		}
	}
	return batch, nil, more
}

// part is the record without the comments for which there is no room in one batch: as it
// would be if these were the last that was written to it.
func (u *unflushed) part() unflushed {
	part := *u
	left := max(len(u.Comments)-portion, 0)
	part.Comments = slices.Clip(u.Comments[:len(u.Comments)-left])
	part.Photo.Comments -= int64(left)
	part.Photo.Version -= int64(left)
	part.writes -= int64(left)
	return part
}

// failed notes that nobody knows whether these were written.
func (p *pending) failed(batch []unflushed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range batch {
		u.Resent = true
		p.records[u.Photo.ID].tried = &u
	}
}

// broken notes that a record cannot be written though the records are there, and
// returns how often that was so, one after the other.
func (p *pending) broken(id photos.ID) (times int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.records[id].failures++
	return p.records[id].failures
}

// done takes away what was written of a record.
func (p *pending) done(written unflushed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.records[written.Photo.ID]
	u.Comments = u.Comments[len(written.Comments):]
	u.writes -= written.writes
	p.writes -= written.writes
	u.Base, u.tried, u.failures = written.Photo.Version, nil, 0
	if u.writes == 0 {
		p.remove(u)
	}
}

// refused takes away all that waits of a record, and returns how many writes it is.
func (p *pending) refused(id photos.ID) (writes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.records[id]
	p.writes -= u.writes
	p.remove(u)
	return u.writes
}

// remove is called by who holds the lock.
func (p *pending) remove(u *unflushed) {
	delete(p.records, u.Photo.ID)
	delete(p.keys, cache.PhotoKey(u.Photo.ID).String())
	if p.room != nil {
		close(p.room)
		p.room = nil
	}
}

// awaitRoom waits until one more record may wait; urge is called when it has to.
func (p *pending) awaitRoom(ctx context.Context, id photos.ID, urge func()) error {
	for {
		p.mu.Lock()
		if len(p.records) < p.max || p.records[id] != nil {
			p.mu.Unlock()
			return nil
		}
		if p.room == nil {
			p.room = make(chan struct{})
		}
		room := p.room
		p.mu.Unlock()
		urge()
		select {
		case <-room:
		case <-ctx.Done():
			return fmt.Errorf("%w: %d records wait to be flushed: %w", photos.ErrUnavailable, p.max, ctx.Err())
		}
	}
}

// applyLater takes a write that the records get later.
func (f *Proxy) applyLater(ctx context.Context, id photos.ID, key string, w cache.Write) (version int64, err error) {
	// Before the stripe is held, which the flusher may need to make room.
	if err := f.pending.awaitRoom(ctx, id, f.urge); err != nil {
		return 0, err
	}
	s := f.stripe(key)
	if err := s.hold(ctx); err != nil {
		return 0, err
	}
	defer s.release()
	defer f.written(s, key)
	photo, err := f.newest(ctx, id)
	if err != nil {
		return 0, err
	}
	if w.Rename != nil && w.Rename.Owner != photo.UserID {
		return 0, fmt.Errorf("rename photo %d for user %d: %w", id, w.Rename.Owner, photos.ErrForbidden)
	}
	change(&photo, w)
	text, err := json.Marshal(photo)
	if err != nil {
		return 0, fmt.Errorf("cacheproxy: photo %d: %w", id, err)
	}
	full, err := f.pending.add(photo, text, w)
	if err != nil {
		return 0, err
	}
	if full {
		f.urge()
	}
	return photo.Version, nil
}

// urge asks the flusher to begin.
func (f *Proxy) urge() {
	select {
	case f.urgent <- struct{}{}:
	default: // it has been asked
	}
}

// newest is a photo's record after all writes that came by here. Without any that waits
// it is read: what the values have may be from before a time in which another host
// wrote, and writes built upon that would be refused. When the records are away it is
// the best there is.
func (f *Proxy) newest(ctx context.Context, id photos.ID) (photo photos.Photo, err error) {
	if photo, found := f.pending.get(id); found {
		return photo, nil
	}
	f.figures.loads.Inc()
	photo, err = f.config.Records.Photo(ctx, id)
	if !errors.Is(err, photos.ErrUnavailable) {
		return photo, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.config.Timeout)
	defer cancel()
	value, found, unasked := f.config.Values.Get(ctx, cache.PhotoKey(id).String())
	if unasked == nil && found && json.Unmarshal(value, &photo) == nil {
		return photo, nil
	}
	return photo, err
}

// flushEach flushes at each interval, or when there is enough for a batch.
func (f *Proxy) flushEach(ctx context.Context) {
	tick := time.NewTicker(f.config.FlushInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-f.urgent:
		case <-ctx.Done():
			return
		}
		if err := f.flush(ctx); err != nil && ctx.Err() == nil {
			f.config.Log.Warn("what was written cannot be flushed", "writes", f.pending.count(), "error", err.Error())
		}
	}
}

// flush writes what waits, a batch after the other, until the records are unavailable.
func (f *Proxy) flush(ctx context.Context) error {
	var all error
	for rest := f.pending.ids(); len(rest) > 0; {
		var err error
		rest, err = f.flushSome(ctx, rest)
		all = errors.Join(all, err)
		if errors.Is(err, photos.ErrUnavailable) || ctx.Err() != nil {
			break
		}
	}
	return all
}

// flushSome writes what waits of the first of some records, settles each of them and
// returns the others, those last of which there is more. Its caller holds no stripe.
func (f *Proxy) flushSome(ctx context.Context, ids []photos.ID) (rest []photos.ID, err error) {
	select {
	case f.flushing <- struct{}{}:
		defer func() { <-f.flushing }()
	case <-ctx.Done():
		return ids, fmt.Errorf("%w: others are flushed: %w", photos.ErrUnavailable, ctx.Err())
	}
	batch, rest, more := f.pending.now(ids, f.rows)
	if err := f.writeBatch(ctx, batch); err != nil {
		return rest, err
	}
	return slices.Concat(rest, more), nil
}

// writeBatch writes what waits of some records in one transaction. When it is not the
// records that are unavailable, it is something in the batch: then each has its own.
func (f *Proxy) writeBatch(ctx context.Context, batch []unflushed) error {
	if len(batch) == 0 {
		return nil
	}
	written := make([]photos.Written, len(batch))
	for i, u := range batch {
		written[i] = u.Written
	}
	bounded, cancel := context.WithTimeout(ctx, f.config.Timeout)
	defer cancel()
	refused, err := f.config.Records.WriteBack(bounded, written)
	if err == nil {
		f.rows = min(f.rows+batchRows/10, batchRows)
		f.figures.batches.Inc()
		for _, u := range batch {
			f.settle(context.WithoutCancel(ctx), u, slices.Contains(refused, u.Photo.ID))
		}
		return nil
	}
	f.figures.failed.Inc()
	f.pending.failed(batch)
	if bounded.Err() != nil && ctx.Err() == nil { // too much for its time: what is slow gets less
		f.rows = max(1, f.rows/2)
	}
	switch {
	case errors.Is(err, photos.ErrUnavailable) || bounded.Err() != nil:
		return err
	case len(batch) > 1:
		var all error
		for _, u := range batch {
			u.Resent = true
			all = errors.Join(all, f.writeBatch(ctx, []unflushed{u}))
		}
		return all
	case f.pending.broken(batch[0].Photo.ID) >= patience:
		f.config.Log.Error("a record cannot be written back and is given up",
			"photo", int64(batch[0].Photo.ID), "error", err.Error())
		f.settle(context.WithoutCancel(ctx), batch[0], true)
	}
	return err
}

// settle notes that a record was written, or refused, and gives it to the values.
func (f *Proxy) settle(ctx context.Context, u unflushed, refused bool) {
	key := cache.PhotoKey(u.Photo.ID).String()
	s := f.stripe(key)
	_ = s.hold(ctx) // which has no end; whoever holds it is bounded by a timeout
	defer s.release()
	ctx, cancel := context.WithTimeout(ctx, f.config.Timeout)
	defer cancel()
	if refused {
		// Somebody else wrote the record, or deleted it: what is built on another state
		// of it is lost with the rest.
		lost := f.pending.refused(u.Photo.ID)
		f.figures.refused.Add(float64(lost))
		f.config.Log.Warn("writes were acknowledged and then refused", "photo", int64(u.Photo.ID), "writes", lost)
		f.drop(ctx, key)
		return
	}
	f.figures.flushed.Add(float64(u.writes))
	// The value is stored before the record stops to wait, so that nobody reads an
	// older one in between.
	f.keep(ctx, key, u.text, f.config.TTL)
	f.pending.done(u)
}
