package resp

import (
	"errors"
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
)

// entry is one key with its value. The value is immutable, so it can be read without
// the lock.
type entry struct {
	key     string
	value   []byte
	expires int64 // last ms of its life, since the Unix epoch; 0 = never expires
	// The fields prev to count belong to the eviction policy.
	prev, next *entry
	halvings   uint32
	count      uint8
	// expiringIndex is the index in shard.expiring; undefined if the entry never expires.
	expiringIndex int32
}

// entryBytes is the memory of an entry without its key and value: 80 bytes for the
// struct, and 38 + 2 for its share of a map that is two thirds full and has 25 bytes per
// slot. TestAccounting compares it with the allocations of the runtime.
const entryBytes = 80 + 38 + 2

// size returns the memory of an entry in bytes, including the rounding of the allocator.
func size(keyLen int, value []byte) int64 {
	return int64(entryBytes + (keyLen+15)&^15 + cap(value))
}

func (e *entry) size() int64 { return size(len(e.key), e.value) }

func (e *entry) expired(now int64) bool { return e.expires != 0 && now > e.expires }

// errFull means that a value does not fit into the budget. The text is that of Redis.
var errFull = errors.New("OOM command not allowed when used memory > 'maxmemory'")

// Errors of INCRBY, with the texts of Redis.
var (
	errInteger  = errors.New(integerError)
	errOverflow = errors.New("ERR increment or decrement would overflow")
)

// counters are the event counters of a shard.
type counters struct {
	hits, misses, evicted, expired, refused int64
}

// shard is a set of keys with its own lock and its share of the budget. Times are in ms
// since the Unix epoch.
type shard struct {
	mu       sync.Mutex
	entries  map[string]*entry
	policy   policy
	expiring []*entry // entries with a time to live, in no order
	budget   int64    // bytes; 0 = no limit
	used     int64    // bytes; at most budget whenever mu is free
	counters counters
	random   *rand.Rand // samples for the sweep
}

// find returns the entry of a key, or nil. It removes an expired entry. The caller holds
// mu, as for all unexported helpers below that do not lock it.
func (s *shard) find(key []byte, now int64) *entry {
	e := s.entries[string(key)]
	if e != nil && e.expired(now) {
		s.remove(e)
		s.counters.expired++
		return nil
	}
	return e
}

func (s *shard) get(key []byte, now int64) (value []byte, found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(key, now)
	if e == nil {
		s.counters.misses++
		return nil, false
	}
	s.counters.hits++
	s.policy.touch(e)
	return e.value, true
}

// condition says when set stores a value.
type condition uint8

const (
	always condition = iota
	ifMissing
	ifExists
)

// set stores a copy of a value and reports whether the condition held.
func (s *shard) set(key, value []byte, expires int64, when condition, now int64) (stored bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(key, now)
	if when == ifMissing && e != nil || when == ifExists && e == nil {
		return false, nil
	}
	return true, s.put(e, key, append([]byte{}, value...), expires, now)
}

// put stores a value without copying it. e is the present entry of the key, or nil. It
// evicts other entries until the value fits.
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
		v := s.policy.victim()
		if v == nil {
			s.counters.refused++
			return errFull
		}
		if need > s.budget {
			// The value can never fit, so no other entry is evicted. The old value of the key
			// is removed, as in memcached: clients must not read a replaced value.
			if e != nil {
				s.remove(e)
			}
			return errFull
		}
		if v == e {
			e = nil // the entry is evicted itself, and added again below
		}
		if v.expired(now) {
			s.counters.expired++
		} else {
			s.counters.evicted++
		}
		s.remove(v)
	}
	if e == nil {
		e = &entry{key: string(key), value: value}
		s.entries[e.key] = e
		s.used += need
		s.policy.add(e)
	} else {
		s.used += need - e.size()
		e.value = value
		s.policy.touch(e)
	}
	s.setExpiry(e, expires)
	return nil
}

func (s *shard) setExpiry(e *entry, expires int64) {
	switch {
	case e.expires == 0 && expires != 0:
		e.expiringIndex = int32(len(s.expiring))
		s.expiring = append(s.expiring, e)
	case e.expires != 0 && expires == 0:
		last := len(s.expiring) - 1
		s.expiring[e.expiringIndex] = s.expiring[last]
		s.expiring[e.expiringIndex].expiringIndex = e.expiringIndex
		s.expiring[last] = nil
		s.expiring = s.expiring[:last]
	}
	e.expires = expires
}

func (s *shard) remove(e *entry) {
	s.setExpiry(e, 0)
	s.policy.remove(e)
	delete(s.entries, e.key)
	s.used -= e.size()
}

// drop removes all keys for which match returns true, and returns their number.
func (s *shard) drop(match func(key string) bool) (dropped int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, e := range s.entries {
		if match(key) {
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

// expiry returns the time at which a key expires; 0 = never.
func (s *shard) expiry(key []byte, now int64) (expires int64, found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.find(key, now); e != nil {
		return e.expires, true
	}
	return 0, false
}

// expire sets the time at which a key expires. If that time has passed, it removes the
// key. It returns false if there is no such key.
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

// add adds delta to an integer value and returns the sum. A missing key counts as 0. The
// expiry does not change.
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

// integer parses an integer as Redis does. It accepts only the canonical form: no plus
// sign, no leading zeros.
func integer(text []byte) (int64, bool) {
	n, err := strconv.ParseInt(string(text), 10, 64)
	var canonical [20]byte
	return n, err == nil && string(strconv.AppendInt(canonical[:0], n, 10)) == string(text)
}

// The sweep checks random samples. It continues while more than a quarter of a sample
// had expired. Source: the active expire cycle of Redis.
const (
	sweepSample = 20 // entries
	sweepRounds = 16 // samples at most
)

// sweep removes expired entries that no client reads.
func (s *shard) sweep(now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range sweepRounds {
		expired := 0
		for range sweepSample {
			if len(s.expiring) == 0 {
				return
			}
			if e := s.expiring[s.random.IntN(len(s.expiring))]; e.expired(now) {
				s.remove(e)
				s.counters.expired++
				expired++
			}
		}
		if expired <= sweepSample/4 {
			return
		}
	}
}

// setBudget changes the budget, and evicts entries until they fit into it.
func (s *shard) setBudget(budget int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.budget = budget
	for budget > 0 && s.used > budget {
		v := s.policy.victim()
		if v == nil {
			return
		}
		s.remove(v)
		s.counters.evicted++
	}
}

// setPolicy replaces the eviction policy. The entries are added to the new policy in the
// eviction order of the old one.
func (s *shard) setPolicy(next policy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for v := s.policy.victim(); v != nil; v = s.policy.victim() {
		s.policy.remove(v)
		next.add(v)
	}
	if _, none := s.policy.(noEviction); none {
		for _, e := range s.entries {
			next.add(e)
		}
	}
	s.policy = next
}

func (s *shard) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		s.policy.remove(e)
	}
	s.entries = map[string]*entry{}
	s.expiring, s.used = nil, 0
}
