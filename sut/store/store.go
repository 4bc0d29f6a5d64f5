// Package store keeps the records of the photo service in an SQL database. It uses the
// PostgreSQL wire protocol, so the database is a PostgreSQL server or the embedded node
// of sut/sqlite. Only the address differs.
//
// The database may have replicas that serve reads. Config and SetDatabases name the
// primary. The store never detects a primary itself, because two web hosts could then
// disagree about it. The store never holds photo bytes, caches nothing and does not
// know the stages of the ladder. Times are microseconds since the Unix epoch, UTC. A
// Store is safe for concurrent use. The usual order of calls is Open, CreateSchema and
// Load if the database is empty, other methods, Close.
//
// Every operation is atomic. It is one round trip, except that a refused rename or
// delete needs a second one to find the reason. An operation is a single statement, or
// a pipeline of statements that both engines run as one transaction. All SQL is in one
// catalogue, see Statements.
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

// Config is the configuration of a Store.
type Config struct {
	// Primary and Replicas are the first databases. SetDatabases changes them.
	Primary  sut.Peer
	Replicas []sut.Peer // databases that serve reads
	// ReadPrimary sends all reads to the primary. Otherwise reads go to the replicas,
	// and to the primary if no replica answers.
	ReadPrimary bool
	// MaxConns bounds the connections of this Store to each database; 0 = 8. When
	// all connections are busy, an operation waits.
	MaxConns int
	// QueryTimeout bounds one operation, including the wait for a connection; 0 = 5 s.
	QueryTimeout time.Duration
	// Password is that of the user at every database; "" = none.
	Password sut.Secret
	// Name is the application name that the database shows for this client; optional.
	Name string
	// Registry gets the metrics stagebench_store_*; nil = they are not exported.
	Registry prometheus.Registerer
}

// withDefaults returns the configuration with defaults, or the first error in it.
func (c Config) withDefaults() (Config, error) {
	if c.MaxConns < 0 || c.QueryTimeout < 0 {
		return c, fmt.Errorf("store %s: limits must not be negative", c.Primary.Address)
	}
	c.MaxConns = cmp.Or(c.MaxConns, 8)
	c.QueryTimeout = cmp.Or(c.QueryTimeout, 5*time.Second)
	return c, nil
}

// Store is the client of one database and its replicas. Its methods return errors that
// wrap errors of package photos:
//
//	ErrNotFound     there is no such record
//	ErrForbidden    another user owns the record
//	ErrConflict     the login name, or the id of a new record, is taken
//	ErrUnavailable  the database could not be reached or did not answer in time
//
// After ErrUnavailable a write may or may not have taken effect. The Store recovers by
// itself once the database answers at its address again.
type Store struct {
	config  Config
	used    atomic.Pointer[databases]
	turn    atomic.Uint64  // rotates the replicas
	setting sync.Mutex     // held by SetDatabases and Close
	closing sync.WaitGroup // removed databases whose connections are closing

	reads, writes prometheus.Counter // operations sent to a database
}

// Open returns a Store. It connects at the first operation.
func Open(c Config) (*Store, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	operations := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "stagebench_store_operations_total",
		Help: "Operations sent to a database, by kind. An operation is one round trip.",
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

// Close waits for running operations and closes all connections.
func (s *Store) Close() {
	s.setting.Lock()
	defer s.setting.Unlock()
	for _, d := range s.used.Load().all() {
		d.pool.Close()
		d.end(errRemoved)
	}
	s.closing.Wait()
}

// Warm opens all connections and prepares on each all statements of a serving host.
// Without Warm, statements are prepared at first use, which costs a small host CPU
// under load.
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
		// The connections stay acquired until the end. Otherwise the pool would return
		// the same one again.
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

// Feed returns the newest photos of the users that a user follows, newest first. The
// list is empty for a user who follows nobody or does not exist.
func (s *Store) Feed(ctx context.Context, user photos.ID, limit int) (list []photos.Photo, err error) {
	defer wrap(&err, "feed of user %d", user)
	return s.list(ctx, limit, sqlFeed, user, limit)
}

// Newest returns the newest photos of all users, newest first.
func (s *Store) Newest(ctx context.Context, limit int) (list []photos.Photo, err error) {
	defer wrap(&err, "newest photos")
	return s.list(ctx, limit, sqlNewest, limit)
}

// Processing returns at most limit photos that are processing and were created before a time, in microseconds. The
// oldest are first. It reads a replica if there is one, so a photo of the list may be finished already.
func (s *Store) Processing(ctx context.Context, beforeUS int64, limit int) (ids []photos.ID, err error) {
	defer wrap(&err, "photos in processing")
	err = s.read(ctx, func(ctx context.Context, d *database) error {
		rows, err := d.pool.Query(ctx, sqlProcessing, beforeUS, limit)
		if err != nil {
			return err
		}
		ids, err = pgx.CollectRows(rows, pgx.RowTo[photos.ID])
		return err
	})
	return ids, err
}

// one reads one row. If there is none, it returns ErrNotFound.
func one[T any](
	ctx context.Context, s *Store, scan func(pgx.Row) (T, error), sql string, args ...any,
) (found T, err error) {
	err = s.read(ctx, func(ctx context.Context, d *database) (err error) {
		found, err = scan(d.pool.QueryRow(ctx, sql, args...))
		return err
	})
	return found, err
}

// list reads at most limit photos.
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
	err = row.Scan(&p.ID, &p.UserID, &p.Title, &p.State, &p.Width, &p.Height, &p.Bytes, &p.CreatedUS, &p.Likes,
		&p.Comments, &p.Version, &p.DoneUS)
	return p, err
}
