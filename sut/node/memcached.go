package node

import (
	"context"
	"net"

	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/memcached"
	"github.com/stagebench/stagebench/sut/node/process"
)

// startMemcached starts memcached, a native cache.
func startMemcached(ctx context.Context, n process.Node) (c process.Component, err error) {
	install, err := memcached.Find()
	if err != nil {
		return c, err
	}
	port, err := cachePort(n)
	if err != nil {
		return c, err
	}
	return startCacheServer(ctx, n, memcached.New(memcached.Config{
		Install: install, Listen: net.ParseIP(n.Config.Listen), Port: port, Procs: n.Config.Procs,
		MaxBytes: ladder.CacheOf(n.Config.Knobs).Bytes(), Secret: n.Config.Secret,
	}), cache.Config{Protocol: cache.Memcached, Secret: n.Config.Secret})
}
