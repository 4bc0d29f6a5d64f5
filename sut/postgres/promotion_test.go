package postgres

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut"
)

func testPromotion(t *testing.T, template string) {
	primary := primaryOf(t, template, Replication{})
	old := watch(t, primary)
	first := replicaOf(t, template, "db-2", primary, Replication{})
	second := replicaOf(t, template, "db-3", primary, Replication{})
	one, two := watch(t, first), watch(t, second)
	transactions(t, primary, 7, 50)
	awaitReplica(t, first, primary)
	awaitReplica(t, second, primary)

	// A write that no replica has is lost. The second replica stops first, so that it does
	// not have a later heartbeat than the replica that will be promoted.
	two.stop(t, second)
	one.stop(t, first)
	query(t, primary, "INSERT INTO t VALUES (1000, 'lost')", nil)
	old.kill(t)
	watch(t, first)
	watch(t, second)

	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	begin := time.Now()
	if err := first.ChangeRole(ctx, sut.Replication{Epoch: 2}); err != nil {
		t.Fatal(err)
	}
	promoted := time.Since(begin)
	query(t, first, "INSERT INTO t VALUES (1001, 'first of epoch 2')", nil)
	t.Logf("the promotion took %v, with the first write %v", promoted, time.Since(begin))
	if err := second.ChangeRole(ctx, following(2, first)); err != nil {
		t.Fatal(err)
	}
	transactions(t, first, 8, 50)
	if s := awaitReplica(t, second, first); s.Epoch != 2 || s.Rebuilds != 0 || s.Following != "db-2" {
		t.Errorf("status of the other replica %+v", s)
	}
	if s := status(t, first); !s.Primary || !s.Serves || s.Epoch != 2 || s.Following != "" {
		t.Errorf("status of the promoted one %+v", s)
	}
	for name, err := range map[string]error{
		"primary as a replica":          first.ChangeRole(ctx, following(3, second)),
		"primary as a primary":          first.ChangeRole(ctx, sut.Replication{Epoch: 3}),
		"lower epoch":                   second.ChangeRole(ctx, following(1, primary)),
		"promotion with the same epoch": second.ChangeRole(ctx, sut.Replication{Epoch: 2}),
	} {
		if !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v, want a conflict", name, err)
		}
	}

	// The old primary returns as a replica. Its old directory, with the lost write, is kept.
	primary.cfg.Replication.State = following(2, first)
	returned := New(primary.cfg)
	watch(t, returned)
	if s := awaitReplica(t, returned, first); s.Rebuilds != 1 || s.Epoch != 2 {
		t.Errorf("status of the old primary %+v", s)
	}
	for _, replica := range []*Server{second, returned} {
		if got, want := contents(t, replica), contents(t, first); got != want {
			t.Errorf("contents of %s: %s, want %s", replica.cfg.Name, got, want)
		}
	}
	kept := newServer(t, onlyCopy(t, returned, 1).Dir)
	start(t, kept)
	var text string
	query(t, kept, "SELECT text FROM t WHERE id = 1000", nil, &text)
	if text != "lost" {
		t.Errorf("the row in the kept directory is %q, want %q", text, "lost")
	}
}

// testTwoPromotions promotes two replicas of the same primary independently. PostgreSQL gives
// both histories the timeline number 2.
func testTwoPromotions(t *testing.T, template string) {
	primary := primaryOf(t, template, Replication{})
	old := start(t, primary) // no heartbeat, so that all replicas have the same position
	var replicas []*Server
	var processes []*process
	for _, name := range []string{"db-2", "db-3", "db-4"} {
		replicas = append(replicas, replicaOf(t, template, name, primary, Replication{}))
		processes = append(processes, watch(t, replicas[len(replicas)-1]))
	}
	first, second, third := replicas[0], replicas[1], replicas[2]
	query(t, primary, "INSERT INTO t VALUES (1, 'before')", nil)
	for _, replica := range replicas {
		awaitReplica(t, replica, primary)
	}
	old.kill(t)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if err := errors.Join(first.ChangeRole(ctx, sut.Replication{Epoch: 2}),
		third.ChangeRole(ctx, following(2, first))); err != nil {
		t.Fatal(err)
	}
	query(t, first, "INSERT INTO t VALUES (2, 'first')", nil)
	awaitReplica(t, third, first)
	processes[0].kill(t)
	if err := second.ChangeRole(ctx, sut.Replication{Epoch: 3}); err != nil {
		t.Fatal(err)
	}
	query(t, second, "INSERT INTO t VALUES (2, 'second')", nil)

	if err := third.ChangeRole(ctx, following(3, second)); err != nil {
		t.Fatal(err)
	}
	if s := status(t, third); s.Serves || !strings.Contains(s.Problem, "diverged") {
		t.Errorf("status of a replica that has diverged: %+v", s)
	}
	processes[2].stop(t, third)
	watch(t, third)
	awaitReplica(t, third, second)
	if got, want := contents(t, third), contents(t, second); got != want {
		t.Errorf("contents %s, want %s", got, want)
	}
	onlyCopy(t, third, 2)
}

// testLateRebuild fetches a new copy for a role of epoch 2 from a primary of epoch 4. The copy has the whole history of
// that primary, so it lost nothing when it gets a role of epoch 4.
func testLateRebuild(t *testing.T, template string) {
	primary := primaryOf(t, template, Replication{})
	old := watch(t, primary)
	promoted := replicaOf(t, template, "db-2", primary, Replication{})
	watch(t, promoted)
	awaitReplica(t, promoted, primary)
	old.kill(t)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if err := promoted.ChangeRole(ctx, sut.Replication{Epoch: 4}); err != nil {
		t.Fatal(err)
	}
	query(t, promoted, "INSERT INTO t VALUES (1, 'of epoch 4')", nil)

	primary.cfg.Replication.State = following(2, promoted)
	late := New(primary.cfg)
	watch(t, late)
	awaitReplica(t, late, promoted)
	if err := late.ChangeRole(ctx, following(3, promoted)); !errors.Is(err, ErrConflict) {
		t.Errorf("a role of an earlier epoch: %v, want a conflict", err)
	}
	if err := late.ChangeRole(ctx, following(4, promoted)); err != nil {
		t.Fatal(err)
	}
	query(t, promoted, "INSERT INTO t VALUES (2, 'more')", nil)
	if s := awaitReplica(t, late, promoted); s.Problem != "" || s.Rebuilds != 1 {
		t.Errorf("status %+v", s)
	}
	onlyCopy(t, late, 1)
}

// onlyCopy returns the only kept copy of a server. It must be of an epoch.
func onlyCopy(t *testing.T, s *Server, epoch int64) KeptCopy {
	t.Helper()
	kept, err := s.KeptCopies()
	if err != nil || len(kept) != 1 || kept[0].Epoch != epoch || kept[0].Empty {
		t.Fatalf("kept copies %+v, %v, want one of epoch %d", kept, err, epoch)
	}
	return kept[0]
}

func testLagAndPromotion(t *testing.T, template string) {
	primary := primaryOf(t, template, Replication{})
	process := watch(t, primary)
	replica := replicaOf(t, template, "db-2", primary, Replication{Lag: time.Hour})
	watch(t, replica)
	transactions(t, primary, 9, 100)
	want := contents(t, primary)
	position := status(t, primary).Position
	eventually(t, "the replica has received all changes", func() bool { return status(t, replica).Position >= position })
	// PostgreSQL gets the lag after it has begun to apply, so an early heartbeat may be applied. Then its copy is recent.
	if s := status(t, replica); s.Serves && s.LagNS < 0 {
		t.Errorf("a replica with a lag of an hour serves, and has applied no heartbeat: %+v", s)
	}
	if got := contents(t, replica); got == want {
		t.Fatal("the replica has applied the changes without the configured lag")
	}
	process.kill(t)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	begin := time.Now()
	if err := replica.ChangeRole(ctx, sut.Replication{Epoch: 2}); err != nil {
		t.Fatal(err)
	}
	t.Logf("a promotion with 100 transactions to apply took %v", time.Since(begin))
	if got := contents(t, replica); got != want {
		t.Errorf("contents %s, want %s", got, want)
	}
}

func testLag(t *testing.T, template string) {
	const want = 200 * time.Millisecond
	primary := primaryOf(t, template, Replication{})
	watch(t, primary)
	replica := replicaOf(t, template, "db-2", primary, Replication{Lag: want})
	watch(t, replica)
	eventually(t, "the replica serves", func() bool { return status(t, replica).Serves })
	var measured time.Duration
	// A busy machine may add to the lag for a while.
	eventually(t, "the measured lag is the configured one", func() bool {
		measured = time.Duration(status(t, replica).LagNS)
		return measured > want*8/10 && measured < want*12/10
	})
	t.Logf("lag of %v measured as %v", want, measured)
	if measured < want {
		t.Errorf("a heartbeat was applied after %v, want at least %v", measured, want)
	}
}

func testSynchronous(t *testing.T, template string) {
	primary := primaryOf(t, template, Replication{SyncCopies: 1, Members: []string{"db-2"}})
	watch(t, primary)
	replica := replicaOf(t, template, "db-2", primary, Replication{SyncCopies: 1})
	process := watch(t, replica)
	query(t, primary, "INSERT INTO t VALUES (1, 'held by two')", nil)
	process.kill(t)

	// insert returns the error of a write with a timeout of 5 s.
	insert := func(id int, setting string) error {
		conn, err := pgx.Connect(t.Context(), primary.url(User))
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = conn.Close(context.Background())
			<-conn.PgConn().CleanupDone()
		}()
		if _, err := conn.Exec(t.Context(), setting); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err = conn.Exec(ctx, "INSERT INTO t VALUES ($1, 'held by one')", id)
		return err
	}
	for id, setting := range map[int]string{10: "SELECT 1", 11: "SET statement_timeout = '2s'"} {
		if err := insert(id, setting); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a write without replicas, after %s: %v, want a timeout", setting, err)
		}
	}
	// pgx sent its cancel request after it had given up. The server then committed.
	eventually(t, "the unacknowledged write has taken effect", func() bool {
		var n int
		query(t, primary, "SELECT count(*) FROM t WHERE id IN (10, 11)", nil, &n)
		return n == 2
	})
	// A cancel by another session makes the server acknowledge the write.
	waiting := make(chan error, 1)
	go func() {
		conn, err := pgx.Connect(t.Context(), primary.url(User))
		if err == nil {
			_, err = conn.Exec(t.Context(), "INSERT INTO t VALUES (12, 'held by one')")
			err = errors.Join(err, conn.Close(t.Context()))
		}
		waiting <- err
	}()
	eventually(t, "the waiting write is cancelled", func() bool {
		var n int
		query(t, primary, "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", nil, &n)
		return n == 1
	})
	if err := <-waiting; err != nil {
		t.Errorf("a write whose wait was cancelled: %v, want success, as described at Replication", err)
	}
	// Neither the heartbeat nor a backup waits for replicas.
	if s := status(t, primary); len(s.Followers) != 0 {
		t.Errorf("followers %v", s.Followers)
	}
	third := newCopy(t, filepath.Join(t.TempDir(), "data"), "db-3",
		Replication{SyncCopies: 1, State: following(1, primary)})
	watch(t, third)
	awaitReplica(t, third, primary)
	if err := insert(20, "SELECT 1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a write with a replica that is no member: %v, want a timeout", err)
	}
	if err := primary.SetMembers(t.Context(), []string{"db-2", "db-3"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new member counts", func() bool { return insert(21, "SELECT 1") == nil })
	awaitReplica(t, third, primary)
	if got, want := contents(t, third), contents(t, primary); got != want {
		t.Errorf("contents %s, want %s", got, want)
	}
}

// testNothingAcknowledgedIsLost kills a synchronous primary during writes and promotes the
// replica with the highest position.
func testNothingAcknowledgedIsLost(t *testing.T, template string) {
	r := Replication{SyncCopies: 1}
	primary := primaryOf(t, template, r)
	old := watch(t, primary)
	best, other := replicaOf(t, template, "db-2", primary, r), replicaOf(t, template, "db-3", primary, r)
	watch(t, best)
	watch(t, other)
	awaitReplica(t, best, primary)
	awaitReplica(t, other, primary)

	const writers = 4
	acknowledged := make(chan int, 10_000)
	var writing sync.WaitGroup
	for w := range writers {
		conn, err := pgx.Connect(t.Context(), primary.url(User)) // before the kill, also on a busy machine
		if err != nil {
			t.Fatal(err)
		}
		writing.Go(func() {
			defer conn.Close(context.Background())
			for id := w; id < cap(acknowledged); id += writers {
				if _, err := conn.Exec(t.Context(), "INSERT INTO t VALUES ($1, 'x')", id); err != nil {
					return // the primary was killed
				}
				acknowledged <- id
			}
		})
	}
	eventually(t, "there are acknowledged writes", func() bool { return len(acknowledged) > 100 })
	old.kill(t)
	writing.Wait()
	close(acknowledged)
	eventually(t, "both replicas have lost their connection to the killed primary", func() bool {
		return !status(t, best).Connected && !status(t, other).Connected
	})
	if status(t, best).Before(status(t, other)) {
		best, other = other, best
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	promoted := best.ChangeRole(ctx, sut.Replication{Epoch: 2})
	if err := errors.Join(promoted, other.ChangeRole(ctx, following(2, best))); err != nil {
		t.Fatal(err)
	}
	query(t, best, "INSERT INTO t VALUES (-1, 'acknowledged by the other replica')", nil)
	awaitReplica(t, other, best)
	var ids []int
	for id := range acknowledged {
		ids = append(ids, id)
	}
	for _, server := range []*Server{best, other} {
		var held int
		query(t, server, "SELECT count(*) FROM t WHERE id = ANY ($1)", []any{ids}, &held)
		if held != len(ids) {
			t.Errorf("%s holds %d of %d acknowledged writes", server.cfg.Name, held, len(ids))
		}
	}
}

// testFrozenPrimary checks that a replica detects a frozen primary, still serves reads, and
// reconnects afterwards.
func testFrozenPrimary(t *testing.T, template string) {
	primary := primaryOf(t, template, Replication{})
	watch(t, primary)
	replica := replicaOf(t, template, "db-2", primary, Replication{})
	watch(t, replica)
	awaitReplica(t, replica, primary)
	// Each process of the server has its own process group, so each gets the signal.
	signal := func(signal syscall.Signal) {
		t.Helper()
		for _, pid := range serversIn(primary.dir) {
			if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Fatal(err)
			}
		}
	}
	signal(syscall.SIGSTOP)
	defer signal(syscall.SIGCONT)
	eventually(t, "the replica has closed the connection", func() bool { return !status(t, replica).Connected })
	if s := status(t, replica); !s.Serves || s.Problem == "" {
		t.Errorf("status without a primary: %+v", s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if s, err := primary.ReplicationStatus(ctx); err == nil {
		t.Errorf("a frozen server returned the status %+v", s)
	}
	signal(syscall.SIGCONT)
	transactions(t, primary, 10, 20)
	awaitReplica(t, replica, primary)
	if got, want := contents(t, replica), contents(t, primary); got != want {
		t.Errorf("contents %s, want %s", got, want)
	}
}
