package pace

import (
	"math"
	"math/bits"
	"time"
)

// Constant returns a schedule with op n at n/rate seconds. The first op is at 0,
// and all gaps are equal. The quotient is computed exactly for every n and then
// rounded to the nearest nanosecond, so rounding errors do not accumulate.
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

// constant stores the rate as an exact fraction: rate = mantissa / 2^shift.
// For rates from MinRate to MaxRate, mantissa has 53 bits and shift is 33 to 56.
type constant struct {
	rate     float64
	mantissa uint64
	shift    uint
}

// At returns n * 1e9 * 2^shift / mantissa, computed in 128 bits and rounded half
// up. Rounding down would give a minute one op too many at 0.1/s: 0.1 has no
// exact binary form, so op 6 would be 1 ns before 60 s.
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

// Count returns ceil((d - 1/2) * mantissa / 2^shift / 1e9), computed in 128 bits.
// At rounds an op to a time below d exactly when its exact time is below d - 1/2.
// Numerator and denominator are doubled, so that 1/2 becomes a whole number.
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
