package gate

import (
	"math/rand/v2"

	"github.com/stagebench/stagebench/results"
)

// Tally counts the verdicts of many gates.
type Tally struct {
	Gates, Regression, Pass, Inconclusive, Invalid int
	Blocks                                         float64 // mean number of blocks that counted
}

// Draw decides gates whose blocks are drawn at random, with replacement, from blocks that were measured. Same says that
// base and head of the blocks are the same: then their labels are exchanged at random, too.
func Draw(metrics []Metric, measured []Pair, gates int, same bool, seed uint64) (t Tally, err error) {
	blocks := 0
	for n := range gates {
		random := rand.New(rand.NewPCG(seed, uint64(n)))
		g, err := New(metrics, random.Uint64())
		if err != nil {
			return t, err
		}
		for g.Verdict() == results.GateUndecided {
			p := measured[random.IntN(len(measured))]
			if same && random.IntN(2) == 1 {
				p.Base, p.Head = p.Head, p.Base
			}
			g.Add(p.Base, p.Head, false)
		}
		r := g.Result(true)
		t.Gates++
		blocks += r.Counted
		for verdict, count := range map[string]*int{
			results.GateRegression: &t.Regression, results.GatePass: &t.Pass,
			results.GateInconclusive: &t.Inconclusive, results.GateInvalid: &t.Invalid,
		} {
			if r.Verdict == verdict {
				*count++
			}
		}
	}
	t.Blocks = float64(blocks) / float64(gates)
	return t, nil
}

// Spread returns the mean change of a metric over the blocks that count, and the standard deviation of one block:
// shares of the base, or for metrics that are shares, differences.
func Spread(m Metric, measured []Pair) (change, deviation float64) {
	var d []float64
	for _, p := range measured {
		before, known := m.value(p.Base)
		after, also := m.value(p.Head)
		if known && also && doubt(p.Base, p.Head) == "" {
			d = append(d, m.difference(before, after))
		}
	}
	if len(d) < 2 {
		return 0, 0
	}
	mean, deviation := spread(d)
	return m.change(mean), deviation
}
