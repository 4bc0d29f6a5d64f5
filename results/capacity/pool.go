package capacity

import (
	"math"

	"gonum.org/v1/gonum/stat/distuv"
)

// Interval is a figure with its 90 % interval.
type Interval struct{ Value, Low, High float64 }

// What is known about samples before they are taken: on shared machines, samples of a few
// seconds at different times vary with a coefficient of variation of 10 to 20 %. It counts as
// much as priorSamples samples, so that two samples that agree by chance do not look exact.
const (
	priorSD      = 0.18
	modelSD      = 0.05 // what the model of package capacity is off for a system, however often it is measured
	priorSamples = 3
	confidence   = 0.90
)

// Pool returns the geometric mean of positive samples that were taken at different times.
func Pool(samples []float64) Interval {
	var logarithms []float64
	var mean float64
	for _, s := range samples {
		logarithms = append(logarithms, math.Log(s))
		mean += math.Log(s) / float64(len(samples))
	}
	return pool(mean, logarithms, priorSD, 0)
}

// Ratio returns the ratio of two capacities with its interval. Both systems were visited in turn: the nth visits are
// neighbours in time, so that what slowly moves the speed of the machine does not move their ratio.
func Ratio(of, to Estimate) Interval {
	var ratios []float64
	for i := range min(len(of.ByVisit), len(to.ByVisit)) {
		ratios = append(ratios, math.Log(of.ByVisit[i]/to.ByVisit[i]))
	}
	return pool(math.Log(of.Value/to.Value), ratios, math.Sqrt2*priorSD, math.Sqrt2*modelSD)
}

// pool returns the interval around a value, from the spread of the samples. All are logarithms.
// It is the interval of Student's t distribution, with the variance of the samples and of what
// is known before (scaled inverse chi-squared prior; Gelman et al., Bayesian Data Analysis, 2013,
// section 2.6).
func pool(value float64, samples []float64, prior, model float64) Interval {
	n := float64(len(samples))
	var mean, squares float64
	for _, s := range samples {
		mean += s / n
	}
	for _, s := range samples {
		squares += (s - mean) * (s - mean)
	}
	freedom := priorSamples + n - 1
	sd := math.Sqrt((priorSamples*prior*prior + squares) / freedom)
	spread := distuv.StudentsT{Sigma: 1, Nu: freedom}.Quantile((1+confidence)/2) * sd / math.Sqrt(n)
	half := math.Hypot(spread, distuv.UnitNormal.Quantile((1+confidence)/2)*model)
	return Interval{math.Exp(value), math.Exp(value - half), math.Exp(value + half)}
}
