package photos_test

import (
	"sync"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut/photos"
)

func TestIDsAreUniqueAndGrow(t *testing.T) {
	source := photos.NewIDSource(7, time.Now)
	const workers, each = 8, 5_000
	made := make([][]photos.ID, workers)
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for range each {
				made[w] = append(made[w], source.Next())
			}
		})
	}
	group.Wait()
	seen := map[photos.ID]bool{}
	for w, ids := range made {
		for i, id := range ids {
			if seen[id] {
				t.Fatalf("id %d was made twice", id)
			}
			seen[id] = true
			if i > 0 && id <= ids[i-1] {
				t.Fatalf("worker %d saw %d after %d", w, id, ids[i-1])
			}
		}
	}
}

func TestIDsOfHostsDiffer(t *testing.T) {
	at := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	frozen := func() time.Time { return at }
	a, b := photos.NewIDSource(1, frozen), photos.NewIDSource(2, frozen)
	seen := map[photos.ID]bool{}
	for range 1000 {
		for _, id := range []photos.ID{a.Next(), b.Next()} {
			if seen[id] {
				t.Fatalf("id %d was made by both hosts", id)
			}
			seen[id] = true
		}
	}
}

// A clock that is wrong must not produce an id that a seeded record has, nor
// one that went before.
func TestIDsSurviveClocks(t *testing.T) {
	for _, test := range []struct {
		name string
		at   time.Time
	}{
		{"zero", time.Time{}},
		{"unix epoch", time.Unix(0, 0)},
		{"id epoch", time.UnixMilli(1_735_689_600_000)},
		{"far future", time.Date(2094, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		t.Run(test.name, func(t *testing.T) {
			at := test.at
			source := photos.NewIDSource(65535, func() time.Time { at = at.Add(-time.Millisecond); return at })
			previous := photos.ID(1 << 40)
			for range 200 {
				id := source.Next()
				if id <= previous {
					t.Fatalf("id %d does not come after %d", id, previous)
				}
				previous = id
			}
		})
	}
}

func TestPasswords(t *testing.T) {
	user := photos.User{Login: "user-1", Password: photos.HashPassword("user-1", "stagebench")}
	if !user.CheckPassword("stagebench") {
		t.Error("the right password was refused")
	}
	for _, wrong := range []string{"", "stagebench ", "Stagebench"} {
		if user.CheckPassword(wrong) {
			t.Errorf("password %q was accepted", wrong)
		}
	}
	if photos.HashPassword("user-2", "stagebench") == user.Password {
		t.Error("two logins with one password share a digest: the salt is missing")
	}
	if photos.HashPassword("a", "bc") == photos.HashPassword("ab", "c") {
		t.Error("login and password run into each other")
	}
	if (photos.User{Login: "x"}).CheckPassword("") {
		t.Error("a user without a digest let somebody in")
	}
}

func TestVariants(t *testing.T) {
	for _, v := range photos.AllVariants() {
		if !v.Valid() {
			t.Errorf("variant %q is not valid", v)
		}
	}
	for _, v := range []photos.Variant{"", "Thumb", "thumb.jpg", "../original"} {
		if v.Valid() {
			t.Errorf("variant %q is valid", v)
		}
	}
}
