package pace

import (
	"fmt"
	"math"
	"sort"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/workloads"
)

// Poisson returns the schedule of independent users: a Poisson process, whose
// gaps are independent and exponential with mean 1/rate. Op 0 comes after the
// first gap. The seed alone decides the gaps in units of their mean, so two
// rates of one seed are one process, stretched.
//
// It holds 2^44 ops, 203 days at the highest rate; At is the largest duration
// for those after them. As long as n grows, one op in 512 costs about 10 us and
// the others next to nothing; an op far from those asked for before costs 10 us
// too. Memory is bounded.
func Poisson(rate float64, seed uint64) (Schedule, error) {
	if err := checkRate(rate); err != nil {
		return nil, err
	}
	p := &poisson{rate: rate, seed: seed, gapNS: 1e9 / rate}
	p.total = p.gamma(1 << treeBits)
	return p, nil
}

// poisson computes the time of the n-th op without those before it, by a gamma
// bridge. The sum of 2m exponential gaps is a Gamma(2m) variate. Of such a sum
// S, the first m gaps are the share B ~ Beta(m, m); B is independent of S, and
// B*S and (1-B)*S are independent Gamma(m) variates (Lukacs: A Characterization
// of the Gamma Distribution, 1955). So the process is a binary tree: its root
// is the sum of all gaps, each node is split into halves by a share of its own,
// and its leaves, blocks of 512 gaps, are split into gaps by the same law: gaps
// that are drawn as exponentials and scaled to a sum of their own Gamma law are
// independent exponentials again. Nothing here is an approximation but the 53
// bits of a float64. (For the bridge see Ribeiro and Webber: Valuing
// Path-Dependent Options in the Variance-Gamma Model by Monte Carlo with a
// Gamma Bridge, 2004.)
//
// Each share and each gap is drawn by its place in the tree, so the order of
// calls does not matter. Time inside is in units of the mean gap.
type poisson struct {
	rate  float64
	seed  uint64
	gapNS float64 // mean gap
	total float64 // sum of all 2^treeBits gaps

	// recent holds the blocks that were computed last, each at its index modulo
	// the length. Blocks are never written to after they are stored, and every
	// goroutine computes the same ones: a lost race costs time only.
	recent [8]atomic.Pointer[block]
}

const (
	treeBits  = 44 // gaps in the tree
	blockBits = 9  // gaps in a leaf
	blockOps  = 1 << blockBits
)

// block is one leaf: the times of the ops index*blockOps and following.
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
	place := &p.recent[index%uint64(len(p.recent))]
	b := place.Load()
	if b == nil || b.index != index {
		b = p.block(p.descend(func(level int, _ float64) bool { return index>>(level-blockBits)&1 == 1 }))
		place.Store(b)
	}
	return b.at[n%blockOps]
}

func (p *poisson) Count(d time.Duration) uint64 {
	// The last op of a left half is exactly at the border.
	b := p.block(p.descend(func(_ int, border float64) bool { return p.duration(border) < d }))
	within := sort.Search(blockOps, func(i int) bool { return b.at[i] >= d })
	return b.index<<blockBits + uint64(within)
}

func (p *poisson) String() string {
	return fmt.Sprintf("poisson %s/s seed %d", rateText(p.rate), p.seed)
}

// descend walks from the root to a leaf and returns the leaf's index and the
// times at which it starts and ends. At each node it asks whether to go right:
// level is the size of a half (2^level gaps), border the time between them.
func (p *poisson) descend(right func(level int, border float64) bool) (index uint64, from, to float64) {
	from, to = 0, p.total
	node := uint64(1) // the children of node i are 2i and 2i+1
	for level := treeBits - 1; level >= blockBits; level-- {
		// Both neighbours of a border compute it from the same numbers in the
		// same way. A sum of lengths would differ in the last bit, and an op
		// could come before the one that precedes it.
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
// A point whose distance R from the centre of a disc has 1-R^2 = U^(2/(2m-1))
// has a first coordinate with a density proportional to (1-x^2)^(m-1), which is
// Beta(m, m) stretched to (-1, 1) (Ulrich: Computer Generation of Distributions
// on the m-Sphere, 1984). No rejection, so two draws are always enough.
func (p *poisson) share(node uint64, level int) float64 {
	m := math.Ldexp(1, level)
	u := workloads.Draw(p.seed, node, streamRadius)
	v := workloads.Draw(p.seed, node, streamAngle)
	radius := math.Sqrt(-math.Expm1(-2 * exponential(u) / (2*m - 1)))
	return (1 + radius*math.Cos(2*math.Pi*workloads.Unit(v))) / 2
}

// block splits a leaf into its gaps.
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
	b.at[blockOps-1] = p.duration(to) // which rounding may have missed
	return b
}

// gamma draws the sum of all gaps, by Marsaglia and Tsang: A Simple Method for
// Generating Gamma Variables, 2000. Log1p, because at this shape the variate is
// within 1e-6 of the shape and the difference would drown in rounding.
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

// duration cuts a time in mean gaps to whole nanoseconds.
func (p *poisson) duration(gaps float64) time.Duration {
	if ns := gaps * p.gapNS; ns < float64(forever) {
		return time.Duration(ns)
	}
	return forever
}

// exponential turns random bits into an exponential variate of mean 1, by
// inversion. One minus a number in [0, 1) is never 0.
func exponential(random uint64) float64 { return -math.Log(1 - workloads.Unit(random)) }
