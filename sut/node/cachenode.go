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

// nativeDeath ends a native cache server whose node has died: it has nothing to save.
const nativeDeath = syscall.SIGKILL

// cacheServer is a native cache server.
type cacheServer interface {
	process.Server
	// Stats says what it has counted.
	Stats(ctx context.Context) (sut.CacheFigures, error)
	holder
}

// holder is what holds the keys of a cache node.
type holder interface {
	// Drop removes the keys that drop says yes to, and returns how many there were.
	Drop(ctx context.Context, drop func(key string) bool) (dropped int, err error)
}

// cachePort is the port of a native cache server: that of the node, unless it has a
// front before it.
func cachePort(n process.Node) (int, error) {
	if ladder.CacheOf(n.Config.Knobs).Loads() {
		n.Config.Port = 0
	}
	return n.FreePort()
}

// startCacheServer starts a native cache server, of which client says how it is spoken
// to, with a front before it where the cache tier loads or writes records itself.
func startCacheServer(
	ctx context.Context, n process.Node, s cacheServer, client cache.Config,
) (c process.Component, err error) {
	n.Registry.MustRegister(newCacheCollector(s.Stats))
	var f *cacheProxy
	if ladder.CacheOf(n.Config.Knobs).Loads() {
		c, f, err = before(ctx, n, s, client)
	} else {
		c, err = n.StartNative(ctx, s, nativeDeath)
	}
	if err != nil {
		return c, err
	}
	return cacheNode(n, c, s, f), nil
}

// cacheNode adds to a component what every cache node has; f is nil without a front.
func cacheNode(n process.Node, c process.Component, keys holder, f *cacheProxy) process.Component {
	moved := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "stagebench_cache_node_moved_total", Help: "Entries that were dropped because another host has their keys now.",
	})
	n.Registry.MustRegister(moved)
	members := func(w sut.Wiring) (names []string) {
		for _, p := range w.Active(sut.Cache) {
			names = append(names, p.Node)
		}
		return names
	}
	keepOwn := func(ctx context.Context, names []string) error {
		ring := cache.NewRing(names)
		dropped, err := keys.Drop(ctx, func(key string) bool { return ring.Owner(key) != n.Config.Node })
		moved.Add(float64(dropped))
		return err
	}
	var settled []string // members of which keys have their hosts; nil while keys move
	if !n.Config.Wiring.Moving {
		settled = members(n.Config.Wiring)
	}
	c.Operators = n.Operators()
	c.Rewire = func(ctx context.Context, w sut.Wiring) (err error) {
		if err := f.rewire(ctx, w); err != nil {
			return err
		}
		next := members(w)
		switch {
		case w.Moving && len(settled) > 0:
			// What this host held for another one that did not answer is old by now, and may
			// be about to become its own.
			if err = keepOwn(ctx, settled); err == nil {
				settled = nil
			}
		case !w.Moving && len(next) > 0 && !slices.Equal(next, settled):
			// What other hosts write from now on is not seen here: a key that came back would
			// be old.
			if err = keepOwn(ctx, next); err == nil {
				settled = next
			}
		}
		return err
	}
	return c
}
