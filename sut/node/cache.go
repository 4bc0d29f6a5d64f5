package node

import (
	"context"
	"errors"
	"net"
	"syscall"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/resp"
	"github.com/stagebench/stagebench/sut/store"
)

// cacheBytes is the budget of one cache host.
func (b birth) cacheBytes() int64 { return int64(b.config.Knobs.Float("cache.memory_mb") * (1 << 20)) }

// startRESP starts the embedded cache node.
func (b birth) startRESP(ctx context.Context) (part, error) {
	listener, err := b.listen(b.config.Port)
	if err != nil {
		return part{}, err
	}
	server, err := resp.New(resp.Config{Listener: listener, MaxBytes: b.cacheBytes(), Evict: resp.Evict(b.config.Knobs["cache.evict"])})
	if err != nil {
		return part{}, errors.Join(err, listener.Close())
	}
	b.registry.MustRegister(newCacheCollector(func(context.Context) (cacheFigures, error) { return respFigures(server.Stats()), nil }))
	front := front{close: func(context.Context) error { return nil }, admin: b.admin()}
	if b.fronted() {
		if front, err = b.startFront(ctx, server, server.Values()); err != nil {
			return part{}, errors.Join(err, listener.Close())
		}
	}
	return b.withAdmin(b.serveRESP(server, front), front.admin)
}

// startRedis starts the native cache node.
func (b birth) startRedis(ctx context.Context) (part, error) {
	install, err := resp.FindRedis()
	if err != nil {
		return part{}, err
	}
	port, err := b.serverPort()
	if err != nil {
		return part{}, err
	}
	s := resp.NewRedis(resp.RedisConfig{
		Install: install, Dir: b.config.Dir, Listen: net.ParseIP(b.config.Listen), Port: port, MaxBytes: b.cacheBytes(), Evict: resp.Evict(b.config.Knobs["cache.evict"]),
	})
	return b.startCacheServer(ctx, s, cache.Config{}, func(ctx context.Context) (cacheFigures, error) {
		stats, err := s.Stats(ctx)
		return respFigures(stats), err
	})
}

// serverPort is the port of a native cache server: that of the node, unless it has a
// front before it.
func (b birth) serverPort() (int, error) {
	if b.fronted() {
		b.config.Port = 0
	}
	return b.freePort()
}

// startCacheServer starts a native cache server, of which client says how it is spoken
// to, with a front before it where the cache tier loads or writes records itself.
func (b birth) startCacheServer(ctx context.Context, s server, client cache.Config, figures func(context.Context) (cacheFigures, error)) (part, error) {
	start := func() (part, error) { return b.startNative(ctx, s, syscall.SIGKILL) }
	b.registry.MustRegister(newCacheCollector(figures))
	if b.fronted() {
		return b.before(ctx, client, start)
	}
	p, err := start()
	if err != nil {
		return part{}, err
	}
	return b.withAdmin(p, b.admin())
}

// cached puts the cache tier, if there is one, in front of the records.
func (b birth) cached(records *store.Store) (app.Store, func(), error) {
	peers := b.config.Wiring.Uses[sut.Cache]
	if len(peers) == 0 {
		return records, func() {}, nil
	}
	cache.LogTo(b.log)
	knobs := b.config.Knobs
	config := cache.Config{Hosts: peers, Registry: b.registry}
	if b.fronted() {
		// With write-back a host knows what the database does not, so that its values are
		// waited for, too; otherwise look-aside falls to the database.
		back := knobs["cache.write"] == "write_back"
		if back {
			config.Timeout = workTimeout
		} else {
			config.WorkTimeout = workTimeout
		}
		config.FailOver = knobs["cache.read"] == "read_through" || back
	} else if sut.Engine(knobs["cache.engine"]) == sut.Memcached {
		config.Protocol = cache.Memcached // a front speaks RESP whatever is behind it
	}
	client, err := cache.New(config)
	if err != nil {
		return nil, nil, err
	}
	tier, err := cache.NewTier(cache.TierConfig{
		AsideConfig: cache.AsideConfig{
			Records: records, Client: client, TTL: knobs.Duration("cache.ttl"), FeedTTL: knobs.Duration("cache.feed_ttl"), SingleFlight: knobs.Bool("cache.single_flight"),
		},
		ReadThrough: knobs["cache.read"] == "read_through", Writes: knobs["cache.write"] != "write_around",
	})
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	return tier, client.Close, nil
}
