package node

import (
	"context"
	"net"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/redis"
)

// startRedis starts Redis, the native server of a cache host or of a session host.
func startRedis(ctx context.Context, n process.Node) (c process.Component, err error) {
	install, err := redis.Find()
	if err != nil {
		return c, err
	}
	freePort := cachePort
	if n.Config.Role == sut.Session {
		freePort = process.Node.FreePort
	}
	port, err := freePort(n)
	if err != nil {
		return c, err
	}
	memory := keyMemoryOf(n.Config)
	server := redis.New(redis.Config{
		Install: install, Dir: n.Config.Dir, Listen: net.ParseIP(n.Config.Listen), Port: port,
		MaxBytes: memory.bytes, Evict: memory.evict, Secret: n.Config.Secret,
	})
	if n.Config.Role != sut.Session {
		return startCacheServer(ctx, n, server, cache.Config{Secret: n.Config.Secret})
	}
	if c, err = n.StartNative(ctx, server, cacheDeathSignal); err != nil {
		return c, err
	}
	return sessionNode(n, c, server.Stats), nil
}
