package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// AsideConfig is the configuration of look-aside caching.
type AsideConfig struct {
	Records photos.Records // the database
	Client  *Client
	// TTL is the time to live of photos and users. FeedTTL is that of lists of photos,
	// which writes do not invalidate; 0 = lists are not cached.
	TTL, FeedTTL time.Duration
	// SingleFlight merges concurrent misses of a key into one read of the database.
	SingleFlight bool
}

// TierConfig is the configuration of a Tier.
type TierConfig struct {
	AsideConfig
	ReadThrough bool // the cache hosts load missing records
	Writes      bool // the cache hosts write photos, with write-through or write-back
}

// Tier implements photos.Records with a cache in front of the database. When the cache
// hosts do not load or write themselves, it uses look-aside: after a miss it reads the
// database and fills the cache, and after a write it deletes the outdated keys. A list
// contains many records, so writes do not invalidate it; it expires.
//
// A cache host that does not answer counts as a miss. Look-aside has a known race: a
// write can come between the read and the fill, and the cache then keeps the old record
// until it expires. Stagebench measures this race and does not prevent it.
type Tier struct {
	photos.Records // the methods that are not cached
	config         TierConfig
}

// NewTier returns a tier.
func NewTier(c TierConfig) (*Tier, error) {
	if c.Records == nil || c.Client == nil {
		return nil, errors.New("cache: Records and Client are required")
	}
	if c.TTL <= 0 || c.FeedTTL < 0 {
		return nil, fmt.Errorf("cache: TTL is %v, want more than 0; FeedTTL is %v, want 0 or more", c.TTL, c.FeedTTL)
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

// User returns a user's record without the password digest. A login reads the digest
// with UserByLogin, which is not cached.
func (t *Tier) User(ctx context.Context, id photos.ID) (photos.User, error) {
	u, hit, err := cached(ctx, t, UserKey(id), t.config.TTL, func(ctx context.Context) (photos.User, error) {
		u, err := t.Records.User(ctx, id)
		u.Password = ""
		return u, err
	})
	u.Cached = hit
	return u, err
}

// Feed returns the newest photos of the users that a user follows.
func (t *Tier) Feed(ctx context.Context, user photos.ID, limit int) ([]photos.Photo, error) {
	key := Key{Feed, user, limit}
	list, _, err := cached(ctx, t, key, t.config.FeedTTL, func(ctx context.Context) ([]photos.Photo, error) {
		return t.Records.Feed(ctx, user, limit)
	})
	return list, err
}

// Newest returns the newest photos of all users.
func (t *Tier) Newest(ctx context.Context, limit int) ([]photos.Photo, error) {
	key := Key{Newest, 0, limit}
	list, _, err := cached(ctx, t, key, t.config.FeedTTL, func(ctx context.Context) ([]photos.Photo, error) {
		return t.Records.Newest(ctx, limit)
	})
	return list, err
}

// AddPhoto stores a new photo. It invalidates the user's record, which counts photos.
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

// DeletePhoto deletes a photo. It invalidates the user's record, which counts photos.
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

// FinishPhoto ends the processing of a photo.
func (t *Tier) FinishPhoto(ctx context.Context, end photos.Processed) (int64, error) {
	return t.write(ctx, end.Photo, Write{Finish: &end}, func() (int64, error) {
		return t.Records.FinishPhoto(ctx, end)
	}, PhotoKey(end.Photo))
}

// Follow makes one user follow another. It invalidates the records of both, which count
// followers.
func (t *Tier) Follow(ctx context.Context, follow photos.Follow) error {
	err := t.Records.Follow(ctx, follow)
	t.invalidate(ctx, err, UserKey(follow.Follower), UserKey(follow.Followee))
	return err
}

// write writes a photo and invalidates the outdated keys. When the cache hosts write,
// the host of the photo also updates the photo's own key. When no cache host received
// the write, the web host writes to the database with direct. When a host received it
// and did not answer, the result is unknown: writing again could apply the write twice,
// so the caller gets photos.ErrUnavailable.
func (t *Tier) write(
	ctx context.Context, id photos.ID, w Write, direct func() (int64, error), outdated ...Key,
) (version int64, err error) {
	if t.config.Writes {
		version, err = t.config.Client.Apply(ctx, PhotoKey(id).String(), w)
		if !errors.Is(err, errNotSent) {
			if errors.Is(err, ErrUnavailable) {
				version, err = 0, sut.OfTier(sut.Cache, fmt.Errorf("%w: %w", photos.ErrUnavailable, err))
			}
			own := func(k Key) bool { return k == PhotoKey(id) }
			t.invalidate(ctx, err, slices.DeleteFunc(outdated, own)...)
			return version, err
		}
	}
	if t.config.Writes {
		sut.NoteWithout(ctx, sut.Cache)
	}
	version, err = direct()
	t.invalidate(ctx, err, outdated...)
	return version, err
}

// invalidate deletes keys after a write. It keeps them when the error of the write
// proves that nothing has changed.
func (t *Tier) invalidate(ctx context.Context, writeErr error, keys ...Key) {
	if isRecordError(writeErr) && !errors.Is(writeErr, photos.ErrUnavailable) {
		return
	}
	// Without this, a canceled request would leave the old values in the cache.
	ctx = context.WithoutCancel(ctx)
	for _, key := range keys {
		// A host that does not answer keeps the old value until it expires. The client
		// counts the error.
		if err := t.config.Client.Delete(ctx, key.String()); errors.Is(err, ErrUnavailable) {
			sut.NoteWithout(ctx, sut.Cache)
		}
	}
}

// cached reads a value from the cache (hit is true) or from the database. A ttl of 0 bypasses the cache, and so does
// a request that wants no cached value. With read-through the cache host loads a missing value; the web host reads
// the database only when no cache host is available.
func cached[T any](
	ctx context.Context, t *Tier, key Key, ttl time.Duration, read func(context.Context) (T, error),
) (value T, hit bool, err error) {
	defer func() {
		if hit {
			sut.NoteCached(ctx)
		}
	}()
	switch {
	case ttl == 0 || sut.WantsFresh(ctx):
	case !t.config.ReadThrough:
		return lookAside(ctx, t, key, ttl, read)
	default:
		text, hit, err := t.config.Client.Fetch(ctx, key.String())
		if err == nil {
			value, err = decode[T](key, text)
		}
		if !errors.Is(err, ErrUnavailable) {
			return value, hit && err == nil, err
		}
		sut.NoteWithout(ctx, sut.Cache)
	}
	value, err = read(ctx)
	return value, false, err
}

func decode[T any](key Key, text []byte) (value T, err error) {
	if err := json.Unmarshal(text, &value); err != nil {
		return value, fmt.Errorf("cache %s: %w", key, err)
	}
	return value, nil
}

// lookAside reads a value from the cache. After a miss it reads the database and fills
// the cache.
func lookAside[T any](
	ctx context.Context, t *Tier, key Key, ttl time.Duration, read func(context.Context) (T, error),
) (value T, hit bool, err error) {
	text, found, err := t.config.Client.Get(ctx, key.String())
	if err == nil && found && json.Unmarshal(text, &value) == nil {
		return value, true, nil
	}
	if errors.Is(err, ErrUnavailable) {
		sut.NoteWithout(ctx, sut.Cache)
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
		// An error is ignored: the next request misses too and fills the cache.
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
		value, err = decode[T](key, text)
	}
	return value, false, err
}
