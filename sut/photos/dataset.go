package photos

import (
	"iter"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/stagebench/stagebench/sut"
)

// SeedEpochUS is the end of every seeded data set: 2026-01-01T00:00:00Z. Photos, comments
// and follows were created in the year before it, accounts in the year before that. It is
// a constant, so that the same seed gives the same rows on any day.
const SeedEpochUS = 1_767_225_600_000_000

const yearUS = 365 * 24 * 3600 * 1_000_000

// Owner returns the owner of the photo with an index, from 1, in every data set of these
// counts.
func Owner(photo int, counts sut.DataCounts) ID { return ID((photo-1)%counts.Users + 1) }

// PhotoID returns the id of the photo with an index, from 1, in every data set of these
// counts.
func PhotoID(photo int, counts sut.DataCounts) ID {
	return seededID(photo, BucketOf(Owner(photo, counts)))
}

// Celebrities returns n users with many followers whose buckets are equal modulo a number of shards, the most followed
// user first. A database that places buckets by modulo on that many shards, or on half of them, has these users on one
// shard. Their buckets differ, so other ways to place buckets can spread them. Each of them owns a photo.
//
// It takes users in the order of their followers, until n of them agree. All data sets with the same numbers of users
// and photos have the same celebrities. It returns nil if there are too few users.
func Celebrities(counts sut.DataCounts, n, shards int) []ID {
	found := make([][]ID, shards)
	for user := ID(1); user <= ID(min(counts.Users, counts.Photos)); user++ {
		b := BucketOf(user)
		group := int(b) % shards
		if slices.ContainsFunc(found[group], func(other ID) bool { return BucketOf(other) == b }) {
			continue
		}
		if found[group] = append(found[group], user); len(found[group]) == n {
			return found[group]
		}
	}
	return nil
}

// Dataset is a seeded data set, similar to the data of a service after its first year. The
// same counts and seed give the same rows in the same order on every machine.
//
// Users have the ids 1..N. Photos and comments have indexes 1..N, from which their ids are
// computed. The relations between records are known without a lookup:
//   - user i logs in as sut.SeedLogin(i) with sut.SeedPassword;
//   - photo p has the id PhotoID(p, counts) and belongs to user Owner(p, counts);
//   - user 1 has the most followers, then user 2: the number of followers decreases
//     with the power 0.8 of the rank, and about half of all users follow user 1. The
//     exponent of the degree distribution is 2.25; real social networks have 2 to 3;
//   - a photo with a higher index has a higher id and is newer.
//
// Rows are generated during iteration and not stored. A Dataset holds only counters per
// user and photo, and an iteration of Follows one more number per user. The denormalised
// counters of users and photos are exact. A Dataset is immutable and safe for concurrent
// iteration.
type Dataset struct {
	counts sut.DataCounts // requested counts
	seed   uint64

	// Counters. Index 0 is unused.
	followers []int32 // by user: number of followers
	following []int32 // by user: number of followed users
	posted    []int32 // by user: number of photos
	comments  []int32 // by index of the photo: number of comments

	imageBytes []int64 // by pool image; nil = not known
}

// NewDataset returns a data set. It generates rows once to count them, which takes a
// fraction of a second even for the large size. The counts of users, photos and images
// must not be 0.
func NewDataset(counts sut.DataCounts, seed uint64) *Dataset {
	d := &Dataset{
		counts:    counts,
		seed:      seed,
		followers: make([]int32, counts.Users+1),
		following: make([]int32, counts.Users+1),
		posted:    make([]int32, counts.Users+1),
		comments:  make([]int32, counts.Photos+1),
	}
	for follower, followee := range d.edges() {
		d.following[follower]++
		d.followers[followee]++
	}
	for p := 1; p <= counts.Photos; p++ {
		d.posted[Owner(p, counts)]++
	}
	draw := newDraw(d.seed, streamCommentPhoto)
	for c := range counts.Comments {
		d.comments[d.commented(draw, c+1)]++
	}
	return d
}

// WithImageBytes returns the same data set with Photo.Bytes set: bytes[i] is the size of
// pool image i. Without it, Photo.Bytes is 0.
func (d *Dataset) WithImageBytes(bytes []int64) *Dataset {
	sized := *d
	sized.imageBytes = bytes
	return &sized
}

// Counts returns the requested counts. Follows may yield a few rows less.
func (d *Dataset) Counts() sut.DataCounts { return d.counts }

// ImageOf returns the pool image, 0..Images-1, of the photo with an index.
func (d *Dataset) ImageOf(photo int) int {
	return int(Mix(Mix(d.seed^streamImage)^uint64(photo)) % uint64(d.counts.Images))
}

// ImageSeed returns the seed from which pool image i is painted.
func (d *Dataset) ImageSeed(i int) uint64 {
	return Mix(Mix(d.seed^streamImageSeed) ^ uint64(i))
}

// ImageSize returns the width and height of pool image i. Most images have the size of the
// default upload, 160x120. Some are upright, square or larger.
func (d *Dataset) ImageSize(i int) (width, height int) {
	switch i % 8 {
	case 3:
		return 120, 160
	case 5:
		return 160, 160
	case 6:
		return 240, 180
	case 7:
		return 320, 240
	}
	return 160, 120
}

// Images yields every seeded photo and its pool image, in order of photo ids.
func (d *Dataset) Images() iter.Seq2[ID, int] {
	return func(yield func(ID, int) bool) {
		for p := range d.counts.Photos {
			if !yield(PhotoID(p+1, d.counts), d.ImageOf(p+1)) {
				return
			}
		}
	}
}

// Users yields every user in order of ids.
func (d *Dataset) Users() iter.Seq[User] {
	return func(yield func(User) bool) {
		draw := newDraw(d.seed, streamUser)
		for u := 1; u <= d.counts.Users; u++ {
			rng := draw.at(uint64(u))
			login := sut.SeedLogin(u)
			if !yield(User{
				ID:        ID(u),
				Login:     login,
				Name:      personName(rng),
				Password:  HashPassword(login, sut.SeedPassword),
				CreatedUS: spread(rng, SeedEpochUS-2*yearUS, u, d.counts.Users),
				Photos:    int64(d.posted[u]),
				Followers: int64(d.followers[u]),
				Following: int64(d.following[u]),
				Version:   1,
			}) {
				return
			}
		}
	}
}

// Photos yields every photo in order of ids, which is the order of creation.
func (d *Dataset) Photos() iter.Seq[Photo] {
	return func(yield func(Photo) bool) {
		draw := newDraw(d.seed, streamPhoto)
		for p := 1; p <= d.counts.Photos; p++ {
			rng := draw.at(uint64(p))
			image := d.ImageOf(p)
			width, height := d.ImageSize(image)
			photo := Photo{
				ID: PhotoID(p, d.counts), UserID: Owner(p, d.counts), State: StateReady,
				Width: width, Height: height,
				CreatedUS: spread(rng, SeedEpochUS-yearUS, p, d.counts.Photos),
				Title:     photoTitle(rng),
				Comments:  int64(d.comments[p]),
				Version:   1,
			}
			photo.DoneUS = photo.CreatedUS
			// Likes are only counted and have no rows. Photos with comments get more
			// likes, and a few photos get very many.
			photo.Likes = 3*photo.Comments + int64(min(4/math.Sqrt(1-rng.Float64())-4, 2000))
			if d.imageBytes != nil {
				photo.Bytes = d.imageBytes[image]
			}
			if !yield(photo) {
				return
			}
		}
	}
}

// Comments yields every comment in order of ids, which is not the order of
// creation. A comment is newer than its photo.
func (d *Dataset) Comments() iter.Seq[Comment] {
	return func(yield func(Comment) bool) {
		photo, posted := newDraw(d.seed, streamCommentPhoto), newDraw(d.seed, streamPhoto)
		body := newDraw(d.seed, streamComment)
		for c := 1; c <= d.counts.Comments; c++ {
			on := d.commented(photo, c)
			born := spread(posted.at(uint64(on)), SeedEpochUS-yearUS, on, d.counts.Photos)
			rng := body.at(uint64(c))
			id := PhotoID(on, d.counts)
			if !yield(Comment{
				ID:        seededID(c, id.Bucket()),
				PhotoID:   id,
				UserID:    ID(rng.IntN(d.counts.Users) + 1),
				Text:      commentText(rng),
				CreatedUS: born + 1 + rng.Int64N(SeedEpochUS-born),
			}) {
				return
			}
		}
	}
}

// Follows yields every follow, in order of the followers' ids. No pair is repeated, and no
// user follows himself.
func (d *Dataset) Follows() iter.Seq[Follow] {
	return func(yield func(Follow) bool) {
		draw := newDraw(d.seed, streamFollowTime)
		row := uint64(0)
		for follower, followee := range d.edges() {
			row++
			at := SeedEpochUS - yearUS + draw.at(row).Int64N(yearUS)
			if !yield(Follow{Follower: follower, Followee: followee, CreatedUS: at}) {
				return
			}
		}
	}
}

// edges yields the pairs of the follow graph: follower and followee.
//
// The number of users that a user follows has a Pareto distribution with exponent 2, whose
// minimum is half the mean. The probability to be followed decreases with the power 0.8 of
// the rank.
func (d *Dataset) edges() iter.Seq2[ID, ID] {
	return func(yield func(ID, ID) bool) {
		users := d.counts.Users
		if users < 2 {
			return
		}
		mean := float64(d.counts.Follows) / float64(users)
		most := min(float64(users-1)/2, 20*mean)
		draw := newDraw(d.seed, streamFollow)
		last := make([]int32, users+1) // by followee: the last follower, which detects duplicates
		for follower := 1; follower <= users; follower++ {
			rng := draw.at(uint64(follower))
			want := int(math.Round(min(mean/2/math.Sqrt(1-rng.Float64()), most)))
			last[follower] = int32(follower)
			// A user who follows many others draws many duplicates. The limit of tries
			// bounds the time, so a few follows may be missing.
			for tries := 4 * want; want > 0 && tries > 0; tries-- {
				followee := powerLaw(rng, users)
				if last[followee] == int32(follower) {
					continue
				}
				last[followee] = int32(follower)
				want--
				if !yield(ID(follower), ID(followee)) {
					return
				}
			}
		}
	}
}

// commented returns the index of the photo of comment c. A hash scatters the popular
// photos over all indexes, so that they have different ages and owners.
func (d *Dataset) commented(draw *draw, c int) int {
	rank := powerLaw(draw.at(uint64(c)), d.counts.Photos)
	return int(Mix(Mix(d.seed^streamPopular)^uint64(rank))%uint64(d.counts.Photos)) + 1
}

// powerLaw draws a rank 1..n. Its probability decreases with the power 0.8 of the rank. It
// inverts the distribution function of the continuous law. The conversion to float64
// prevents a fused multiply-add, which would round differently on some machines.
func powerLaw(rng *rand.Rand, n int) int {
	factor := math.Pow(float64(n+1), 0.2) - 1
	root := 1 + float64(factor*rng.Float64())
	return min(int(root*root*root*root*root), n)
}

// spread returns a random time in the interval i, from 1, of n equal intervals of the year
// that begins at start. The time grows with i.
func spread(rng *rand.Rand, start int64, i, n int) int64 {
	interval := int64(yearUS / n)
	return start + int64(i-1)*interval + rng.Int64N(interval)
}

// Each kind of row has a random stream of its own. A change to one kind therefore does not
// change the others.
const (
	streamUser uint64 = iota + 1
	streamPhoto
	streamComment
	streamCommentPhoto
	streamPopular
	streamFollow
	streamFollowTime
	streamImage
	streamImageSeed
)

// draw generates the random numbers of each row from the row's index, independently of
// other rows. It is not safe for concurrent use; each iteration has its own.
type draw struct {
	key uint64
	pcg rand.PCG
	rng *rand.Rand
}

func newDraw(seed, stream uint64) *draw {
	d := &draw{key: Mix(seed ^ Mix(stream))}
	d.rng = rand.New(&d.pcg)
	return d
}

// at returns the generator for row i. It is valid until the next call.
func (d *draw) at(i uint64) *rand.Rand {
	d.pcg.Seed(d.key, Mix(d.key^i))
	return d.rng
}

// Mix is the finaliser of SplitMix64, a hash of 64 bits (Steele, Lea, Flood: Fast
// splittable pseudorandom number generators, 2014).
func Mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
