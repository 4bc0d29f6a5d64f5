package gate

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// flips is the number of sign flips that represent the null distribution.
const flips = 5000

// null is the null distribution of a gate: the same blocks with random signs.
type null struct {
	flips  []flip
	blocks int // that the sums of the flips have
}

// flip is a choice of signs for all blocks. The first flip is the observation: it keeps all signs.
type flip struct {
	signs uint64    // a bit for each block, 1 = the sign changes
	sums  []float64 // of the differences so far, by metric
	gone  bool      // an earlier look would have called it a regression
}

func newNull(metrics int, seed uint64) *null {
	n := &null{flips: make([]flip, flips)}
	random := rand.New(rand.NewPCG(seed, math.MaxUint64)) // HeadFirst uses the other streams
	sums := make([]float64, flips*metrics)
	for i := range n.flips {
		if n.flips[i].sums = sums[i*metrics : (i+1)*metrics]; i > 0 {
			n.flips[i].signs = random.Uint64()
		}
	}
	return n
}

// look returns for each metric the probability that any metric shows as large a change, and whether it is a regression
// with this probability of a false alarm. The blocks of earlier looks must be the same.
func (n *null) look(blocks [][]float64, alarm float64) (chance []float64, alarms []bool) {
	largest, observed := n.statistics(blocks)
	threshold := n.threshold(largest, alarm)
	for _, o := range observed {
		chance = append(chance, shareFrom(largest, o))
		alarms = append(alarms, o > threshold)
	}
	for i := range n.flips {
		n.flips[i].gone = n.flips[i].gone || largest[i] > threshold
	}
	return chance, alarms
}

// statistics returns the largest studentised mean of any metric for each flip, and those of all metrics without a flip.
// They are correlations, sum/sqrt(n * squares): the t statistic of n differences is a growing function of that, and no
// flip changes the denominator.
func (n *null) statistics(blocks [][]float64) (largest, observed []float64) {
	scale := make([]float64, len(n.flips[0].sums))
	for m := range scale {
		squares := 0.0
		for _, b := range blocks {
			squares += b[m] * b[m]
		}
		if squares > 0 {
			scale[m] = 1 / math.Sqrt(float64(len(blocks))*squares)
		}
	}
	largest = make([]float64, len(n.flips))
	for i := range n.flips {
		f := &n.flips[i]
		for k := n.blocks; k < len(blocks); k++ {
			change := f.signs >> k << 63 // the sign bit of a float64
			for m, d := range blocks[k] {
				f.sums[m] += math.Float64frombits(math.Float64bits(d) ^ change)
			}
		}
		largest[i] = math.Inf(-1)
		for m, sum := range f.sums {
			largest[i] = max(largest[i], sum*scale[m])
		}
	}
	n.blocks = len(blocks)
	for m, sum := range n.flips[0].sums {
		observed = append(observed, sum*scale[m])
	}
	return largest, observed
}

// threshold returns the smallest value that at most this share of all flips exceeds, without those that an earlier
// look would have called a regression. So the shares of the looks add up, and no error is spent twice. It depends
// only on the sizes of the differences, not on their signs.
func (n *null) threshold(largest []float64, share float64) float64 {
	var left []float64
	for i, value := range largest {
		if !n.flips[i].gone {
			left = append(left, value)
		}
	}
	allowed := int(share * float64(len(n.flips)))
	if allowed == 0 || allowed >= len(left) {
		return math.Inf(1)
	}
	slices.SortFunc(left, func(a, b float64) int { return cmp.Compare(b, a) })
	return left[allowed]
}

// shareFrom returns the share of values that are at least as large.
func shareFrom(values []float64, least float64) float64 {
	n := 0
	for _, v := range values {
		if v >= least {
			n++
		}
	}
	return float64(n) / float64(len(values))
}
