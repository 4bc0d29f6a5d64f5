package storetest

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

// Database is a running, empty database that the kit may kill.
type Database interface {
	// Address is its host:port. A restart does not change it.
	Address() string
	// Kill stops it at once, as a crash does, and returns when it has exited.
	Kill(t testing.TB)
	// Restart starts it on the same data and returns when it serves.
	Restart(t testing.TB)
}

// Faults checks what happens when the database or one of its clients dies.
func Faults(t *testing.T, db Database) {
	k := kit{Store: Open(t, db.Address()), data: newData(), ids: &ids{}}
	if err := k.CreateSchema(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := k.Load(t.Context(), k.data); err != nil {
		t.Fatal(err)
	}
	for _, check := range []struct {
		name string
		run  func(*testing.T, kit, Database)
	}{
		{"the transaction of a dead client is rolled back", deadClient},
		{"a pool without a free connection is unavailable", exhausted},
		{"the first requests after a restart succeed", restarted},
		{"a crash under load loses no acknowledged write", killedUnderLoad},
		{"a batch that is sent repeatedly is stored once", batchDuringCrash},
	} {
		t.Run(check.name, func(t *testing.T) { check.run(t, k, db) })
	}
}

// client opens a raw connection, which a check can break.
func client(t *testing.T, db Database) *pgx.Conn {
	t.Helper()
	url := "postgres://" + store.User + "@" + db.Address() + "/" + store.Database + "?sslmode=disable"
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// statement returns the SQL of a statement of the catalogue.
func statement(t *testing.T, name string) string {
	t.Helper()
	for _, s := range Statements() {
		if s.Name == name {
			return s.SQL
		}
	}
	t.Fatalf("no statement %q in the catalogue", name)
	return ""
}

// likeInside likes a photo in a transaction and leaves the transaction open.
func likeInside(t *testing.T, conn *pgx.Conn, photo photos.ID) pgx.Tx {
	t.Helper()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), statement(t, "like"), photo); err != nil {
		t.Fatal(err)
	}
	return tx
}

func deadClient(t *testing.T, k kit, db Database) {
	p := k.newPhoto(t, 1)
	for _, die := range []func(net.Conn) error{
		net.Conn.Close,
		func(c net.Conn) error { return c.(*net.TCPConn).SetLinger(0) }, // sends RST instead of FIN
	} {
		conn := client(t, db)
		likeInside(t, conn, p.ID)
		socket := conn.PgConn().Conn()
		if err := errors.Join(die(socket), socket.Close()); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		// The like waits until the database rolls back the dead client's transaction.
		if _, err := k.Like(within(t), p.ID, 1); err != nil {
			t.Fatal(err)
		}
		p.Likes++
		p.Version++
		same(t, "the photo", k.photo(t, p.ID), p)
	}
}

func exhausted(t *testing.T, k kit, db Database) {
	p := k.newPhoto(t, 1)
	tx := likeInside(t, client(t, db), p.ID)
	small := openWith(t, store.Config{
		Databases: []sut.Peer{{Node: "db-1", Address: db.Address()}}, MaxConns: 1, QueryTimeout: 200 * time.Millisecond,
	})
	for range 3 {
		_, err := small.Like(t.Context(), p.ID, 1)
		wants(t, "a like that waits for a row lock", err, photos.ErrUnavailable)
	}
	concurrently(t, 4, func(int) error {
		_, err := small.Like(t.Context(), p.ID, 1)
		wants(t, "a like that waits for a connection", err, photos.ErrUnavailable)
		return nil
	})
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The likes that timed out may or may not take effect, so the check does not count
	// them. It requires that the pool has a free connection again.
	if _, err := small.Like(within(t), p.ID, 1); err != nil {
		t.Fatal(err)
	}
}

func restarted(t *testing.T, k kit, db Database) {
	p := k.newPhoto(t, 1)
	for range 3 {
		// The pings open many connections in the pool. The kill makes all of them stale.
		concurrently(t, 32, func(int) error { return k.Ping(within(t)) })
		db.Kill(t)
		_, err := k.Photo(t.Context(), p.ID)
		wants(t, "a read while the database is down", err, photos.ErrUnavailable)
		_, err = k.Like(t.Context(), p.ID, 1)
		wants(t, "a write while the database is down", err, photos.ErrUnavailable)
		wants(t, "a ping while the database is down", k.Ping(t.Context()), photos.ErrUnavailable)
		db.Restart(t)
		if _, err := k.Like(within(t), p.ID, 1); err != nil {
			t.Fatalf("the first write after the restart: %v", err)
		}
		p.Likes++
		p.Version++
		same(t, "the photo", k.photo(t, p.ID), p)

		// The same without a request while the database is down.
		concurrently(t, 32, func(int) error { return k.Ping(within(t)) })
		db.Kill(t)
		db.Restart(t)
		concurrently(t, 32, func(i int) (err error) {
			if i%2 == 0 {
				_, err = k.Like(within(t), p.ID, 1)
			} else {
				_, err = k.Photo(within(t), p.ID)
			}
			return err
		})
		p.Likes += 16
		p.Version += 16
		same(t, "the photo", k.photo(t, p.ID), p)
	}
}

// After a crash under load, every acknowledged like is stored. A like that failed may or
// may not be stored.
func killedUnderLoad(t *testing.T, k kit, db Database) {
	p := k.newPhoto(t, 1)
	var acknowledged, unknown, recovered atomic.Int64
	var up atomic.Bool
	ctx, stop := context.WithCancel(within(t))
	enough := make(chan struct{})
	var once sync.Once
	var workers sync.WaitGroup
	for range 12 {
		workers.Go(func() {
			for ctx.Err() == nil {
				restarted := up.Load()
				_, err := k.Like(context.WithoutCancel(ctx), p.ID, 1)
				switch {
				case err == nil:
					if acknowledged.Add(1); restarted && recovered.Add(1) > 100 {
						once.Do(func() { close(enough) })
					}
				case errors.Is(err, photos.ErrUnavailable):
					unknown.Add(1)
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	eventually(t, "writes are acknowledged", func() bool { return acknowledged.Load() > 100 })
	db.Kill(t)
	eventually(t, "writes fail", func() bool { return unknown.Load() > 100 })
	db.Restart(t)
	up.Store(true)
	select {
	case <-enough:
	case <-ctx.Done():
		t.Error("the store did not recover")
	}
	stop()
	workers.Wait()
	got := k.photo(t, p.ID).Likes
	if low, high := acknowledged.Load(), acknowledged.Load()+unknown.Load(); got < low || got > high {
		t.Errorf("the photo has %d likes: %d were acknowledged and %d failed", got, low, high-low)
	}
}

// eventually polls until a condition holds. It ends the test after patience.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, patience, time.Millisecond, what, holds)
}
