// Package photos defines the records and ids of the photo service, and the errors that
// every store of records returns.
//
// It also generates ids (IDSource), password digests (HashPassword) and the seeded data
// set (Dataset), and passes the images of a photo to the store of bytes (PutImages).
//
// The package imports only package sut of this module and does no I/O of its own. Times are
// microseconds since the Unix epoch, UTC. Records are plain values. IDSource and Dataset
// are safe for concurrent use.
package photos

import (
	"errors"
	"fmt"
)

// Errors that the errors of every store wrap.
var (
	ErrNotFound    = errors.New("not found")
	ErrConflict    = errors.New("conflict")          // the login name or the id already exists
	ErrForbidden   = errors.New("not the owner")     // only the owner may rename or delete
	ErrUnavailable = errors.New("store unavailable") // it cannot be reached or does not answer in time
	// ErrFull is the ErrUnavailable of a store that answers, but takes no new records.
	ErrFull = fmt.Errorf("%w: it is full", ErrUnavailable)
)

// ID identifies a record. Seeded users have the ids 1, 2, 3 ... The id of a photo or a
// comment contains a bucket. An IDSource generates the ids of new photos and comments.
// These are higher than the ids of seeded ones.
type ID int64

// Processing states of a photo.
const (
	StateProcessing = "processing" // the original is stored, the variants are not made yet
	StateReady      = "ready"
	StateFailed     = "failed" // its variants cannot be made
)

// User is one account.
type User struct {
	ID        ID     `json:"id"`
	Login     string `json:"login"`
	Name      string `json:"name"`
	Password  string `json:"-"` // salted digest, see HashPassword
	CreatedUS int64  `json:"created_us"`
	Photos    int64  `json:"photos"`
	Followers int64  `json:"followers"`
	Following int64  `json:"following"`
	Version   int64  `json:"version"`
	Cached    bool   `json:"-"` // read from a cache; not stored
}

// Photo is the record of one photo. Its bytes are in the blob store.
type Photo struct {
	ID        ID     `json:"id"`
	UserID    ID     `json:"user_id"`
	Title     string `json:"title"`
	State     string `json:"state"`
	Width     int    `json:"width"`
	Height    int    `json:"height"`
	Bytes     int64  `json:"bytes"`
	CreatedUS int64  `json:"created_us"`
	Likes     int64  `json:"likes"`
	Comments  int64  `json:"comments"`
	Version   int64  `json:"version"` // each change adds 1
	DoneUS    int64  `json:"done_us"` // when its state became ready or failed; 0 = it is processing
	Cached    bool   `json:"-"`       // read from a cache; not stored
}

// Processed says how the processing of a photo ended.
type Processed struct {
	Photo  ID     `json:"photo"`
	State  string `json:"state"` // StateReady or StateFailed
	DoneUS int64  `json:"done_us"`
}

// Comment is one comment on a photo.
type Comment struct {
	ID        ID     `json:"id"`
	PhotoID   ID     `json:"photo_id"`
	UserID    ID     `json:"user_id"`
	Text      string `json:"text"`
	CreatedUS int64  `json:"created_us"`
}

// Follow says that one user follows another.
type Follow struct {
	Follower  ID    `json:"follower"`
	Followee  ID    `json:"followee"`
	CreatedUS int64 `json:"created_us"`
}
