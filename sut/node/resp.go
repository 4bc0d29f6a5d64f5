package node

import (
	"context"
	"errors"
	"runtime/debug"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/resp"
)

// startRESP starts the embedded cache.
func startRESP(ctx context.Context, n process.Node) (c process.Component, err error) {
	debug.SetGCPercent(100) // with the default of nodes, the large heap would outgrow the host
	listener, err := n.Listen()
	if err != nil {
		return c, err
	}
	s := ladder.CacheOf(n.Config.Knobs)
	server, err := resp.New(resp.Config{
		Listener: listener, MaxBytes: s.Bytes(), Evict: resp.Evict(s.Evict), Secret: n.Config.Secret,
	})
	if err != nil {
		return c, errors.Join(err, listener.Close())
	}
	stats := func(context.Context) (sut.CacheFigures, error) { return server.Stats().CacheFigures, nil }
	n.Registry.MustRegister(newCacheCollector(stats))
	proxy, err := startProxy(ctx, n, server, server.Values())
	if err != nil {
		return c, errors.Join(err, listener.Close())
	}
	return cacheNode(n, serveRESP(server, proxy), server, proxy), nil
}
