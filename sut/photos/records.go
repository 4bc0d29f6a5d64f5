package photos

import "context"

// Records keeps the records of the service, wherever they are. Its errors wrap
// ErrNotFound, ErrForbidden, ErrConflict and ErrUnavailable; any other is a mistake in
// it. Lists are sorted from the newest to the oldest. All methods may be called
// concurrently.
type Records interface {
	User(ctx context.Context, id ID) (User, error)
	UserByLogin(ctx context.Context, login string) (User, error)
	// Follow makes one user follow another. Following somebody twice changes nothing.
	Follow(ctx context.Context, follow Follow) error

	Photo(ctx context.Context, id ID) (Photo, error)
	// Feed returns photos of the users whom a user follows.
	Feed(ctx context.Context, user ID, limit int) ([]Photo, error)
	Newest(ctx context.Context, limit int) ([]Photo, error)

	AddPhoto(ctx context.Context, photo Photo) error
	// RenamePhoto, Like and Comment return the photo's new version. Only the owner may
	// rename or delete a photo: anybody else gets ErrForbidden.
	RenamePhoto(ctx context.Context, id, owner ID, title string) (version int64, err error)
	DeletePhoto(ctx context.Context, id, owner ID) error
	Like(ctx context.Context, photo, user ID) (version int64, err error)
	Comment(ctx context.Context, comment Comment) (version int64, err error)
}
