package photos_test

import (
	"math"
	"sync"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// Goroutines that share a source never get the same id, and each gets growing ids of its
// bucket.
func TestIDsAreUniqueAndGrow(t *testing.T) {
	source := photos.NewIDSource(7, time.Now)
	const workers, each = 8, 5_000
	made := make([][]photos.ID, workers)
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for range each {
				made[w] = append(made[w], source.Next(photos.Bucket(w)))
			}
		})
	}
	group.Wait()
	seen := map[photos.ID]bool{}
	for w, ids := range made {
		for i, id := range ids {
			if seen[id] {
				t.Fatalf("id %d was returned twice", id)
			}
			seen[id] = true
			if i > 0 && id <= ids[i-1] {
				t.Fatalf("worker %d saw %d after %d", w, id, ids[i-1])
			}
		}
	}
}

// The ids of 16 hosts differ, even if each generates more ids than fit into a millisecond.
func TestIDsOfHostsDiffer(t *testing.T) {
	at := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	var hosts []*photos.IDSource
	for host := range uint8(16) {
		hosts = append(hosts, photos.NewIDSource(255-host, func() time.Time { return at }))
	}
	seen := map[photos.ID]bool{}
	for n := range 1000 {
		for host, source := range hosts {
			id := source.Next(photos.Bucket(n % 3))
			if seen[id] {
				t.Fatalf("id %d of host %d was returned before", id, host)
			}
			seen[id] = true
		}
	}
}

// Ids of a later millisecond are higher, whatever their buckets. Within a millisecond, later
// ids of one bucket are higher.
func TestIDsAreSortedByTime(t *testing.T) {
	at := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	source := photos.NewIDSource(255, func() time.Time { return at })
	var highest photos.ID
	for range 100 {
		at = at.Add(time.Millisecond)
		before, last := highest, map[photos.Bucket]photos.ID{}
		for n := range 16 {
			b := photos.Bucket((photos.Buckets - 1) * (n % 2))
			id := source.Next(b)
			if id <= before || id <= last[b] || id.Bucket() != b {
				t.Fatalf("id %d of bucket %d comes after %d of the millisecond before and %d of its bucket", id, b, before, last[b])
			}
			highest, last[b] = max(highest, id), id
		}
	}
}

// Users are spread evenly over the buckets. The bound of chi-square has a probability of
// error of 1 in 1,000 (Wilson and Hilferty's formula). The ids are fixed, so the test is
// deterministic.
func TestBucketsAreUniform(t *testing.T) {
	const users, df = 100_000, photos.Buckets - 1
	var counts [photos.Buckets]float64
	for user := range photos.ID(users) {
		counts[photos.BucketOf(user+1)]++
	}
	var chi float64
	for _, n := range counts {
		want := float64(users) / photos.Buckets
		chi += (n - want) * (n - want) / want
	}
	if bound := df * math.Pow(1-2/(9.0*df)+3.09*math.Sqrt(2/(9.0*df)), 3); chi > bound {
		t.Errorf("chi-square %.1f, want at most %.1f", chi, bound)
	}
}

// With a wrong clock, ids still grow and never equal the id of a seeded record.
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
			source := photos.NewIDSource(255, func() time.Time { at = at.Add(-time.Millisecond); return at })
			previous := photos.PhotoID(1<<24-1, sut.DataCounts{Users: 1})
			for range 200 {
				id := source.Next(0)
				if id <= previous || id.Seeded() {
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
		t.Error("two logins with the same password have the same digest: the salt is missing")
	}
	if photos.HashPassword("a", "bc") == photos.HashPassword("ab", "c") {
		t.Error("login and password have no separator in the digest")
	}
	if (photos.User{Login: "x"}).CheckPassword("") {
		t.Error("a user without a digest accepted a password")
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
