//go:build unix

package sqlite_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/sqlite"
	"github.com/stagebench/stagebench/sut/store/storetest"
)

// seeded is the directory of a database with the store's data.
func seeded(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	node, err := sqlite.New(sqlite.Config{Dir: dir, Statements: catalogue(), Durability: sqlite.Normal})
	if err != nil {
		t.Fatal(err)
	}
	done := later(func() error { return node.Serve(context.Background()) })
	s := storetest.Open(t, node.Addr().String())
	if err := errors.Join(s.CreateSchema(t.Context()), s.Load(t.Context(), benchData{}), node.Shutdown(t.Context()), <-done); err != nil {
		t.Fatal(err)
	}
	return dir
}

// apart starts a process on a copy of a directory.
func apart(t *testing.T, base string, r sqlite.Replication) *process {
	t.Helper()
	p := &process{dir: t.TempDir(), address: "127.0.0.1:0", durability: sqlite.Normal, replication: &r}
	if err := os.CopyFS(p.dir, os.DirFS(base)); err != nil {
		t.Fatal(err)
	}
	p.Restart(t)
	t.Cleanup(func() { p.Kill(t) })
	return p
}

// TestHungPrimary: a primary that hangs is noticed, a replica takes its place,
// and when it comes to life again it takes no more writes.
func TestHungPrimary(t *testing.T) {
	t.Parallel()
	base := seeded(t)
	primary := apart(t, base, sqlite.Replication{Node: "db-1", State: sut.Replication{Epoch: 1}})
	replica := born(t, base, "db-2", &copyOf{name: "db-1", address: primary.address}, func(cfg *sqlite.Config) { cfg.Statements = catalogue() })
	replica.await(t, "it is connected", func(s sut.ReplicationStatus) bool { return s.Connected && s.Serves })
	if err := primary.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	replica.await(t, "silence is noticed", func(s sut.ReplicationStatus) bool { return !s.Connected })
	if err := replica.Become(t.Context(), sut.Replication{Epoch: 2}); err != nil {
		t.Fatal(err)
	}
	if err := primary.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s := storetest.Open(t, primary.address)
	awaitUntil(t, "the old primary takes no writes", func() string {
		_, err := s.Like(context.Background(), 1, 1)
		return state(err)
	}, func(state string) bool { return state == "25006" })
}

// TestKilledReplica kills the process of a replica while its primary is
// writing, as often as it comes back.
func TestKilledReplica(t *testing.T) {
	t.Parallel()
	base := seeded(t)
	primary := born(t, base, "db-1", nil, func(cfg *sqlite.Config) { cfg.Statements = catalogue() })
	replica := apart(t, base, sqlite.Replication{Node: "db-2", State: sut.Replication{Epoch: 1, Primary: primary.peer()}})
	s := storetest.Open(t, primary.address)
	ctx, stop := context.WithCancel(t.Context())
	writing := later(func() error {
		for i := 0; ctx.Err() == nil; i++ {
			if _, err := s.Like(t.Context(), photos.ID(i%100+1), 1); err != nil {
				return err
			}
		}
		return nil
	})
	for range 5 {
		before := primary.await(t, "the replica is there", func(s sut.ReplicationStatus) bool { return s.Followers["db-2"] > 0 }).Followers["db-2"]
		primary.await(t, "it gets on", func(s sut.ReplicationStatus) bool { return s.Followers["db-2"] > before+50 })
		replica.Kill(t)
		replica.Restart(t)
	}
	stop()
	if err := <-writing; err != nil {
		t.Fatal(err)
	}
	want := primary.ReplicationStatus().Position
	primary.await(t, "the replica has all", func(s sut.ReplicationStatus) bool { return s.Followers["db-2"] == want })
	same := func(address string) (likes []int64) {
		s := storetest.Open(t, address)
		for id := range 100 {
			p, err := s.Photo(t.Context(), photos.ID(id+1))
			if err != nil {
				t.Fatal(err)
			}
			likes = append(likes, p.Likes)
		}
		return likes
	}
	if a, b := same(primary.address), same(replica.address); !slices.Equal(a, b) {
		t.Errorf("likes differ: %v and %v", a, b)
	}
}
