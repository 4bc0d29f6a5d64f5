package keys

import (
	"math/bits"

	"github.com/stagebench/stagebench/workloads"
)

// Scrambled is a zipfian distribution whose hot keys are spread over the whole key
// range, as in YCSB. Otherwise the hot keys would be neighbours: on one page of a
// table, and in one shard.
//
// YCSB uses a hash of the rank modulo n. Then two ranks can share a key, some keys have
// no rank, and the distribution is no longer zipfian. Scrambled instead maps each rank to
// its own key, by a permutation of 0..n-1 that depends on the seed.
type Scrambled struct {
	ranks Zipfian
	order permutation
}

// NewScrambled spreads the keys of a zipfian distribution. The seed selects the permutation.
func NewScrambled(ranks Zipfian, seed uint64) Scrambled {
	return Scrambled{ranks: ranks, order: newPermutation(ranks.n, seed)}
}

// Key converts random bits to a key.
func (s Scrambled) Key(random uint64) int { return s.order.at(s.ranks.Key(random)) }

// KeyOfRank returns the key of a popularity rank; rank 0 is the hottest.
func (s Scrambled) KeyOfRank(rank int) int { return s.order.at(rank) }

// permutation is a one-to-one map of 0..n-1 onto itself, without a table.
//
// Each round permutes the numbers that have as many bits as n-1: multiply by an odd
// number, add, then xor with a shifted copy. A result of n or above goes through the
// rounds again until it is below n. This keeps the map one-to-one and takes less than
// two passes on average (cycle-walking; Black and Rogaway: Ciphers with Arbitrary Finite
// Domains, 2002). The map is not cryptographic.
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
