package node

import (
	"context"
	"errors"
	"runtime/debug"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/resp"
)

// startRESP starts the embedded server of a cache host or of a session host.
func startRESP(ctx context.Context, n process.Node) (c process.Component, err error) {
	debug.SetGCPercent(100) // with the default of nodes, the large heap would outgrow the host
	listener, err := n.Listen()
	if err != nil {
		return c, err
	}
	memory := keyMemoryOf(n.Config)
	server, err := resp.New(resp.Config{
		Listener: listener, MaxBytes: memory.bytes, Evict: resp.Evict(memory.evict), Secret: n.Config.Secret,
	})
	if err != nil {
		return c, errors.Join(err, listener.Close())
	}
	stats := func(context.Context) (sut.CacheFigures, error) { return server.Stats().CacheFigures, nil }
	if n.Config.Role == sut.Session {
		return sessionNode(n, serveRESP(server, nil), stats), nil
	}
	n.Registry.MustRegister(newCacheCollector(stats))
	proxy, err := startProxy(ctx, n, server, server.Values())
	if err != nil {
		return c, errors.Join(err, listener.Close())
	}
	return cacheNode(n, serveRESP(server, proxy), server, proxy), nil
}
