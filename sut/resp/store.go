package resp

import (
	"math/rand/v2"
	"sync"
	"time"
)

// store is all keys, in shards.
type store struct {
	shards []*shard // their number is a power of two
	now    func() time.Time

	mu     sync.Mutex // one change of settings at a time
	budget int64
	evict  Evict
}

// shardBytes is the least budget that a shard of its own is worth: with less, one
// large value would push out much of what else is there.
const shardBytes = 1 << 20

func newStore(budget int64, evict Evict, shards int, seed uint64, now func() time.Time) (*store, error) {
	if _, err := newPolicy(evict); err != nil {
		return nil, err
	}
	s := &store{now: now, budget: budget, evict: evict}
	for i := range shards {
		order, _ := newPolicy(evict) // as above
		s.shards = append(s.shards, &shard{
			entries: map[string]*entry{}, order: order, budget: share(budget, shards, i),
			random: rand.New(rand.NewPCG(seed, uint64(i))),
		})
	}
	return s, nil
}

// share is the part of a budget that a shard has: the parts add up to all of it.
func share(budget int64, shards, i int) int64 {
	part := budget / int64(shards)
	if int64(i) < budget%int64(shards) {
		part++
	}
	if budget > 0 && part == 0 {
		return 1 // as 0 would be no limit at all; nothing fits into 1
	}
	return part
}

// of is the shard of a key: by its FNV-1a hash, with the finaliser of MurmurHash3,
// as the low bits of FNV alone depend on few bits of the key.
func (s *store) of(key []byte) *shard {
	if len(s.shards) == 1 {
		return s.shards[0]
	}
	h := uint64(14695981039346656037)
	for _, b := range key {
		h = (h ^ uint64(b)) * 1099511628211
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	return s.shards[(h^h>>33)&uint64(len(s.shards)-1)]
}

func (s *store) clock() int64 { return s.now().UnixMilli() }

func (s *store) setBudget(budget int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.budget = budget
	for i, sh := range s.shards {
		sh.limit(share(budget, len(s.shards), i))
	}
}

func (s *store) setEvict(evict Evict) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.shards {
		order, err := newPolicy(evict)
		if err != nil {
			return err
		}
		s.shards[i].reorder(order)
	}
	s.evict = evict
	return nil
}

func (s *store) settings() (budget int64, evict Evict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.budget, s.evict
}

func (s *store) sweep() {
	for _, sh := range s.shards {
		sh.sweep(s.clock())
	}
}

func (s *store) flush() {
	for _, sh := range s.shards {
		sh.flush()
	}
}

func (s *store) resetFigures() {
	for _, sh := range s.shards {
		sh.mu.Lock()
		sh.figures = figures{}
		sh.mu.Unlock()
	}
}

func (s *store) stats() Stats {
	var all Stats
	all.MaxBytes, all.Evict = s.settings()
	for _, sh := range s.shards {
		sh.mu.Lock()
		all.Entries += int64(len(sh.entries))
		all.Expiring += int64(len(sh.expiring))
		all.Bytes += sh.used
		all.Hits += sh.figures.hits
		all.Misses += sh.figures.misses
		all.Evicted += sh.figures.evicted
		all.Expired += sh.figures.expired
		sh.mu.Unlock()
	}
	return all
}
