package pace

import (
	"fmt"
	"math"
	"sort"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/workloads"
)

// Poisson returns the schedule of independent users: a Poisson process. Its gaps
// are independent and exponential with mean 1/rate. Op 0 comes after the first
// gap. The seed alone decides the gaps in units of their mean. So two schedules
// with the same seed and different rates are the same process, stretched.
//
// The schedule has 2^44 ops, which last 203 days at the highest rate. At returns
// the largest duration for later ops. With increasing n, one call in 512 takes
// about 10 us and the others almost nothing. A jump to a distant op takes about
// 10 us. Memory is bounded.
func Poisson(rate float64, seed uint64) (Schedule, error) {
	if err := checkRate(rate); err != nil {
		return nil, err
	}
	p := &poisson{rate: rate, seed: seed, gapNS: 1e9 / rate}
	p.total = p.gamma(1 << treeBits)
	return p, nil
}

// poisson computes the time of op n without computing the ops before it. It uses
// a gamma bridge (Ribeiro and Webber: Valuing Path-Dependent Options in the
// Variance-Gamma Model by Monte Carlo with a Gamma Bridge, 2004).
//
// The sum S of 2m exponential gaps is a Gamma(2m) variate. The first m gaps take
// the share B ~ Beta(m, m) of it. B is independent of S, and B*S and (1-B)*S are
// independent Gamma(m) variates (Lukacs: A Characterization of the Gamma
// Distribution, 1955). So the process is a binary tree. The root is the sum of
// all gaps. Each node is split into two halves by a share of its own. The leaves
// are blocks of 512 gaps. A leaf draws 512 exponentials and scales them to the
// length of the leaf; by the same law the results are independent exponentials.
// The only approximation is the 53 bits of a float64.
//
// Each share and each gap is drawn by its position in the tree, so the order of
// calls does not matter. Internal times are in units of the mean gap.
type poisson struct {
	rate  float64
	seed  uint64
	gapNS float64 // mean gap
	total float64 // sum of all 2^treeBits gaps

	// recent caches the latest blocks, each at its index modulo the length.
	// Stored blocks are never modified, and every goroutine computes the same
	// block. So when two goroutines compute one block at the same time, the
	// result is correct and only the work is done twice.
	recent [8]atomic.Pointer[block]
}

const (
	treeBits  = 44 // gaps in the tree
	blockBits = 9  // gaps in a leaf
	blockOps  = 1 << blockBits
)

// block is one leaf: the times of blockOps ops from op index*blockOps on.
type block struct {
	index uint64
	at    [blockOps]time.Duration
}

// The streams of random numbers of one seed.
const (
	streamGap = iota
	streamRadius
	streamAngle
	streamRoot
)

func (p *poisson) At(n uint64) time.Duration {
	if n >= 1<<treeBits {
		return forever
	}
	index := n >> blockBits
	slot := &p.recent[index%uint64(len(p.recent))]
	b := slot.Load()
	if b == nil || b.index != index {
		b = p.block(p.descend(func(level int, _ float64) bool { return index>>(level-blockBits)&1 == 1 }))
		slot.Store(b)
	}
	return b.at[n%blockOps]
}

func (p *poisson) Count(d time.Duration) uint64 {
	// The last op of a left half is exactly at the border. So all ops of the
	// left half are before d only when the border is before d.
	b := p.block(p.descend(func(_ int, border float64) bool { return p.duration(border) < d }))
	within := sort.Search(blockOps, func(i int) bool { return b.at[i] >= d })
	return b.index<<blockBits + uint64(within)
}

func (p *poisson) String() string {
	return fmt.Sprintf("poisson %s/s seed %d", rateText(p.rate), p.seed)
}

// descend walks from the root to a leaf. It returns the index of the leaf and
// its start and end times. It calls right at each node to choose the half:
// a half has 2^level gaps, and border is the time between the two halves.
func (p *poisson) descend(right func(level int, border float64) bool) (index uint64, from, to float64) {
	from, to = 0, p.total
	node := uint64(1) // the children of node i are 2i and 2i+1
	for level := treeBits - 1; level >= blockBits; level-- {
		// The leaves on both sides of a border compute it by the same formula
		// from the same numbers. A sum of lengths could differ in the last bit,
		// and then the time of op n+1 could be before that of op n.
		border := from + (to-from)*p.share(node, level)
		node <<= 1
		if right(level, border) {
			from = border
			node |= 1
		} else {
			to = border
		}
	}
	return node - 1<<(treeBits-blockBits), from, to
}

// share draws the Beta(m, m) share of the first half of a node, m = 2^level.
//
// Take a point in a disc at a uniform angle, with its distance R from the centre
// given by 1-R^2 = U^(2/(2m-1)), U uniform. Its first coordinate has a density
// proportional to (1-x^2)^(m-1), which is Beta(m, m) stretched to (-1, 1)
// (Ulrich: Computer Generation of Distributions on the m-Sphere, 1984). Nothing
// is rejected, so two draws are always enough.
func (p *poisson) share(node uint64, level int) float64 {
	m := math.Ldexp(1, level)
	u := workloads.Draw(p.seed, node, streamRadius)
	v := workloads.Draw(p.seed, node, streamAngle)
	radius := math.Sqrt(-math.Expm1(-2 * exponential(u) / (2*m - 1)))
	return (1 + radius*math.Cos(2*math.Pi*workloads.Unit(v))) / 2
}

// block computes the times of the ops of a leaf.
func (p *poisson) block(index uint64, from, to float64) *block {
	b := &block{index: index}
	var gaps [blockOps]float64
	var sum float64
	for i := range gaps {
		sum += exponential(workloads.Draw(p.seed, index<<blockBits+uint64(i), streamGap))
		gaps[i] = sum
	}
	scale := (to - from) / sum
	for i := range gaps {
		b.at[i] = p.duration(min(from+gaps[i]*scale, to))
	}
	b.at[blockOps-1] = p.duration(to) // exact: the scaled sum may differ by a rounding error
	return b
}

// gamma draws the sum of all gaps (Marsaglia and Tsang: A Simple Method for
// Generating Gamma Variables, 2000). At this shape the variate is within 1e-6 of
// the shape. Log1p keeps that small difference; Log(1+over) would round it away.
func (p *poisson) gamma(shape float64) float64 {
	d := shape - 1.0/3
	c := 1 / math.Sqrt(9*d)
	for i := uint64(0); ; i += 3 {
		u, v := workloads.Draw(p.seed, i, streamRoot), workloads.Draw(p.seed, i+1, streamRoot)
		normal := math.Sqrt(2*exponential(u)) * math.Cos(2*math.Pi*workloads.Unit(v))
		x := c * normal
		over := x * (3 + x*(3+x)) // (1+x)^3 - 1
		if -exponential(workloads.Draw(p.seed, i+2, streamRoot)) < normal*normal/2+d*(math.Log1p(over)-over) {
			return d * (1 + over)
		}
	}
}

// duration converts a time in mean gaps to nanoseconds, rounded down.
func (p *poisson) duration(gaps float64) time.Duration {
	if ns := gaps * p.gapNS; ns < float64(forever) {
		return time.Duration(ns)
	}
	return forever
}

// exponential converts random bits into an exponential variate of mean 1, by
// inversion. The logarithm is finite, because 1-Unit is never 0.
func exponential(random uint64) float64 { return -math.Log(1 - workloads.Unit(random)) }
