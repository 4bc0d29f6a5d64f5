package node

import (
	"context"
	"errors"
	"net"
	"syscall"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/redis"
	"github.com/stagebench/stagebench/sut/resp"
	"github.com/stagebench/stagebench/sut/store"
)

// cache is the settings of the cache tier.
func (b birth) cache() ladder.Cache { return ladder.CacheOf(b.config.Knobs) }

// startRESP starts the embedded cache node.
func (b birth) startRESP(ctx context.Context) (part, error) {
	listener, err := b.listen(b.config.Port)
	if err != nil {
		return part{}, err
	}
	server, err := resp.New(resp.Config{Listener: listener, MaxBytes: b.cache().Bytes(), Evict: resp.Evict(b.cache().Evict)})
	if err != nil {
		return part{}, errors.Join(err, listener.Close())
	}
	b.registry.MustRegister(newCacheCollector(func(context.Context) (sut.CacheFigures, error) { return server.Stats().CacheFigures, nil }))
	front := front{close: func(context.Context) error { return nil }, admin: b.admin()}
	if b.cache().Loads() {
		if front, err = b.startFront(ctx, server, server.Values()); err != nil {
			return part{}, errors.Join(err, listener.Close())
		}
	}
	return b.withAdmin(b.serveRESP(server, front), front.admin)
}

// startRedis starts the native cache node.
func (b birth) startRedis(ctx context.Context) (part, error) {
	install, err := redis.Find()
	if err != nil {
		return part{}, err
	}
	port, err := b.serverPort()
	if err != nil {
		return part{}, err
	}
	s := redis.New(redis.Config{
		Install: install, Dir: b.config.Dir, Listen: net.ParseIP(b.config.Listen), Port: port, MaxBytes: b.cache().Bytes(), Evict: b.cache().Evict,
	})
	return b.startCacheServer(ctx, s, cache.Config{})
}

// serverPort is the port of a native cache server: that of the node, unless it has a
// front before it.
func (b birth) serverPort() (int, error) {
	if b.cache().Loads() {
		b.config.Port = 0
	}
	return b.freePort()
}

// cacheServer is a native server that says what it has counted.
type cacheServer interface {
	server
	Stats(ctx context.Context) (sut.CacheFigures, error)
}

// startCacheServer starts a native cache server, of which client says how it is spoken
// to, with a front before it where the cache tier loads or writes records itself.
func (b birth) startCacheServer(ctx context.Context, s cacheServer, client cache.Config) (part, error) {
	start := func() (part, error) { return b.startNative(ctx, s, syscall.SIGKILL) }
	b.registry.MustRegister(newCacheCollector(s.Stats))
	if b.cache().Loads() {
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
	s := b.cache()
	config := cache.Config{Hosts: cache.Hosts{Peers: peers}, Registry: b.registry}
	if s.Loads() {
		// With write-back a host knows what the database does not, so that its values are
		// waited for, too; otherwise look-aside falls to the database.
		if s.Write == ladder.WriteBack {
			config.Timeout = workTimeout
		} else {
			config.WorkTimeout = workTimeout
		}
		config.FailOver = s.Read == ladder.ReadThrough || s.Write == ladder.WriteBack
	} else if s.Engine == sut.Memcached {
		config.Protocol = cache.Memcached // a front speaks RESP whatever is behind it
	}
	client, err := cache.New(config)
	if err != nil {
		return nil, nil, err
	}
	tier, err := cache.NewTier(cache.TierConfig{
		AsideConfig: cache.AsideConfig{
			Records: records, Client: client, TTL: s.TTL, FeedTTL: s.FeedTTL, SingleFlight: s.SingleFlight,
		},
		ReadThrough: s.Read == ladder.ReadThrough, Writes: s.Write != ladder.WriteAround,
	})
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	return tier, client.Close, nil
}
