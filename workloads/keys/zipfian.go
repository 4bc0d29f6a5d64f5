package keys

import (
	"fmt"
	"math"

	"github.com/stagebench/stagebench/workloads"
)

// Zipfian returns key k with a probability proportional to 1/(k+1)^theta. Key 0 is
// the hottest.
//
// The parameters are those of YCSB (Cooper et al., SoCC 2010). The method is
// rejection-inversion (Hörmann and Derflinger: Rejection-Inversion to Generate Variates
// from Monotone Discrete Distributions, ACM TOMACS 6, 1996). It is exact, needs no sum
// over all keys, and its time does not depend on n.
//
// YCSB uses the generator of Gray et al. (Quickly Generating Billion-Record Synthetic
// Databases, SIGMOD 1994). That generator is exact only for the two hottest keys: with
// theta 0.99 and 3,000 keys it returns the third key 18 % and the fourth 11 % too often.
type Zipfian struct {
	n     int
	theta float64

	// Key draws a value between low and high, both values of integral, and maps it back
	// to a point on the axis of ranks. A rank is a key + 1.
	low, high float64
	near      float64 // a point at most this far left of its rank is never rejected
}

// NewZipfian returns the zipfian distribution of n keys. A larger theta is more skewed:
// 0 would be uniform, and YCSB uses 0.99.
func NewZipfian(n int, theta float64) (Zipfian, error) {
	if err := checkCount(n); err != nil {
		return Zipfian{}, err
	}
	if !(theta > 0 && theta <= 10) { // the negated form refuses NaN
		return Zipfian{}, fmt.Errorf("theta %v: want more than 0 and at most 10, for example 0.99", theta)
	}
	z := Zipfian{n: n, theta: theta}
	z.low = z.integral(1.5) - 1
	z.high = z.integral(float64(n) + 0.5)
	z.near = 2 - z.inverse(z.integral(2.5)-z.weight(2))
	return z, nil
}

// Key converts random bits to a key.
func (z Zipfian) Key(random uint64) int {
	for i := uint64(0); ; i++ {
		y := z.high + workloads.Unit(random)*(z.low-z.high)
		x := z.inverse(y)
		rank := min(max(math.Floor(x+0.5), 1), float64(z.n)) // rounding can put x outside the range
		// The area under the curve from rank-1/2 to rank+1/2 exceeds the weight of the
		// rank. The surplus lies at the left end and is rejected.
		if rank-x <= z.near || y >= z.integral(rank+0.5)-z.weight(rank) {
			return int(rank) - 1
		}
		random = workloads.Draw(random, i, 0)
	}
}

// weight is proportional to the probability of a rank.
func (z Zipfian) weight(rank float64) float64 { return math.Exp(-z.theta * math.Log(rank)) }

// integral is the integral of weight from 1 to x: (x^(1-theta) - 1)/(1-theta), or ln x
// for theta 1. This form loses no precision for theta near 1.
func (z Zipfian) integral(x float64) float64 {
	log := math.Log(x)
	t := (1 - z.theta) * log
	if math.Abs(t) < 1e-8 {
		return log * (1 + t/2)
	}
	return log * math.Expm1(t) / t
}

// inverse is the inverse function of integral.
func (z Zipfian) inverse(y float64) float64 {
	t := max(y*(1-z.theta), -1) // rounding can give a value below -1, which has no logarithm
	if math.Abs(t) < 1e-8 {
		return math.Exp(y * (1 - t/2))
	}
	return math.Exp(y * math.Log1p(t) / t)
}
