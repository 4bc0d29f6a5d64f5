package matrix

import (
	"math/rand/v2"
	"slices"
)

// Unit is one repeat of a cell: what is measured without an interruption.
type Unit struct {
	Cell   int // index in File.Cells
	Repeat int // from 0
}

// Order returns all units in the order in which they are measured. Each pass has one repeat of each cell. The passes
// come in pairs: a random order in which the values of each axis are spread evenly, and then its reverse. So a steady
// drift of the machine is the same for all cells after each pair, and about the same for all values of an axis at any
// time. The order depends on the file and its seed alone.
func (f *File) Order() (units []Unit) {
	random := rand.New(rand.NewPCG(f.Seed, orderStream))
	var pass []int
	for repeat := range f.Repeats {
		if repeat%2 == 0 {
			pass = f.spread(random)
		} else {
			slices.Reverse(pass)
		}
		for _, i := range pass {
			units = append(units, Unit{i, repeat})
		}
	}
	return units
}

const (
	orderStream = 0x6d6174726978 // of the random numbers; other uses of the seed have other streams
	swapsOfCell = 200            // tries per cell to spread the values more evenly
)

// spread returns a random order of the cells in which the mean position of the cells with each value of an axis is near
// the middle. It starts with any order, and swaps two cells where that is an improvement.
func (f *File) spread(random *rand.Rand) []int {
	order := random.Perm(len(f.Cells))
	type group struct {
		sum   float64 // of the distances of its cells from the middle
		count float64
	}
	var groups []*group
	of := make([][]*group, len(f.Cells)) // by cell
	for _, a := range f.Axes {
		if len(a.Values) < 2 {
			continue
		}
		byValue := map[string]*group{}
		for i, c := range f.Cells {
			g := byValue[c[a.Name]]
			if g == nil {
				g = &group{}
				byValue[c[a.Name]] = g
				groups = append(groups, g)
			}
			g.count++
			of[i] = append(of[i], g)
		}
	}
	middle := float64(len(order)-1) / 2
	for at, i := range order {
		for _, g := range of[i] {
			g.sum += float64(at) - middle
		}
	}
	cost := func(gs []*group) (sum float64) {
		for _, g := range gs {
			sum += (g.sum / g.count) * (g.sum / g.count)
		}
		return sum
	}
	move := func(i int, by float64) {
		for _, g := range of[i] {
			g.sum += by
		}
	}
	for range swapsOfCell * len(order) {
		if cost(groups) == 0 {
			break
		}
		a, b := random.IntN(len(order)), random.IntN(len(order))
		touched := slices.Concat(of[order[a]], of[order[b]])
		before := cost(touched)
		move(order[a], float64(b-a))
		move(order[b], float64(a-b))
		if cost(touched) > before {
			move(order[a], float64(a-b))
			move(order[b], float64(b-a))
			continue
		}
		order[a], order[b] = order[b], order[a]
	}
	return order
}
