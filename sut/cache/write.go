package cache

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/stagebench/stagebench/sut/photos"
)

// Names of the RESP commands that Redis does not have. With them a cache host loads and
// writes records itself:
//
//	FETCH key         -> [1 for a hit or 0 for a miss, the encoded record]
//	APPLY key write   -> the record's new version; write is the JSON of a Write
//
// An error of the database is returned as an error reply that begins with NOTFOUND,
// FORBIDDEN, CONFLICT or UNAVAILABLE.
const (
	FetchCommand = "fetch"
	ApplyCommand = "apply"
)

// Write is one write to a photo's record. Exactly one of its pointers is set.
type Write struct {
	Like    *Like           `json:"like,omitempty"`
	Comment *photos.Comment `json:"comment,omitempty"`
	Rename  *Rename         `json:"rename,omitempty"`
	Add     *photos.Photo   `json:"add,omitempty"`
	Delete  *Delete         `json:"delete,omitempty"`

	Finish *photos.Processed `json:"finish,omitempty"`
}

// Like adds a like of a user to a photo.
type Like struct {
	Photo photos.ID `json:"photo"`
	User  photos.ID `json:"user"`
}

// Rename changes the title of a photo. Only the owner of the photo may do this.
type Rename struct {
	Photo photos.ID `json:"photo"`
	Owner photos.ID `json:"owner"`
	Title string    `json:"title"`
}

// Delete deletes a photo. Only the owner of the photo may do this.
type Delete struct {
	Photo photos.ID `json:"photo"`
	Owner photos.ID `json:"owner"`
}

// Photo returns the id of the photo that is written. It returns an error unless exactly
// one pointer is set.
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
	if w.Finish != nil {
		ids = append(ids, w.Finish.Photo)
	}
	if len(ids) != 1 {
		return 0, fmt.Errorf("a write has %d changes, want exactly one", len(ids))
	}
	return ids[0], nil
}

// errorCode is an error of a record, with the first word of its error reply.
type errorCode struct {
	word string
	err  error
}

// errorCodes returns all of them. One that wraps another one comes before it.
func errorCodes() []errorCode {
	return []errorCode{
		{"NOTFOUND", photos.ErrNotFound},
		{"FORBIDDEN", photos.ErrForbidden},
		{"CONFLICT", photos.ErrConflict},
		{"FULL", photos.ErrFull},
		{"UNAVAILABLE", photos.ErrUnavailable},
	}
}

// EncodeError returns the error reply of a cache host for an error of the database.
func EncodeError(err error) error {
	for _, known := range errorCodes() {
		if errors.Is(err, known.err) {
			return errors.New(known.word + " " + oneLine(err))
		}
	}
	return errors.New("ERR " + oneLine(err))
}

// oneLine returns the text of an error without line breaks, which would end the reply.
func oneLine(err error) string { return strings.NewReplacer("\r", " ", "\n", " ").Replace(err.Error()) }

// isRecordError reports whether an error is one of the errors of photos.Records.
func isRecordError(err error) bool {
	return slices.ContainsFunc(errorCodes(), func(known errorCode) bool { return errors.Is(err, known.err) })
}

// decodeError is the reverse of EncodeError. It returns other errors unchanged.
func decodeError(err error) error {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return err
	}
	word, _, _ := strings.Cut(reply.Error(), " ")
	for _, known := range errorCodes() {
		if known.word == word {
			return fmt.Errorf("%w: %w", known.err, err)
		}
	}
	return err
}
