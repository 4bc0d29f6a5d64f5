// Package policytest is what eviction policies are compared with: keys drawn by a Zipf
// distribution, and a cache that looks at all of its entries to find a victim.
//
// It is deterministic, and keeps no state but in its values, each for one goroutine.
package policytest

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
)

// Exponent of all distributions here: that of YCSB.
const Exponent = 0.99

// Zipf draws ranks from 0 on by inversion of the exact distribution.
type Zipf struct {
	Cumulated []float64 // the sum of the weights up to each rank
	random    *rand.Rand
}

// NewZipf draws from that many ranks.
func NewZipf(n int, seed uint64) *Zipf {
	z := &Zipf{Cumulated: make([]float64, n), random: rand.New(rand.NewPCG(seed, 1))}
	sum := 0.0
	for i := range n {
		sum += math.Pow(float64(i+1), -Exponent)
		z.Cumulated[i] = sum
	}
	return z
}

// Next draws a rank.
func (z *Zipf) Next() int {
	return sort.SearchFloat64s(z.Cumulated, z.random.Float64()*z.Cumulated[len(z.Cumulated)-1])
}

// NextApproximately draws by the approximation that YCSB's generator is made of:
// Gray, Sundaresan, Englert, Baclawski and Weinberger, Quickly generating
// billion-record synthetic databases, SIGMOD 1994. It favours popular keys more.
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

// Naive is a cache of a number of keys that finds its victim by looking at all of
// them. It shares no idea of how with what it is compared with.
type Naive struct {
	capacity int
	keys     []int
	where    map[int]int // index in keys
	// By index in keys.
	came, asked, times []int
	// Among entries that were asked for equally often the one with the lowest order
	// goes: that of the last request, or of the last halving by what was so before.
	order               []int
	now, requests, tick int
}

// NewNaive returns a cache with room for so many keys.
func NewNaive(capacity int) *Naive { return &Naive{capacity: capacity, where: map[int]int{}} }

// Request asks for a key under a policy, "lru", "lfu" or "fifo", and stores one that
// is not there.
func (c *Naive) Request(evict string, key int) (hit bool) {
	c.now++
	i, hit := c.where[key]
	if !hit {
		if len(c.keys) < c.capacity {
			i = len(c.keys)
			c.keys, c.came, c.asked = append(c.keys, 0), append(c.came, 0), append(c.asked, 0)
			c.times, c.order = append(c.times, 0), append(c.order, 0)
		} else {
			i = c.worst(evict)
			delete(c.where, c.keys[i])
		}
		c.keys[i], c.came[i], c.times[i] = key, c.now, 0
		c.where[key] = i
	}
	c.asked[i] = c.now
	c.times[i] = min(c.times[i]+1, 255)
	c.tick++
	c.order[i] = c.tick
	if c.requests++; c.requests >= 30*len(c.keys) {
		c.requests = 0
		all := make([]int, len(c.keys))
		for i := range all {
			all[i] = i
		}
		slices.SortFunc(all, func(a, b int) int { return cmp.Or(c.times[a]-c.times[b], c.order[a]-c.order[b]) })
		for _, i := range all {
			c.times[i] /= 2
			c.tick++
			c.order[i] = c.tick
		}
	}
	return hit
}

func (c *Naive) worst(evict string) int {
	worst := 0
	for i := range c.keys {
		switch evict {
		case "lru":
			if c.asked[i] < c.asked[worst] {
				worst = i
			}
		case "fifo":
			if c.came[i] < c.came[worst] {
				worst = i
			}
		case "lfu":
			if c.times[i] < c.times[worst] || c.times[i] == c.times[worst] && c.order[i] < c.order[worst] {
				worst = i
			}
		}
	}
	return worst
}
