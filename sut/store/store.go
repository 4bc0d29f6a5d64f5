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
// delete needs a second one to find the reason, and a denormalised feed needs a second
// one for its photos. An operation is a single statement, or
// a pipeline of statements that both engines run as one transaction. All SQL is in one
// catalogue, see Statements.
//
// The records may be spread over shards by bucket. Then each shard knows which buckets it owns, and refuses the others.
// A Store has a map of the owners, which it reads from the shards again when one refuses.
package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"

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
	// Databases are the first databases: the primary, then the replicas that serve reads. If they have the numbers of
	// shards, the same goes for the databases of each shard. SetDatabases changes them.
	Databases []sut.Peer
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
	// PushBelow makes feeds of shards denormalised: the photos of users with fewer followers are pushed to the feeds of
	// their followers, see RelayPhotos. It must not change. 0 = feeds are read from all shards.
	PushBelow int
	// Registry gets the metrics stagebench_store_*; nil = they are not exported.
	Registry prometheus.Registerer
}

// withDefaults returns the configuration with defaults, or the first error in it.
func (c Config) withDefaults() (Config, error) {
	if c.MaxConns < 0 || c.QueryTimeout < 0 || c.PushBelow < 0 {
		return c, errors.New("store: limits must not be negative")
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
//	ErrFull         it has no space, and changed nothing; this is an ErrUnavailable, too
//
// After ErrUnavailable a write may or may not have taken effect. The Store recovers by
// itself once the database answers at its address again.
type Store struct {
	config  Config
	used    atomic.Pointer[layout]
	turn    atomic.Uint64  // rotates the replicas
	setting sync.Mutex     // held by SetDatabases and Close
	closing sync.WaitGroup // removed databases whose connections are closing

	owners     atomic.Pointer[owners] // of the buckets; nil = not read yet
	refreshing singleflight.Group     // of owners

	reads, writes prometheus.Counter           // operations sent to a database
	operations    *prometheus.CounterVec       // by shard; nil = the records are not sharded
	load          [photos.Buckets]atomic.Int64 // operations by bucket; 0 = not sharded
	one, many     prometheus.Counter           // requests by the number of shards that they need; nil = not sharded

	// Of denormalised feeds: feeds that were built, photos that were pushed, their rows, and the sum of the times that
	// this took, in milliseconds; nil = feeds are not denormalised.
	built, pushed, pushedRows, lag prometheus.Counter
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
	if err := s.SetDatabases(c.Databases); err != nil {
		return nil, err
	}
	if s.used.Load().sharded() {
		err = s.countShards()
	}
	if s.denormalised() {
		err = errors.Join(err, s.countFeeds())
	}
	return s, err
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
	used := s.used.Load()
	statements := serving()
	if used.sharded() {
		statements = slices.Concat(statements, servingShards())
	}
	if s.denormalised() {
		statements = slices.Concat(statements, servingFeeds())
	}
	for _, d := range used.all() {
		if err := d.warm(ctx, statements); err != nil {
			return err
		}
	}
	return nil
}

func (d *database) warm(ctx context.Context, statements []Statement) error {
	for range d.pool.Config().MaxConns {
		c, err := d.pool.Acquire(ctx)
		if err != nil {
			return fmt.Errorf("warm up connections: %w", classify(ctx, err))
		}
		// The connections stay acquired until the end. Otherwise the pool would return
		// the same one again.
		defer c.Release()
		for _, statement := range statements {
			if _, err := c.Conn().Prepare(ctx, statement.SQL, statement.SQL); err != nil {
				return fmt.Errorf("prepare %s: %w", statement.Name, classify(ctx, err))
			}
		}
	}
	return nil
}

// Ping reports whether the database answers, or all shards do.
func (s *Store) Ping(ctx context.Context) (err error) {
	defer wrap(&err, "ping")
	for _, d := range *s.used.Load() {
		err := s.readFrom(ctx, s.readable(d), guard{}, func(ctx context.Context, d on) error { return d.pool.Ping(ctx) })
		if err != nil {
			return err
		}
	}
	return nil
}

// User returns a user by id.
func (s *Store) User(ctx context.Context, id photos.ID) (u photos.User, err error) {
	defer wrap(&err, "user %d", id)
	return one(ctx, s, photos.BucketOf(id), scanUser, sqlUser, id)
}

// UserByLogin returns a user by login name.
func (s *Store) UserByLogin(ctx context.Context, login string) (u photos.User, err error) {
	defer wrap(&err, "user %q", login)
	if !s.used.Load().sharded() {
		return one(ctx, s, 0, scanUser, sqlUserByLogin, login)
	}
	id, err := one(ctx, s, photos.BucketOfLogin(login), scanID, sqlName, login)
	if err != nil {
		return u, err
	}
	return one(ctx, s, photos.BucketOf(id), scanUser, sqlUser, id)
}

// Photo returns a photo's record by id.
func (s *Store) Photo(ctx context.Context, id photos.ID) (p photos.Photo, err error) {
	defer wrap(&err, "photo %d", id)
	return one(ctx, s, id.Bucket(), scanPhoto, sqlPhoto, id)
}

// Feed returns the newest photos of the users that a user follows, newest first. The
// list is empty for a user who follows nobody or does not exist.
func (s *Store) Feed(ctx context.Context, user photos.ID, limit int) (list []photos.Photo, err error) {
	defer wrap(&err, "feed of user %d", user)
	if limit > 0 && s.denormalised() {
		return s.pushedFeed(ctx, user, limit)
	}
	return s.gatherFeed(ctx, user, limit, false)
}

// gatherFeed reads a feed from all shards, or only from their primaries.
func (s *Store) gatherFeed(ctx context.Context, user photos.ID, limit int, primary bool) ([]photos.Photo, error) {
	q := query{sqlFeed, sqlShardFeed, primary}
	return gather(ctx, s, q, limit, scanPhoto, newer, bucketOf, user, limit)
}

// Newest returns the newest photos of all users, newest first.
func (s *Store) Newest(ctx context.Context, limit int) (list []photos.Photo, err error) {
	defer wrap(&err, "newest photos")
	return gather(ctx, s, query{plain: sqlNewest, shard: sqlShardNewest}, limit, scanPhoto, newer, bucketOf, limit)
}

func bucketOf(p photos.Photo) photos.Bucket { return p.ID.Bucket() }

// newer orders photos from the newest to the oldest.
func newer(a, b photos.Photo) int {
	return cmp.Or(cmp.Compare(b.CreatedUS, a.CreatedUS), cmp.Compare(b.ID, a.ID))
}

// Processing returns at most limit photos that are processing and were created before a time, in microseconds. The
// oldest are first. It reads a replica if there is one, so a photo of the list may be finished already.
func (s *Store) Processing(ctx context.Context, beforeUS int64, limit int) (ids []photos.ID, err error) {
	defer wrap(&err, "photos in processing")
	return gather(ctx, s, query{plain: sqlProcessing, shard: sqlShardProcessing}, limit, scanID,
		cmp.Compare[photos.ID], photos.ID.Bucket, beforeUS, limit)
}

// one reads one row of a bucket. If there is none, it returns ErrNotFound.
func one[T any](
	ctx context.Context, s *Store, b photos.Bucket, scan func(pgx.Row) (T, error), sql string, args ...any,
) (found T, err error) {
	err = s.read(ctx, b, func(ctx context.Context, d on) error {
		return d.row(ctx, func(row pgx.Row) (err error) {
			found, err = scan(row)
			return err
		}, sql, args...)
	})
	return found, err
}

func scanID(row pgx.Row) (id photos.ID, err error) {
	err = row.Scan(&id)
	return id, err
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
