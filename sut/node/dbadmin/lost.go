package dbadmin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

// replayBound is how long a replay may take. It goes on when who asked for it has
// left: half a replay could not be told from a whole one.
const replayBound = 5 * time.Minute

// keeper is a database that may have kept a copy of what it lost.
type keeper struct {
	db  Database
	dir string
	one sync.Mutex // at a time: it may start a server on what was kept
}

// addLost adds what a database held and is gone, and has it done once more.
func addLost(mux *http.ServeMux, k *keeper) {
	mux.HandleFunc("GET "+sut.LostPath, func(w http.ResponseWriter, r *http.Request) {
		k.one.Lock()
		defer k.one.Unlock()
		lost, err := k.lost(r.Context())
		if err != nil {
			process.SendError(w, http.StatusInternalServerError, err, "")
			return
		}
		process.SendJSON(w, http.StatusOK, lost)
	})
	mux.HandleFunc("POST "+sut.LostPath, func(w http.ResponseWriter, r *http.Request) {
		var order sut.Replay
		err := process.DecodeStrictly(r.Body, &order)
		if err == nil {
			err = process.CheckPeers(order.Primary)
		}
		if err != nil {
			process.SendError(w, http.StatusBadRequest, err, `send {"primary": {"node": "db-2", "address": "127.0.0.1:5432"}}`)
			return
		}
		done, err := k.replay(r.Context(), order.Primary)
		switch {
		case errors.Is(err, errReplayed):
			process.SendError(w, http.StatusConflict, err, "")
		case err != nil:
			process.SendError(w, http.StatusInternalServerError, err, "")
		default:
			process.SendJSON(w, http.StatusOK, done)
		}
	})
}

// errReplayed says that what was lost has been done once more.
var errReplayed = errors.New("has been done once more already")

// replay does what was lost once more at a primary, if that has not been done.
func (k *keeper) replay(ctx context.Context, primary sut.Peer) (done sut.Replayed, err error) {
	k.one.Lock()
	defer k.one.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), replayBound)
	defer cancel()
	lost, err := k.lost(ctx)
	if err != nil {
		return done, err
	}
	if lost.Replayed {
		return done, fmt.Errorf("what %s lost in epoch %d %w", lost.Node, lost.Epoch, errReplayed)
	}
	if done, err = replay(ctx, primary, lost.Changes); err != nil {
		return done, err
	}
	return done, os.WriteFile(k.mark(lost), nil, 0o600)
}

// lost is what a database lost, and whether that was done once more already.
func (k *keeper) lost(ctx context.Context) (sut.Lost, error) {
	lost, err := k.db.LostChanges(ctx)
	if err != nil {
		return lost, err
	}
	_, err = os.Stat(k.mark(lost))
	lost.Replayed = err == nil
	return lost, nil
}

// mark is a file that is there when a copy has been replayed. It lies beside the node's
// directory, which may be replaced.
func (k *keeper) mark(lost sut.Lost) string {
	return fmt.Sprintf("%s.replayed-%d", filepath.Clean(k.dir), lost.Epoch)
}

// replay does at a primary what was lost, as operations of the store: rows that
// were added are added with their own ids, so that a second time finds them in
// place; counters are raised by what they had been raised by; a title is set
// where nobody has set another one since.
func replay(ctx context.Context, primary sut.Peer, changes []sut.LostChange) (sut.Replayed, error) {
	s, err := store.Open(store.Config{Primary: primary, MaxConns: 1, Name: "recover"})
	if err != nil {
		return sut.Replayed{}, err
	}
	defer s.Close()
	r := replayer{store: s, done: sut.Replayed{Done: map[string]int{}, Refused: []string{}}}
	for _, c := range changes {
		if err := r.change(ctx, row{c}); err != nil {
			return r.done, err
		}
	}
	return r.done, nil
}

// replayer does lost changes once more, and counts them.
type replayer struct {
	store *store.Store
	done  sut.Replayed
}

func (r *replayer) change(ctx context.Context, c row) error {
	switch {
	case c.Table == "comments" && c.Op == sut.Inserted:
		_, err := r.store.Comment(ctx, photos.Comment{
			ID: c.id("id"), PhotoID: c.id("photo_id"), UserID: c.id("user_id"), Text: c.text("text"), CreatedUS: c.number("created_us"),
		})
		return r.note("comment", c, err)
	case c.Table == "follows" && c.Op == sut.Inserted:
		return r.note("follow", c, r.store.Follow(ctx, photos.Follow{
			Follower: c.id("follower"), Followee: c.id("followee"), CreatedUS: c.number("created_us"),
		}))
	case c.Table == "photos" && c.Op == sut.Inserted:
		err := r.store.AddPhoto(ctx, photos.Photo{
			ID: c.id("id"), UserID: c.id("user_id"), Title: c.text("title"), State: c.text("state"),
			Width: int(c.number("width")), Height: int(c.number("height")),
			Bytes: c.number("bytes"), CreatedUS: c.number("created_us"), Version: 1,
		})
		if noted := r.note("upload", c, err); noted != nil || err != nil {
			return noted
		}
		// Where only the last state of a row is known, it has the likes, too.
		return r.like(ctx, c, c.number("likes"))
	case c.Table == "photos" && c.Op == sut.Deleted:
		return r.note("delete", c, r.store.DeletePhoto(ctx, c.key(), photos.ID(c.before("user_id"))))
	case c.Table == "photos" && c.Op == sut.Updated:
		return r.update(ctx, c)
	case c.Table == "users" && c.Op == sut.Updated, c.Table == "comments" && c.Op == sut.Deleted:
		return nil // a part of another operation
	}
	r.refuse(c, errors.New("nothing in the store does that"))
	return nil
}

// update raises likes and sets a title; comments are counted as they are added.
func (r *replayer) update(ctx context.Context, c row) error {
	if c.Old == nil {
		r.refuse(c, errors.New("what it was before is not known"))
		return nil
	}
	if _, liked := c.New["likes"]; liked {
		if err := r.like(ctx, c, c.number("likes")-c.before("likes")); err != nil {
			return err
		}
	}
	if _, renamed := c.New["title"]; !renamed {
		return nil
	}
	now, err := r.store.Photo(ctx, c.key())
	if err == nil && now.Title != c.Old["title"] {
		r.refuse(c, fmt.Errorf("somebody has renamed it since, to %q", now.Title))
		return nil
	}
	if err == nil {
		_, err = r.store.RenamePhoto(ctx, c.key(), now.UserID, c.text("title"))
	}
	return r.note("rename", c, err)
}

// like adds likes to a photo.
func (r *replayer) like(ctx context.Context, c row, times int64) error {
	for range times {
		_, err := r.store.Like(ctx, c.key(), 0)
		if err := r.note("like", c, err); err != nil {
			return err
		}
	}
	return nil
}

// note counts an operation. Only a primary that does not answer ends the replay.
func (r *replayer) note(op string, c row, err error) error {
	switch {
	case err == nil:
		r.done.Done[op]++
	case errors.Is(err, photos.ErrConflict):
		r.done.There++
	case errors.Is(err, photos.ErrUnavailable), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	default:
		r.refuse(c, err)
	}
	return nil
}

func (r *replayer) refuse(c row, err error) {
	r.done.Refused = append(r.done.Refused, fmt.Sprintf("%s of %s %s: %v", c.Op, c.Table, c.Key, err))
}

// row is a lost change, read as the records of the service.
type row struct{ sut.LostChange }

func (c row) key() photos.ID {
	id, _ := strconv.ParseInt(c.Key, 10, 64) // of a table with one key column
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
