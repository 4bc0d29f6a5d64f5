//go:build unix

package sqlite_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/sqlite"
	"github.com/stagebench/stagebench/sut/store/storetest"
)

// storeDir creates a database with a small data set of the store and returns its directory.
func storeDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	node, err := sqlite.New(sqlite.Config{Listener: listen(t), Dir: dir, Statements: catalogue()}.Synchronous("normal"))
	if err != nil {
		t.Fatal(err)
	}
	done := inBackground(func() error { return node.Serve(context.Background()) })
	s := storetest.Open(t, node.Addr().String())
	loaded := errors.Join(s.CreateSchema(t.Context()), s.Load(t.Context(), dataSet{users: 50, photos: 100}))
	if err := errors.Join(loaded, node.Shutdown(t.Context()), <-done); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startProcess starts a node in its own process, on a copy of a directory.
func startProcess(t *testing.T, base string, r sqlite.Replication) *process {
	t.Helper()
	p := &process{dir: t.TempDir(), address: porttest.Free(t).String(), durability: "normal", replication: &r}
	if err := os.CopyFS(p.dir, os.DirFS(base)); err != nil {
		t.Fatal(err)
	}
	p.Restart(t)
	t.Cleanup(func() { p.Kill(t) })
	return p
}

// TestFrozenPrimary: a replica detects that the primary is frozen and is promoted. When the old primary runs again, it
// is fenced and takes no writes.
func TestFrozenPrimary(t *testing.T) {
	t.Parallel()
	base := storeDir(t)
	primary := startProcess(t, base, sqlite.Replication{Node: "db-1", State: sut.Replication{Epoch: 1}})
	peer := &testNode{name: "db-1", address: primary.address}
	replica := startNode(t, base, "db-2", peer, func(cfg *sqlite.Config) { cfg.Statements = catalogue() })
	replica.await(t, "it is connected", func(s sut.ReplicationStatus) bool { return s.Connected && s.Serves })
	if err := primary.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	replica.await(t, "the replica detects the silence", func(s sut.ReplicationStatus) bool { return !s.Connected })
	if err := replica.ChangeRole(t.Context(), sut.Replication{Epoch: 2}); err != nil {
		t.Fatal(err)
	}
	if err := primary.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s := storetest.Open(t, primary.address)
	eventually(t, "the old primary refuses writes", func() string {
		_, err := s.Like(context.Background(), 1, 1)
		return sqlState(err)
	}, func(state string) bool { return state == "25006" })
}

// TestKilledReplica kills the process of a replica several times while its primary takes writes. At the end the replica
// has all writes.
func TestKilledReplica(t *testing.T) {
	t.Parallel()
	base := storeDir(t)
	primary := startNode(t, base, "db-1", nil, func(cfg *sqlite.Config) { cfg.Statements = catalogue() })
	state := sut.Replication{Epoch: 1, Primary: primary.peer()}
	replica := startProcess(t, base, sqlite.Replication{Node: "db-2", State: state})
	s := storetest.Open(t, primary.address)
	ctx, stop := context.WithCancel(t.Context())
	writing := inBackground(func() error {
		for i := 0; ctx.Err() == nil; i++ {
			if _, err := s.Like(t.Context(), photos.ID(i%100+1), 1); err != nil {
				return err
			}
		}
		return nil
	})
	for range 3 * scale {
		before := primary.await(t, "the replica is connected", func(s sut.ReplicationStatus) bool {
			return s.Followers["db-2"] > 0
		}).Followers["db-2"]
		primary.await(t, "the replica applies writes", func(s sut.ReplicationStatus) bool {
			return s.Followers["db-2"] > before+50
		})
		replica.Kill(t)
		replica.Restart(t)
	}
	stop()
	if err := <-writing; err != nil {
		t.Fatal(err)
	}
	want := primary.ReplicationStatus().Position
	primary.await(t, "the replica has all writes", func(s sut.ReplicationStatus) bool {
		return s.Followers["db-2"] == want
	})
	likes := func(address string) (counts []int64) {
		s := storetest.Open(t, address)
		for id := range 100 {
			p, err := s.Photo(t.Context(), photos.ID(id+1))
			if err != nil {
				t.Fatal(err)
			}
			counts = append(counts, p.Likes)
		}
		return counts
	}
	if a, b := likes(primary.address), likes(replica.address); !slices.Equal(a, b) {
		t.Errorf("likes differ: %v and %v", a, b)
	}
}

// TestKilledMultiPrimary kills the process of one of three primaries several times while all of them take writes. At
// the end every node has all acknowledged writes.
func TestKilledMultiPrimary(t *testing.T) {
	t.Parallel()
	base := storeDir(t)
	multiPrimary := func(cfg *sqlite.Config) { cfg.Statements, cfg.Replication.State.MultiPrimary = catalogue(), true }
	first, third := startNode(t, base, "db-1", nil, multiPrimary), startNode(t, base, "db-3", nil, multiPrimary)
	from := func(origins ...sut.Peer) sut.Replication {
		return sut.Replication{Epoch: 1, MultiPrimary: true, Origins: origins}
	}
	state := from(*first.peer(), *third.peer())
	second := startProcess(t, base, sqlite.Replication{Node: "db-2", State: state})
	for n, other := range map[*testNode]*testNode{first: third, third: first} {
		err := n.ChangeRole(t.Context(), from(*other.peer(), sut.Peer{Node: "db-2", Address: second.address}))
		if err != nil {
			t.Fatal(err)
		}
	}
	// All nodes get likes of the same photos. Each node gets its own comments.
	write := func(address string, user photos.ID, from, to int) error {
		s := storetest.Open(t, address)
		for i := from; i < to; i++ {
			if _, err := s.Like(t.Context(), photos.ID(i%10+1), user); err != nil {
				return err
			}
			comment := photos.Comment{ID: 1_000_000*user + photos.ID(i), PhotoID: 1, UserID: 1, Text: "text"}
			if _, err := s.Comment(t.Context(), comment); err != nil {
				return err
			}
		}
		return nil
	}
	const rounds, perRound = 3 * scale, 10
	others := inBackground(func() error {
		return errors.Join(write(first.address, 1, 0, rounds*perRound), write(third.address, 3, 0, rounds*perRound))
	})
	for round := range rounds {
		if err := write(second.address, 2, perRound*round, perRound*(round+1)); err != nil {
			t.Fatal(err)
		}
		second.Kill(t)
		second.Restart(t)
	}
	if err := <-others; err != nil {
		t.Fatal(err)
	}
	final := eventually(t, "all nodes have all writes", func() [2]sut.ReplicationStatus {
		return [2]sut.ReplicationStatus{first.ReplicationStatus(), third.ReplicationStatus()}
	}, func(s [2]sut.ReplicationStatus) bool {
		// Each write is one entry, because a node has one client and so no shared commits.
		const own = 2 * rounds * perRound
		return s[0].Position == 3*own && s[1].Position == 3*own &&
			s[0].Followers["db-2"] == own && s[1].Followers["db-2"] == own
	})
	if final[0].Conflicts != final[1].Conflicts {
		t.Errorf("the nodes report %+v", final)
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
