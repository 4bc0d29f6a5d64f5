// Package storetest is the conformance kit of the photo service's store. Every database
// engine must pass it.
//
// The kit needs an empty database that speaks the PostgreSQL wire protocol. It starts no
// database, asserts no wall time and leaves nothing running. Run checks every method,
// alone and under concurrent use. Faults kills the database and its clients. WriteBack is
// a benchmark.
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

// Store is the client that the kit checks.
type Store = store.Store

// patience bounds every wait of the kit. It is long, because only a failing test reaches
// it.
const patience = 30 * time.Second

// Run checks a store on an empty database. It calls open once.
func Run(t *testing.T, open func(t *testing.T) *Store) {
	s := open(t)
	k := kit{Store: s, data: newData(), ids: &ids{}}
	ctx := t.Context()
	for range 2 { // the second call must do nothing
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
	k.run(t)
}

// run runs the checks of the operations.
func (k kit) run(t *testing.T) {
	for _, check := range []struct {
		name string
		run  func(*testing.T, kit)
	}{
		{"loaded records are read unchanged", loaded},
		{"all rows can be read", rows},
		{"a store can be warmed up repeatedly", warm},
		{"a feed is the newest photos of followed users", feed},
		{"newest is the newest photos of all users", newest},
		{"missing records are not found", notFound},
		{"only the owner may change a photo", forbidden},
		{"ids and login names are unique", conflict},
		{"a photo is added, renamed and deleted", lifecycle},
		{"a photo is processed once", processing},
		{"likes and comments are counted", counting},
		{"following is idempotent", follows},
		{"text is stored unchanged", text},
		{"invalid text is refused", badText},
		{"a cancelled operation returns an error", cancelled},
		{"200 concurrent writes are all counted", writers},
		{"mutual follows do not deadlock", mutualFollows},
		{"a photo is deleted only once", deletedOnce},
		{"deleting a photo deletes its comments", deletedWithComments},
		{"a batch of writes is stored once", batchResent},
		{"a batch does not overwrite other writers", batchRefused},
		{"a failed batch changes nothing", batchAtomic},
		{"a batch of 500 photos is stored", batchLarge},
		{"batches that share photos do not deadlock", batchesCrossed},
	} {
		t.Run(check.name, func(t *testing.T) { check.run(t, k) })
	}
}

// Open opens a store and closes it at the end of the test.
func Open(t testing.TB, address string) *Store {
	t.Helper()
	return openWith(t, store.Config{
		Databases: []sut.Peer{{Node: "db-1", Address: address}}, MaxConns: 16, QueryTimeout: patience,
	})
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

// Statements is the catalogue of statements that a database must support.
func Statements() []store.Statement { return store.Statements() }

// kit is a store and the data that was loaded into it. All checks share one database.
type kit struct {
	*Store
	data *data
	ids  *ids // ids for new records
	// shards are the stores of each shard alone; nil = the store has no shards.
	shards []*Store
	// pushBelow is store.Config.PushBelow of the stores over all shards.
	pushBelow int
}

// parts returns the stores that together have all rows.
func (k kit) parts() []*Store {
	if k.shards == nil {
		return []*Store{k.Store}
	}
	return k.shards
}

// relay brings all follows to the shards of their followees, and all photos to feeds.
func (k kit) relay(t *testing.T) {
	t.Helper()
	for k.shards != nil {
		follows, err := k.RelayFollows(t.Context(), 10)
		pushes, further := k.RelayPhotos(t.Context(), 10)
		if err := errors.Join(err, further); err != nil {
			t.Fatal(err)
		}
		if follows+pushes == 0 {
			return
		}
	}
}

// warm runs before most other checks, so that these use prepared statements.
func warm(t *testing.T, k kit) {
	for range 2 {
		if err := k.Warm(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// user reads a user's record.
func (k kit) user(t *testing.T, id photos.ID) photos.User {
	t.Helper()
	u, err := k.User(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// photo reads a photo's record.
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
		ID: k.ids.photo(user), UserID: user, Title: "a new photo", State: photos.StateProcessing,
		Width: 160, Height: 120, Bytes: 1 << 33, CreatedUS: 10, Version: 1,
	}
	if err := k.AddPhoto(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	return p
}

// same fails the test if two values differ.
func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// wants fails the test unless err wraps want and no other error of package photos. If want
// is nil, err must wrap none of them.
func wants(t *testing.T, what string, err, want error) {
	t.Helper()
	for _, e := range []error{photos.ErrNotFound, photos.ErrConflict, photos.ErrForbidden, photos.ErrUnavailable} {
		if errors.Is(err, e) != (e == want) {
			t.Errorf("%s: got %v, want %v", what, err, want)
			return
		}
	}
}

// within returns a context that ends with the test or after patience.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
