package keys

import (
	"fmt"
	"math"

	"github.com/stagebench/stagebench/workloads"
)

// Zipfian asks for key k with a probability proportional to 1/(k+1)^theta: key
// 0 is the hottest.
//
// Its parameters are those of YCSB (Cooper et al., SoCC 2010), whose generator
// is the one of Gray et al.: Quickly Generating Billion-Record Synthetic
// Databases, SIGMOD 1994. That one is exact for the two hottest keys and an
// approximation for the others: with theta 0.99 and 3,000 keys it returns the
// third key 18 % and the fourth 11 % too often. This one is exact, needs no sum
// over all keys and takes the same time for any n: rejection-inversion
// (Hörmann and Derflinger: Rejection-Inversion to Generate Variates from
// Monotone Discrete Distributions, ACM TOMACS 6, 1996).
type Zipfian struct {
	n     int
	theta float64

	// A point is drawn between low and high, which are values of integral, and
	// taken back to a place on the axis of ranks. Ranks are keys counted from 1.
	low, high float64
	near      float64 // a point this little left of its rank is never rejected
}

// NewZipfian returns the zipfian distribution of n keys. Theta 0 would be the
// uniform distribution; YCSB's is 0.99.
func NewZipfian(n int, theta float64) (Zipfian, error) {
	if err := checkCount(n); err != nil {
		return Zipfian{}, err
	}
	if !(theta > 0 && theta <= 10) { // so written that NaN is refused too
		return Zipfian{}, fmt.Errorf("theta %v: want more than 0 and at most 10, for example 0.99", theta)
	}
	z := Zipfian{n: n, theta: theta}
	z.low = z.integral(1.5) - 1
	z.high = z.integral(float64(n) + 0.5)
	z.near = 2 - z.inverse(z.integral(2.5)-z.weight(2))
	return z, nil
}

// Key returns the key that random bits stand for.
func (z Zipfian) Key(random uint64) int {
	for i := uint64(0); ; i++ {
		y := z.high + workloads.Unit(random)*(z.low-z.high)
		x := z.inverse(y)
		rank := min(max(math.Floor(x+0.5), 1), float64(z.n)) // rounding may lead half a rank outside
		// The area under the curve between rank-1/2 and rank+1/2 is more than
		// the weight of the rank: the surplus, at its left end, is rejected.
		if rank-x <= z.near || y >= z.integral(rank+0.5)-z.weight(rank) {
			return int(rank) - 1
		}
		random = workloads.Draw(random, i, 0)
	}
}

// weight is the probability of a rank, up to a factor.
func (z Zipfian) weight(rank float64) float64 { return math.Exp(-z.theta * math.Log(rank)) }

// integral is the integral of weight from 1 to x: (x^(1-theta) - 1)/(1-theta),
// and ln x for theta 1, without the loss of digits between the two.
func (z Zipfian) integral(x float64) float64 {
	log := math.Log(x)
	t := (1 - z.theta) * log
	if math.Abs(t) < 1e-8 {
		return log * (1 + t/2)
	}
	return log * math.Expm1(t) / t
}

// inverse is the x whose integral is y.
func (z Zipfian) inverse(y float64) float64 {
	t := max(y*(1-z.theta), -1) // rounding may lead below -1, where x is infinite
	if math.Abs(t) < 1e-8 {
		return math.Exp(y * (1 - t/2))
	}
	return math.Exp(y * math.Log1p(t) / t)
}
