// Package policytest provides the reference for tests of eviction policies: random keys
// with a Zipf distribution, and a simple cache that scans all entries to find a victim.
//
// It is deterministic and has no global state. Its types are not safe for concurrent use.
package policytest

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
)

// Exponent is the exponent of all distributions here. YCSB uses the same.
const Exponent = 0.99

// Zipf generates random ranks, starting at 0.
type Zipf struct {
	Cumulated []float64 // sum of the weights of all ranks up to this one
	random    *rand.Rand
}

// NewZipf returns a generator of n ranks.
func NewZipf(n int, seed uint64) *Zipf {
	z := &Zipf{Cumulated: make([]float64, n), random: rand.New(rand.NewPCG(seed, 1))}
	sum := 0.0
	for i := range n {
		sum += math.Pow(float64(i+1), -Exponent)
		z.Cumulated[i] = sum
	}
	return z
}

// Next returns a random rank, by inversion of the exact distribution.
func (z *Zipf) Next() int {
	return sort.SearchFloat64s(z.Cumulated, z.random.Float64()*z.Cumulated[len(z.Cumulated)-1])
}

// NextApproximately returns a random rank, by the approximation that YCSB uses: Gray,
// Sundaresan, Englert, Baclawski and Weinberger, Quickly generating billion-record
// synthetic databases, SIGMOD 1994. Popular ranks are slightly more frequent than with
// Next.
func (z *Zipf) NextApproximately() int {
	n := float64(len(z.Cumulated))
	total := z.Cumulated[len(z.Cumulated)-1]
	eta := (1 - math.Pow(2/n, 1-Exponent)) / (1 - z.Cumulated[1]/total)
	u := z.random.Float64()
	switch {
	case u*total < 1:
		return 0
	case u*total < z.Cumulated[1]:
		return 1
	}
	return int(n * math.Pow(eta*u-eta+1, 1/(1-Exponent)))
}

// Naive is a cache of keys that scans all entries to find a victim. It shares no code
// and no data structure with the policies under test.
type Naive struct {
	capacity int
	keys     []int
	index    map[int]int // of a key in keys
	// Times and counts, by index in keys.
	added, requested, count []int
	// order breaks ties between equal counts: the lowest order is evicted first. It
	// increases with each request. A halving assigns new values in the previous order.
	order               []int
	now, requests, tick int
}

// NewNaive returns an empty cache for capacity keys.
func NewNaive(capacity int) *Naive { return &Naive{capacity: capacity, index: map[int]int{}} }

// Request reads a key, and adds it after a miss. The policy is "lru", "lfu" or "fifo".
func (c *Naive) Request(evict string, key int) (hit bool) {
	c.now++
	i, hit := c.index[key]
	if !hit {
		if len(c.keys) < c.capacity {
			i = len(c.keys)
			c.keys, c.added, c.requested = append(c.keys, 0), append(c.added, 0), append(c.requested, 0)
			c.count, c.order = append(c.count, 0), append(c.order, 0)
		} else {
			i = c.victim(evict)
			delete(c.index, c.keys[i])
		}
		c.keys[i], c.added[i], c.count[i] = key, c.now, 0
		c.index[key] = i
	}
	c.requested[i] = c.now
	c.count[i] = min(c.count[i]+1, 255)
	c.tick++
	c.order[i] = c.tick
	if c.requests++; c.requests >= 30*len(c.keys) {
		c.requests = 0
		c.halve()
	}
	return hit
}

// halve halves all counts.
func (c *Naive) halve() {
	all := make([]int, len(c.keys))
	for i := range all {
		all[i] = i
	}
	slices.SortFunc(all, func(a, b int) int { return cmp.Or(c.count[a]-c.count[b], c.order[a]-c.order[b]) })
	for _, i := range all {
		c.count[i] /= 2
		c.tick++
		c.order[i] = c.tick
	}
}

// victim returns the index of the key to evict.
func (c *Naive) victim(evict string) int {
	victim := 0
	for i := range c.keys {
		switch evict {
		case "lru":
			if c.requested[i] < c.requested[victim] {
				victim = i
			}
		case "fifo":
			if c.added[i] < c.added[victim] {
				victim = i
			}
		case "lfu":
			if c.count[i] < c.count[victim] || c.count[i] == c.count[victim] && c.order[i] < c.order[victim] {
				victim = i
			}
		}
	}
	return victim
}
