package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stagebench/stagebench/sut/photos"
)

// AsideConfig says how records are cached.
type AsideConfig struct {
	Records photos.Records
	Client  *Client
	// TTL is how long a photo or a user is kept, FeedTTL a list of photos, which no
	// write removes; 0 = lists are not kept.
	TTL, FeedTTL time.Duration
	// SingleFlight has one of several requests that miss a key at a time read it
	// from the records, for all of them.
	SingleFlight bool
}

// TierConfig says what the cache tier does by itself.
type TierConfig struct {
	AsideConfig
	// ReadThrough has the cache tier load what it does not have.
	ReadThrough bool
	// Writes has the cache tier write to photos, at once or later.
	Writes bool
}

// Tier is records behind a cache tier. What the cache tier does not load or write
// itself is read the look-aside way and written around the cache: who misses reads the
// record and fills the cache, who writes removes what the write has made old. Lists of
// photos are of many records, so that no write can remove them: they grow old.
//
// A cache host that does not answer is a miss. Between the reading of a record and
// the filling, somebody may write it: what is filled then is old until it expires.
// That is a property of the strategy and is measured, not mended.
type Tier struct {
	photos.Records // what is not cached
	config         TierConfig
}

// NewTier returns records behind a cache tier.
func NewTier(c TierConfig) (*Tier, error) {
	if c.Records == nil || c.Client == nil {
		return nil, errors.New("cache: look-aside needs records and a client")
	}
	if c.TTL <= 0 || c.FeedTTL < 0 {
		return nil, fmt.Errorf("cache: times to live of %v and %v: want more than 0, and 0 or more", c.TTL, c.FeedTTL)
	}
	return &Tier{Records: c.Records, config: c}, nil
}

// Photo returns a photo's record.
func (t *Tier) Photo(ctx context.Context, id photos.ID) (photos.Photo, error) {
	p, hit, err := cached(ctx, t, PhotoKey(id), t.config.TTL, func(ctx context.Context) (photos.Photo, error) {
		return t.Records.Photo(ctx, id)
	})
	p.Cached = hit
	return p, err
}

// User returns a user's record, without the digest of the password: who logs in is
// looked up by name.
func (t *Tier) User(ctx context.Context, id photos.ID) (photos.User, error) {
	u, hit, err := cached(ctx, t, UserKey(id), t.config.TTL, func(ctx context.Context) (photos.User, error) {
		u, err := t.Records.User(ctx, id)
		u.Password = ""
		return u, err
	})
	u.Cached = hit
	return u, err
}

// Feed returns the newest photos of those whom a user follows.
func (t *Tier) Feed(ctx context.Context, user photos.ID, limit int) ([]photos.Photo, error) {
	key := Key{Feed, user, limit}
	list, _, err := cached(ctx, t, key, t.config.FeedTTL, func(ctx context.Context) ([]photos.Photo, error) {
		return t.Records.Feed(ctx, user, limit)
	})
	return list, err
}

// Newest returns the newest photos of all.
func (t *Tier) Newest(ctx context.Context, limit int) ([]photos.Photo, error) {
	key := Key{Newest, 0, limit}
	list, _, err := cached(ctx, t, key, t.config.FeedTTL, func(ctx context.Context) ([]photos.Photo, error) {
		return t.Records.Newest(ctx, limit)
	})
	return list, err
}

// AddPhoto stores a new photo; its user's counts have changed.
func (t *Tier) AddPhoto(ctx context.Context, photo photos.Photo) error {
	_, err := t.write(ctx, photo.ID, Write{Add: &photo}, func() (int64, error) {
		return 0, t.Records.AddPhoto(ctx, photo)
	}, UserKey(photo.UserID))
	return err
}

// RenamePhoto changes a title.
func (t *Tier) RenamePhoto(ctx context.Context, id, owner photos.ID, title string) (int64, error) {
	return t.write(ctx, id, Write{Rename: &Rename{id, owner, title}}, func() (int64, error) {
		return t.Records.RenamePhoto(ctx, id, owner, title)
	}, PhotoKey(id))
}

// DeletePhoto deletes a photo; its user's counts have changed.
func (t *Tier) DeletePhoto(ctx context.Context, id, owner photos.ID) error {
	_, err := t.write(ctx, id, Write{Delete: &Delete{id, owner}}, func() (int64, error) {
		return 0, t.Records.DeletePhoto(ctx, id, owner)
	}, PhotoKey(id), UserKey(owner))
	return err
}

// Like adds a like.
func (t *Tier) Like(ctx context.Context, photo, user photos.ID) (int64, error) {
	return t.write(ctx, photo, Write{Like: &Like{photo, user}}, func() (int64, error) {
		return t.Records.Like(ctx, photo, user)
	}, PhotoKey(photo))
}

// Comment adds a comment.
func (t *Tier) Comment(ctx context.Context, comment photos.Comment) (int64, error) {
	return t.write(ctx, comment.PhotoID, Write{Comment: &comment}, func() (int64, error) {
		return t.Records.Comment(ctx, comment)
	}, PhotoKey(comment.PhotoID))
}

// Follow makes one user follow another; the counts of both have changed.
func (t *Tier) Follow(ctx context.Context, follow photos.Follow) error {
	err := t.Records.Follow(ctx, follow)
	t.forget(ctx, err, UserKey(follow.Follower), UserKey(follow.Followee))
	return err
}

// write writes to a photo and removes what that has made old. The cache tier writes, if
// it does, and sees to the photo itself. Without a cache host that has got the write the
// web host does; of one that was sent and not answered nobody knows whether it was done.
func (t *Tier) write(
	ctx context.Context, id photos.ID, w Write, direct func() (int64, error), old ...Key,
) (version int64, err error) {
	if t.config.Writes {
		version, err = t.config.Client.Apply(ctx, PhotoKey(id).String(), w)
		if !errors.Is(err, errUnasked) {
			if errors.Is(err, ErrUnavailable) {
				version, err = 0, fmt.Errorf("%w: %w", photos.ErrUnavailable, err)
			}
			own := func(k Key) bool { return k == PhotoKey(id) }
			t.forget(ctx, err, slices.DeleteFunc(old, own)...)
			return version, err
		}
	}
	version, err = direct()
	t.forget(ctx, err, old...)
	return version, err
}

// forget removes what a write has made old. A write that failed without saying
// that nothing has changed may have changed something.
func (t *Tier) forget(ctx context.Context, written error, keys ...Key) {
	if ofRecords(written) && !errors.Is(written, photos.ErrUnavailable) {
		return
	}
	// The write is done: who has left does not keep others from seeing it.
	ctx = context.WithoutCancel(ctx)
	for _, key := range keys {
		// A host that does not answer keeps what it has until that expires; it is
		// counted among the client's errors.
		_ = t.config.Client.Delete(ctx, key.String())
	}
}

// cached reads a value from the cache, which is a hit, or from the records. With a time
// to live of 0 it is not cached; a cache tier that loads itself is waited for.
func cached[T any](
	ctx context.Context, t *Tier, key Key, ttl time.Duration, read func(context.Context) (T, error),
) (value T, hit bool, err error) {
	switch {
	case ttl == 0:
	case !t.config.ReadThrough:
		return aside(ctx, t, key, ttl, read)
	default:
		text, hit, err := t.config.Client.Fetch(ctx, key.String())
		if err == nil {
			value, err = decoded[T](key, text)
		}
		if !errors.Is(err, ErrUnavailable) {
			return value, hit && err == nil, err
		}
	}
	value, err = read(ctx)
	return value, false, err
}

func decoded[T any](key Key, text []byte) (value T, err error) {
	if err := json.Unmarshal(text, &value); err != nil {
		return value, fmt.Errorf("cache %s: %w", key, err)
	}
	return value, nil
}

// aside reads a value from the cache, or from the records to fill the cache.
func aside[T any](
	ctx context.Context, t *Tier, key Key, ttl time.Duration, read func(context.Context) (T, error),
) (value T, hit bool, err error) {
	text, found, err := t.config.Client.Get(ctx, key.String())
	if err == nil && found && json.Unmarshal(text, &value) == nil {
		return value, true, nil
	}
	fill := func(ctx context.Context) (T, []byte, error) {
		value, err := read(ctx)
		if err != nil {
			return value, nil, err
		}
		text, err := json.Marshal(value)
		if err != nil {
			return value, nil, fmt.Errorf("cache %s: %w", key, err)
		}
		// A host that does not answer is filled by the next one who misses.
		_ = t.config.Client.Set(ctx, key.String(), text, ttl)
		return value, text, nil
	}
	if !t.config.SingleFlight {
		value, _, err = fill(ctx)
		return value, false, err
	}
	text, _, err = t.config.Client.Load(ctx, key.String(), func(ctx context.Context) ([]byte, error) {
		_, text, err := fill(ctx)
		return text, err
	})
	if err == nil {
		value, err = decoded[T](key, text)
	}
	return value, false, err
}
