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

// databases are the databases in use at one time. The value is immutable.
type databases struct {
	primary  *database
	replicas []*database // databases that serve reads
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
		return !stale(conn.PgConn().Conn()), nil
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

// SetDatabases replaces the databases in use: the primary, and the replicas that serve
// reads. When it returns, operations on databases that are no longer listed are
// cancelled. So are operations on an old primary that is now a replica. A cancelled
// write may or may not have taken effect. After an error nothing has changed.
func (s *Store) SetDatabases(primary sut.Peer, replicas []sut.Peer) error {
	s.setting.Lock()
	defer s.setting.Unlock()
	now := s.used.Load()
	var known []*database
	if now != nil {
		known = now.all()
	}
	made := &databases{}
	var err error
	if made.primary, err = s.reuse(known, primary); err != nil {
		return err
	}
	for _, peer := range replicas {
		// An old primary that is now a replica gets a new pool, so that its writes are
		// cancelled.
		if now != nil && now.primary.peer == peer && made.primary != now.primary {
			known = slices.DeleteFunc(slices.Clone(known), func(d *database) bool { return d == now.primary })
		}
		d, err := s.reuse(known, peer)
		if err != nil {
			return err
		}
		made.replicas = append(made.replicas, d)
	}
	s.used.Store(made)
	if now != nil {
		for _, d := range now.all() {
			if !slices.Contains(made.all(), d) {
				s.retire(d)
			}
		}
	}
	return nil
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
func (s *Store) readable() []*database {
	used := s.used.Load()
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
