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

// errGone ends operations on a database that is not used any more.
var errGone = errors.New("the database has been replaced")

// How long a read waits for one replica when another database could answer it,
// and how long a replica that did not answer is asked last.
const (
	replicaPatience = time.Second
	replicaSilence  = time.Second
)

// databases are those in use at one time. They are never changed.
type databases struct {
	primary  *database
	replicas []*database // that reads go to
}

// all lists every database once.
func (d *databases) all() []*database {
	if slices.Contains(d.replicas, d.primary) {
		return d.replicas
	}
	return append([]*database{d.primary}, d.replicas...)
}

// database is the connections to one of them.
type database struct {
	peer   sut.Peer
	pool   *pgxpool.Pool
	life   context.Context // ends, with errGone, when it is not used any more
	end    context.CancelCauseFunc
	silent atomic.Int64 // unix ns until when it is asked last
}

// connect returns a database, with a pool that connects when it is first used.
func (s *Store) connect(peer sut.Peer) (*database, error) {
	if _, _, err := net.SplitHostPort(peer.Address); err != nil {
		return nil, fmt.Errorf("store address %q: want host:port: %w", peer.Address, err)
	}
	// pgx reads the environment (PGHOST, PGPASSWORD, a service file ...) for
	// whatever the text leaves open; only the fields set below are open to it.
	config, err := pgxpool.ParseConfig(fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable&default_query_exec_mode=cache_statement", User, peer.Address, Database))
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", peer.Address, err)
	}
	config.ConnConfig.Password = ""
	config.ConnConfig.Fallbacks = nil
	config.ConnConfig.ValidateConnect = nil
	config.ConnConfig.ConnectTimeout = s.config.ConnectTimeout
	config.ConnConfig.StatementCacheCapacity = 2 * len(Statements())
	config.ConnConfig.RuntimeParams = map[string]string{}
	if s.config.Name != "" {
		config.ConnConfig.RuntimeParams["application_name"] = s.config.Name
	}
	config.MaxConns = int32(s.config.MaxConns)
	config.MinConns = 0
	// A connection that went stale is found by looking at its socket, which
	// costs no round trip, whereas a ping would cost one.
	config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	config.PrepareConn = func(_ context.Context, conn *pgx.Conn) (bool, error) {
		return !stale(conn.PgConn().Conn()), nil
	}
	d := &database{peer: peer}
	// The pool outlives the call that makes it.
	d.life, d.end = context.WithCancelCause(context.Background())
	if d.pool, err = pgxpool.NewWithConfig(d.life, config); err != nil {
		d.end(errGone)
		return nil, fmt.Errorf("store %s: %w", peer.Address, err)
	}
	return d, nil
}

// retire fails what is under way on the database and closes its connections. It
// does not wait for that: a database that hangs keeps its connections for a while.
func (s *Store) retire(d *database) {
	d.end(errGone)
	s.closing.Go(d.pool.Close)
}

// SetDatabases changes which databases are used: the primary, and replicas that may be
// read. When it returns, no operation that has not failed goes to one that is not
// listed, and writes to a database that was the primary and is a replica now have
// failed, too: whether they took effect is open. After an error nothing has changed.
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
		// The old primary comes back as another database than it was.
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

// reuse returns the database of a peer, one that is known if possible.
func (s *Store) reuse(known []*database, peer sut.Peer) (*database, error) {
	if i := slices.IndexFunc(known, func(d *database) bool { return d.peer == peer }); i >= 0 {
		return known[i], nil
	}
	return s.connect(peer)
}

// readable lists where a read may go, in the order in which it is tried: the
// replicas in turn, those that were silent lately after the primary.
func (s *Store) readable() []*database {
	used := s.used.Load()
	if s.config.ReadPrimary || len(used.replicas) == 0 {
		return []*database{used.primary}
	}
	now := time.Now().UnixNano()
	order := make([]*database, 0, len(used.replicas)+1)
	first := int(s.turn.Add(1) % uint64(len(used.replicas)))
	var silent []*database
	for i := range used.replicas {
		d := used.replicas[(first+i)%len(used.replicas)]
		if d.silent.Load() > now {
			silent = append(silent, d)
		} else {
			order = append(order, d)
		}
	}
	return append(append(order, used.primary), silent...)
}
