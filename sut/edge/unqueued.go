package edge

import (
	"hash/maphash"
	"math/bits"
	"sync"
	"time"
)

// unqueuedFor is the time in which requests for a key do not wait for each other after a response that must not be
// stored. It is Varnish's hit-for-miss.
const unqueuedFor = 2 * time.Minute

// unqueued is the set of keys whose last response must not be stored. It is a table of fixed size, in which a key may
// displace another one. Requests for a displaced key queue once more, for one header at most.
type unqueued struct {
	seed maphash.Seed

	mu    sync.Mutex
	slots []unqueuedSlot
}

type unqueuedSlot struct {
	hash  uint64
	until int64 // Unix time in nanoseconds
}

// newUnqueued returns an empty set whose size suits a memory budget.
func newUnqueued(budget int64) *unqueued {
	slots := 1 << bits.Len64(uint64(min(max(budget/4096, 1<<9), 1<<13)))
	return &unqueued{seed: maphash.MakeSeed(), slots: make([]unqueuedSlot, slots)}
}

func (u *unqueued) bytes() int64 { return int64(len(u.slots)) * 16 }

func (u *unqueued) has(key string, now time.Time) bool {
	hash := maphash.String(u.seed, key)
	u.mu.Lock()
	defer u.mu.Unlock()
	slot := &u.slots[hash%uint64(len(u.slots))]
	return slot.hash == hash && now.UnixNano() < slot.until
}

func (u *unqueued) add(key string, now time.Time) {
	hash := maphash.String(u.seed, key)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.slots[hash%uint64(len(u.slots))] = unqueuedSlot{hash, now.Add(unqueuedFor).UnixNano()}
}

func (u *unqueued) remove(key string) {
	hash := maphash.String(u.seed, key)
	u.mu.Lock()
	defer u.mu.Unlock()
	if slot := &u.slots[hash%uint64(len(u.slots))]; slot.hash == hash {
		*slot = unqueuedSlot{}
	}
}
