package cacheproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/photos"
)

// Apply writes to a photo's record, and returns its new version, which is 0 after a
// deletion. It is acknowledged when the records have it, or with write-back when the
// front has.
func (f *Proxy) Apply(ctx context.Context, text string, w cache.Write) (version int64, err error) {
	id, err := w.Photo()
	if err == nil && cache.PhotoKey(id).String() != text {
		err = fmt.Errorf("a write to photo %d does not belong to the key %.100q", id, text)
	}
	if err != nil {
		return 0, err
	}
	if f.pending.takes() && w.Add == nil && w.Delete == nil {
		version, err := f.applyLater(ctx, id, text, w)
		if !errors.Is(err, errThrough) {
			return version, err
		}
	}
	s := f.stripe(text)
	if err := f.holdFlushed(ctx, s, id, text); err != nil {
		return 0, err
	}
	defer s.release()
	defer f.written(s, text)
	return f.writeThrough(ctx, text, w)
}

// holdFlushed waits for a stripe at a moment when nothing of a record waits to be
// flushed.
func (f *Proxy) holdFlushed(ctx context.Context, s *stripe, id photos.ID, text string) error {
	for {
		if err := s.hold(ctx); err != nil {
			return err
		}
		if _, waits := f.pending.text(text); !waits {
			return nil
		}
		s.release() // which the flusher needs
		if _, err := f.flushSome(ctx, []photos.ID{id}); err != nil {
			return err
		}
	}
}

// writeThrough writes to the records and then to the values. The holder of the key's
// stripe calls it.
func (f *Proxy) writeThrough(ctx context.Context, text string, w cache.Write) (version int64, err error) {
	version, err = f.write(ctx, w)
	// The write may be done: the values hear of it even when its time is over.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.config.Timeout)
	defer cancel()
	switch {
	case errors.Is(err, photos.ErrNotFound):
		f.drop(ctx, text) // somebody else has deleted it
		return 0, err
	case errors.Is(err, photos.ErrForbidden), errors.Is(err, photos.ErrConflict):
		return 0, err // nothing has changed
	case err != nil, w.Delete != nil:
		// After an error nobody knows what the record is.
		f.drop(ctx, text)
		return 0, err
	}
	value, known := f.after(ctx, text, w, version)
	if known {
		f.keep(ctx, text, value, f.config.TTL)
	} else {
		f.drop(ctx, text)
	}
	return version, nil
}

// write writes to the records.
func (f *Proxy) write(ctx context.Context, w cache.Write) (version int64, err error) {
	r := f.config.Records
	switch {
	case w.Like != nil:
		return r.Like(ctx, w.Like.Photo, w.Like.User)
	case w.Comment != nil:
		return r.Comment(ctx, *w.Comment)
	case w.Rename != nil:
		return r.RenamePhoto(ctx, w.Rename.Photo, w.Rename.Owner, w.Rename.Title)
	case w.Add != nil:
		return w.Add.Version, r.AddPhoto(ctx, *w.Add)
	}
	return 0, r.DeletePhoto(ctx, w.Delete.Photo, w.Delete.Owner)
}

// after is the text of a record after a write that gave it a version, if that
// follows from what the values have: another front may have written in between.
func (f *Proxy) after(ctx context.Context, text string, w cache.Write, version int64) (value []byte, known bool) {
	var photo photos.Photo
	if w.Add != nil {
		photo = *w.Add
	} else {
		cached, found, err := f.config.Values.Get(ctx, text)
		if err != nil || !found || json.Unmarshal(cached, &photo) != nil {
			return nil, false
		}
		if change(&photo, w); photo.Version != version {
			return nil, false
		}
	}
	value, err := json.Marshal(photo)
	return value, err == nil
}

// change does to a record what the records do to theirs.
func change(p *photos.Photo, w cache.Write) {
	switch {
	case w.Like != nil:
		p.Likes++
	case w.Comment != nil:
		p.Comments++
	case w.Rename != nil:
		p.Title = w.Rename.Title
	}
	p.Version++
}
