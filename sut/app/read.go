package app

import (
	"context"
	"net/http"

	"github.com/stagebench/stagebench/sut/photos"
)

// showFeed answers GET /api/feed?user=ID&limit=N.
func (a *App) showFeed(ctx context.Context, x *exchange) error {
	values, err := query(x)
	if err != nil {
		return err
	}
	if values.Get("user") == "" {
		return badRequest("use /api/feed?user=ID&limit=N", "the parameter user is missing")
	}
	user, err := parseID("user", values.Get("user"))
	if err != nil {
		return err
	}
	most, err := limit(values)
	if err != nil {
		return err
	}
	list, err := a.config.Store.Feed(ctx, user, most)
	if list == nil {
		list = []photos.Photo{} // [] and not null
	}
	return a.answer(x, "the user", err, http.StatusOK, highestVersion(list), struct {
		User   photos.ID      `json:"user"`
		Photos []photos.Photo `json:"photos"`
	}{user, list})
}

// showPhoto answers GET /api/photos/{id}.
func (a *App) showPhoto(ctx context.Context, x *exchange) error {
	photo, err := a.config.Store.Photo(ctx, x.named)
	a.noteCached(x, photo.Cached)
	return a.answer(x, "the photo", err, http.StatusOK, photo.Version, &photo)
}

// showMe answers GET /api/me.
func (a *App) showMe(ctx context.Context, x *exchange) error {
	x.named = x.user
	return a.showUser(ctx, x)
}

// showUser answers GET /api/users/{id}.
func (a *App) showUser(ctx context.Context, x *exchange) error {
	user, err := a.config.Store.User(ctx, x.named)
	a.noteCached(x, user.Cached)
	return a.answer(x, "the user", err, http.StatusOK, user.Version, &user)
}

// noteCached sets HeaderCache if the record was read from a cache.
func (a *App) noteCached(x *exchange, cached bool) {
	if cached {
		x.Header()[HeaderCache] = a.hit
	}
}

// highestVersion returns the highest record version in a list, 0 if the list is empty.
func highestVersion(list []photos.Photo) int64 {
	var highest int64
	for i := range list {
		highest = max(highest, list[i].Version)
	}
	return highest
}
