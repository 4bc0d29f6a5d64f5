package preset

import (
	"errors"
	"math"
	"slices"
	"time"

	"github.com/stagebench/stagebench/workloads"
)

// journeys is a workload of journeys: a user logs in, or continues with the cookie of an earlier journey, sends several
// requests with think time between them, and sometimes logs out.
//
// Half of the journeys log in. The other half continue, because a session lasts for a day and most people come back
// sooner. Which journeys do so depends on their numbers alone, not on what became of earlier journeys. So the ops are
// the same with every target. Half of the journeys that log in also log out. A journey without a login never does: it
// shares its session with other journeys of its user, as the tabs of a browser do.
//
// The journeys come in blocks. Each block has the same lengths, logins and logouts, in an order drawn from the seed. So
// the position of a journey needs no sum over the journeys before it, and the mean length is exact.
type journeys struct {
	*service
	all workloads.Mix // with logins and logouts
}

var (
	_ workloads.Journeys = (*journeys)(nil)
	_ workloads.Login    = (*journeys)(nil)
)

// The composition of a block.
const (
	blockJourneys = 20
	blockLogins   = 10
	blockLogouts  = 5
	blockOps      = 200 // with the sum of lengths()
)

// lengths returns the numbers of ops of the journeys of a block, without logins and logouts. They are about
// geometrically distributed: most journeys are short.
func lengths() [blockJourneys]int {
	return [...]int{2, 3, 3, 4, 5, 5, 6, 6, 7, 8, 8, 9, 10, 11, 12, 13, 14, 16, 19, 24}
}

// The think time between two ops: at least minThink, then exponentially distributed, at most maxThink. Its mean is a
// second.
const (
	minThink  = 100 * time.Millisecond
	meanPause = 904 * time.Millisecond // without the bound
	maxThink  = 5 * time.Second
)

// newJourneys returns a workload of journeys. The mix is that of all ops.
func newJourneys(s Shipped, p Params, maxVirtual int) (*journeys, error) {
	all, rest := s.Mix, 0.0
	s.Mix = slices.DeleteFunc(slices.Clone(all), func(share workloads.Share) bool {
		return share.Class == Login || share.Class == Logout
	})
	for _, share := range s.Mix {
		rest += share.Percent
	}
	for i := range s.Mix {
		s.Mix[i].Percent *= 100 / rest
	}
	w, err := newService(s, p, maxVirtual)
	if err != nil {
		return nil, err
	}
	if w.owners != nil {
		return nil, errors.New("the ops of a journey have one user: want a mix without ops of owners of photos")
	}
	return &journeys{w, all}, nil
}

// Classes lists the classes of the ops, without Login.
func (w *journeys) Classes() (classes []workloads.Class) {
	for _, share := range w.all {
		if share.Class != Login {
			classes = append(classes, share.Class)
		}
	}
	return classes
}

// journey is the place of a journey in its block.
type journey struct {
	first, ops    int
	login, logout bool
}

// block returns the journeys of a block.
func (w *journeys) block(n uint64) (journeys [blockJourneys]journey) {
	lengths, kinds := lengths(), [blockJourneys]int{}
	for i := range kinds {
		kinds[i] = i
	}
	first := 0
	for i := range journeys {
		j := i + workloads.Below(workloads.Draw(w.seed, n*blockJourneys+uint64(i), streamLength), blockJourneys-i)
		k := i + workloads.Below(workloads.Draw(w.seed, n*blockJourneys+uint64(i), streamKind), blockJourneys-i)
		lengths[i], lengths[j] = lengths[j], lengths[i]
		kinds[i], kinds[k] = kinds[k], kinds[i]
		v := journey{first: first, ops: lengths[i], login: kinds[i] < blockLogins, logout: kinds[i] < blockLogouts}
		if v.login {
			v.ops++
		}
		if v.logout {
			v.ops++
		}
		journeys[i] = v
		first += v.ops
	}
	return journeys
}

// Journey returns the n-th journey.
func (w *journeys) Journey(n uint64) (first uint64, ops int) {
	v := w.block(n / blockJourneys)[n%blockJourneys]
	return n/blockJourneys*blockOps + uint64(v.first), v.ops
}

// Think returns the think time before op n.
func (w *journeys) Think(n uint64) time.Duration {
	pause := -math.Log(1-workloads.Unit(workloads.Draw(w.seed, n, streamThink))) * float64(meanPause)
	return min(minThink+time.Duration(pause), maxThink)
}

// Shape returns the mean number of ops of a journey, and the longest time that its user thinks.
func (w *journeys) Shape() (mean float64, longest time.Duration) {
	ops := lengths()
	return blockOps / float64(blockJourneys), time.Duration(slices.Max(ops[:])+1) * maxThink
}

// Op returns the n-th op.
func (w *journeys) Op(n uint64) workloads.Op {
	block, at := n/blockOps, int(n%blockOps)
	journeys := w.block(block)
	i := slices.IndexFunc(journeys[:], func(v journey) bool { return at < v.first+v.ops })
	v := journeys[i]
	user := workloads.Below(workloads.Draw(w.seed, block*blockJourneys+uint64(i), streamJourneyUser), w.virtual)
	if v.login && at == v.first {
		op := w.logins[user]
		op.Index, op.Login = n, true
		return op
	}
	t := turn{seed: w.seed, n: n, user: user}
	if v.logout && at == v.first+v.ops-1 {
		op := w.op(Logout, &w.logout, t)
		op.Logout = true
		return op
	}
	class := w.mix.Pick(t.draw(streamClass))
	return w.op(w.mix[class].Class, &w.kinds[class], t)
}
