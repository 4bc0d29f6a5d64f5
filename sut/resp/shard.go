package resp

import (
	"errors"
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
)

// entry is one key with its value. A value is never changed in place, so that it
// can be read without the lock.
type entry struct {
	key     string
	value   []byte
	expires int64 // ms since the Unix epoch, the last at which it is there; 0 = never
	// Of the policy that the entry is in.
	prev, next *entry
	halvings   uint32
	count      uint8
	// place is its index in shard.expiring; of an entry that never expires it means
	// nothing.
	place int32
}

// entryBytes is what an entry costs besides its key and its value: 80 bytes for
// itself, and its share of a map that is two thirds full, of 25 bytes a slot.
// TestAccounting compares it with what the runtime says.
const entryBytes = 80 + 38 + 2

// size is what an entry costs: with the bytes that the allocator rounds up to.
func size(keyLen int, value []byte) int64 {
	return int64(entryBytes + (keyLen+15)&^15 + cap(value))
}

func (e *entry) size() int64 { return size(len(e.key), e.value) }

func (e *entry) gone(now int64) bool { return e.expires != 0 && now > e.expires }

// errFull says that a value does not fit into the budget.
var errFull = errors.New("OOM command not allowed when used memory > 'maxmemory'")

// errInteger is what Redis answers to sums that make no sense.
var errInteger = errors.New("ERR value is not an integer or out of range")

// errOverflow likewise.
var errOverflow = errors.New("ERR increment or decrement would overflow")

// figures of a shard.
type figures struct {
	hits, misses, evicted, expired int64
}

// shard is a part of the keys under one lock, with its part of the budget. Times
// are given in ms since the Unix epoch.
type shard struct {
	mu       sync.Mutex
	entries  map[string]*entry
	order    policy
	expiring []*entry // those that expire, in no order
	budget   int64    // bytes; 0 = no limit
	used     int64    // bytes; never above budget, whoever looks
	figures  figures
	random   *rand.Rand // picks for the sweep
}

// find returns the entry of a key that has not expired, or nil.
func (s *shard) find(key []byte, now int64) *entry {
	e := s.entries[string(key)]
	if e != nil && e.gone(now) {
		s.remove(e)
		s.figures.expired++
		return nil
	}
	return e
}

func (s *shard) get(key []byte, now int64) (value []byte, found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(key, now)
	if e == nil {
		s.figures.misses++
		return nil, false
	}
	s.figures.hits++
	s.order.touch(e)
	return e.value, true
}

// condition is when a value is stored.
type condition uint8

const (
	always condition = iota
	ifMissing
	ifThere
)

// set stores a copy of a value and reports whether the condition held.
func (s *shard) set(key, value []byte, expires int64, when condition, now int64) (stored bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(key, now)
	if when == ifMissing && e != nil || when == ifThere && e == nil {
		return false, nil
	}
	return true, s.put(e, key, append([]byte{}, value...), expires, now)
}

// put stores a value, which it keeps, under a key that has the entry e; nil = none.
func (s *shard) put(e *entry, key, value []byte, expires, now int64) error {
	need := size(len(key), value)
	for s.budget > 0 {
		after := s.used + need
		if e != nil {
			after -= e.size()
		}
		if after <= s.budget {
			break
		}
		v := s.order.victim()
		if v == nil {
			return errFull
		}
		if need > s.budget {
			// It will never fit. What the key held goes, as in memcached: whoever reads
			// it must not meet a value that was replaced. Nobody else has to go for it.
			if e != nil {
				s.remove(e)
			}
			return errFull
		}
		if v == e {
			e = nil // it is the oldest, and comes in anew
		}
		if v.gone(now) {
			s.figures.expired++
		} else {
			s.figures.evicted++
		}
		s.remove(v)
	}
	if e == nil {
		e = &entry{key: string(key), value: value}
		s.entries[e.key] = e
		s.used += need
		s.order.add(e)
	} else {
		s.used += need - e.size()
		e.value = value
		s.order.touch(e)
	}
	s.setExpiry(e, expires)
	return nil
}

func (s *shard) setExpiry(e *entry, expires int64) {
	switch {
	case e.expires == 0 && expires != 0:
		e.place = int32(len(s.expiring))
		s.expiring = append(s.expiring, e)
	case e.expires != 0 && expires == 0:
		last := len(s.expiring) - 1
		s.expiring[e.place] = s.expiring[last]
		s.expiring[e.place].place = e.place
		s.expiring[last] = nil
		s.expiring = s.expiring[:last]
	}
	e.expires = expires
}

func (s *shard) remove(e *entry) {
	s.setExpiry(e, 0)
	s.order.remove(e)
	delete(s.entries, e.key)
	s.used -= e.size()
}

// drop removes the keys that wanted says yes to, and returns how many there were.
func (s *shard) drop(wanted func(key string) bool) (dropped int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, e := range s.entries {
		if wanted(key) {
			s.remove(e)
			dropped++
		}
	}
	return dropped
}

func (s *shard) del(key []byte, now int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(key, now)
	if e != nil {
		s.remove(e)
	}
	return e != nil
}

// expiry returns when a key expires; 0 = never.
func (s *shard) expiry(key []byte, now int64) (expires int64, found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.find(key, now); e != nil {
		return e.expires, true
	}
	return 0, false
}

// expire gives a key a new time at which it is there last, which may be past.
func (s *shard) expire(key []byte, expires, now int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(key, now)
	if e == nil {
		return false
	}
	if expires <= now {
		s.remove(e)
	} else {
		s.setExpiry(e, expires)
	}
	return true
}

// add adds to a whole number, and keeps when it expires.
func (s *shard) add(key []byte, delta, now int64) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(key, now)
	var n, expires int64
	if e != nil {
		var ok bool
		if n, ok = integer(e.value); !ok {
			return 0, errInteger
		}
		expires = e.expires
	}
	if delta > 0 && n > math.MaxInt64-delta || delta < 0 && n < math.MinInt64-delta {
		return 0, errOverflow
	}
	n += delta
	return n, s.put(e, key, strconv.AppendInt(nil, n, 10), expires, now)
}

// integer reads a whole number as Redis does: in its only form.
func integer(text []byte) (int64, bool) {
	n, err := strconv.ParseInt(string(text), 10, 64)
	var canonical [20]byte
	return n, err == nil && string(strconv.AppendInt(canonical[:0], n, 10)) == string(text)
}

// The sweep looks at so many entries at a time, and goes on as long as more than
// a quarter of them had expired. Source: the active expire cycle of Redis.
const (
	sweepSample = 20
	sweepRounds = 16
)

// sweep removes expired entries that nobody asks for.
func (s *shard) sweep(now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range sweepRounds {
		gone := 0
		for range sweepSample {
			if len(s.expiring) == 0 {
				return
			}
			if e := s.expiring[s.random.IntN(len(s.expiring))]; e.gone(now) {
				s.remove(e)
				s.figures.expired++
				gone++
			}
		}
		if gone <= sweepSample/4 {
			return
		}
	}
}

// limit gives the shard another budget, and makes it fit.
func (s *shard) limit(budget int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.budget = budget
	for budget > 0 && s.used > budget {
		v := s.order.victim()
		if v == nil {
			return
		}
		s.remove(v)
		s.figures.evicted++
	}
}

// reorder gives the shard another policy, to which the entries come in the order
// in which the old one would have let them go.
func (s *shard) reorder(next policy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for v := s.order.victim(); v != nil; v = s.order.victim() {
		s.order.remove(v)
		next.add(v)
	}
	if _, none := s.order.(keepAll); none {
		for _, e := range s.entries {
			next.add(e)
		}
	}
	s.order = next
}

func (s *shard) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		s.order.remove(e)
	}
	s.entries = map[string]*entry{}
	s.expiring, s.used = nil, 0
}
