package node

import (
	"context"
	"net"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/resp"
	"github.com/stagebench/stagebench/sut/store"
)

// cacheBytes is the budget of one cache host.
func (b birth) cacheBytes() int64 { return int64(b.config.Knobs.Int("cache.memory_mb")) << 20 }

// startRESP starts the embedded cache node.
func (b birth) startRESP() (part, error) {
	listener, admin, err := b.listenBoth()
	if err != nil {
		return part{}, err
	}
	server, err := resp.New(resp.Config{Listener: listener, MaxBytes: b.cacheBytes(), Evict: resp.Evict(b.config.Knobs["cache.evict"])})
	if err != nil {
		_ = listener.Close()
		_ = admin.Close()
		return part{}, err
	}
	for _, metric := range cacheFigures(server) {
		b.registry.MustRegister(metric)
	}
	h := newHTTPServer()
	go func() {
		if err := server.Serve(); err != nil {
			h.died <- err
		}
	}()
	h.serve(admin, b.admin())
	return part{
		ready: sut.Ready{Node: b.config.Node, Address: listener.Addr().String(), Admin: admin.Addr().String()},
		died:  h.died,
		stop: func(ctx context.Context) error {
			if err := server.Shutdown(ctx); err != nil {
				return err
			}
			return h.stop(ctx)
		},
	}, nil
}

// cacheFigures are what a cache node counts, as Prometheus has it.
func cacheFigures(server *resp.Server) []prometheus.Collector {
	figure := func(name, help string, value func(resp.Stats) int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "stagebench_cache_node_" + name, Help: help}, func() float64 { return float64(value(server.Stats())) })
	}
	return []prometheus.Collector{
		figure("hits_total", "Keys that were asked for and there.", func(s resp.Stats) int64 { return s.Hits }),
		figure("misses_total", "Keys that were asked for and not there.", func(s resp.Stats) int64 { return s.Misses }),
		figure("evictions_total", "Entries that went because the budget was used up.", func(s resp.Stats) int64 { return s.Evicted }),
		figure("bytes", "Bytes of keys, values and their overhead.", func(s resp.Stats) int64 { return s.Bytes }),
		figure("entries", "Keys that are there.", func(s resp.Stats) int64 { return s.Keys }),
	}
}

// startRedis starts the native cache node.
func (b birth) startRedis(ctx context.Context) (part, error) {
	install, err := resp.FindRedis()
	if err != nil {
		return part{}, err
	}
	port, err := b.freePort()
	if err != nil {
		return part{}, err
	}
	s := resp.NewRedis(resp.RedisConfig{
		Install: install, Dir: b.config.Dir, Listen: net.ParseIP(b.config.Listen), Port: port, MaxBytes: b.cacheBytes(), Evict: resp.Evict(b.config.Knobs["cache.evict"]),
	})
	p, err := b.startNative(ctx, s, syscall.SIGKILL)
	if err != nil {
		return part{}, err
	}
	return b.withAdmin(p, b.admin())
}

// cached puts the cache tier, if there is one, in front of the records.
func (b birth) cached(records *store.Store) (app.Store, func(), error) {
	peers := b.config.Uses[sut.Cache]
	if len(peers) == 0 {
		return records, func() {}, nil
	}
	cache.LogTo(b.log)
	client, err := cache.New(cache.Config{Hosts: cache.Hosts{Peers: peers}, Registry: b.registry})
	if err != nil {
		return nil, nil, err
	}
	aside, err := cache.NewAside(cache.AsideConfig{
		Records: records, Client: client, TTL: b.config.Knobs.Duration("cache.ttl"), FeedTTL: b.config.Knobs.Duration("cache.feed_ttl"),
		SingleFlight: b.config.Knobs.Bool("cache.single_flight"),
	})
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	return aside, client.Close, nil
}
