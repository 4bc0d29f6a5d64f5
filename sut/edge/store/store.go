// Package store is the memory of an edge: stored responses by key and selecting header fields, bounded by bytes.
//
// Bodies, headers, keys, the index and the overhead of each entry count, and so do the bodies that are being received
// (Reserve). When memory is full, the entry that was not used for the longest time is evicted. A purge also holds for
// responses that were requested before it and arrive later: each fetch holds a Ticket, and Put refuses a response whose
// ticket is older than a purge of its key or of one of its groups.
//
// The order of calls is New, then Begin, Reserve, Put and End for each fetch. All methods may be called concurrently.
// The store starts no goroutine and reads no clock.
package store

import (
	"fmt"
	"net/http"
	"sync"

	"github.com/stagebench/stagebench/sut/edge/rules"
)

// Entry is one stored response. It must not be modified after Put.
type Entry struct {
	rules.Stored
	// Key identifies the URL. Several entries may have the same key and differ in Selecting.
	Key string
	// Selecting is the fields of the request that select this response (Vary).
	Selecting []rules.Field
	// Groups are the names under which PurgeGroups finds the entry.
	Groups []string
	Status int
	Header http.Header
	Body   []byte
}

// Limits of one store.
const (
	// MaxVariants bounds the entries of one key. When there are more, the one that was stored first is removed.
	MaxVariants = 32
	// maxPurges bounds the remembered purges while fetches are in progress. When there are more, no response of the
	// fetches in progress is stored.
	maxPurges = 1024
)

// Store is a bounded set of entries.
type Store struct {
	max     int64
	maxBody int64
	seen    *seen // nil unless SecondHit

	mu        sync.Mutex
	resources map[string][]*item            // by key; the newest variant first
	groups    map[string]map[*item]struct{} // by group
	recent    item                          // ring of all items: recent.next was used last, recent.prev is evicted next
	bytes     int64                         // of the entries
	reserved  int64                         // of the bodies that are being received
	entries   int64
	counters  Counters

	// Purges. Each has the next number. An old ticket is one with a lower number.
	purges  uint64
	fetches int               // tickets in use
	floor   uint64            // tickets below it are old, whatever their keys
	purged  map[string]uint64 // number of the last purge of a key, with prefix 'k', or of a group, with prefix 'g'
}

// Counters count since the start.
type Counters struct {
	Stored  int64 // entries that were stored; an update by a 304 does not count
	Evicted int64 // entries that were removed because memory or a key was full
	Purged  int64 // entries that purges removed
}

// item is an entry in the ring.
type item struct {
	entry      *Entry
	size       int64
	prev, next *item
}

// Config is the configuration of a Store.
type Config struct {
	// MaxBytes is the memory budget.
	MaxBytes int64
	// SecondHit makes Seen remember keys, which takes a part of the budget.
	SecondHit bool
}

// New returns an empty store.
func New(cfg Config) (*Store, error) {
	s := &Store{
		max: cfg.MaxBytes, resources: map[string][]*item{}, groups: map[string]map[*item]struct{}{},
		purged: map[string]uint64{},
	}
	if cfg.SecondHit {
		s.seen = newSeen(cfg.MaxBytes / 64)
		s.max -= s.seen.bytes()
	}
	if s.max < 64<<10 {
		return nil, fmt.Errorf("a memory budget of %d bytes is too small", cfg.MaxBytes)
	}
	s.maxBody = s.max / 4
	s.recent.prev, s.recent.next = &s.recent, &s.recent
	return s, nil
}

// MaxBody is the largest body that is stored.
func (s *Store) MaxBody() int64 { return s.maxBody }

// Get returns the entry that the header of a request selects, the newest if there are several. known reports whether
// there is any entry for the key.
func (s *Store) Get(key string, request http.Header) (entry *Entry, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	variants := s.resources[key]
	for _, it := range variants {
		if rules.Selects(it.entry.Selecting, request) {
			it.unlink()
			it.linkAfter(&s.recent)
			return it.entry, true
		}
	}
	return nil, len(variants) > 0
}

// Put stores an entry in place of the one with the same key and selecting fields. It returns false when a purge forbids
// it or the entry is too large. A refresh is an entry that a 304 has updated.
func (s *Store) Put(t Ticket, e *Entry, refresh bool) bool {
	it := &item{entry: e, size: sizeOf(e)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if it.size > s.max/2 || !s.current(t, e.Key, e.Groups) {
		return false
	}
	for _, old := range s.resources[e.Key] {
		if sameVariant(old.entry.Selecting, e.Selecting) {
			s.remove(old)
			break
		}
	}
	if variants := s.resources[e.Key]; len(variants) >= MaxVariants {
		s.remove(variants[len(variants)-1])
		s.counters.Evicted++
	}
	s.insert(it)
	s.shrink()
	if !refresh {
		s.counters.Stored++
	}
	return true
}

// insert adds an item to all indexes. The caller holds the mutex.
func (s *Store) insert(it *item) {
	e := it.entry
	variants := append(s.resources[e.Key], nil)
	copy(variants[1:], variants)
	variants[0] = it
	s.resources[e.Key] = variants
	for _, group := range e.Groups {
		members := s.groups[group]
		if members == nil {
			members = map[*item]struct{}{}
			s.groups[group] = members
		}
		members[it] = struct{}{}
	}
	it.linkAfter(&s.recent)
	s.bytes += it.size
	s.entries++
}

// remove removes an item from all indexes. The caller holds the mutex.
func (s *Store) remove(it *item) {
	e := it.entry
	variants := s.resources[e.Key]
	kept := make([]*item, 0, len(variants))
	for _, v := range variants {
		if v != it {
			kept = append(kept, v)
		}
	}
	if len(kept) == 0 {
		delete(s.resources, e.Key)
	} else {
		s.resources[e.Key] = kept
	}
	for _, group := range e.Groups {
		delete(s.groups[group], it)
		if len(s.groups[group]) == 0 {
			delete(s.groups, group)
		}
	}
	it.unlink()
	s.bytes -= it.size
	s.entries--
}

// shrink evicts entries until the budget holds. The caller holds the mutex.
func (s *Store) shrink() {
	for s.bytes+s.reserved > s.max && s.entries > 0 {
		s.remove(s.recent.prev)
		s.counters.Evicted++
	}
}

// Drop removes an entry, if it is still stored.
func (s *Store) Drop(e *Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range s.resources[e.Key] {
		if it.entry == e {
			s.remove(it)
			return
		}
	}
}

// Reserve takes memory for a body that is being received. It returns false, and takes nothing, when such bodies would
// fill more than half of the budget.
func (s *Store) Reserve(bytes int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reserved+bytes > s.max/2 {
		return false
	}
	s.reserved += bytes
	s.shrink()
	return true
}

// Release gives reserved memory back.
func (s *Store) Release(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved -= bytes
}

// Seen reports whether a key was passed to Seen before, and remembers it. It forgets keys that were not seen for long,
// and with a probability of about 1 % it reports a key that it does not know. Without SecondHit it always returns true.
func (s *Store) Seen(key string) bool { return s.seen == nil || s.seen.add(key) }

// Contents is the current size of a store.
type Contents struct {
	Counters
	Entries int64
	Bytes   int64 // of the entries, and of the bodies that are being received
}

// Contents returns the current size and the counters.
func (s *Store) Contents() Contents {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Contents{Counters: s.counters, Entries: s.entries, Bytes: s.bytes + s.reserved}
}

func (it *item) unlink() { it.prev.next, it.next.prev = it.next, it.prev }

func (it *item) linkAfter(at *item) {
	it.prev, it.next = at, at.next
	at.next.prev = it
	at.next = it
}

func sameVariant(a, b []rules.Field) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// Overhead of the memory of an entry. The figures are sizes of Go's structures, rounded up: a slot of a map is used at
// least 7/16, and the allocator rounds sizes up.
const (
	entryOverhead = 1024 // Entry, item, a slot of the index, the map of the header
	fieldOverhead = 128  // a slot of a header: its name, the slice of its lines
	lineOverhead  = 24   // a line of a header
	groupOverhead = 256  // a member in the index of groups
)

// sizeOf returns the memory that an entry takes.
func sizeOf(e *Entry) int64 {
	size := int64(entryOverhead) + rounded(len(e.Key)) + rounded(cap(e.Body))
	for name, lines := range e.Header {
		size += fieldOverhead + rounded(len(name))
		for _, line := range lines {
			size += lineOverhead + rounded(len(line))
		}
	}
	for _, f := range e.Selecting {
		size += fieldOverhead + rounded(len(f.Name)) + rounded(len(f.Value))
	}
	for _, group := range e.Groups {
		size += groupOverhead + rounded(len(group))
	}
	return size
}

// rounded is a size with the loss of the allocator, at most an eighth.
func rounded(bytes int) int64 { return int64(bytes) + int64(bytes)/8 }
