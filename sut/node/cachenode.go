package node

import (
	"context"
	"slices"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
)

// cacheDeathSignal is the signal that a native cache server gets when its node dies. The
// server has nothing to save.
const cacheDeathSignal = syscall.SIGKILL

// cacheServer is a native cache server.
type cacheServer interface {
	process.Server
	// Stats returns the counters of the server.
	Stats(ctx context.Context) (sut.CacheFigures, error)
	keyDropper
}

// keyDropper holds the keys of a cache node.
type keyDropper interface {
	// Drop removes the keys for which drop returns true, and returns their number.
	Drop(ctx context.Context, drop func(key string) bool) (dropped int, err error)
}

// cachePort returns the port for a native cache server. It is the node's own port, or
// any free port if a cache proxy takes the node's own.
func cachePort(n process.Node) (int, error) {
	if ladder.CacheOf(n.Config.Knobs).UsesDatabase() {
		n.Config.Port = 0
	}
	return n.FreePort()
}

// startCacheServer starts a native cache server. If the cache tier loads or writes
// records itself, it also starts a cache proxy in front of the server. client says how
// the proxy connects to the server.
func startCacheServer(
	ctx context.Context, n process.Node, s cacheServer, client cache.Config,
) (c process.Component, err error) {
	n.Registry.MustRegister(newCacheCollector(s.Stats))
	var proxy *cacheProxy
	if ladder.CacheOf(n.Config.Knobs).UsesDatabase() {
		c, proxy, err = startBehindProxy(ctx, n, s, client)
	} else {
		c, err = n.StartNative(ctx, s, cacheDeathSignal)
	}
	if err != nil {
		return c, err
	}
	return cacheNode(n, c, s, proxy), nil
}

// cacheNode adds the operator endpoints and changes of the wiring to the component of a
// cache node. proxy is nil without a cache proxy.
func cacheNode(n process.Node, c process.Component, keys keyDropper, proxy *cacheProxy) process.Component {
	moved := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "stagebench_cache_node_moved_total", Help: "Entries removed because another host owns their keys now.",
	})
	n.Registry.MustRegister(moved)
	members := func(w sut.Wiring) (names []string) {
		for _, p := range w.Active(sut.Cache) {
			names = append(names, p.Node)
		}
		return names
	}
	// dropForeign removes the keys that other nodes own if those are the members.
	dropForeign := func(ctx context.Context, names []string) error {
		ring := cache.NewRing(names)
		dropped, err := keys.Drop(ctx, func(key string) bool { return ring.Owner(key) != n.Config.Node })
		moved.Add(float64(dropped))
		return err
	}
	var current []string // the members that own the keys now; nil while keys move
	if !n.Config.Wiring.Rebalancing {
		current = members(n.Config.Wiring)
	}
	c.Operators = n.Operators()
	c.Rewire = func(ctx context.Context, w sut.Wiring) (err error) {
		if err := proxy.rewire(ctx, w); err != nil {
			return err
		}
		next := members(w)
		switch {
		case w.Rebalancing && len(current) > 0:
			// This node may hold keys of a node that did not answer for a while. Such a
			// value may be stale, and this node would serve it if it became the owner.
			if err = dropForeign(ctx, current); err == nil {
				current = nil
			}
		case !w.Rebalancing && len(next) > 0 && !slices.Equal(next, current):
			// Writes of keys that other nodes own do not reach this node any more. If such
			// a key came back later, this node would serve a stale value.
			if err = dropForeign(ctx, next); err == nil {
				current = next
			}
		}
		return err
	}
	return c
}
