package cacheproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/photos"
)

// Apply writes to a photo's record. It returns the new version of the record, or 0
// after a deletion. With write-through it returns when the database has stored the
// write; with write-back it returns when the write is in the backlog.
func (p *Proxy) Apply(ctx context.Context, key string, w cache.Write) (version int64, err error) {
	id, err := w.Photo()
	if err == nil && cache.PhotoKey(id).String() != key {
		err = fmt.Errorf("a write to photo %d does not belong to the key %.100q", id, key)
	}
	if err != nil {
		return 0, err
	}
	if p.backlog.accepting() && w.Add == nil && w.Delete == nil && w.Finish == nil {
		version, err := p.applyWriteBack(ctx, id, key, w)
		if !errors.Is(err, errPaused) {
			return version, err
		}
	}
	s := p.stripe(key)
	if err := p.lockAndFlush(ctx, s, id, key); err != nil {
		return 0, err
	}
	defer s.unlock()
	defer p.discardLoads(s, key)
	return p.writeThrough(ctx, key, w)
}

// lockAndFlush locks a stripe and makes sure that the given record has no unflushed
// writes.
func (p *Proxy) lockAndFlush(ctx context.Context, s *stripe, id photos.ID, key string) error {
	for {
		if err := s.lock(ctx); err != nil {
			return err
		}
		if _, unflushed := p.backlog.value(key); !unflushed {
			return nil
		}
		s.unlock() // flushBatch locks it
		if _, err := p.flushBatch(ctx, []photos.ID{id}); err != nil {
			return err
		}
	}
}

// writeThrough writes to the database and then to the cached values. The caller holds
// the stripe of the key.
func (p *Proxy) writeThrough(ctx context.Context, key string, w cache.Write) (version int64, err error) {
	version, err = p.write(ctx, w)
	// The database may have stored the write even when ctx has ended. Without a new
	// context, the cache would keep the old value.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.config.Timeout)
	defer cancel()
	switch {
	case errors.Is(err, photos.ErrNotFound):
		p.remove(ctx, key) // another writer has deleted the photo
		return 0, err
	case errors.Is(err, photos.ErrForbidden), errors.Is(err, photos.ErrConflict):
		return 0, err // nothing has changed
	case err != nil, w.Delete != nil:
		// After any other error the state of the record is unknown.
		p.remove(ctx, key)
		return 0, err
	}
	value, known := p.valueAfter(ctx, key, w, version)
	if known {
		p.store(ctx, key, value, p.config.TTL)
	} else {
		p.remove(ctx, key)
	}
	return version, nil
}

// write writes to the database.
func (p *Proxy) write(ctx context.Context, w cache.Write) (version int64, err error) {
	r := p.config.Records
	switch {
	case w.Like != nil:
		return r.Like(ctx, w.Like.Photo, w.Like.User)
	case w.Comment != nil:
		return r.Comment(ctx, *w.Comment)
	case w.Rename != nil:
		return r.RenamePhoto(ctx, w.Rename.Photo, w.Rename.Owner, w.Rename.Title)
	case w.Finish != nil:
		return r.FinishPhoto(ctx, *w.Finish)
	case w.Add != nil:
		return w.Add.Version, r.AddPhoto(ctx, *w.Add)
	}
	return 0, r.DeletePhoto(ctx, w.Delete.Photo, w.Delete.Owner)
}

// valueAfter returns the encoded record after a write. It applies the write to the cached
// value; an added photo needs none. version is the version that the database returned.
// known is false if there is no usable cached value, or if the result has another version.
// Then the cached value was out of date, for example because another cache host wrote.
func (p *Proxy) valueAfter(ctx context.Context, key string, w cache.Write, version int64) (value []byte, known bool) {
	var photo photos.Photo
	if w.Add != nil {
		photo = *w.Add
	} else {
		cached, found, err := p.config.Values.Get(ctx, key)
		if err != nil || !found || json.Unmarshal(cached, &photo) != nil {
			return nil, false
		}
		if applyTo(&photo, w); photo.Version != version {
			return nil, false
		}
	}
	value, err := json.Marshal(photo)
	return value, err == nil
}

// applyTo changes a record exactly as the database does for the same write.
func applyTo(p *photos.Photo, w cache.Write) {
	switch {
	case w.Like != nil:
		p.Likes++
	case w.Comment != nil:
		p.Comments++
	case w.Rename != nil:
		p.Title = w.Rename.Title
	case w.Finish != nil:
		p.State, p.DoneUS = w.Finish.State, w.Finish.DoneUS
	}
	p.Version++
}
