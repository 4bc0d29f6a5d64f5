package photos_test

import (
	"crypto/sha256"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// countsOf returns the counts of a size in sut.DataSizes.
func countsOf(t testing.TB, size string) sut.DataCounts {
	t.Helper()
	counts, ok := sut.Data{Size: size}.Counts()
	if !ok {
		t.Fatalf("no data set of size %s", size)
	}
	return counts
}

func TestCountersMatchRows(t *testing.T) {
	for _, test := range []struct {
		name   string
		counts sut.DataCounts
	}{
		{"small", countsOf(t, "small")},
		{"medium", countsOf(t, "medium")},
		{"tiny", sut.DataCounts{Users: 2, Photos: 3, Comments: 1, Follows: 2, Images: 1}},
		{"alone", sut.DataCounts{Users: 1, Photos: 1, Images: 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := photos.NewDataset(test.counts, 1)
			posted, comments := map[photos.ID]int64{}, map[photos.ID]int64{}
			followers, following := map[photos.ID]int64{}, map[photos.ID]int64{}
			pairs := map[[2]photos.ID]bool{}
			for f := range d.Follows() {
				pair := [2]photos.ID{f.Follower, f.Followee}
				if f.Follower == f.Followee || pairs[pair] {
					t.Fatalf("follow %v is a duplicate or a user following himself", pair)
				}
				pairs[pair] = true
				following[f.Follower]++
				followers[f.Followee]++
			}
			if got, want := len(pairs), test.counts.Follows; got > want*11/10 || got < want*9/10 {
				t.Errorf("%d follows, want about %d", got, want)
			}
			for c := range d.Comments() {
				comments[c.PhotoID]++
			}
			for p := range d.Photos() {
				posted[p.UserID]++
				if p.Comments != comments[p.ID] {
					t.Fatalf("photo %d says %d comments and has %d", p.ID, p.Comments, comments[p.ID])
				}
			}
			for u := range d.Users() {
				want := [3]int64{posted[u.ID], followers[u.ID], following[u.ID]}
				if got := [3]int64{u.Photos, u.Followers, u.Following}; got != want {
					t.Fatalf("user %d says photos, followers, following %v and has %v", u.ID, got, want)
				}
			}
		})
	}
}

func TestRowsAreWellFormed(t *testing.T) {
	counts := countsOf(t, "small")
	sizes := make([]int64, counts.Images)
	for i := range sizes {
		sizes[i] = int64(1000 + i)
	}
	d := photos.NewDataset(counts, 1).WithImageBytes(sizes)
	born := map[photos.ID]int64{}
	var index int
	var last int64
	for u := range d.Users() {
		index++
		if u.ID != photos.ID(index) || u.Login != sut.SeedLogin(index) || !u.CheckPassword(sut.SeedPassword) ||
			u.Version != 1 || u.Name == "" || u.CreatedUS <= last {
			t.Fatalf("user %d: %+v", index, u)
		}
		last = u.CreatedUS
		born[u.ID] = u.CreatedUS
	}
	taken := map[photos.ID]int64{}
	var newest photos.ID
	index = 0
	titles := map[string]bool{}
	for p := range d.Photos() {
		index++
		width, height := d.ImageSize(d.ImageOf(index))
		if p.ID != photos.PhotoID(index, counts) || p.ID <= newest || !p.ID.Seeded() ||
			p.UserID != photos.Owner(index, counts) ||
			p.State != photos.StateReady || p.Width != width || p.Height != height ||
			p.Bytes != int64(1000+d.ImageOf(index)) || p.Likes < 0 || p.Version != 1 || !utf8.ValidString(p.Title) ||
			p.Title == "" {
			t.Fatalf("photo %d: %+v", index, p)
		}
		if p.CreatedUS <= last || p.CreatedUS <= born[p.UserID] || p.CreatedUS > photos.SeedEpochUS {
			t.Fatalf("photo %d was created at %d: before its owner or the previous photo, or after SeedEpochUS",
				index, p.CreatedUS)
		}
		newest, last, taken[p.ID], titles[p.Title] = p.ID, p.CreatedUS, p.CreatedUS, true
	}
	if len(born) != counts.Users || len(taken) != counts.Photos || len(titles) < 500 {
		t.Errorf("%d users, %d photos, %d different titles", len(born), len(taken), len(titles))
	}
	newest, index = 0, 0
	for c := range d.Comments() {
		index++
		if c.ID <= newest || !c.ID.Seeded() || taken[c.PhotoID] == 0 || born[c.UserID] == 0 ||
			c.Text == "" || c.CreatedUS <= taken[c.PhotoID] || c.CreatedUS > photos.SeedEpochUS {
			t.Fatalf("comment %d: %+v", index, c)
		}
		newest = c.ID
	}
	if index != counts.Comments {
		t.Errorf("%d comments, want %d", index, counts.Comments)
	}
}

// A user, the user's photos and the comments on them have the same bucket. This holds for
// seeded and for new records of all hosts.
func TestBucketsAgree(t *testing.T) {
	const many = 100_000
	d := photos.NewDataset(sut.DataCounts{Users: many, Photos: many, Comments: many, Images: 1}, 1)
	var hosts []*photos.IDSource
	for host := range uint8(4) {
		hosts = append(hosts, photos.NewIDSource(host+1, time.Now))
	}
	owners, seen := map[photos.ID]photos.ID{}, map[photos.ID]bool{}
	check := func(what string, id, owner photos.ID) {
		t.Helper()
		if id.Bucket() != photos.BucketOf(owner) || seen[id] {
			t.Fatalf("%s %d: bucket %d, that of user %d is %d; seen before: %t",
				what, id, id.Bucket(), owner, photos.BucketOf(owner), seen[id])
		}
		seen[id] = true
	}
	for p := range d.Photos() {
		check("seeded photo", p.ID, p.UserID)
		owners[p.ID] = p.UserID
		made := hosts[p.UserID%4].Next(photos.BucketOf(p.UserID))
		check("photo", made, p.UserID)
		check("comment", hosts[p.UserID/4%4].Next(made.Bucket()), p.UserID)
	}
	clear(seen) // comments may have the same ids as photos
	for c := range d.Comments() {
		check("seeded comment", c.ID, owners[c.PhotoID])
		check("comment", hosts[c.UserID%4].Next(c.PhotoID.Bucket()), owners[c.PhotoID])
	}
}

// Celebrities are the first users in the order of followers whose buckets are equal modulo 4. Results of workload
// celebrity are comparable as long as they stay the same.
func TestCelebritiesCollide(t *testing.T) {
	want := []photos.ID{2, 4, 5, 8}
	var first [4][]photos.ID // the users up to the last celebrity, by shard
	for user := photos.ID(1); user <= want[3]; user++ {
		shard := photos.BucketOf(user) % 4
		first[shard] = append(first[shard], user)
	}
	buckets := map[photos.Bucket]bool{}
	for _, user := range want {
		buckets[photos.BucketOf(user)] = true
	}
	if got := first[photos.BucketOf(want[0])%4]; !slices.Equal(got, want) || len(buckets) != 4 {
		t.Errorf("users %d are on one shard, in the buckets %v: want users %d in 4 buckets", got, buckets, want)
	}
	for shard, users := range first {
		if len(users) > 3 && !slices.Equal(users, want) {
			t.Errorf("users %d on shard %d agree before users %d do", users, shard, want)
		}
	}
	for _, size := range sut.DataSizes() {
		counts := countsOf(t, size)
		if got := photos.Celebrities(counts, 4, 4); !slices.Equal(got, want) {
			t.Errorf("%s: celebrities %d, want %d", size, got, want)
		}
	}
	for _, counts := range []sut.DataCounts{{}, {Users: 3, Photos: 9}, {Users: 1000, Photos: 3}} {
		if got := photos.Celebrities(counts, 4, 4); got != nil {
			t.Errorf("%+v: celebrities %d, want none", counts, got)
		}
	}
	// With one shard for all, only the buckets decide: none is taken twice.
	seen := map[photos.Bucket]bool{}
	for _, user := range photos.Celebrities(countsOf(t, "medium"), 500, 1) {
		if b := photos.BucketOf(user); seen[b] {
			t.Errorf("two celebrities are in bucket %d", b)
		} else {
			seen[b] = true
		}
	}
	if len(seen) != 500 {
		t.Errorf("%d celebrities, want 500", len(seen))
	}
}

// The celebrities are among the most followed users.
func TestCelebritiesAreFollowed(t *testing.T) {
	counts := countsOf(t, "small")
	celebrities := photos.Celebrities(counts, 4, 4)
	var followers, theirs []int64
	for u := range photos.NewDataset(counts, 3).Users() {
		followers = append(followers, u.Followers)
		if slices.Contains(celebrities, u.ID) {
			theirs = append(theirs, u.Followers)
		}
	}
	slices.Sort(followers)
	if least := slices.Min(theirs); least < followers[len(followers)-10] {
		t.Errorf("a celebrity has %d followers, less than 10 other users", least)
	}
}

// In the follow graph, a few users have very many followers, and most users have few.
func TestCelebrities(t *testing.T) {
	for _, size := range []string{"small", "medium"} {
		counts := countsOf(t, size)
		var followers []int64
		for u := range photos.NewDataset(counts, 3).Users() {
			followers = append(followers, u.Followers)
		}
		share := func(rank int) float64 { return float64(followers[rank-1]) / float64(counts.Users) }
		if share(1) < 0.4 || share(1) > 0.9 || share(5) < 0.15 {
			t.Errorf("%s: the share of users that follow user 1 is %.2f, user 5 %.2f", size, share(1), share(5))
		}
		slices.Sort(followers)
		mean := float64(counts.Follows) / float64(counts.Users)
		if median := followers[len(followers)/2]; float64(median) > 0.7*mean {
			t.Errorf("%s: the median user has %d followers, the mean is %.0f: no long tail", size, median, mean)
		}
	}
}

func TestImagesAreShared(t *testing.T) {
	counts := countsOf(t, "small")
	d := photos.NewDataset(counts, 1)
	shown := make([]int, counts.Images)
	for _, image := range d.Images() {
		shown[image]++
	}
	seeds := map[uint64]bool{}
	for i, n := range shown {
		if n < 10 {
			t.Errorf("only %d photos show pool image %d", n, i)
		}
		seeds[d.ImageSeed(i)] = true
	}
	if len(seeds) != counts.Images {
		t.Errorf("%d seeds for %d images", len(seeds), counts.Images)
	}
}

// Seeded rows are the same on all machines and in all versions. A change invalidates stored
// templates and makes results incomparable, so it must be deliberate.
func TestDatasetIsTheSameEverywhere(t *testing.T) {
	counts := sut.DataCounts{Users: 50, Photos: 120, Comments: 200, Follows: 600, Images: 8}
	digest := func(seed uint64) string {
		d := photos.NewDataset(counts, seed)
		sum := sha256.New()
		writeAll(sum, d.Users())
		writeAll(sum, d.Photos())
		writeAll(sum, d.Comments())
		writeAll(sum, d.Follows())
		for p, image := range d.Images() {
			fmt.Fprintln(sum, p, image, d.ImageSeed(image))
		}
		return fmt.Sprintf("%x", sum.Sum(nil)[:8])
	}
	if got, want := digest(1), "5e617a0e7a6009e8"; got != want {
		t.Errorf("seed 1 gives rows %s, want %s", got, want)
	}
	if digest(1) == digest(2) {
		t.Error("two seeds give identical rows")
	}
}

func writeAll[Row any](to interface{ Write([]byte) (int, error) }, rows iter.Seq[Row]) {
	for row := range rows {
		fmt.Fprintf(to, "%+v\n", row)
	}
}

// An iteration stops when the caller leaves it early.
func TestIterationStops(t *testing.T) {
	d := photos.NewDataset(countsOf(t, "small"), 1)
	var n int
	for range d.Users() {
		n++
		break
	}
	for range d.Photos() {
		n++
		break
	}
	for range d.Comments() {
		n++
		break
	}
	for range d.Follows() {
		n++
		break
	}
	for range d.Images() {
		n++
		break
	}
	if n != 5 {
		t.Errorf("%d rows were yielded, want one of each of 5 kinds", n)
	}
}

// The large data set has 2,650,000 rows. A Dataset must not hold them: they would take
// hundreds of megabytes.
func TestLargeStaysSmallInMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("generates millions of rows")
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	d := photos.NewDataset(countsOf(t, "large"), 1)
	var follows int
	for range d.Follows() {
		if follows++; follows == 1_000_000 {
			runtime.GC() // measure during the iteration, because the iterator could hold rows
			runtime.ReadMemStats(&after)
			break
		}
	}
	if follows < 1_000_000 {
		t.Fatalf("only %d follows", follows)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d bytes are held during the iteration of follows, want at most 8 MiB", grown)
	}
	runtime.KeepAlive(d)
}

func BenchmarkNewDatasetLarge(b *testing.B) {
	counts := countsOf(b, "large")
	for b.Loop() {
		photos.NewDataset(counts, 1)
	}
}

func BenchmarkPhotos(b *testing.B) {
	d := photos.NewDataset(countsOf(b, "small"), 1)
	for b.Loop() {
		for range d.Photos() {
		}
	}
}
