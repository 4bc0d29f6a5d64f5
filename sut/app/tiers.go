package app

import (
	"context"
	"time"

	"github.com/stagebench/stagebench/sut/photos"
)

// Tiers that a request can miss, as HeaderDegraded names them.
const (
	tierDB      = "db"
	tierBlob    = "blob"
	tierSession = "session"
)

// UserStore keeps accounts. Following somebody twice changes nothing.
type UserStore interface {
	User(ctx context.Context, id photos.ID) (photos.User, error)
	UserByLogin(ctx context.Context, login string) (photos.User, error)
	Follow(ctx context.Context, follow photos.Follow) error
}

// PhotoReader reads photos. Lists are sorted from the newest to the oldest.
type PhotoReader interface {
	Photo(ctx context.Context, id photos.ID) (photos.Photo, error)
	// Feed returns photos of the users whom a user follows.
	Feed(ctx context.Context, user photos.ID, limit int) ([]photos.Photo, error)
	Newest(ctx context.Context, limit int) ([]photos.Photo, error)
}

// PhotoWriter changes photos. Only the owner may rename or delete one: anybody
// else gets photos.ErrForbidden.
type PhotoWriter interface {
	AddPhoto(ctx context.Context, photo photos.Photo) error
	RenamePhoto(ctx context.Context, id, owner photos.ID, title string) (version int64, err error)
	DeletePhoto(ctx context.Context, id, owner photos.ID) error
}

// Reactions adds what people say to a photo, and returns the photo's new
// version.
type Reactions interface {
	Like(ctx context.Context, photo, user photos.ID) (version int64, err error)
	Comment(ctx context.Context, comment photos.Comment) (version int64, err error)
}

// Store keeps the records. Its errors wrap photos.ErrNotFound, ErrForbidden,
// ErrConflict and ErrUnavailable; any other is taken for a mistake in the store.
type Store interface {
	UserStore
	PhotoReader
	PhotoWriter
	Reactions
}

// BlobReader reads the bytes of photos. The caller does not write to them.
type BlobReader interface {
	Get(ctx context.Context, id photos.ID, v photos.Variant) ([]byte, error)
	Head(ctx context.Context, id photos.ID, v photos.Variant) (size int64, err error)
}

// BlobWriter changes the bytes of photos.
type BlobWriter interface {
	Put(ctx context.Context, id photos.ID, v photos.Variant, data []byte) error
	Delete(ctx context.Context, id photos.ID, v photos.Variant) error
}

// Blobs keeps the bytes of photos. Its errors wrap photos.ErrNotFound and
// ErrUnavailable; any other is taken for a mistake in the blob store.
type Blobs interface {
	BlobReader
	BlobWriter
}

// Sessions keeps who is logged in. A token that stands for nobody is
// photos.ErrNotFound; ending it is no error.
type Sessions interface {
	Start(ctx context.Context, user photos.ID) (token string, expires time.Time, err error)
	User(ctx context.Context, token string) (photos.ID, error)
	End(ctx context.Context, token string) error
}
