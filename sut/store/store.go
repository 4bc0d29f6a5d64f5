// Package store keeps the records of the photo service in an SQL database that
// is spoken to over the PostgreSQL wire protocol: a PostgreSQL server, or the
// embedded node of sut/sqlite. Changing one for the other is changing an
// address.
//
// It never holds photo bytes, caches nothing and knows no stage of the ladder.
// Times are microseconds since the Unix epoch, UTC. A Store may be used by any
// number of goroutines. The usual order of calls is Open, on an empty database
// CreateSchema and Load, then everything else, and Close.
//
// Every operation is one round trip and is atomic: either a single statement,
// or several in one pipeline, which both engines run as one transaction. All
// SQL is in one catalogue, see Statements.
package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/stagebench/stagebench/sut/photos"
)

// The name of the database and of its one user, on every engine.
const (
	Database = "stagebench"
	User     = "stagebench"
)

// Config says where the database is and how much of it one Store may take.
type Config struct {
	// Address is the host:port of the database.
	Address string
	// MaxConns bounds the connections of this Store; 0 = 8. A caller that finds
	// all of them busy waits.
	MaxConns int
	// QueryTimeout bounds one operation, with the wait for a connection in it;
	// 0 = 5 s.
	QueryTimeout time.Duration
	// ConnectTimeout bounds one attempt to connect; 0 = 2 s.
	ConnectTimeout time.Duration
	// Name is what the database sees as the name of the client; optional.
	Name string
}

// withDefaults returns the configuration with its defaults filled in, or says
// what is wrong with it.
func (c Config) withDefaults() (Config, error) {
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return c, fmt.Errorf("store address %q: want host:port: %w", c.Address, err)
	}
	if c.MaxConns < 0 || c.QueryTimeout < 0 || c.ConnectTimeout < 0 {
		return c, fmt.Errorf("store %s: limits must not be negative", c.Address)
	}
	if c.MaxConns == 0 {
		c.MaxConns = 8
	}
	if c.QueryTimeout == 0 {
		c.QueryTimeout = 5 * time.Second
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = 2 * time.Second
	}
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
	pool    *pgxpool.Pool
	timeout time.Duration
}

// Open returns a Store and connects to nothing yet: the first operation does.
// The context bounds Open alone.
func Open(ctx context.Context, c Config) (*Store, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	// pgx reads the environment (PGHOST, PGPASSWORD, a service file ...) for
	// whatever the text leaves open; only the fields set below are open to it.
	config, err := pgxpool.ParseConfig(fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable&default_query_exec_mode=cache_statement", User, c.Address, Database))
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", c.Address, err)
	}
	config.ConnConfig.Password = ""
	config.ConnConfig.Fallbacks = nil
	config.ConnConfig.ValidateConnect = nil
	config.ConnConfig.ConnectTimeout = c.ConnectTimeout
	config.ConnConfig.StatementCacheCapacity = 2 * len(Statements())
	config.ConnConfig.RuntimeParams = map[string]string{}
	if c.Name != "" {
		config.ConnConfig.RuntimeParams["application_name"] = c.Name
	}
	config.MaxConns = int32(c.MaxConns)
	config.MinConns = 0
	// A connection that went stale is found by looking at its socket, which
	// costs no round trip, whereas a ping would cost one.
	config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	config.PrepareConn = func(_ context.Context, conn *pgx.Conn) (bool, error) {
		return !stale(conn.PgConn().Conn()), nil
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", c.Address, err)
	}
	return &Store{pool: pool, timeout: c.QueryTimeout}, nil
}

// Close ends all connections, after the operations that are under way.
func (s *Store) Close() { s.pool.Close() }

// Warm makes all connections and prepares every statement of a serving store on
// each of them. What is not prepared here is when it is first used; but a host
// with little CPU is better off when that does not happen under load.
func (s *Store) Warm(ctx context.Context) error {
	for range s.pool.Config().MaxConns {
		c, err := s.pool.Acquire(ctx)
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
func (s *Store) Ping(ctx context.Context) error {
	if err := s.read(ctx, s.pool.Ping); err != nil {
		return fmt.Errorf("ping: %w", err)
	}
	return nil
}

// User returns a user by id.
func (s *Store) User(ctx context.Context, id photos.ID) (photos.User, error) {
	u, err := one(ctx, s, scanUser, sqlUser, id)
	if err != nil {
		return u, fmt.Errorf("user %d: %w", id, err)
	}
	return u, nil
}

// UserByLogin returns a user by login name.
func (s *Store) UserByLogin(ctx context.Context, login string) (photos.User, error) {
	u, err := one(ctx, s, scanUser, sqlUserByLogin, login)
	if err != nil {
		return u, fmt.Errorf("user %q: %w", login, err)
	}
	return u, nil
}

// Photo returns a photo's record by id.
func (s *Store) Photo(ctx context.Context, id photos.ID) (photos.Photo, error) {
	p, err := one(ctx, s, scanPhoto, sqlPhoto, id)
	if err != nil {
		return p, fmt.Errorf("photo %d: %w", id, err)
	}
	return p, nil
}

// Feed returns the newest photos of the users that a user follows, newest
// first, and none for a user who follows nobody or does not exist.
func (s *Store) Feed(ctx context.Context, user photos.ID, limit int) ([]photos.Photo, error) {
	list, err := s.list(ctx, limit, sqlFeed, user, limit)
	if err != nil {
		return nil, fmt.Errorf("feed of user %d: %w", user, err)
	}
	return list, nil
}

// Newest returns the newest photos of all users, newest first.
func (s *Store) Newest(ctx context.Context, limit int) ([]photos.Photo, error) {
	list, err := s.list(ctx, limit, sqlNewest, limit)
	if err != nil {
		return nil, fmt.Errorf("newest photos: %w", err)
	}
	return list, nil
}

// one reads one row, or fails with ErrNotFound.
func one[T any](ctx context.Context, s *Store, scan func(pgx.Row) (T, error), sql string, args ...any) (found T, err error) {
	err = s.read(ctx, func(ctx context.Context) (err error) {
		found, err = scan(s.pool.QueryRow(ctx, sql, args...))
		if errors.Is(err, pgx.ErrNoRows) {
			return photos.ErrNotFound
		}
		return err
	})
	return found, err
}

// list reads at most limit photos; none is an empty list.
func (s *Store) list(ctx context.Context, limit int, sql string, args ...any) (list []photos.Photo, err error) {
	if limit <= 0 {
		return []photos.Photo{}, nil
	}
	err = s.read(ctx, func(ctx context.Context) error {
		list = make([]photos.Photo, 0, min(limit, 64)) // anew: a first attempt may have broken off
		rows, err := s.pool.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			p, err := scanPhoto(rows)
			if err != nil {
				return err
			}
			list = append(list, p)
		}
		return rows.Err()
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
