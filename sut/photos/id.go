package photos

import (
	"hash/fnv"
	"io"
	"sync/atomic"
	"time"
)

// Layout of the id of a photo or a comment, from the high bits down:
//
//	 1 bit   0: ids are positive
//	41 bits  milliseconds since idEpoch, until the year 2094; in a seeded record its index, from 1
//	10 bits  bucket of the photo's owner
//	 8 bits  host number of the IDSource; 0 = seeded
//	 4 bits  sequence within the millisecond
//
// A comment is stored with its photo, so its id has the bucket of the photo's owner and
// not of the comment's author. Users have the ids 1..N without this layout.
const (
	sequenceBits = 4
	hostBits     = 8
	bucketBits   = 10

	bucketShift = hostBits + sequenceBits
	timeShift   = bucketBits + bucketShift

	// idEpoch is 2025-01-01T00:00:00Z, in milliseconds since the Unix epoch.
	idEpoch = 1_735_689_600_000

	// minMillis is above the index of every seeded record. IDSource never uses a lower
	// time, even if the clock is wrong.
	minMillis = 1 << 24
)

// Buckets is the number of buckets. Rows are placed on shards by bucket.
const Buckets = 1 << bucketBits

// Bucket is a group of users and their records, from 0 to Buckets-1.
type Bucket uint16

// BucketOf returns the bucket of a user and of all photos of the user. It is a hash of the
// user's id, see Mix.
func BucketOf(user ID) Bucket { return Bucket(Mix(uint64(user)) % Buckets) }

// BucketOfLogin returns the bucket of a login name. A user's name and the user are in different buckets.
func BucketOfLogin(login string) Bucket {
	sum := fnv.New64a()
	_, _ = io.WriteString(sum, login) // never fails
	return Bucket(Mix(sum.Sum64()) % Buckets)
}

// Bucket returns the bucket in the id of a photo or a comment. It has no meaning for the
// id of a user; use BucketOf.
func (id ID) Bucket() Bucket { return Bucket(id >> bucketShift % Buckets) }

// Seeded reports whether the id of a photo or a comment belongs to a seeded record.
func (id ID) Seeded() bool { return id>>timeShift < minMillis }

// seededID returns the id of the seeded photo or comment with an index, from 1. Ids grow
// with the index and are below the ids of every IDSource.
func seededID(index int, b Bucket) ID { return ID(index)<<timeShift | ID(b)<<bucketShift }

// IDSource generates unique ids without coordination: the combination of time, host and
// sequence is unique. All methods may be called concurrently.
//
// Ids of one source grow from one millisecond to the next, whatever their buckets. Within
// a millisecond, ids are in the order of their buckets, and ids of one bucket grow. Ids of
// different hosts interleave by time.
type IDSource struct {
	host ID
	now  func() time.Time

	// last is the time and sequence of the last id, in one number. After 16 ids in one
	// millisecond, adding 1 carries into the next millisecond, so the source runs ahead
	// of the clock. It does the same when the clock steps back. Otherwise it would repeat
	// ids.
	last atomic.Int64
}

// NewIDSource returns the source of one host. A host number may be reused only after the
// clock has passed all ids that were generated with it. Otherwise ids are repeated. See
// sut.NodeConfig.IDHost.
func NewIDSource(host uint8, now func() time.Time) *IDSource {
	return &IDSource{host: ID(host), now: now}
}

// Next returns an id that no source has returned before. It is higher than all ids of
// seeded photos and comments.
func (s *IDSource) Next(b Bucket) ID {
	for {
		last := s.last.Load()
		millis := max(s.now().UnixMilli()-idEpoch, minMillis)
		next := max(millis<<sequenceBits, last+1)
		if s.last.CompareAndSwap(last, next) {
			time, sequence := ID(next>>sequenceBits), ID(next%(1<<sequenceBits))
			return time<<timeShift | ID(b)<<bucketShift | s.host<<sequenceBits | sequence
		}
	}
}
