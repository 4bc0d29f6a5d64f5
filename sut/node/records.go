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

// dbConns is how many connections one host keeps to the database. Small
// hosts gain nothing from more: what waits for a connection here would wait for
// the database's CPU there.
const dbConns = 8

// databases are those of a wiring that may be used: the primary, and its replicas.
func databases(w sut.Wiring) (primary sut.Peer, replicas []sut.Peer, err error) {
	all := w.Active(sut.DB)
	if len(all) == 0 {
		return primary, nil, refused("there is no %s node", sut.DB)
	}
	return all[0], all[1:], nil
}

// openStore opens the records of the databases that a node uses.
func openStore(ctx context.Context, n process.Node, readPrimary bool) (*store.Store, error) {
	primary, replicas, err := databases(n.Config.Wiring)
	if err != nil {
		return nil, err
	}
	records, err := store.Open(store.Config{
		Primary: primary, Replicas: replicas, MaxConns: dbConns, Name: n.Config.Node, Registry: n.Registry,
		ReadPrimary: readPrimary || ladder.DBOf(n.Config.Knobs).ReadPreference == ladder.ReadPrimary,
	})
	if err != nil {
		return nil, err
	}
	if err := records.Warm(ctx); err != nil {
		// It serves what needs no database, and warms up under way.
		n.Log.Warn("the database is not there yet", "error", err.Error())
	}
	return records, nil
}

// cached puts the cache tier, if there is one, in front of the records. The client of
// its hosts is nil without.
func cached(n process.Node, records *store.Store) (photos.Records, *cache.Client, error) {
	hosts := n.Config.Wiring.Active(sut.Cache)
	if len(hosts) == 0 {
		return records, nil, nil
	}
	cache.LogTo(n.Log)
	s := ladder.CacheOf(n.Config.Knobs)
	config := cache.Config{Hosts: hosts, Registry: n.Registry}
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
	return tier, client, nil
}
