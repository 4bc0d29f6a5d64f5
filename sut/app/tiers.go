package app

import (
	"context"
	"time"

	"github.com/stagebench/stagebench/sut/photos"
)

// The names of tiers in HeaderDegraded.
const (
	tierDB      = "db"
	tierBlob    = "blob"
	tierSession = "session"
	tierCache   = "cache"
	tierQueue   = "queue"
)

// BlobReader reads the bytes of photos. The caller must not modify them.
type BlobReader interface {
	Get(ctx context.Context, id photos.ID, v photos.Variant) ([]byte, error)
	Head(ctx context.Context, id photos.ID, v photos.Variant) (size int64, err error)
}

// Blobs stores the bytes of photos. Its errors wrap photos.ErrNotFound or
// photos.ErrUnavailable. Any other error is answered with 500.
type Blobs interface {
	BlobReader
	photos.BlobWriter
}

// Jobs takes the photos that workers have to process. Put returns when the queue has stored the job. Its error wraps
// photos.ErrUnavailable if that is not certain; then somebody has to put the photo again.
type Jobs interface {
	Put(ctx context.Context, photo photos.ID) error
}

// Sessions stores which user a session token belongs to. For an unknown or expired
// token, User returns photos.ErrNotFound and End returns nil. A store that does not answer
// is photos.ErrUnavailable: its users stay logged in. Start returns photos.ErrFull if the
// store takes no further session.
type Sessions interface {
	Start(ctx context.Context, user photos.ID) (token string, expires time.Time, err error)
	User(ctx context.Context, token string) (photos.ID, error)
	End(ctx context.Context, token string) error
}
