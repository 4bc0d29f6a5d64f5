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

// held are keys of a cache node.
type held struct {
	keys  []string
	asked int
}

// Drop implements holder.
func (h *held) Drop(_ context.Context, drop func(string) bool) (int, error) {
	before := len(h.keys)
	h.asked++
	h.keys = slices.DeleteFunc(h.keys, drop)
	return before - len(h.keys), nil
}

// A cache node drops what is not its own before and after keys move, and looks through
// its keys at no other document.
func TestCacheNodeKeepsItsOwn(t *testing.T) {
	t.Parallel()
	wiring := func(moving bool, names ...string) sut.Wiring {
		w := sut.Wiring{Moving: moving, Uses: map[sut.Role][]sut.Peer{}}
		for _, name := range names {
			w.Uses[sut.Cache] = append(w.Uses[sut.Cache], sut.Peer{Node: name})
		}
		return w
	}
	config := sut.NodeConfig{Node: "cache-1", Wiring: wiring(false, "cache-1", "cache-2")}
	h := &held{}
	c := cacheNode(process.Node{Config: config, Registry: prometheus.NewRegistry()}, process.Component{}, h, nil)
	for i, step := range []struct {
		told sut.Wiring
		by   []string // whose keys are kept; nil = it does not look
	}{
		{wiring(false, "cache-1", "cache-2"), nil}, // another document with the same members
		{wiring(true, "cache-1"), []string{"cache-1", "cache-2"}},
		{wiring(true, "cache-1"), nil},
		{wiring(false, "cache-1"), []string{"cache-1"}},
		{wiring(false, "cache-1"), nil},
		{wiring(false, "cache-1", "cache-2", "cache-3"), []string{"cache-1", "cache-2", "cache-3"}},
		{wiring(false), nil}, // it is told of no members
	} {
		h.keys, h.asked = nil, 0
		for n := range 100 {
			h.keys = append(h.keys, fmt.Sprint("photo:", n))
		}
		want := slices.Clone(h.keys)
		if step.by != nil {
			ring := cache.NewRing(step.by)
			want = slices.DeleteFunc(want, func(key string) bool { return ring.Owner(key) != "cache-1" })
		}
		if err := c.Rewire(t.Context(), step.told); err != nil {
			t.Error(err)
		}
		if looks := h.asked > 0; looks != (step.by != nil) || !slices.Equal(h.keys, want) {
			t.Errorf("step %d: it looked through its keys: %t, and has %d of them, want %d", i, looks, len(h.keys), len(want))
		}
	}
}
