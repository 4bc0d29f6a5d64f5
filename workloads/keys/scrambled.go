package keys

import (
	"math/bits"

	"github.com/stagebench/stagebench/workloads"
)

// Scrambled is a zipfian distribution whose hot keys are spread over all keys,
// as in YCSB: without that they would be neighbours, on one page of a table and
// in one shard.
//
// YCSB takes a hash of the rank modulo n. Several ranks then fall on one key,
// others on none, and the distribution is not zipfian any more. Here each rank
// has a key of its own, by a permutation of 0..n-1 that the seed decides.
type Scrambled struct {
	ranks Zipfian
	order permutation
}

// NewScrambled spreads a zipfian distribution in the order of a seed.
func NewScrambled(ranks Zipfian, seed uint64) Scrambled {
	return Scrambled{ranks: ranks, order: newPermutation(ranks.n, seed)}
}

// Key returns the key that random bits stand for.
func (s Scrambled) Key(random uint64) int { return s.order.at(s.ranks.Key(random)) }

// Ranked returns the key that is asked for most often after rank others: rank 0
// is the hottest.
func (s Scrambled) Ranked(rank int) int { return s.order.at(rank) }

// permutation is a one-to-one map of 0..n-1 onto itself, without a table.
//
// Each round is one-to-one on the numbers of as many bits as n-1 has: a
// multiplication by an odd number, an addition, a shift folded in. A result
// that is not below n is permuted again until it is, which keeps the map
// one-to-one (cycle-walking; Black and Rogaway: Ciphers with Arbitrary Finite
// Domains, 2002) and takes less than two turns on average. It spreads keys; it
// hides nothing.
type permutation struct {
	n     uint64
	mask  uint64
	shift int
	round [3]struct{ multiply, add uint64 }
}

func newPermutation(n int, seed uint64) permutation {
	width := bits.Len64(uint64(n - 1))
	p := permutation{n: uint64(n), mask: 1<<width - 1, shift: (width + 1) / 2}
	for i := range p.round {
		p.round[i].multiply = workloads.Draw(seed, uint64(i), 0) | 1
		p.round[i].add = workloads.Draw(seed, uint64(i), 1)
	}
	return p
}

func (p *permutation) at(i int) int {
	x := uint64(i)
	for {
		for _, r := range p.round {
			x = (x*r.multiply + r.add) & p.mask
			x ^= x >> p.shift
		}
		if x < p.n {
			return int(x)
		}
	}
}
