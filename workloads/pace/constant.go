package pace

import (
	"math"
	"math/bits"
	"time"
)

// Constant returns the schedule of op n at n/rate seconds: the same gap between
// all ops, the first op at 0. The quotient is computed exactly for every n and
// then rounded to the nearest nanosecond, so nothing adds up over time.
func Constant(rate float64) (Schedule, error) {
	if err := checkRate(rate); err != nil {
		return nil, err
	}
	fraction, exponent := math.Frexp(rate) // rate = fraction * 2^exponent, 0.5 <= fraction < 1
	return constant{
		rate:     rate,
		mantissa: uint64(math.Ldexp(fraction, 53)),
		shift:    uint(53 - exponent),
	}, nil
}

// constant keeps its rate as the fraction of whole numbers that the
// floating-point number is: rate = mantissa / 2^shift. Between MinRate and
// MaxRate, mantissa has 53 bits and shift is 33 to 56.
type constant struct {
	rate     float64
	mantissa uint64
	shift    uint
}

// At is n * 1e9 * 2^shift / mantissa in 128 bits, rounded half up. Rounding
// down would move op 6 at 0.1/s, a number that has no exact binary form, from
// 60 s to the nanosecond before it, and a minute would have one op too many.
func (c constant) At(n uint64) time.Duration {
	high, low := bits.Mul64(n, uint64(time.Second))
	if high>>(64-c.shift) != 0 {
		return forever // the product has more than 128 bits, so the quotient more than 75
	}
	high, low = high<<c.shift|low>>(64-c.shift), low<<c.shift
	if high >= c.mantissa {
		return forever // the quotient has more than 64 bits
	}
	ns, rest := bits.Div64(high, low, c.mantissa)
	if ns >= math.MaxInt64 {
		return forever
	}
	if rest >= c.mantissa-rest {
		ns++
	}
	return time.Duration(ns)
}

// Count is ceil((d - 1/2) * mantissa / 2^shift / 1e9) in 128 bits, with both
// sides of the fraction doubled: op n is rounded to a time below d when it is
// below d - 1/2.
func (c constant) Count(d time.Duration) uint64 {
	if d <= 0 {
		return 0
	}
	shift := c.shift + 1
	high, low := bits.Mul64(2*uint64(d)-1, c.mantissa)
	cut := low & (1<<shift - 1)
	high, low = high>>shift, high<<(64-shift)|low>>shift
	// high is below MaxRate, far below the divisor, so the quotient fits.
	count, rest := bits.Div64(high, low, uint64(time.Second))
	if cut != 0 || rest != 0 {
		count++
	}
	return count
}

func (c constant) String() string { return "constant " + rateText(c.rate) + "/s" }
