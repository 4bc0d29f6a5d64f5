package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/stagebench/stagebench/sut/photos"
)

// TierConfig says what the cache tier does by itself.
type TierConfig struct {
	AsideConfig
	// ReadThrough has the cache tier load what it does not have.
	ReadThrough bool
	// Writes has the cache tier write to photos, at once or later.
	Writes bool
}

// Tier is records behind a cache tier that loads or writes them itself. What it does
// not do the web host does, as Aside has it: writes that are not to a photo, and
// everything when no cache host answers.
type Tier struct {
	*Aside
	config TierConfig
}

// NewTier returns records behind a cache tier.
func NewTier(c TierConfig) (*Tier, error) {
	aside, err := NewAside(c.AsideConfig)
	if err != nil {
		return nil, err
	}
	return &Tier{Aside: aside, config: c}, nil
}

// fetch has the cache tier answer with a record. Without a cache host that answers
// the web host reads it.
func fetch[T any](
	ctx context.Context, t *Tier, key Key, aside, records func() (T, error),
) (value T, hit bool, err error) {
	if !t.config.ReadThrough {
		value, err = aside()
		return value, false, err
	}
	text, hit, err := t.config.Client.Fetch(ctx, key.String())
	switch {
	case errors.Is(err, ErrUnavailable):
		value, err = records()
		return value, false, err
	case err != nil:
		return value, false, err
	}
	if err := json.Unmarshal(text, &value); err != nil {
		return value, false, fmt.Errorf("cache %s: %w", key, err)
	}
	return value, hit, nil
}

// Photo returns a photo's record.
func (t *Tier) Photo(ctx context.Context, id photos.ID) (photos.Photo, error) {
	p, hit, err := fetch(ctx, t, PhotoKey(id),
		func() (photos.Photo, error) { return t.Aside.Photo(ctx, id) },
		func() (photos.Photo, error) { return t.Records.Photo(ctx, id) })
	p.Cached = p.Cached || hit
	return p, err
}

// User returns a user's record, without the digest of the password.
func (t *Tier) User(ctx context.Context, id photos.ID) (photos.User, error) {
	u, hit, err := fetch(ctx, t, UserKey(id),
		func() (photos.User, error) { return t.Aside.User(ctx, id) },
		func() (photos.User, error) { return t.Records.User(ctx, id) })
	u.Cached = u.Cached || hit
	return u, err
}

// Feed returns the newest photos of those whom a user follows.
func (t *Tier) Feed(ctx context.Context, user photos.ID, limit int) ([]photos.Photo, error) {
	if t.config.FeedTTL == 0 {
		return t.Records.Feed(ctx, user, limit)
	}
	list, _, err := fetch(ctx, t, Key{Feed, user, limit},
		func() ([]photos.Photo, error) { return t.Aside.Feed(ctx, user, limit) },
		func() ([]photos.Photo, error) { return t.Records.Feed(ctx, user, limit) })
	return list, err
}

// Newest returns the newest photos of all.
func (t *Tier) Newest(ctx context.Context, limit int) ([]photos.Photo, error) {
	if t.config.FeedTTL == 0 {
		return t.Records.Newest(ctx, limit)
	}
	list, _, err := fetch(ctx, t, Key{Newest, 0, limit},
		func() ([]photos.Photo, error) { return t.Aside.Newest(ctx, limit) },
		func() ([]photos.Photo, error) { return t.Records.Newest(ctx, limit) })
	return list, err
}

// apply has the cache tier write. Without a cache host that has got the write the web
// host does; of one that was sent and not answered nobody knows whether it was done.
func (t *Tier) apply(ctx context.Context, id photos.ID, w Write, aside func() (int64, error)) (int64, error) {
	if !t.config.Writes {
		return aside()
	}
	version, err := t.config.Client.Apply(ctx, PhotoKey(id).String(), w)
	switch {
	case errors.Is(err, errUnasked):
		return aside()
	case errors.Is(err, ErrUnavailable):
		return 0, fmt.Errorf("%w: %w", photos.ErrUnavailable, err)
	}
	return version, err
}

// AddPhoto stores a new photo; its user's counts have changed.
func (t *Tier) AddPhoto(ctx context.Context, photo photos.Photo) error {
	_, err := t.apply(ctx, photo.ID, Write{Add: &photo}, func() (int64, error) { return 0, t.Aside.AddPhoto(ctx, photo) })
	if t.config.Writes {
		t.forget(ctx, err, UserKey(photo.UserID).String())
	}
	return err
}

// RenamePhoto changes a title.
func (t *Tier) RenamePhoto(ctx context.Context, id, owner photos.ID, title string) (int64, error) {
	return t.apply(ctx, id, Write{Rename: &Rename{id, owner, title}}, func() (int64, error) {
		return t.Aside.RenamePhoto(ctx, id, owner, title)
	})
}

// DeletePhoto deletes a photo; its user's counts have changed.
func (t *Tier) DeletePhoto(ctx context.Context, id, owner photos.ID) error {
	_, err := t.apply(ctx, id, Write{Delete: &Delete{id, owner}}, func() (int64, error) {
		return 0, t.Aside.DeletePhoto(ctx, id, owner)
	})
	if t.config.Writes {
		t.forget(ctx, err, UserKey(owner).String())
	}
	return err
}

// Like adds a like.
func (t *Tier) Like(ctx context.Context, photo, user photos.ID) (int64, error) {
	return t.apply(ctx, photo, Write{Like: &Like{photo, user}}, func() (int64, error) {
		return t.Aside.Like(ctx, photo, user)
	})
}

// Comment adds a comment.
func (t *Tier) Comment(ctx context.Context, comment photos.Comment) (int64, error) {
	return t.apply(ctx, comment.PhotoID, Write{Comment: &comment}, func() (int64, error) {
		return t.Aside.Comment(ctx, comment)
	})
}
