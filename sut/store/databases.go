package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/store/socket"
)

// errRemoved ends operations on a database that was removed by SetDatabases or Close.
var errRemoved = errors.New("the database has been replaced")

const (
	// replicaTimeout bounds the wait for a replica when another database could serve
	// the read.
	replicaTimeout = time.Second
	// replicaBackoff is the time for which a replica that failed is tried last.
	replicaBackoff = time.Second
)

// databases are a primary and its replicas: all databases, or those of one shard. The value is immutable.
type databases struct {
	shard    int // number of the shard, from 1; 0 = the records are not sharded
	primary  *database
	replicas []*database // databases that serve reads
}

// layout is all databases in use at one time, by shard. The value is immutable and never empty.
type layout []*databases

// sharded reports whether the records are spread over shards.
func (l layout) sharded() bool { return l[0].shard > 0 }

// of returns the databases of a shard, nil if there are none.
func (l layout) of(shard int) *databases {
	for _, d := range l {
		if d.shard == shard {
			return d
		}
	}
	return nil
}

// all lists every database once.
func (l layout) all() (all []*database) {
	for _, d := range l {
		all = append(all, d.all()...)
	}
	return all
}

// all lists every database once.
func (d *databases) all() []*database {
	if slices.Contains(d.replicas, d.primary) {
		return d.replicas
	}
	return append([]*database{d.primary}, d.replicas...)
}

// database is a pool of connections to one database.
type database struct {
	peer    sut.Peer
	pool    *pgxpool.Pool
	life    context.Context // ends with errRemoved when the database is removed
	end     context.CancelCauseFunc
	backoff atomic.Int64 // until this time it is tried last; Unix ns
}

// connect returns a database. Its pool connects at first use.
func (s *Store) connect(peer sut.Peer) (*database, error) {
	if _, _, err := net.SplitHostPort(peer.Address); err != nil {
		return nil, fmt.Errorf("store address %q: want host:port: %w", peer.Address, err)
	}
	// pgx takes settings that the URL lacks from the environment (PGHOST, PGPASSWORD, a
	// service file ...). The fields that are set below override these.
	config, err := pgxpool.ParseConfig(fmt.Sprintf(
		"postgres://%s@%s/%s?sslmode=disable&default_query_exec_mode=cache_statement", User, peer.Address, Database))
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", peer.Address, err)
	}
	config.ConnConfig.Password = string(s.config.Password)
	config.ConnConfig.Fallbacks = nil
	config.ConnConfig.ValidateConnect = nil
	config.ConnConfig.ConnectTimeout = 2 * time.Second // for one attempt
	config.ConnConfig.StatementCacheCapacity = 2 * len(Statements())
	config.ConnConfig.RuntimeParams = map[string]string{}
	if s.config.Name != "" {
		config.ConnConfig.RuntimeParams["application_name"] = s.config.Name
	}
	config.MaxConns = int32(s.config.MaxConns)
	config.MinConns = 0
	// PrepareConn detects a stale connection by its socket. A ping would cost a round
	// trip.
	config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	config.PrepareConn = func(_ context.Context, conn *pgx.Conn) (bool, error) {
		return !socket.Stale(conn.PgConn().Conn()), nil
	}
	d := &database{peer: peer}
	// The pool outlives this call.
	d.life, d.end = context.WithCancelCause(context.Background())
	if d.pool, err = pgxpool.NewWithConfig(d.life, config); err != nil {
		d.end(errRemoved)
		return nil, fmt.Errorf("store %s: %w", peer.Address, err)
	}
	return d, nil
}

// retire cancels all operations on a database and closes its connections. It does not
// wait, because the connections to a database that hangs close late.
func (s *Store) retire(d *database) {
	d.end(errRemoved)
	s.closing.Go(d.pool.Close)
}

// SetDatabases replaces the databases in use, see Config.Databases. When it returns, operations on databases that are
// no longer listed are cancelled. So are operations on an old primary that is now a replica. A cancelled write may or
// may not have taken effect. After an error nothing has changed.
func (s *Store) SetDatabases(peers []sut.Peer) error {
	s.setting.Lock()
	defer s.setting.Unlock()
	var now layout
	if used := s.used.Load(); used != nil {
		now = *used
	}
	made, err := s.lay(now, peers)
	if err != nil {
		return err
	}
	s.used.Store(&made)
	if !slices.EqualFunc(now, made, func(a, b *databases) bool { return a.primary == b.primary }) {
		s.owners.Store(nil) // a new primary may not know of the last moves
	}
	for _, d := range now.all() {
		if !slices.Contains(made.all(), d) {
			s.retire(d)
		}
	}
	return nil
}

// Databases returns the databases in use, in the order of SetDatabases.
func (s *Store) Databases() (peers []sut.Peer) {
	for _, d := range s.used.Load().all() {
		peers = append(peers, d.peer)
	}
	return peers
}

// lay returns the layout of these peers. It reuses the databases of the layout now.
func (s *Store) lay(now layout, peers []sut.Peer) (made layout, err error) {
	if len(peers) == 0 {
		return nil, errors.New("store: there is no database")
	}
	for _, peer := range peers {
		if (peer.Shard > 0) != (peers[0].Shard > 0) || now != nil && (peer.Shard > 0) != now.sharded() {
			return nil, fmt.Errorf("store %s: a store has either shards or one database", peer.Address)
		}
		d := made.of(peer.Shard)
		if d == nil { // the first database of a shard is its primary
			d = &databases{shard: peer.Shard}
			if d.primary, err = s.reuse(now.all(), peer); err != nil {
				return nil, err
			}
			made = append(made, d)
			continue
		}
		known := now.all()
		// An old primary that is now a replica gets a new pool, so that its writes are cancelled.
		if old := now.of(peer.Shard); old != nil && old.primary.peer == peer && d.primary != old.primary {
			known = slices.DeleteFunc(known, func(d *database) bool { return d == old.primary })
		}
		replica, err := s.reuse(known, peer)
		if err != nil {
			return nil, err
		}
		d.replicas = append(d.replicas, replica)
	}
	return made, nil
}

// reuse returns the known database of a peer, or a new one.
func (s *Store) reuse(known []*database, peer sut.Peer) (*database, error) {
	if i := slices.IndexFunc(known, func(d *database) bool { return d.peer == peer }); i >= 0 {
		return known[i], nil
	}
	return s.connect(peer)
}

// readable lists the databases for a read, in the order in which they are tried:
// replicas in rotation, then the primary, then replicas that failed recently.
func (s *Store) readable(used *databases) []*database {
	if s.config.ReadPrimary || len(used.replicas) == 0 {
		return []*database{used.primary}
	}
	now := time.Now().UnixNano()
	order := make([]*database, 0, len(used.replicas)+1)
	first := int(s.turn.Add(1) % uint64(len(used.replicas)))
	var failed []*database
	for i := range used.replicas {
		d := used.replicas[(first+i)%len(used.replicas)]
		if d.backoff.Load() > now {
			failed = append(failed, d)
		} else {
			order = append(order, d)
		}
	}
	return append(append(order, used.primary), failed...)
}
