package node

import (
	"context"
	"errors"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/blob"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

// stores are the clients of the tiers that hold photos. Web hosts and workers have them.
type stores struct {
	database *store.Store
	records  photos.Records // the database, behind the cache tier if there is one
	cache    *cache.Client  // nil = no cache tier
	bytes    *blob.Ring
}

// storesConfig is what differs between web hosts and workers.
type storesConfig struct {
	readPrimary bool // the database is read from the primary, whatever db.read_preference says
	conns       int  // maximum number of connections to each database
	// reserve reserves memory for an image; nil = none.
	reserve func(ctx context.Context, bytes int64) error
}

// openStores opens the stores of a node's wiring.
func openStores(ctx context.Context, n process.Node, c storesConfig) (s stores, err error) {
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.bytes, err = blob.NewRing(blob.RingConfig{
		Peers: n.Config.Wiring.Uses[sut.Blob], Copies: ladder.BlobOf(n.Config.Knobs).Copies,
		Secret: n.Config.Secret, RequestID: app.RequestID, Reserve: c.reserve, Registry: n.Registry,
	}); err != nil {
		return s, err
	}
	if s.database, err = openStore(ctx, n, c.readPrimary, c.conns); err != nil {
		return s, err
	}
	s.records, s.cache, err = cached(n, s.database)
	return s, err
}

// rewire gives the clients their new hosts. further is checked, too, before anything changes.
func (s *stores) rewire(ctx context.Context, next sut.Wiring, further error) error {
	caches, blobs := next.Active(sut.Cache), next.Uses[sut.Blob]
	if (len(caches) > 0) != (s.cache != nil) {
		return rejected("%d cache nodes: a running node cannot gain or lose its cache tier", len(caches))
	}
	if err := errors.Join(s.bytes.Check(blobs), further); err != nil {
		return rejected("%w", err)
	}
	if err := s.database.SetDatabases(next.Active(sut.DB)); err != nil {
		return rejected("%w", err)
	}
	// An error of one client must not keep the others on their old hosts.
	errs := []error{s.bytes.SetPeers(ctx, blobs)}
	if s.cache != nil {
		errs = append(errs, s.cache.SetHosts(ctx, caches))
	}
	return errors.Join(errs...)
}

// close ends the connections.
func (s *stores) close() {
	if s.cache != nil {
		s.cache.Close()
	}
	if s.database != nil {
		s.database.Close()
	}
	if s.bytes != nil {
		s.bytes.Close()
	}
}
