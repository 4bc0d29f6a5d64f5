package photos

import "context"

// Records is a store of the service's records. Its errors wrap ErrNotFound, ErrForbidden,
// ErrConflict, ErrUnavailable or ErrFull. Any other error is a bug. Lists are sorted from the newest
// to the oldest. All methods may be called concurrently.
type Records interface {
	User(ctx context.Context, id ID) (User, error)
	UserByLogin(ctx context.Context, login string) (User, error)
	// Follow makes one user follow another. A repeated Follow changes nothing.
	Follow(ctx context.Context, follow Follow) error

	Photo(ctx context.Context, id ID) (Photo, error)
	// Feed returns photos of the users that a user follows.
	Feed(ctx context.Context, user ID, limit int) ([]Photo, error)
	Newest(ctx context.Context, limit int) ([]Photo, error)

	AddPhoto(ctx context.Context, photo Photo) error
	// RenamePhoto, Like and Comment return the photo's new version. RenamePhoto and
	// DeletePhoto return ErrForbidden if owner does not own the photo.
	RenamePhoto(ctx context.Context, id, owner ID, title string) (version int64, err error)
	DeletePhoto(ctx context.Context, id, owner ID) error
	Like(ctx context.Context, photo, user ID) (version int64, err error)
	Comment(ctx context.Context, comment Comment) (version int64, err error)
	// FinishPhoto ends the processing of a photo and returns the photo's new version. It returns ErrConflict if the photo
	// is not processing, and then changes nothing.
	FinishPhoto(ctx context.Context, end Processed) (version int64, err error)
}
