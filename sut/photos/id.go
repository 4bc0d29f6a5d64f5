package photos

import (
	"sync/atomic"
	"time"
)

// Layout of the id of a photo or a comment, from the high bits down:
//
//	 1 bit   0: ids are positive
//	41 bits  milliseconds since idEpoch, until the year 2094; of a seeded record its index, from 1
//	10 bits  bucket of the photo's owner
//	 8 bits  host number of the IDSource; 0 = seeded
//	 4 bits  sequence within the millisecond
//
// A comment lives with its photo, so it carries the bucket of the photo's owner,
// not that of its author. Users have the ids 1..N, without such parts.
const (
	sequenceBits = 4
	hostBits     = 8
	bucketBits   = 10

	bucketShift = hostBits + sequenceBits
	timeShift   = bucketBits + bucketShift

	// idEpoch is 2025-01-01T00:00:00Z, in milliseconds since the Unix epoch.
	idEpoch = 1_735_689_600_000

	// minMillis is above the index of every seeded record and below the time of
	// every other one, even when the clock is wrong.
	minMillis = 1 << 24
)

// Buckets is the number of buckets. Rows are placed on shards by bucket.
const Buckets = 1 << bucketBits

// Bucket is a share of all users with what they own, from 0 to Buckets-1.
type Bucket uint16

// BucketOf returns the bucket of a user, and of all his photos: a hash of his
// id by the finaliser of SplitMix64, see mix.
func BucketOf(user ID) Bucket { return Bucket(mix(uint64(user)) % Buckets) }

// Bucket returns the bucket that the id of a photo or a comment carries. It
// means nothing for the id of a user, see BucketOf.
func (id ID) Bucket() Bucket { return Bucket(id >> bucketShift % Buckets) }

// Seeded reports whether the id of a photo or a comment is that of a seeded
// record.
func (id ID) Seeded() bool { return id>>timeShift < minMillis }

// seededID returns the id of the seeded photo or comment with that index, from
// 1. Ids grow with the index and are below those of every IDSource.
func seededID(index int, b Bucket) ID { return ID(index)<<timeShift | ID(b)<<bucketShift }

// IDSource makes ids that no other source makes, without asking anybody: time,
// host and sequence together are unique. All methods may be called concurrently.
//
// Ids of one source grow from one millisecond to the next, whatever their
// buckets. Within a millisecond, ids of one bucket grow, and those of several
// buckets are in the order of the buckets. Ids of several hosts interleave by
// time.
type IDSource struct {
	host ID
	now  func() time.Time

	// last is the time and sequence of the last id, in one number. When the 16
	// ids of a millisecond are spent, adding one carries into the next
	// millisecond: the source runs ahead of the clock rather than repeat itself,
	// and does the same when the clock steps back.
	last atomic.Int64
}

// NewIDSource returns the source of one host. A host number must not be used
// again before the clock has passed all ids that were made with it: the ids
// would be made twice. See sut.NodeConfig for how this is kept.
func NewIDSource(host uint8, now func() time.Time) *IDSource {
	return &IDSource{host: ID(host), now: now}
}

// Next returns an id that no source has returned before. It is above all ids of
// seeded records.
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
