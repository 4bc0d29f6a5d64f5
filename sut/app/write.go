package app

import (
	"context"
	"errors"
	"net/http"

	"github.com/stagebench/stagebench/sut/photos"
)

// login answers POST /api/login.
func (a *App) login(ctx context.Context, x *exchange) error {
	var body struct {
		Login    string `json:"login"`
		Password string `json:"password"`
	}
	if err := readJSON(x, &body, `{"login": "user-1", "password": "..."}`); err != nil {
		return err
	}
	name, err := cleanText("login", body.Login, maxLoginRunes, false)
	if err != nil {
		return err
	}
	if _, err := cleanText("password", body.Password, maxPasswordRunes, false); err != nil {
		return err
	}
	user, err := a.config.Store.UserByLogin(ctx, name)
	if err != nil && !errors.Is(err, photos.ErrNotFound) {
		return a.tierProblem(x, tierDB, "the user", err)
	}
	// An unknown login and a wrong password get the same response. Otherwise a client
	// could find out which logins exist.
	if err != nil || !user.CheckPassword(body.Password) {
		return refusal(http.StatusUnauthorized, "login or password is wrong",
			"seeded users log in as user-1, user-2, ... and share one password")
	}
	a.endSession(ctx, x)
	token, expires, err := a.config.Sessions.Start(ctx, user.ID)
	if err != nil {
		return a.tierProblem(x, tierSession, "the session", err)
	}
	a.metrics.logins.Inc()
	setCookie(x, http.Cookie{Value: token, Expires: expires.UTC()})
	a.send(x, http.StatusOK, user.Version, &user)
	return nil
}

// setCookie sets the session cookie. It is not Secure, because nodes use plain HTTP on
// loopback addresses.
func setCookie(x *exchange, c http.Cookie) {
	c.Name, c.Path, c.HttpOnly, c.SameSite = SessionCookie, "/", true, http.SameSiteLaxMode
	http.SetCookie(x, &c)
}

// endSession ends the session that a client has when it logs in. Otherwise a client
// that logs in repeatedly would leave many sessions behind. Errors are ignored, because
// the new session does not depend on the old one.
func (a *App) endSession(ctx context.Context, x *exchange) {
	if cookie, err := x.r.Cookie(SessionCookie); err == nil {
		_ = a.config.Sessions.End(ctx, cookie.Value)
	}
}

// logout answers POST /api/logout.
func (a *App) logout(ctx context.Context, x *exchange) error {
	if err := a.config.Sessions.End(ctx, x.token); err != nil {
		return a.tierProblem(x, tierSession, "the session", err)
	}
	setCookie(x, http.Cookie{MaxAge: -1})
	x.WriteHeader(http.StatusNoContent)
	return nil
}

// changed is the response to a write to a photo.
type changed struct {
	Photo   photos.ID `json:"photo_id"`
	Title   string    `json:"title,omitempty"`
	Comment photos.ID `json:"comment_id,omitempty"`
	Version int64     `json:"version"` // of the photo, after the write
}

// rename answers PATCH /api/photos/{id}.
func (a *App) rename(ctx context.Context, x *exchange) error {
	var body struct {
		Title string `json:"title"`
	}
	if err := readJSON(x, &body, `{"title": "..."}`); err != nil {
		return err
	}
	title, err := cleanText("title", body.Title, maxTitleRunes, false)
	if err != nil {
		return err
	}
	version, err := a.config.Store.RenamePhoto(ctx, x.named, x.user, title)
	now := changed{Photo: x.named, Title: title, Version: version}
	return a.answer(x, "the photo", err, http.StatusOK, version, now)
}

// delete answers DELETE /api/photos/{id}. It deletes the record first. The record names
// the owner, and if the bytes cannot be deleted they only take up space. A record
// without bytes would be visible.
func (a *App) delete(ctx context.Context, x *exchange) error {
	if err := a.config.Store.DeletePhoto(ctx, x.named, x.user); err != nil {
		return a.tierProblem(x, tierDB, "the photo", err)
	}
	if err := a.removeBlobs(x, x.named); err != nil {
		x.degrade(tierBlob) // the photo is deleted nevertheless
	}
	x.Header().Set("Cache-Group-Invalidation", groupOf(x.named))
	x.WriteHeader(http.StatusNoContent)
	return nil
}

// like answers POST /api/photos/{id}/like.
func (a *App) like(ctx context.Context, x *exchange) error {
	version, err := a.config.Store.Like(ctx, x.named, x.user)
	if err == nil {
		a.metrics.likes.Inc()
	}
	return a.answer(x, "the photo", err, http.StatusOK, version, changed{Photo: x.named, Version: version})
}

// comment answers POST /api/photos/{id}/comments.
func (a *App) comment(ctx context.Context, x *exchange) error {
	var body struct {
		Text string `json:"text"`
	}
	if err := readJSON(x, &body, `{"text": "..."}`); err != nil {
		return err
	}
	text, err := cleanText("text", body.Text, maxCommentRunes, true)
	if err != nil {
		return err
	}
	comment := photos.Comment{
		ID: a.config.IDs.Next(x.named.Bucket()), PhotoID: x.named, UserID: x.user, Text: text,
		CreatedUS: a.config.Now().UnixMicro(),
	}
	version, err := a.config.Store.Comment(ctx, comment)
	if err == nil {
		a.metrics.comments.Inc()
	}
	now := changed{Photo: x.named, Comment: comment.ID, Version: version}
	return a.answer(x, "the photo", err, http.StatusCreated, version, now)
}

// follow answers POST /api/users/{id}/follow.
func (a *App) follow(ctx context.Context, x *exchange) error {
	if x.named == x.user {
		return badRequest("follow somebody else", "user %d is you", x.user)
	}
	follow := photos.Follow{Follower: x.user, Followee: x.named, CreatedUS: a.config.Now().UnixMicro()}
	if err := a.config.Store.Follow(ctx, follow); err != nil {
		return a.tierProblem(x, tierDB, "the user", err)
	}
	a.metrics.follows.Inc()
	a.send(x, http.StatusOK, 0, struct {
		Follower photos.ID `json:"follower"`
		Followee photos.ID `json:"followee"`
	}{x.user, x.named})
	return nil
}
