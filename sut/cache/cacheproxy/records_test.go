package cacheproxy_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/stagebench/stagebench/sut/photos"
)

// hook runs before or after a method, and gets its name. It may block. When it returns an
// error, the method returns that error.
type hook func(ctx context.Context, call string) error

// records is a database in memory. It follows the rules of the real store.
type records struct {
	mu       sync.Mutex
	photos   map[photos.ID]photos.Photo
	users    map[photos.ID]photos.User
	comments map[photos.ID][]photos.Comment // by photo
	calls    map[string]int                 // by method
	sent     [][]photos.PendingWrite        // all batches of WriteBack, failed ones too
	before   hook                           // runs before a method; its error prevents the change
	after    hook                           // runs after a method; its error does not undo the change
}

// newRecords returns a database with users 1 and 2. User 1 owns photos 1 to n.
func newRecords(n int) *records {
	r := &records{
		photos: map[photos.ID]photos.Photo{}, comments: map[photos.ID][]photos.Comment{}, calls: map[string]int{},
		users: map[photos.ID]photos.User{
			1: {ID: 1, Name: "one", Password: "secret", Photos: int64(n), Version: 1},
			2: {ID: 2, Name: "two", Version: 1},
		},
	}
	for i := range n {
		id := photos.ID(i + 1)
		r.photos[id] = photos.Photo{ID: id, UserID: 1, Title: fmt.Sprint("photo ", id), State: photos.StateReady, Version: 1}
	}
	return r
}

// setHooks sets the hooks of all methods; nil = no hook.
func (r *records) setHooks(before, after hook) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.before, r.after = before, after
}

// fail returns a hook that fails the named methods, or all methods when none is named.
func fail(err error, calls ...string) hook {
	return func(_ context.Context, call string) error {
		if len(calls) == 0 || slices.Contains(calls, call) {
			return err
		}
		return nil
	}
}

// callCount returns how often a method was called.
func (r *records) callCount(call string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls[call]
}

// photo returns a stored photo, or the zero value when it does not exist.
func (r *records) photo(id photos.ID) photos.Photo {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.photos[id]
}

// commentsOf returns the stored comments of a photo.
func (r *records) commentsOf(id photos.ID) []photos.Comment {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.comments[id])
}

// batches returns all batches of WriteBack, in the order of the calls.
func (r *records) batches() [][]photos.PendingWrite {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.sent)
}

// do counts and performs one call of a method, with its hooks.
func (r *records) do(ctx context.Context, call string, effect func() error) error {
	r.mu.Lock()
	r.calls[call]++
	before := r.before
	r.mu.Unlock()
	if before != nil {
		if err := before(ctx, call); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", photos.ErrUnavailable, ctx.Err())
	}
	r.mu.Lock()
	err, after := effect(), r.after
	r.mu.Unlock()
	if err == nil && after != nil {
		err = after(ctx, call)
	}
	return err
}

func (r *records) User(ctx context.Context, id photos.ID) (u photos.User, err error) {
	err = r.do(ctx, "User", func() error {
		u = r.users[id]
		return checkExists(u.ID)
	})
	return u, err
}

func (r *records) UserByLogin(context.Context, string) (photos.User, error) {
	return photos.User{}, photos.ErrNotFound
}

// checkExists returns ErrNotFound when id is 0, which is the id of a missing record.
func checkExists(id photos.ID) error {
	if id == 0 {
		return photos.ErrNotFound
	}
	return nil
}

func (r *records) Photo(ctx context.Context, id photos.ID) (p photos.Photo, err error) {
	err = r.do(ctx, "Photo", func() error {
		p = r.photos[id]
		return checkExists(p.ID)
	})
	return p, err
}

// list returns the newest photos for which include returns true. The caller holds mu.
func (r *records) list(limit int, include func(photos.Photo) bool) (list []photos.Photo) {
	for _, p := range r.photos {
		if include(p) {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b photos.Photo) int { return cmp.Compare(b.ID, a.ID) })
	return list[:min(limit, len(list))]
}

// Feed returns the newest photos of all other users, as if each user followed all others.
func (r *records) Feed(ctx context.Context, user photos.ID, limit int) (list []photos.Photo, err error) {
	err = r.do(ctx, "Feed", func() error {
		list = r.list(limit, func(p photos.Photo) bool { return p.UserID != user })
		return nil
	})
	return list, err
}

func (r *records) Newest(ctx context.Context, limit int) (list []photos.Photo, err error) {
	err = r.do(ctx, "Newest", func() error {
		list = r.list(limit, func(photos.Photo) bool { return true })
		return nil
	})
	return list, err
}

func (r *records) AddPhoto(ctx context.Context, p photos.Photo) error {
	return r.do(ctx, "AddPhoto", func() error {
		if r.photos[p.ID].ID != 0 {
			return photos.ErrConflict
		}
		if err := checkExists(r.users[p.UserID].ID); err != nil {
			return err
		}
		r.photos[p.ID] = p
		r.addPhotoCount(p.UserID, 1)
		return nil
	})
}

// addPhotoCount adds n to the photo count of a user. The caller holds mu.
func (r *records) addPhotoCount(user photos.ID, n int64) {
	u := r.users[user]
	u.Photos, u.Version = u.Photos+n, u.Version+1
	r.users[user] = u
}

func (r *records) DeletePhoto(ctx context.Context, id, owner photos.ID) error {
	return r.do(ctx, "DeletePhoto", func() error {
		if err := r.checkOwner(id, owner); err != nil {
			return err
		}
		delete(r.photos, id)
		delete(r.comments, id)
		r.addPhotoCount(owner, -1)
		return nil
	})
}

// checkOwner returns an error unless the photo exists and belongs to owner. The caller
// holds mu.
func (r *records) checkOwner(id, owner photos.ID) error {
	switch p := r.photos[id]; {
	case p.ID == 0:
		return photos.ErrNotFound
	case p.UserID != owner:
		return photos.ErrForbidden
	}
	return nil
}

// change changes a photo and increments its version, unless allowed returns an error.
func (r *records) change(
	ctx context.Context, call string, id photos.ID, allowed func() error, change func(*photos.Photo),
) (version int64, err error) {
	err = r.do(ctx, call, func() error {
		if err := allowed(); err != nil {
			return err
		}
		p := r.photos[id]
		change(&p)
		p.Version++
		r.photos[id], version = p, p.Version
		return nil
	})
	return version, err
}

func (r *records) RenamePhoto(ctx context.Context, id, owner photos.ID, title string) (int64, error) {
	allowed := func() error { return r.checkOwner(id, owner) }
	return r.change(ctx, "RenamePhoto", id, allowed, func(p *photos.Photo) { p.Title = title })
}

func (r *records) FinishPhoto(ctx context.Context, end photos.Processed) (int64, error) {
	allowed := func() error {
		if p := r.photos[end.Photo]; p.ID != 0 && p.State != photos.StateProcessing {
			return photos.ErrConflict
		}
		return checkExists(r.photos[end.Photo].ID)
	}
	return r.change(ctx, "FinishPhoto", end.Photo, allowed, func(p *photos.Photo) {
		p.State, p.DoneUS = end.State, end.DoneUS
	})
}

func (r *records) Like(ctx context.Context, id, _ photos.ID) (int64, error) {
	allowed := func() error { return checkExists(r.photos[id].ID) }
	return r.change(ctx, "Like", id, allowed, func(p *photos.Photo) { p.Likes++ })
}

func (r *records) Comment(ctx context.Context, c photos.Comment) (int64, error) {
	allowed := func() error { return checkExists(r.photos[c.PhotoID].ID) }
	return r.change(ctx, "Comment", c.PhotoID, allowed, func(p *photos.Photo) {
		p.Comments++
		r.comments[p.ID] = append(r.comments[p.ID], c)
	})
}

func (r *records) Follow(ctx context.Context, f photos.Follow) error {
	return r.do(ctx, "Follow", func() error {
		for _, id := range []photos.ID{f.Follower, f.Followee} {
			u := r.users[id]
			if err := checkExists(u.ID); err != nil {
				return err
			}
			if id == f.Follower {
				u.Following++
			} else {
				u.Followers++
			}
			u.Version++
			r.users[id] = u
		}
		return nil
	})
}

// WriteBack follows the rules of the store. An error of the before hook means that nothing
// is stored. A write is refused when its Base is not the stored version. A resent write
// that is stored already is accepted and changes nothing.
func (r *records) WriteBack(ctx context.Context, written []photos.PendingWrite) (refused []photos.ID, err error) {
	r.mu.Lock()
	r.sent = append(r.sent, written)
	r.mu.Unlock()
	err = r.do(ctx, "WriteBack", func() error {
		for _, w := range written {
			p, new := r.photos[w.Photo.ID], w.Photo
			same := p.Version == new.Version && p.Title == new.Title && p.Likes == new.Likes && p.Comments == new.Comments
			if p.ID == 0 || p.Version != w.Base && !(same && w.Resent) {
				refused = append(refused, new.ID)
				continue
			}
			p.Title, p.Likes, p.Comments, p.Version = new.Title, new.Likes, new.Comments, new.Version
			r.photos[p.ID] = p
			for _, c := range w.Comments {
				if !slices.ContainsFunc(r.comments[p.ID], func(other photos.Comment) bool { return other.ID == c.ID }) {
					r.comments[p.ID] = append(r.comments[p.ID], c)
				}
			}
		}
		return nil
	})
	return refused, err
}
