// Package storetest is the conformance kit of the photo service's store: both
// database engines pass it, and any third one must.
//
// It needs an empty database that speaks the PostgreSQL wire protocol. It
// starts none itself, asserts no wall time and leaves nothing running. Run
// checks every method, alone and under concurrent use; Faults kills the
// database and its clients. WriteBack is a benchmark.
package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

// Store is what the kit checks.
type Store = store.Store

// patience bounds every wait of the kit. It is long, since a passing test
// never waits for it.
const patience = 30 * time.Second

// Run checks a store on an empty database. It calls open once.
func Run(t *testing.T, open func(t *testing.T) *Store) {
	s := open(t)
	k := kit{Store: s, data: newData(), ids: &ids{}}
	ctx := t.Context()
	for range 2 { // the second time it must do nothing
		if err := s.CreateSchema(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Load(ctx, k.data); err != nil {
		t.Fatal(err)
	}
	if err := s.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	for _, check := range []struct {
		name string
		run  func(*testing.T, kit)
	}{
		{"loaded records come back as they went in", loaded},
		{"all rows can be read", rows},
		{"a store can be warmed up, also twice", warm},
		{"feed is the newest photos of who is followed", feed},
		{"newest are the newest of all", newest},
		{"what does not exist is not found", notFound},
		{"only the owner may", forbidden},
		{"an id or a login name is given once", conflict},
		{"a photo is added, renamed and deleted", lifecycle},
		{"likes and comments count", counting},
		{"following is idempotent", follows},
		{"text is kept as it is", text},
		{"text that is none is refused", badText},
		{"a cancelled caller is told so", cancelled},
		{"200 concurrent writers add up", writers},
		{"mutual follows do not deadlock", mutualFollows},
		{"a photo is deleted once", deletedOnce},
		{"a photo takes its comments along", deletedWithComments},
		{"a batch of writes is stored once", writtenBack},
		{"a batch does not undo what others wrote", refusedBack},
		{"a batch that fails leaves nothing", wholeBack},
		{"a batch of 500 is stored", manyBack},
		{"batches that share photos do not deadlock", crossedBack},
	} {
		t.Run(check.name, func(t *testing.T) { check.run(t, k) })
	}
}

// Open opens a store for the length of a test.
func Open(t testing.TB, address string) *Store {
	t.Helper()
	return openWith(t, store.Config{Primary: sut.Peer{Node: "db-1", Address: address}, MaxConns: 16, QueryTimeout: patience})
}

func openWith(t testing.TB, c store.Config) *Store {
	t.Helper()
	s, err := store.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// Statements is the catalogue that a database needs to know.
func Statements() []store.Statement { return store.Statements() }

// kit is a store with what was loaded into it.
type kit struct {
	*Store
	data *data
	ids  *ids // of new records: checks share one database
}

// warm comes before most other checks, so that they run on prepared statements.
func warm(t *testing.T, k kit) {
	for range 2 {
		if err := k.Warm(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// user returns a user's record now.
func (k kit) user(t *testing.T, id photos.ID) photos.User {
	t.Helper()
	u, err := k.User(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// photo returns a photo's record now.
func (k kit) photo(t *testing.T, id photos.ID) photos.Photo {
	t.Helper()
	p, err := k.Photo(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// newPhoto adds a photo of a user.
func (k kit) newPhoto(t *testing.T, user photos.ID) photos.Photo {
	t.Helper()
	p := photos.Photo{
		ID: k.ids.next(), UserID: user, Title: "a new one", State: photos.StatePending,
		Width: 160, Height: 120, Bytes: 1 << 33, CreatedUS: 10, Version: 1,
	}
	if err := k.AddPhoto(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	return p
}

// same fails the test where two values differ.
func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// wants fails the test where an error is not the one of the package photos,
// and none of the others.
func wants(t *testing.T, what string, err, want error) {
	t.Helper()
	for _, e := range []error{photos.ErrNotFound, photos.ErrConflict, photos.ErrForbidden, photos.ErrUnavailable} {
		if errors.Is(err, e) != (e == want) {
			t.Errorf("%s: got %v, want %v", what, err, want)
			return
		}
	}
}

// within returns a context that ends with the test or with the patience of the
// kit.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
