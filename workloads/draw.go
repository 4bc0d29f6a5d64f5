package workloads

import "math/bits"

// golden is the increment of SplitMix64: 2^64 divided by the golden ratio,
// made odd.
const golden = 0x9e3779b97f4a7c15

// Draw returns 64 random bits: the n-th of one stream of one seed. It is a pure
// function, so every draw of a workload can be made again, in any order and by
// any goroutine. Streams of one seed are independent of each other: an op that
// needs three random numbers takes them from three streams at its own n.
//
// It is SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
// Generators, OOPSLA 2014), whose n-th output can be computed without the ones
// before it. Each stream starts at a place of its own, drawn from the seed.
func Draw(seed, n, stream uint64) uint64 {
	start := mix(mix(seed+golden) + (stream+1)*golden)
	return mix(start + (n+1)*golden)
}

// mix is the output function of SplitMix64: a permutation of 64-bit numbers in
// which each input bit changes half of the output bits.
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// Unit turns random bits into a number in [0, 1), a multiple of 2^-53.
func Unit(random uint64) float64 { return float64(random>>11) * 0x1p-53 }

// Below turns random bits into a whole number in 0..n-1. No number is more
// likely than another by more than n/2^64.
func Below(random uint64, n int) int {
	high, _ := bits.Mul64(random, uint64(n))
	return int(high)
}
