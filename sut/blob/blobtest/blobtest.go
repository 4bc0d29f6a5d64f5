// Package blobtest is the conformance kit of blob stores. Every implementation must pass
// Run.
//
// It keeps no state and starts no process. Each subtest opens its own store.
package blobtest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stagebench/stagebench/sut/photos"
)

// Store is the interface of an implementation. Its methods may be called concurrently.
// They return photos.ErrNotFound if there is no such object.
type Store interface {
	Put(ctx context.Context, id photos.ID, v photos.Variant, data []byte) error
	Get(ctx context.Context, id photos.ID, v photos.Variant) ([]byte, error)
	Head(ctx context.Context, id photos.ID, v photos.Variant) (size int64, err error)
	Delete(ctx context.Context, id photos.ID, v photos.Variant) error
}

// Run tests an implementation. open returns an empty store and registers its closing with
// t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) Store) {
	for _, test := range []struct {
		name  string
		check func(*testing.T, Store)
	}{
		{"get returns the bytes of put", roundTrip},
		{"an object that was never put is not found", missing},
		{"the last put replaces the whole object", replace},
		{"a deleted object is not found", deleted},
		{"ids and variants are independent", independent},
		{"readers see complete objects during writes", concurrent},
	} {
		t.Run(test.name, func(t *testing.T) { test.check(t, open(t)) })
	}
}

func roundTrip(t *testing.T, s Store) {
	random := rand.NewChaCha8([32]byte{1})
	for _, size := range []int{0, 1, 4095, 4096, 1 << 20} {
		data := make([]byte, size)
		_, _ = random.Read(data)
		id := photos.ID(1<<41 + size)
		if err := s.Put(t.Context(), id, photos.VariantOriginal, data); err != nil {
			t.Fatal(err)
		}
		want(t, s, id, photos.VariantOriginal, data)
	}
}

func missing(t *testing.T, s Store) {
	for _, object := range []struct {
		id photos.ID
		v  photos.Variant
	}{
		{1, photos.VariantThumb},
		{1 << 60, photos.VariantOriginal},
		{0, photos.VariantThumb},
		{-1, photos.VariantThumb},
		{1, "huge"},
	} {
		if _, err := s.Get(t.Context(), object.id, object.v); !errors.Is(err, photos.ErrNotFound) {
			t.Errorf("get %v: got %v, want not found", object, err)
		}
		if _, err := s.Head(t.Context(), object.id, object.v); !errors.Is(err, photos.ErrNotFound) {
			t.Errorf("head %v: got %v, want not found", object, err)
		}
		if err := s.Delete(t.Context(), object.id, object.v); !errors.Is(err, photos.ErrNotFound) {
			t.Errorf("delete %v: got %v, want not found", object, err)
		}
	}
}

func replace(t *testing.T, s Store) {
	for _, text := range []string{"a long first version", "short", "and a longer one again"} {
		if err := s.Put(t.Context(), 5, photos.VariantSharp, []byte(text)); err != nil {
			t.Fatal(err)
		}
		want(t, s, 5, photos.VariantSharp, []byte(text))
	}
}

func deleted(t *testing.T, s Store) {
	for range 2 { // a deleted object can be stored again
		if err := s.Put(t.Context(), 9, photos.VariantBlur, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(t.Context(), 9, photos.VariantBlur); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(t.Context(), 9, photos.VariantBlur); !errors.Is(err, photos.ErrNotFound) {
			t.Fatalf("get after delete: %v", err)
		}
	}
}

func independent(t *testing.T, s Store) {
	for id := photos.ID(1); id <= 60; id++ {
		for _, v := range photos.AllVariants() {
			if err := s.Put(t.Context(), id, v, name(id, v)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Delete(t.Context(), 7, photos.VariantThumb); err != nil {
		t.Fatal(err)
	}
	for id := photos.ID(1); id <= 60; id++ {
		for _, v := range photos.AllVariants() {
			if id != 7 || v != photos.VariantThumb {
				want(t, s, id, v, name(id, v))
			}
		}
	}
}

func concurrent(t *testing.T, s Store) {
	versions := [][]byte{bytes.Repeat([]byte("a"), 60_000), bytes.Repeat([]byte("b"), 20_000)}
	if err := s.Put(t.Context(), 1, photos.VariantOriginal, versions[0]); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			for n := range 25 {
				if i == 0 {
					if err := s.Put(t.Context(), 1, photos.VariantOriginal, versions[n%2]); err != nil {
						t.Error(err)
					}
					continue
				}
				got, err := s.Get(t.Context(), 1, photos.VariantOriginal)
				if err != nil || !bytes.Equal(got, versions[0]) && !bytes.Equal(got, versions[1]) {
					t.Errorf("a reader got %d bytes that are none of the versions, error %v", len(got), err)
				}
			}
		})
	}
	group.Wait()
}

func name(id photos.ID, v photos.Variant) []byte { return []byte(string(v) + string(rune(id))) }

// want checks the bytes and the size of an object.
func want(t *testing.T, s Store, id photos.ID, v photos.Variant, data []byte) {
	t.Helper()
	got, err := s.Get(t.Context(), id, v)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("get %d/%s: %d bytes, error %v; want %d bytes", id, v, len(got), err, len(data))
	}
	if size, err := s.Head(t.Context(), id, v); err != nil || size != int64(len(data)) {
		t.Fatalf("head %d/%s: %d bytes, error %v; want %d", id, v, size, err, len(data))
	}
}
