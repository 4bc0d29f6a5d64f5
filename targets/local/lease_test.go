package local

import (
	"slices"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

// TestHostNumbersAreLeased checks the host numbers that starting web nodes get for
// their ids. No other web node has the number, and the start that had it before is
// as long ago as possible.
func TestHostNumbersAreLeased(t *testing.T) {
	t.Parallel()
	const webs = 16
	s := &System{nodes: []*node{{Node: sut.Node{Role: sut.DB}}}}
	for range webs {
		s.nodes = append(s.nodes, &node{Node: sut.Node{Role: sut.Web}})
	}
	given := map[int]int{} // host number -> last start that got it
	for start := 1; start <= 10_000; start++ {
		n := s.nodes[1+start*start%7] // most nodes start only once
		if start <= webs {
			n = s.nodes[start]
		}
		number := s.lease()
		others := slices.ContainsFunc(s.nodes, func(other *node) bool { return other.idHost == number })
		if number < 1 || number > sut.MaxIDHost || others || given[number] > 0 && start-given[number] < sut.MaxIDHost-webs {
			t.Fatalf("start %d: host number %d, last assigned at start %d, in use: %t", start, number, given[number], others)
		}
		n.idHost, given[number] = number, start
	}
}
