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
