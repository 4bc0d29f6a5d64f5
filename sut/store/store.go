// Package store keeps the records of the photo service in an SQL database that
// is spoken to over the PostgreSQL wire protocol: a PostgreSQL server, or the
// embedded node of sut/sqlite. Changing one for the other is changing an
// address.
//
// The database may have replicas, which take the reads. Which node is the
// primary is told to it, at first and whenever that changes; it never finds out
// by itself, so that no two web hosts can hold different opinions for long. It
// never holds photo bytes, caches nothing and knows no stage of the ladder.
// Times are microseconds since the Unix epoch, UTC. A Store may be used by any
// number of goroutines. The usual order of calls is Open, on an empty database
// CreateSchema and Load, then everything else, and Close.
//
// Every operation is one round trip and is atomic: either a single statement,
// or several in one pipeline, which both engines run as one transaction. All
// SQL is in one catalogue, see Statements.
package store

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// The name of the database and of its one user, on every engine.
const (
	Database = "stagebench"
	User     = "stagebench"
)

// Config says where the database is and how much of it one Store may take.
type Config struct {
	// Primary and Replicas are the databases to begin with; SetDatabases changes them.
	Primary  sut.Peer
	Replicas []sut.Peer // that may be read
	// ReadPrimary sends reads to the primary. Otherwise they go to the replicas,
	// and to the primary when none of them answers.
	ReadPrimary bool
	// MaxConns bounds the connections of this Store to each database; 0 = 8. A
	// caller that finds all of them busy waits.
	MaxConns int
	// QueryTimeout bounds one operation, with the wait for a connection in it;
	// 0 = 5 s.
	QueryTimeout time.Duration
	// ConnectTimeout bounds one attempt to connect; 0 = 2 s.
	ConnectTimeout time.Duration
	// Name is what the database sees as the name of the client; optional.
	Name string
	// Registry gets stagebench_store_*; nil = nobody does.
	Registry prometheus.Registerer
}

// withDefaults returns the configuration with its defaults filled in, or says
// what is wrong with it.
func (c Config) withDefaults() (Config, error) {
	if c.MaxConns < 0 || c.QueryTimeout < 0 || c.ConnectTimeout < 0 {
		return c, fmt.Errorf("store %s: limits must not be negative", c.Primary.Address)
	}
	c.MaxConns = cmp.Or(c.MaxConns, 8)
	c.QueryTimeout = cmp.Or(c.QueryTimeout, 5*time.Second)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 2*time.Second)
	return c, nil
}

// Store is the client of one database. Its methods return errors that wrap
// those of the package photos:
//
//	ErrNotFound     there is no such record
//	ErrForbidden    somebody else owns it
//	ErrConflict     the login name, or the id of a new record, is taken
//	ErrUnavailable  the database could not be reached or did not answer in time
//
// After ErrUnavailable a write may or may not have happened; reads have been
// tried twice where that could help. There is no state to repair: as soon as
// a database answers at the address again, so does the Store.
type Store struct {
	config  Config
	used    atomic.Pointer[databases]
	turn    atomic.Uint64  // of the replicas
	setting sync.Mutex     // held by SetDatabases
	closing sync.WaitGroup // databases that are not used any more

	reads, writes prometheus.Counter // operations that were sent to a database
}

// Open returns a Store and connects to nothing yet: the first operation does.
func Open(c Config) (*Store, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	operations := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "stagebench_store_operations_total", Help: "Operations that were sent to a database, of one round trip each, by kind.",
	}, []string{"kind"})
	if c.Registry != nil {
		if err := c.Registry.Register(operations); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
	}
	s := &Store{config: c, reads: operations.WithLabelValues("read"), writes: operations.WithLabelValues("write")}
	if err := s.SetDatabases(c.Primary, c.Replicas); err != nil {
		return nil, err
	}
	return s, nil
}

// Close ends all connections, after the operations that are under way.
func (s *Store) Close() {
	s.setting.Lock()
	defer s.setting.Unlock()
	for _, d := range s.used.Load().all() {
		d.pool.Close()
		d.end(errGone)
	}
	s.closing.Wait()
}

// Warm makes all connections and prepares every statement of a serving store on
// each of them. What is not prepared here is when it is first used; but a host
// with little CPU is better off when that does not happen under load.
func (s *Store) Warm(ctx context.Context) error {
	for _, d := range s.used.Load().all() {
		if err := d.warm(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *database) warm(ctx context.Context) error {
	for range d.pool.Config().MaxConns {
		c, err := d.pool.Acquire(ctx)
		if err != nil {
			return fmt.Errorf("warm up connections: %w", classify(ctx, err))
		}
		// Held until all are made, or the pool would hand out the same one again.
		defer c.Release()
		for _, statement := range serving() {
			if _, err := c.Conn().Prepare(ctx, statement.SQL, statement.SQL); err != nil {
				return fmt.Errorf("prepare %s: %w", statement.Name, classify(ctx, err))
			}
		}
	}
	return nil
}

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) (err error) {
	defer wrap(&err, "ping")
	return s.read(ctx, func(ctx context.Context, d *database) error { return d.pool.Ping(ctx) })
}

// User returns a user by id.
func (s *Store) User(ctx context.Context, id photos.ID) (u photos.User, err error) {
	defer wrap(&err, "user %d", id)
	return one(ctx, s, scanUser, sqlUser, id)
}

// UserByLogin returns a user by login name.
func (s *Store) UserByLogin(ctx context.Context, login string) (u photos.User, err error) {
	defer wrap(&err, "user %q", login)
	return one(ctx, s, scanUser, sqlUserByLogin, login)
}

// Photo returns a photo's record by id.
func (s *Store) Photo(ctx context.Context, id photos.ID) (p photos.Photo, err error) {
	defer wrap(&err, "photo %d", id)
	return one(ctx, s, scanPhoto, sqlPhoto, id)
}

// Feed returns the newest photos of the users that a user follows, newest
// first, and none for a user who follows nobody or does not exist.
func (s *Store) Feed(ctx context.Context, user photos.ID, limit int) (list []photos.Photo, err error) {
	defer wrap(&err, "feed of user %d", user)
	return s.list(ctx, limit, sqlFeed, user, limit)
}

// Newest returns the newest photos of all users, newest first.
func (s *Store) Newest(ctx context.Context, limit int) (list []photos.Photo, err error) {
	defer wrap(&err, "newest photos")
	return s.list(ctx, limit, sqlNewest, limit)
}

// one reads one row, or fails with ErrNotFound.
func one[T any](ctx context.Context, s *Store, scan func(pgx.Row) (T, error), sql string, args ...any) (found T, err error) {
	err = s.read(ctx, func(ctx context.Context, d *database) (err error) {
		found, err = scan(d.pool.QueryRow(ctx, sql, args...))
		return err
	})
	return found, err
}

// list reads at most limit photos; none is an empty list.
func (s *Store) list(ctx context.Context, limit int, sql string, args ...any) (list []photos.Photo, err error) {
	if limit <= 0 {
		return []photos.Photo{}, nil
	}
	err = s.read(ctx, func(ctx context.Context, d *database) error {
		rows, err := d.pool.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		scan := func(row pgx.CollectableRow) (photos.Photo, error) { return scanPhoto(row) }
		list, err = pgx.AppendRows(make([]photos.Photo, 0, min(limit, 64)), rows, scan)
		return err
	})
	return list, err
}

func scanUser(row pgx.Row) (u photos.User, err error) {
	err = row.Scan(&u.ID, &u.Login, &u.Name, &u.Password, &u.CreatedUS, &u.Photos, &u.Followers, &u.Following, &u.Version)
	return u, err
}

func scanPhoto(row pgx.Row) (p photos.Photo, err error) {
	err = row.Scan(&p.ID, &p.UserID, &p.Title, &p.State, &p.Width, &p.Height, &p.Bytes, &p.CreatedUS, &p.Likes, &p.Comments, &p.Version)
	return p, err
}
