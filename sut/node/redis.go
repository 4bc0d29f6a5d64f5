package node

import (
	"context"
	"net"

	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/redis"
)

// startRedis starts Redis, a native cache.
func startRedis(ctx context.Context, n process.Node) (c process.Component, err error) {
	install, err := redis.Find()
	if err != nil {
		return c, err
	}
	port, err := cachePort(n)
	if err != nil {
		return c, err
	}
	s := ladder.CacheOf(n.Config.Knobs)
	return startCacheServer(ctx, n, redis.New(redis.Config{
		Install: install, Dir: n.Config.Dir, Listen: net.ParseIP(n.Config.Listen), Port: port,
		MaxBytes: s.Bytes(), Evict: s.Evict, Secret: n.Config.Secret,
	}), cache.Config{Secret: n.Config.Secret})
}
