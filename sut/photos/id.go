package photos

import (
	"sync/atomic"
	"time"
)

// Layout of an id made at run time, from the high bits down: 41 bits of
// milliseconds since idEpoch, 16 bits of host, 6 bits of sequence. The sign bit
// stays clear. 41 bits last until the year 2094.
const (
	hostBits     = 16
	sequenceBits = 6

	// idEpoch is 2025-01-01T00:00:00Z, in milliseconds since the Unix epoch.
	idEpoch = 1_735_689_600_000

	// minMillis keeps every id above 1<<40 even when the clock is wrong, so that
	// it cannot meet a seeded id.
	minMillis = 1<<(40-hostBits-sequenceBits) + 1
)

// IDSource makes ids that are unique among all hosts of a system, without
// asking anybody: (time, host, sequence). Ids of one source only grow, so that
// newer records sort after older ones; those of several hosts interleave by
// time. All methods may be called concurrently.
type IDSource struct {
	host int64
	now  func() time.Time

	// last is the time and sequence of the last id, in one number. When the 64
	// ids of a millisecond are spent, adding one carries into the next
	// millisecond: the source runs ahead of the clock rather than repeat itself,
	// and does the same when the clock steps back.
	last atomic.Int64
}

// NewIDSource returns the source of one host. Two live sources must never
// share a host number: they would make the same ids.
func NewIDSource(host uint16, now func() time.Time) *IDSource {
	return &IDSource{host: int64(host), now: now}
}

// Next returns an id that no source has returned before. It is above 1<<40.
func (s *IDSource) Next() ID {
	for {
		last := s.last.Load()
		millis := max(s.now().UnixMilli()-idEpoch, minMillis)
		next := max(millis<<sequenceBits, last+1)
		if s.last.CompareAndSwap(last, next) {
			sequence := next & (1<<sequenceBits - 1)
			return ID((next>>sequenceBits)<<(hostBits+sequenceBits) | s.host<<sequenceBits | sequence)
		}
	}
}
