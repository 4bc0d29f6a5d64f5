package node

import (
	"context"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

// dbConns is the maximum number of connections from a web or cache host to a database. More would
// not help small hosts: a request would wait for the database's CPU instead of waiting
// for a connection.
const dbConns = 8

// openStore opens the store over the databases of a node's wiring, with this number of
// connections to each. readPrimary makes reads go to the primary, whatever the knob
// db.read_preference says.
func openStore(ctx context.Context, n process.Node, readPrimary bool, conns int) (*store.Store, error) {
	records, err := store.Open(store.Config{
		Databases: n.Config.Wiring.Active(sut.DB), MaxConns: conns, Name: n.Config.Node, Password: n.Config.Secret,
		Registry: n.Registry, PushBelow: ladder.ShardOf(n.Config.Knobs).Pushing(),
		ReadPrimary: readPrimary || ladder.DBOf(n.Config.Knobs).ReadPreference == ladder.ReadPrimary,
	})
	if err != nil {
		return nil, err
	}
	if err := records.Warm(ctx); err != nil {
		// The node can serve what needs no database. It connects to the database later.
		n.Log.Warn("cannot connect to the database yet", "error", err.Error())
	}
	return records, nil
}

// cached puts the cache tier, if there is one, in front of the records. Without a cache
// tier the client is nil.
func cached(n process.Node, records *store.Store) (photos.Records, *cache.Client, error) {
	hosts := n.Config.Wiring.Active(sut.Cache)
	if len(hosts) == 0 {
		return records, nil, nil
	}
	cache.LogTo(n.Log)
	s := ladder.CacheOf(n.Config.Knobs)
	config := cache.Config{Hosts: hosts, Secret: n.Config.Secret, Registry: n.Registry}
	if s.UsesDatabase() {
		// With write-back a cache host can hold writes that the database does not have, so
		// reads of values must wait for it, too. Otherwise a slow read falls back to the
		// database.
		if s.Write == ladder.WriteBack {
			config.Timeout = workTimeout
		} else {
			config.WorkTimeout = workTimeout
		}
		config.FailOver = s.Read == ladder.ReadThrough || s.Write == ladder.WriteBack
	} else if s.Engine == sut.Memcached {
		config.Protocol = cache.Memcached // only without a cache proxy, which always speaks RESP
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
	return tier, client, nil
}
