package cache

import (
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/stagebench/stagebench/sut/photos"
)

// Names of the commands with which a cache host is asked to load what it does not
// have, and to write. They are commands of RESP besides those of Redis:
//
//	FETCH key         -> [1 when it was in the cache, else 0; the record's text]
//	APPLY key write   -> the record's new version; write is the JSON of a Write
//
// What the records say no to is answered with an error that begins with one of the
// words NOTFOUND, FORBIDDEN, CONFLICT and UNAVAILABLE.
const (
	FetchCommand = "fetch"
	ApplyCommand = "apply"
)

// Write is one write to a photo's record: exactly one of its pointers is set.
type Write struct {
	Like    *Like           `json:"like,omitempty"`
	Comment *photos.Comment `json:"comment,omitempty"`
	Rename  *Rename         `json:"rename,omitempty"`
	Add     *photos.Photo   `json:"add,omitempty"`
	Delete  *Delete         `json:"delete,omitempty"`
}

// Like adds a like of a user to a photo.
type Like struct {
	Photo photos.ID `json:"photo"`
	User  photos.ID `json:"user"`
}

// Rename changes the title of its owner's photo.
type Rename struct {
	Photo photos.ID `json:"photo"`
	Owner photos.ID `json:"owner"`
	Title string    `json:"title"`
}

// Delete deletes its owner's photo.
type Delete struct {
	Photo photos.ID `json:"photo"`
	Owner photos.ID `json:"owner"`
}

// Photo is the photo that is written to.
func (w Write) Photo() (photos.ID, error) {
	var ids []photos.ID
	if w.Like != nil {
		ids = append(ids, w.Like.Photo)
	}
	if w.Comment != nil {
		ids = append(ids, w.Comment.PhotoID)
	}
	if w.Rename != nil {
		ids = append(ids, w.Rename.Photo)
	}
	if w.Add != nil {
		ids = append(ids, w.Add.ID)
	}
	if w.Delete != nil {
		ids = append(ids, w.Delete.Photo)
	}
	if len(ids) != 1 {
		return 0, fmt.Errorf("%d writes in one: want one", len(ids))
	}
	return ids[0], nil
}

// refusals are the words that stand for errors of records.
func refusals() map[string]error {
	return map[string]error{
		"NOTFOUND": photos.ErrNotFound, "FORBIDDEN": photos.ErrForbidden,
		"CONFLICT": photos.ErrConflict, "UNAVAILABLE": photos.ErrUnavailable,
	}
}

// Refuse is how a cache host answers with an error of the records.
func Refuse(err error) error {
	for word, known := range refusals() {
		if errors.Is(err, known) {
			return errors.New(word + " " + oneLine(err))
		}
	}
	return errors.New("ERR " + oneLine(err))
}

// oneLine is the text of an error as it may stand in an answer.
func oneLine(err error) string { return strings.NewReplacer("\r", " ", "\n", " ").Replace(err.Error()) }

// ofRecords reports whether an error is one of the records.
func ofRecords(err error) bool {
	for _, known := range refusals() {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// asRecords is the reverse of Refuse: an error of the records where a host's refusal
// stands for one.
func asRecords(err error) error {
	var refusal redis.Error
	if !errors.As(err, &refusal) {
		return err
	}
	word, _, _ := strings.Cut(refusal.Error(), " ")
	if known := refusals()[word]; known != nil {
		return fmt.Errorf("%w: %w", known, err)
	}
	return err
}
