package capacity

import "math"

// What is known about a system before it is measured.
const (
	// usualSlope is the slope of the logit of the share of bad batches over the logarithm of the
	// rate: with 8, the share grows from 10 % to 19 % while the rate grows by a tenth. The noise
	// of the machine sets it: if the cost of a request has a coefficient of variation of v, it is
	// about 1.7/v. It is smaller where some batches are bad at any rate, as when a disk is flushed.
	usualSlope = 8
	slopeSD    = 2.0 // below the usual slope
	steepSD    = 4.0 // above it: a quiet machine has a much steeper one
	minSlope   = 3
	// middleSD is the spread of the logit of that share at the middle of the offered rates.
	middleSD = 3.5
	// usualExcess is the mean excess of a bad batch. It counts as much as excessBatches batches.
	usualExcess   = 10
	excessBatches = 2
	// near is the distance from the capacity, in the logarithm of the rate, at which the excess of a batch counts 0.6
	// times as much as at the capacity.
	near   = 0.2
	rounds = 5 // of finding the capacity and the excess near it
	// The share of bad batches at the capacity is at least rarest and at most commonest: outside,
	// the fit says nothing.
	rarest, commonest = 0.02, 0.5
)

// point is a batch of ops: the logarithm of its rate, and its excess, 0 if it met the objective.
type point struct {
	X      float64 `json:"log_rate"`
	Excess float64 `json:"excess"`
}

// fit returns the logarithm of the capacity by the steps of some visits.
func fit(visits []visit) float64 {
	var points []point
	low, high := math.Inf(1), math.Inf(-1)
	for _, v := range visits {
		for _, s := range v.Steps {
			points = append(points, s.Points...)
			for _, p := range s.Points {
				low, high = min(low, p.X), max(high, p.X)
			}
		}
	}
	middle := (low + high) / 2
	at, slope := logistic(points, middle)
	// The excess grows with the rate: that of the batches near the capacity counts, so both are found in turn.
	capacity := middle
	for n := range rounds {
		bad, excess := float64(excessBatches), float64(excessBatches*usualExcess)
		for _, p := range points {
			if p.Excess > 0 && n > 0 {
				distance := (p.X - capacity) / near
				weight := math.Exp(-distance * distance / 2)
				bad, excess = bad+weight, excess+weight*p.Excess
			}
		}
		share := min(max(bad/excess, rarest), commonest)
		capacity = middle + (logit(share)-at)/slope
	}
	return capacity
}

// logistic returns the most likely share of bad batches by the logarithm of the rate: its logit
// at the middle, and its slope. The logarithm of the likelihood is concave, and Newton's method
// finds its maximum.
func logistic(points []point, middle float64) (at, slope float64) {
	slope = usualSlope
	for range 25 {
		// Gradient and negative Hessian, first of what is known before.
		sd := slopeSD
		if slope > usualSlope {
			sd = steepSD
		}
		ga, gs := -at/(middleSD*middleSD), (usualSlope-slope)/(sd*sd)
		haa, hss, has := 1/(middleSD*middleSD), 1/(sd*sd), 0.0
		for _, p := range points {
			x := p.X - middle
			share := 1 / (1 + math.Exp(-at-slope*x))
			difference := -share
			if p.Excess > 0 {
				difference = 1 - share
			}
			weight := share * (1 - share)
			ga, gs = ga+difference, gs+difference*x
			haa, hss, has = haa+weight, hss+weight*x*x, has+weight*x
		}
		determinant := haa*hss - has*has
		da, ds := (hss*ga-has*gs)/determinant, (haa*gs-has*ga)/determinant
		// Steps are bounded, so that they cannot overshoot from a flat part of the likelihood.
		da, ds = min(max(da, -2), 2), min(max(ds, -4), 4)
		at, slope = at+da, max(minSlope, slope+ds)
		if math.Abs(da) < 1e-6 && math.Abs(ds) < 1e-6 {
			break
		}
	}
	return at, slope
}

func logit(share float64) float64 { return math.Log(share / (1 - share)) }
