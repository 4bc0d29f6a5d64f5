package node

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/node/process"
)

// keySet is the keys of a cache node.
type keySet struct {
	keys  []string
	scans int // calls of Drop
}

// Drop implements keyDropper.
func (s *keySet) Drop(_ context.Context, drop func(string) bool) (int, error) {
	before := len(s.keys)
	s.scans++
	s.keys = slices.DeleteFunc(s.keys, drop)
	return before - len(s.keys), nil
}

// A cache node drops the keys of other nodes before and after keys move. No other wiring
// makes it scan its keys.
func TestCacheNodeDropsForeignKeys(t *testing.T) {
	t.Parallel()
	wiring := func(moving bool, names ...string) sut.Wiring {
		w := sut.Wiring{Rebalancing: moving, Uses: map[sut.Role][]sut.Peer{}}
		for _, name := range names {
			w.Uses[sut.Cache] = append(w.Uses[sut.Cache], sut.Peer{Node: name})
		}
		return w
	}
	config := sut.NodeConfig{Node: "cache-1", Wiring: wiring(false, "cache-1", "cache-2")}
	s := &keySet{}
	c := cacheNode(process.Node{Config: config, Registry: prometheus.NewRegistry()}, process.Component{}, s, nil)
	for i, step := range []struct {
		wiring  sut.Wiring
		members []string // the members by which the node drops foreign keys; nil = no scan
	}{
		{wiring(false, "cache-1", "cache-2"), nil}, // the same members
		{wiring(true, "cache-1"), []string{"cache-1", "cache-2"}},
		{wiring(true, "cache-1"), nil},
		{wiring(false, "cache-1"), []string{"cache-1"}},
		{wiring(false, "cache-1"), nil},
		{wiring(false, "cache-1", "cache-2", "cache-3"), []string{"cache-1", "cache-2", "cache-3"}},
		{wiring(false), nil}, // no members
	} {
		s.keys, s.scans = nil, 0
		for n := range 100 {
			s.keys = append(s.keys, fmt.Sprint("photo:", n))
		}
		want := slices.Clone(s.keys)
		if step.members != nil {
			ring := cache.NewRing(step.members)
			want = slices.DeleteFunc(want, func(key string) bool { return ring.Owner(key) != "cache-1" })
		}
		if err := c.Rewire(t.Context(), step.wiring); err != nil {
			t.Error(err)
		}
		if scanned := s.scans > 0; scanned != (step.members != nil) || !slices.Equal(s.keys, want) {
			t.Errorf("step %d: scanned %t, %d keys left, want %t and %d",
				i, scanned, len(s.keys), step.members != nil, len(want))
		}
	}
}
