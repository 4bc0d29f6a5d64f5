package local

import (
	"slices"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

// A host number that is given to a start has been unused for as long as can be, and
// no other web node has it.
func TestHostNumbersAreLeased(t *testing.T) {
	t.Parallel()
	const webs = 16
	s := &System{nodes: []*node{{Node: sut.Node{Role: sut.DB}}}}
	for range webs {
		s.nodes = append(s.nodes, &node{Node: sut.Node{Role: sut.Web}})
	}
	given := map[int]int{} // when each number was given last
	for start := 1; start <= 10_000; start++ {
		n := s.nodes[1+start*start%7] // some never start again
		if start <= webs {
			n = s.nodes[start]
		}
		number := s.lease()
		others := slices.ContainsFunc(s.nodes, func(other *node) bool { return other.idHost == number })
		if number < 1 || number > sut.MaxIDHost || others || given[number] > 0 && start-given[number] < sut.MaxIDHost-webs {
			t.Fatalf("start %d: host number %d, given before at start %d, in use: %t", start, number, given[number], others)
		}
		n.idHost, given[number] = number, start
	}
}
