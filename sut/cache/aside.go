package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// Aside reads records the look-aside way and writes around the cache: who misses
// reads the record and fills the cache, who writes removes what the write has made
// old. Lists of photos are of many records, so that no write can remove them: they
// grow old.
//
// A cache host that does not answer is a miss. Between the reading of a record and
// the filling, somebody may write it: what is filled then is old until it expires.
// That is a property of the strategy and is measured, not mended.
type Aside struct {
	photos.Records // what is not cached
	config         AsideConfig
}

// NewAside returns records behind a cache.
func NewAside(c AsideConfig) (*Aside, error) {
	if c.Records == nil || c.Client == nil {
		return nil, errors.New("cache: look-aside needs records and a client")
	}
	if c.TTL <= 0 || c.FeedTTL < 0 {
		return nil, fmt.Errorf("cache: times to live of %v and %v: want more than 0, and 0 or more", c.TTL, c.FeedTTL)
	}
	return &Aside{Records: c.Records, config: c}, nil
}

// Photo returns a photo's record.
func (a *Aside) Photo(ctx context.Context, id photos.ID) (photos.Photo, error) {
	p, hit, err := through(ctx, a, PhotoKey(id), a.config.TTL, func(ctx context.Context) (photos.Photo, error) {
		return a.Records.Photo(ctx, id)
	})
	p.Cached = hit
	return p, err
}

// User returns a user's record, without the digest of the password: who logs in is
// looked up by name.
func (a *Aside) User(ctx context.Context, id photos.ID) (photos.User, error) {
	u, hit, err := through(ctx, a, UserKey(id), a.config.TTL, func(ctx context.Context) (photos.User, error) {
		u, err := a.Records.User(ctx, id)
		u.Password = ""
		return u, err
	})
	u.Cached = hit
	return u, err
}

// Feed returns the newest photos of those whom a user follows.
func (a *Aside) Feed(ctx context.Context, user photos.ID, limit int) ([]photos.Photo, error) {
	if a.config.FeedTTL == 0 {
		return a.Records.Feed(ctx, user, limit)
	}
	key := Key{Feed, user, limit}
	list, _, err := through(ctx, a, key, a.config.FeedTTL, func(ctx context.Context) ([]photos.Photo, error) {
		return a.Records.Feed(ctx, user, limit)
	})
	return list, err
}

// Newest returns the newest photos of all.
func (a *Aside) Newest(ctx context.Context, limit int) ([]photos.Photo, error) {
	if a.config.FeedTTL == 0 {
		return a.Records.Newest(ctx, limit)
	}
	key := Key{Newest, 0, limit}
	list, _, err := through(ctx, a, key, a.config.FeedTTL, func(ctx context.Context) ([]photos.Photo, error) {
		return a.Records.Newest(ctx, limit)
	})
	return list, err
}

// AddPhoto stores a new photo; its user's counts have changed.
func (a *Aside) AddPhoto(ctx context.Context, photo photos.Photo) error {
	err := a.Records.AddPhoto(ctx, photo)
	a.forget(ctx, err, UserKey(photo.UserID).String())
	return err
}

// RenamePhoto changes a title.
func (a *Aside) RenamePhoto(ctx context.Context, id, owner photos.ID, title string) (int64, error) {
	version, err := a.Records.RenamePhoto(ctx, id, owner, title)
	a.forget(ctx, err, PhotoKey(id).String())
	return version, err
}

// DeletePhoto deletes a photo; its user's counts have changed.
func (a *Aside) DeletePhoto(ctx context.Context, id, owner photos.ID) error {
	err := a.Records.DeletePhoto(ctx, id, owner)
	a.forget(ctx, err, PhotoKey(id).String(), UserKey(owner).String())
	return err
}

// Like adds a like.
func (a *Aside) Like(ctx context.Context, photo, user photos.ID) (int64, error) {
	version, err := a.Records.Like(ctx, photo, user)
	a.forget(ctx, err, PhotoKey(photo).String())
	return version, err
}

// Comment adds a comment.
func (a *Aside) Comment(ctx context.Context, comment photos.Comment) (int64, error) {
	version, err := a.Records.Comment(ctx, comment)
	a.forget(ctx, err, PhotoKey(comment.PhotoID).String())
	return version, err
}

// Follow makes one user follow another; the counts of both have changed.
func (a *Aside) Follow(ctx context.Context, follow photos.Follow) error {
	err := a.Records.Follow(ctx, follow)
	a.forget(ctx, err, UserKey(follow.Follower).String(), UserKey(follow.Followee).String())
	return err
}

// forget removes what a write has made old. A write that failed without saying
// that nothing has changed may have changed something.
func (a *Aside) forget(ctx context.Context, written error, keys ...string) {
	if ofRecords(written) && !errors.Is(written, photos.ErrUnavailable) {
		return
	}
	// The write is done: who has left does not keep others from seeing it.
	ctx = context.WithoutCancel(ctx)
	for _, key := range keys {
		// A host that does not answer keeps what it has until that expires; it is
		// counted among the client's errors.
		_ = a.config.Client.Delete(ctx, key)
	}
}

// through reads a value from the cache, which is a hit, or reads it from the records
// and fills the cache.
func through[T any](
	ctx context.Context, a *Aside, of Key, ttl time.Duration, read func(context.Context) (T, error),
) (value T, hit bool, err error) {
	key := of.String()
	cached, found, err := a.config.Client.Get(ctx, key)
	if err == nil && found && json.Unmarshal(cached, &value) == nil {
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
		_ = a.config.Client.Set(ctx, key, text, ttl)
		return value, text, nil
	}
	if !a.config.SingleFlight {
		value, _, err = fill(ctx)
		return value, false, err
	}
	text, _, err := a.config.Client.Load(ctx, key, func(ctx context.Context) ([]byte, error) {
		_, text, err := fill(ctx)
		return text, err
	})
	if err != nil {
		return value, false, err
	}
	var fresh T
	if err := json.Unmarshal(text, &fresh); err != nil {
		return value, false, fmt.Errorf("cache %s: %w", key, err)
	}
	return fresh, false, nil
}
