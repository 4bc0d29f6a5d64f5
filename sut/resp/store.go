package resp

import (
	"math/bits"
	"math/rand/v2"
	"sync"
	"time"
)

// store holds all keys, divided into shards.
type store struct {
	shards []*shard // a power of two
	now    func() time.Time

	mu     sync.Mutex // serialises changes of the settings below
	budget int64
	evict  Evict
}

// minShardBytes is the smallest budget of a shard. In a smaller shard, one large value
// would evict most other entries.
const minShardBytes = 1 << 20

// sweepSeed is the seed of the random samples of the sweep.
const sweepSeed = 0

// shardsFor returns the number of shards for a budget, a power of two.
func shardsFor(budget int64) int {
	if budget == 0 {
		return 16
	}
	return min(16, 1<<(max(bits.Len64(uint64(budget/minShardBytes)), 1)-1))
}

func newStore(budget int64, evict Evict, shards int, now func() time.Time) (*store, error) {
	if _, err := newPolicy(evict); err != nil {
		return nil, err
	}
	s := &store{now: now, budget: budget, evict: evict}
	for i := range shards {
		policy, _ := newPolicy(evict) // cannot fail: it was checked above
		s.shards = append(s.shards, &shard{
			entries: map[string]*entry{}, policy: policy, budget: share(budget, shards, i),
			random: rand.New(rand.NewPCG(sweepSeed, uint64(i))),
		})
	}
	return s, nil
}

// share returns the budget of shard i. The shares of all shards add up to the budget,
// unless the budget is smaller than the number of shards.
func share(budget int64, shards, i int) int64 {
	bytes := budget / int64(shards)
	if int64(i) < budget%int64(shards) {
		bytes++
	}
	if budget > 0 && bytes == 0 {
		return 1 // 0 would mean no limit; nothing fits into 1 byte
	}
	return bytes
}

// shardOf returns the shard of a key. The hash is FNV-1a with the finaliser of
// MurmurHash3: without it, the low bits would depend on few bits of the key.
func (s *store) shardOf(key []byte) *shard {
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
		sh.setBudget(share(budget, len(s.shards), i))
	}
}

func (s *store) setEvict(evict Evict) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.shards {
		policy, err := newPolicy(evict)
		if err != nil {
			return err
		}
		s.shards[i].setPolicy(policy)
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

func (s *store) resetCounters() {
	for _, sh := range s.shards {
		sh.mu.Lock()
		sh.counters = counters{}
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
		all.Hits += sh.counters.hits
		all.Misses += sh.counters.misses
		all.Evicted += sh.counters.evicted
		all.Expired += sh.counters.expired
		all.Refused += sh.counters.refused
		sh.mu.Unlock()
	}
	return all
}
