package trend

import (
	"math"
	"math/rand/v2"
	"slices"

	"pgregory.net/changepoint"
)

// MinSegment is the least number of values between two change points. So a single outlier is no change.
const MinSegment = 3

const (
	// alpha is the highest p-value of a change point.
	alpha = 0.002
	// permutations is the number of random orders behind a p-value. The lowest p-value is 1/(permutations+1).
	permutations = 1999
	// enough is the number of random orders with at least the observed statistic from which on further ones decide
	// nothing: the p-value is above alpha.
	enough = 20
	// ends is the most positions at which an interval of the test of a whole series may begin or end.
	ends = 128
)

// Change is the begin of a new level in a series of values.
type Change struct {
	At int     // index of the first value of the new level
	P  float64 // p-value, see Detect
}

// Detect returns the change points of values in the order of time. Equal values and seeds give equal results.
//
// Candidates come from ED-PELT (Haynes, Fearnhead and Eckley 2017, "A computationally efficient nonparametric approach
// for changepoint detection"), which finds the best split into segments of at least MinSegment values, with a penalty
// of 3 ln n for each further one. It finds candidates in a third of all stable series, and gives no p-values. So two
// permutation tests follow. Their statistic is the contrast between the scores of m of n values and the others, (sum of
// the m scores)^2 * n / (m*(n-m)): a squared t statistic, up to a factor that is the same in every order.
//
//  1. The whole series: does any segment at its begin or its end, or any interval in it, differ from the rest? The
//     first statistic is the maximum over all splits. The second one is the maximum over all intervals, as in circular
//     binary segmentation (Olshen, Venkatraman, Lucito and Wigler 2004), on a grid of at most 128 positions. It finds
//     levels that come and go. The p-value of at least one must be at most alpha, so at most 2 alpha of all stable
//     series have any change point.
//  2. Each candidate, among the values between its neighbours: the contrast of this split, against the maximum over all
//     splits of the values in random order. The candidate with the highest p-value is removed and the others are tested
//     again, until all are at most alpha. P is the p-value of this test.
//
// A p-value is (1 + the number of random orders with at least this statistic) / (1 + the number of random orders), so
// it is never 0 (Phipson and Smyth 2010, "Permutation p-values should never be zero"). It is not computed further once
// it is clearly above alpha (Besag and Clifford 1991, "Sequential Monte Carlo p-values").
func Detect(values []float64, seed uint64) []Change {
	candidates := changepoint.NonParametric(values, MinSegment)
	if len(candidates) == 0 {
		return nil
	}
	random := rand.New(rand.NewPCG(seed, 0))
	all := scores(values)
	if pValue(random, all, anySplit(all), anySplit) > alpha && pValue(random, all, anyInterval(all), anyInterval) > alpha {
		return nil
	}
	for len(candidates) > 0 {
		bounds := slices.Concat([]int{0}, candidates, []int{len(values)})
		changes := make([]Change, len(candidates))
		worst := 0
		for i, at := range candidates {
			window := scores(values[bounds[i]:bounds[i+2]])
			before := at - bounds[i]
			changes[i] = Change{at, pValue(random, window, contrast(sum(window[:before]), before, len(window)), anySplit)}
			if changes[i].P > changes[worst].P {
				worst = i
			}
		}
		if changes[worst].P <= alpha {
			return changes
		}
		candidates = slices.Delete(candidates, worst, worst+1)
	}
	return nil
}

// pValue returns the p-value of an observed statistic among those of the scores in random order.
func pValue(random *rand.Rand, scores []float64, observed float64, statistic func([]float64) float64) float64 {
	const rounding = 1e-9 // the order changes the rounding of a sum
	shuffled := slices.Clone(scores)
	reached := 0
	for done := range permutations {
		random.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if statistic(shuffled) >= observed*(1-rounding) {
			if reached++; reached == enough {
				return float64(reached) / float64(done+1)
			}
		}
	}
	return float64(1+reached) / float64(1+permutations)
}

// anySplit returns the maximum of the contrast over all splits into two segments.
func anySplit(scores []float64) (most float64) {
	before := 0.0
	for i, s := range scores {
		if i >= MinSegment && i <= len(scores)-MinSegment {
			most = max(most, contrast(before, i, len(scores)))
		}
		before += s
	}
	return most
}

// anyInterval returns the maximum of the contrast over all intervals, with segments before, in and after them.
func anyInterval(scores []float64) (most float64) {
	n := len(scores)
	step := max(1, (n+ends-1)/ends)
	var at []int
	var sums []float64
	before := 0.0
	for i := 0; i <= n; i++ {
		inside := i >= MinSegment && i <= n-MinSegment && i%step == 0
		if i == 0 || inside || i == n {
			at, sums = append(at, i), append(sums, before)
		}
		if i < n {
			before += scores[i]
		}
	}
	for a := range at {
		for b := a + 1; b < len(at); b++ {
			if m := at[b] - at[a]; m >= MinSegment && m <= n-MinSegment {
				most = max(most, contrast(sums[b]-sums[a], m, n))
			}
		}
	}
	return most
}

// contrast returns how much m of n scores, with this sum, differ from the others.
func contrast(sum float64, m, n int) float64 {
	return sum * sum * float64(n) / (float64(m) * float64(n-m))
}

// scores returns the distances of the values from their median, in multiples of their spread, and less the mean of all
// of them. The spread is that of a normal distribution with this median of absolute distances. A distance of more than
// clip counts as clip, so single outliers hide no change. Ranks would hide more: three values that are worse than all
// others are then never a change, however much worse they are.
func scores(values []float64) []float64 {
	const clip, normal = 3, 1.4826 // standard deviation of a normal distribution by its median absolute distance
	middle := Median(values)
	all := make([]float64, len(values))
	for i, v := range values {
		all[i] = math.Abs(v - middle)
	}
	spread := normal * Median(all)
	for i, v := range values {
		all[i] = 0
		if v != middle { // the spread is 0 if most values are equal
			all[i] = max(-clip, min(clip, (v-middle)/spread))
		}
	}
	mean := sum(all) / float64(len(all))
	for i := range all {
		all[i] -= mean
	}
	return all
}

// Median returns the median of at least one value.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func sum(values []float64) (total float64) {
	for _, v := range values {
		total += v
	}
	return total
}
