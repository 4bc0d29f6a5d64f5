package dbadmin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

// replayTimeout bounds a replay. A replay goes on after its client has left: a partial
// replay could not be distinguished from a complete one.
const replayTimeout = 5 * time.Minute

// lostAdmin serves the lost changes of one database.
type lostAdmin struct {
	db     Database
	secret sut.Secret
	// mu is held during each request, because Database.LostChanges may start a server on
	// a kept copy.
	mu sync.Mutex
}

// addLost adds the endpoint that lists lost changes, removes the copies that have them, and replays changes.
func addLost(mux *http.ServeMux, a *lostAdmin) {
	mux.HandleFunc("GET "+sut.LostPath, func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		lost, err := a.db.LostChanges(r.Context(), r.FormValue("copy"))
		if err != nil {
			process.SendError(w, http.StatusInternalServerError, err, "")
			return
		}
		lost.Changes = slices.DeleteFunc(lost.Changes, derived)
		process.SendJSON(w, http.StatusOK, lost)
	})
	mux.HandleFunc("DELETE "+sut.LostPath, func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if err := a.db.DropCopy(r.FormValue("copy")); err != nil {
			process.SendError(w, http.StatusInternalServerError, err, "")
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST "+sut.LostPath, func(w http.ResponseWriter, r *http.Request) {
		var request sut.Replay
		err := process.DecodeStrictly(r.Body, &request)
		if err == nil {
			err = process.CheckPeers(request.Databases...)
		}
		if err != nil {
			process.SendError(w, http.StatusBadRequest, err,
				`send {"databases": [{"node": "db-2", "address": "127.0.0.1:5432"}], "changes": []}`)
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), replayTimeout)
		defer cancel()
		done, err := replay(ctx, request, a.secret)
		if err != nil {
			process.SendError(w, http.StatusInternalServerError, err, "")
			return
		}
		process.SendJSON(w, http.StatusOK, done)
	})
}

// derived reports whether a change is of rows that are built again from others.
func derived(c sut.LostChange) bool { return c.Table == "feeds" || c.Table == "feed_states" }

// replay repeats lost changes, as operations of the store:
//   - an added row is added with its own id, so a second replay finds it and adds nothing;
//   - a counter grows by the lost difference;
//   - a title is set, unless it was changed after the loss.
func replay(ctx context.Context, order sut.Replay, secret sut.Secret) (sut.Replayed, error) {
	s, err := store.Open(store.Config{
		Databases: order.Databases, Password: secret, MaxConns: 1, Name: "recover", PushBelow: order.PushBelow,
	})
	if err != nil {
		return sut.Replayed{}, err
	}
	defer s.Close()
	r := replayer{store: s, done: sut.Replayed{Done: map[string]int{}, Refused: []string{}}}
	for _, c := range order.Changes {
		if err := r.change(ctx, row{c}); err != nil {
			return r.done, err
		}
	}
	return r.done, nil
}

// replayer repeats lost changes and counts them.
type replayer struct {
	store *store.Store
	done  sut.Replayed
}

func (r *replayer) change(ctx context.Context, c row) error {
	switch {
	case c.Table == "comments" && c.Op == sut.Inserted:
		_, err := r.store.Comment(ctx, photos.Comment{
			ID: c.id("id"), PhotoID: c.id("photo_id"), UserID: c.id("user_id"),
			Text: c.text("text"), CreatedUS: c.number("created_us"),
		})
		return r.count("comment", c, err)
	case c.Table == "follows" && c.Op == sut.Inserted:
		return r.count("follow", c, r.store.Follow(ctx, photos.Follow{
			Follower: c.id("follower"), Followee: c.id("followee"), CreatedUS: c.number("created_us"),
		}))
	case c.Table == "photos" && c.Op == sut.Inserted:
		err := r.store.AddPhoto(ctx, photos.Photo{
			ID: c.id("id"), UserID: c.id("user_id"), Title: c.text("title"), State: c.text("state"),
			Width: int(c.number("width")), Height: int(c.number("height")),
			Bytes: c.number("bytes"), CreatedUS: c.number("created_us"), DoneUS: c.number("done_us"), Version: 1,
		})
		if fatal := r.count("upload", c, err); fatal != nil || err != nil {
			return fatal
		}
		// A lost change is the last state of its row, so it can have likes, too.
		return r.like(ctx, c, c.number("likes"))
	case c.Table == "photos" && c.Op == sut.Deleted:
		return r.count("delete", c, r.store.DeletePhoto(ctx, c.key(), photos.ID(c.before("user_id"))))
	case c.Table == "photos" && c.Op == sut.Updated:
		return r.update(ctx, c)
	case c.Table == "sessions" && c.Op == sut.Inserted:
		return r.count("login", c, r.store.AddSession(ctx, c.text("id"), c.id("user_id"), c.number("expires_us")))
	case c.Table == "sessions" && c.Op == sut.Deleted:
		return r.count("logout", c, r.store.RemoveSession(ctx, c.Key))
	case c.Table == "mirrors" && c.Op == sut.Inserted:
		return r.count("mirrored follow", c, r.store.MirrorFollow(ctx, photos.Follow{
			Follower: c.id("follower"), Followee: c.id("followee"), CreatedUS: c.number("created_us"),
		}))
	case c.Table == "users" && c.Op == sut.Updated, c.Table == "comments" && c.Op == sut.Deleted, c.Table == "outbox",
		c.Table == "pushes":
		return nil // part of another operation, or repeated by itself
	}
	r.refuse(c, errors.New("the store has no operation for this change"))
	return nil
}

// update repeats likes, the end of the processing, and the change of a title. It ignores the counter of comments,
// which the added comments raise.
func (r *replayer) update(ctx context.Context, c row) error {
	if c.Old == nil {
		r.refuse(c, errors.New("the old values are not known"))
		return nil
	}
	if _, liked := c.New["likes"]; liked {
		if err := r.like(ctx, c, c.number("likes")-c.before("likes")); err != nil {
			return err
		}
	}
	if _, finished := c.New["state"]; finished {
		_, err := r.store.FinishPhoto(ctx, photos.Processed{
			Photo: c.key(), State: c.text("state"), DoneUS: c.number("done_us"),
		})
		if err := r.count("finish", c, err); err != nil {
			return err
		}
	}
	if _, renamed := c.New["title"]; !renamed {
		return nil
	}
	now, err := r.store.Photo(ctx, c.key())
	if err == nil && now.Title != c.Old["title"] {
		r.refuse(c, fmt.Errorf("the photo was renamed to %q after the loss", now.Title))
		return nil
	}
	if err == nil {
		_, err = r.store.RenamePhoto(ctx, c.key(), now.UserID, c.text("title"))
	}
	return r.count("rename", c, err)
}

// like likes a photo the given number of times.
func (r *replayer) like(ctx context.Context, c row, times int64) error {
	for range times {
		_, err := r.store.Like(ctx, c.key(), 0)
		if err := r.count("like", c, err); err != nil {
			return err
		}
	}
	return nil
}

// count counts the result err of an operation. It returns err only if the primary did not
// answer, which ends the replay.
func (r *replayer) count(op string, c row, err error) error {
	switch {
	case err == nil:
		r.done.Done[op]++
	case errors.Is(err, photos.ErrConflict):
		r.done.AlreadyPresent++
	case errors.Is(err, photos.ErrUnavailable), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	default:
		r.refuse(c, err)
	}
	return nil
}

// refuse lists a change that cannot be repeated.
func (r *replayer) refuse(c row, err error) {
	r.done.Refused = append(r.done.Refused, fmt.Sprintf("%s of %s %s: %v", c.Op, c.Table, c.Key, err))
}

// row reads the values of a lost change as the types of the service's records. A missing
// value reads as zero.
type row struct{ sut.LostChange }

// key returns the primary key of the changed row as an id, 0 for a composite key.
func (c row) key() photos.ID {
	id, _ := strconv.ParseInt(c.Key, 10, 64)
	return photos.ID(id)
}
func (c row) id(column string) photos.ID { return photos.ID(c.number(column)) }
func (c row) text(column string) string  { text, _ := c.New[column].(string); return text }

func (c row) number(column string) int64 { return number(c.New[column]) }
func (c row) before(column string) int64 { return number(c.Old[column]) }

func number(v any) int64 {
	n, _ := v.(int64)
	return n
}
