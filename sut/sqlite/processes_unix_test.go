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
	replica := startNode(t, base, "db-2", &copyOf{name: "db-1", address: primary.address}, func(cfg *sqlite.Config) { cfg.Statements = catalogue() })
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
	primary := startNode(t, base, "db-1", nil, func(cfg *sqlite.Config) { cfg.Statements = catalogue() })
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

// TestKilledMultiPrimary kills the process of one of three primaries while all
// of them are written to: what it acknowledged is everywhere at the end.
func TestKilledMultiPrimary(t *testing.T) {
	t.Parallel()
	base := seeded(t)
	own := func(cfg *sqlite.Config) { cfg.Statements, cfg.Replication.State.Several = catalogue(), true }
	first, third := startNode(t, base, "db-1", nil, own), startNode(t, base, "db-3", nil, own)
	second := apart(t, base, sqlite.Replication{Node: "db-2", State: sut.Replication{Epoch: 1, Several: true, Origins: []sut.Peer{*first.peer(), *third.peer()}}})
	for n, other := range map[*copyOf]*copyOf{first: third, third: first} {
		state := sut.Replication{Epoch: 1, Several: true, Origins: []sut.Peer{*other.peer(), {Node: "db-2", Address: second.address}}}
		if err := n.Become(t.Context(), state); err != nil {
			t.Fatal(err)
		}
	}
	// Each node gets likes of the same photos, and comments of its own.
	write := func(address string, user photos.ID, from, to int) error {
		s := storetest.Open(t, address)
		for i := from; i < to; i++ {
			if _, err := s.Like(t.Context(), photos.ID(i%10+1), user); err != nil {
				return err
			}
			if _, err := s.Comment(t.Context(), photos.Comment{ID: 1_000_000*user + photos.ID(i), PhotoID: 1, UserID: 1, Text: "text"}); err != nil {
				return err
			}
		}
		return nil
	}
	others := later(func() error {
		return errors.Join(write(first.address, 1, 0, 100), write(third.address, 3, 0, 100))
	})
	for round := range 5 {
		if err := write(second.address, 2, 20*round, 20*round+20); err != nil {
			t.Fatal(err)
		}
		second.Kill(t)
		second.Restart(t)
	}
	if err := <-others; err != nil {
		t.Fatal(err)
	}
	final := awaitUntil(t, "all have the same", func() [2]sut.ReplicationStatus {
		return [2]sut.ReplicationStatus{first.ReplicationStatus(), third.ReplicationStatus()}
	}, func(s [2]sut.ReplicationStatus) bool {
		// 200 transactions each, which no two clients shared.
		return s[0].Position == 600 && s[1].Position == 600 && s[0].Followers["db-2"] == 200 && s[1].Followers["db-2"] == 200
	})
	if final[0].Conflicts != final[1].Conflicts {
		t.Errorf("the nodes say %+v", final)
	}
	var digests []string
	for _, address := range []string{first.address, second.address, third.address} {
		s := storetest.Open(t, address)
		digest, err := s.Digest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, digest)
	}
	if digests[0] != digests[1] || digests[1] != digests[2] {
		t.Errorf("the copies differ: %q", digests)
	}
}
