package store

import (
	"hash/maphash"
	"math/bits"
	"sync"
)

// seen is a set of keys with a bounded size: two Bloom filters. New keys go to the young one. When that is full, it
// becomes the old one, and the old one is emptied. So a key is remembered until between one and two times the
// capacity of a filter in other keys were added.
type seen struct {
	seed     maphash.Seed
	mask     uint64 // number of bits of a filter - 1
	capacity int    // keys per filter: a tenth of its bits, which gives a false positive rate of about 1 %

	mu         sync.Mutex
	young, old []uint64
	keys       int // in young
}

// probes is the number of bits of a key.
const probes = 4

// newSeen returns a set whose filters together take at most that many bytes, but at least 8 KiB and at most 4 MiB.
func newSeen(bytes int64) *seen {
	words := uint64(min(max(bytes, 8<<10), 4<<20)) / 16
	words = 1 << (bits.Len64(words) - 1)
	return &seen{
		seed: maphash.MakeSeed(), mask: words*64 - 1, capacity: int(words * 64 / 10),
		young: make([]uint64, words), old: make([]uint64, words),
	}
}

func (s *seen) bytes() int64 { return int64(len(s.young)+len(s.old)) * 8 }

// add adds a key and reports whether it was in the set before.
func (s *seen) add(key string) bool {
	hash := maphash.String(s.seed, key)
	step := hash>>32 | 1
	s.mu.Lock()
	defer s.mu.Unlock()
	inYoung, inOld := true, true
	for i := range uint64(probes) {
		bit := (hash + i*step) & s.mask
		word, mask := bit/64, uint64(1)<<(bit%64)
		inYoung = inYoung && s.young[word]&mask != 0
		inOld = inOld && s.old[word]&mask != 0
		s.young[word] |= mask
	}
	if inYoung {
		return true
	}
	if s.keys++; s.keys >= s.capacity {
		s.young, s.old, s.keys = s.old, s.young, 0
		clear(s.young)
	}
	return inOld
}
