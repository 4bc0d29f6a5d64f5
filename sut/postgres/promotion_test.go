package postgres

import (
	"context"
	"errors"
	"os"
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

	// What the replicas do not get is lost. The second is stopped first, so that the
	// one that is promoted is not behind it by a heartbeat.
	two.stop(t, second)
	one.stop(t, first)
	query(t, primary, "INSERT INTO t VALUES (1000, 'lost')", nil)
	old.kill(t)
	watch(t, first)
	watch(t, second)

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	begin := time.Now()
	if err := first.Become(ctx, sut.Replication{Epoch: 2}); err != nil {
		t.Fatal(err)
	}
	promoted := time.Since(begin)
	query(t, first, "INSERT INTO t VALUES (1001, 'first of the new')", nil)
	t.Logf("promotion took %v, with the first write %v", promoted, time.Since(begin))
	if err := second.Become(ctx, following(2, first)); err != nil {
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
		"primary told to follow": first.Become(ctx, following(3, second)),
		"primary told again":     first.Become(ctx, sut.Replication{Epoch: 3}),
		"older epoch":            second.Become(ctx, following(1, primary)),
		"promotion in the same":  second.Become(ctx, sut.Replication{Epoch: 2}),
	} {
		if !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v, want a conflict", name, err)
		}
	}

	// The old primary comes back as a replica, and what it alone held is kept.
	primary.cfg.Replication.State = following(2, first)
	back := New(primary.cfg)
	watch(t, back)
	if s := awaitReplica(t, back, first); s.Rebuilds != 1 || s.Epoch != 2 {
		t.Errorf("status of the old primary %+v", s)
	}
	for _, replica := range []*Server{second, back} {
		if got, want := contents(t, replica), contents(t, first); got != want {
			t.Errorf("contents of %s: %s, want %s", replica.cfg.Name, got, want)
		}
	}
	kept := newServer(t, KeptDir(back.dir, 1))
	start(t, kept)
	var text string
	query(t, kept, "SELECT text FROM t WHERE id = 1000", nil, &text)
	if text != "lost" {
		t.Errorf("the kept directory has %q", text)
	}
}

// testTwoPromotions: two replicas are promoted one after the other, the second
// without knowing of the first. PostgreSQL gives both histories the number 2.
func testTwoPromotions(t *testing.T, template string) {
	primary := primaryOf(t, template, Replication{})
	old := start(t, primary) // without a heartbeat all replicas hold the same
	var replicas []*Server
	var processes []*process
	for _, name := range []string{"db-2", "db-3", "db-4"} {
		replicas = append(replicas, replicaOf(t, template, name, primary, Replication{}))
		processes = append(processes, watch(t, replicas[len(replicas)-1]))
	}
	first, second, witness := replicas[0], replicas[1], replicas[2]
	query(t, primary, "INSERT INTO t VALUES (1, 'before')", nil)
	for _, replica := range replicas {
		awaitReplica(t, replica, primary)
	}
	old.kill(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := errors.Join(first.Become(ctx, sut.Replication{Epoch: 2}),
		witness.Become(ctx, following(2, first))); err != nil {
		t.Fatal(err)
	}
	query(t, first, "INSERT INTO t VALUES (2, 'first')", nil)
	awaitReplica(t, witness, first)
	processes[0].kill(t)
	if err := second.Become(ctx, sut.Replication{Epoch: 3}); err != nil {
		t.Fatal(err)
	}
	query(t, second, "INSERT INTO t VALUES (2, 'second')", nil)

	if err := witness.Become(ctx, following(3, second)); err != nil {
		t.Fatal(err)
	}
	if s := status(t, witness); s.Serves || !strings.Contains(s.Problem, "diverged") {
		t.Errorf("status of a replica that has diverged: %+v", s)
	}
	processes[2].stop(t, witness)
	watch(t, witness)
	awaitReplica(t, witness, second)
	if got, want := contents(t, witness), contents(t, second); got != want {
		t.Errorf("contents %s, want %s", got, want)
	}
	if _, err := os.Stat(KeptDir(witness.dir, 2)); err != nil {
		t.Error(err)
	}
}

func testLagAndPromotion(t *testing.T, template string) {
	primary := primaryOf(t, template, Replication{})
	process := watch(t, primary)
	replica := replicaOf(t, template, "db-2", primary, Replication{Lag: time.Hour})
	watch(t, replica)
	transactions(t, primary, 9, 100)
	want := contents(t, primary)
	position := status(t, primary).Position
	await(t, "the replica holds everything", func() bool { return status(t, replica).Position >= position })
	if s := status(t, replica); s.Serves {
		t.Errorf("a replica an hour behind serves: %+v", s)
	}
	if got := contents(t, replica); got == want {
		t.Fatal("the lag delays nothing")
	}
	process.kill(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	begin := time.Now()
	if err := replica.Become(ctx, sut.Replication{Epoch: 2}); err != nil {
		t.Fatal(err)
	}
	t.Logf("promotion with 100 transactions to apply took %v", time.Since(begin))
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
	await(t, "the replica serves", func() bool { return status(t, replica).Serves })
	var seen time.Duration
	// A busy machine adds to it now and then; the knob does not.
	await(t, "the lag is seen as it was set", func() bool {
		seen = time.Duration(status(t, replica).LagNS)
		return seen > want*8/10 && seen < want*12/10
	})
	t.Logf("lag of %v seen as %v", want, seen)
	if seen < want {
		t.Errorf("a beat was applied after %v, before its time", seen)
	}
}

func testSynchronous(t *testing.T, template string) {
	primary := primaryOf(t, template, Replication{SyncCopies: 1})
	watch(t, primary)
	replica := replicaOf(t, template, "db-2", primary, Replication{SyncCopies: 1})
	process := watch(t, replica)
	query(t, primary, "INSERT INTO t VALUES (1, 'held by two')", nil)
	process.kill(t)

	// insert tries to write for a while.
	insert := func(id int, setting string) error {
		conn, err := pgx.Connect(t.Context(), primary.url())
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
			t.Errorf("a write without replicas, after %s: %v, want no answer", setting, err)
		}
	}
	// The client's cancel request came after it had given up: the write took effect.
	await(t, "the unacknowledged write has taken effect", func() bool {
		var n int
		query(t, primary, "SELECT count(*) FROM t WHERE id IN (10, 11)", nil, &n)
		return n == 2
	})
	// Somebody else's cancel request would have the server acknowledge it.
	waiting := make(chan error, 1)
	go func() {
		conn, err := pgx.Connect(t.Context(), primary.url())
		if err == nil {
			_, err = conn.Exec(t.Context(), "INSERT INTO t VALUES (12, 'held by one')")
			err = errors.Join(err, conn.Close(t.Context()))
		}
		waiting <- err
	}()
	await(t, "the write that waits is cancelled", func() bool {
		var n int
		query(t, primary, "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", nil, &n)
		return n == 1
	})
	if err := <-waiting; err != nil {
		t.Errorf("a write whose wait was cancelled: %v, want the success that Replication warns of", err)
	}
	// The heartbeat does not wait for replicas, nor does a copy for the backup.
	if s := status(t, primary); len(s.Followers) != 0 {
		t.Errorf("followers %v", s.Followers)
	}
	third := newCopy(t, filepath.Join(t.TempDir(), "data"), "db-3",
		Replication{SyncCopies: 1, State: following(1, primary)})
	watch(t, third)
	awaitReplica(t, third, primary)
	if err := insert(20, "SELECT 1"); err != nil {
		t.Errorf("a write with a replica again: %v", err)
	}
	awaitReplica(t, third, primary)
	if got, want := contents(t, third), contents(t, primary); got != want {
		t.Errorf("contents %s, want %s", got, want)
	}
}

// testNothingAcknowledgedIsLost kills a synchronous primary in the middle of
// writes, and promotes the replica that holds more.
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
		writing.Go(func() {
			conn, err := pgx.Connect(t.Context(), primary.url())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close(context.Background())
			for id := w; id < cap(acknowledged); id += writers {
				if _, err := conn.Exec(t.Context(), "INSERT INTO t VALUES ($1, 'x')", id); err != nil {
					return // it was killed
				}
				acknowledged <- id
			}
		})
	}
	await(t, "there are writes", func() bool { return len(acknowledged) > 100 })
	old.kill(t)
	writing.Wait()
	close(acknowledged)
	await(t, "nothing more comes from the dead primary", func() bool {
		return !status(t, best).Connected && !status(t, other).Connected
	})
	if status(t, best).Before(status(t, other)) {
		best, other = other, best
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := errors.Join(best.Become(ctx, sut.Replication{Epoch: 2}), other.Become(ctx, following(2, best))); err != nil {
		t.Fatal(err)
	}
	query(t, best, "INSERT INTO t VALUES (-1, 'needs the other replica')", nil)
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

// testFrozenPrimary: its replica notices, may be read on, and goes on.
func testFrozenPrimary(t *testing.T, template string) {
	primary := primaryOf(t, template, Replication{})
	watch(t, primary)
	replica := replicaOf(t, template, "db-2", primary, Replication{})
	watch(t, replica)
	awaitReplica(t, replica, primary)
	// Each process of the server is a session and a group of its own.
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
	await(t, "the replica gives the link up", func() bool { return !status(t, replica).Connected })
	if s := status(t, replica); !s.Serves || s.Problem == "" {
		t.Errorf("status without a primary: %+v", s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if s, err := primary.ReplicationStatus(ctx); err == nil {
		t.Errorf("a frozen server says %+v", s)
	}
	signal(syscall.SIGCONT)
	transactions(t, primary, 10, 20)
	awaitReplica(t, replica, primary)
	if got, want := contents(t, replica), contents(t, primary); got != want {
		t.Errorf("contents %s, want %s", got, want)
	}
}
