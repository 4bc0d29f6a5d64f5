package workloads

import "math/bits"

// golden is the increment of SplitMix64: 2^64 divided by the golden ratio,
// made odd.
const golden = 0x9e3779b97f4a7c15

// Draw returns 64 random bits: number n of the given stream of the given seed.
// It is a pure function: a workload can repeat its draws in any order and on any
// goroutine. The streams of one seed are independent: an op that needs three
// random numbers takes draw n of three streams.
//
// The generator is SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom
// Number Generators, OOPSLA 2014). It computes output n without computing the
// earlier outputs. Each stream starts at its own state, derived from the seed.
func Draw(seed, n, stream uint64) uint64 {
	start := mix(mix(seed+golden) + (stream+1)*golden)
	return mix(start + (n+1)*golden)
}

// mix is the output function of SplitMix64: a permutation of the 64-bit numbers.
// Flipping one input bit flips half of the output bits on average.
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// Unit converts random bits to a number in [0, 1) that is a multiple of 2^-53.
func Unit(random uint64) float64 { return float64(random>>11) * 0x1p-53 }

// Below converts random bits to an integer in 0..n-1. The probabilities of the
// integers differ by at most 2^-64.
func Below(random uint64, n int) int {
	high, _ := bits.Mul64(random, uint64(n))
	return int(high)
}
