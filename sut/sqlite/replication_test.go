package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite"
)

func TestReplicaFollows(t *testing.T) {
	t.Parallel()
	base := newTemplate(t)
	primary := startNode(t, base, "db-1", nil, nil)
	replica := startNode(t, base, "db-2", primary, nil)
	conn := connect(t, primary.Server)
	for i := range 50 {
		run(t, conn, insert, 100+i, i, "note")
		run(t, conn, grow, 1, 100+i/2)
	}
	awaitCaughtUp(t, primary, replica)
	wantEqual(t, primary, replica)
	status := replica.ReplicationStatus()
	if status.Primary || status.Epoch != 1 || status.Position != 100 || status.Rebuilds != 0 || status.LagNS < 0 {
		t.Errorf("the replica reports %+v", status)
	}
	primary.await(t, "the primary has all acknowledgements", func(s sut.ReplicationStatus) bool {
		return s.Primary && s.Followers["db-2"] == 100
	})

	// A replica serves reads and refuses writes.
	reader := connect(t, replica.Server)
	_, err := reader.Exec(context.Background(), insert, 1000, 0, "x")
	wantSQLState(t, "a write on a replica", err, "25006")
	if !strings.Contains(err.Error(), primary.address) {
		t.Errorf("the refusal does not name the primary: %v", err)
	}
	run(t, reader, "begin")
	if n := countNotes(t, reader); n != 60 {
		t.Errorf("%d notes inside BEGIN, want 60", n)
	}
	_, err = reader.Exec(context.Background(), grow, 1, 1)
	wantSQLState(t, "a write in a transaction on a replica", err, "25006")
	run(t, reader, "rollback")
	if err := primary.ChangeRole(t.Context(), sut.Replication{Epoch: 9}); !errors.Is(err, sqlite.ErrRefused) {
		t.Errorf("a primary accepted a new role: %v", err)
	}
	if err := replica.ChangeRole(t.Context(), sut.Replication{Epoch: 1}); !errors.Is(err, sqlite.ErrRefused) {
		t.Errorf("promotion without a higher epoch: %v", err)
	}
}

func TestReplicaRestarts(t *testing.T) {
	t.Parallel()
	base := newTemplate(t)
	primary := startNode(t, base, "db-1", nil, nil)
	replica := startNode(t, base, "db-2", primary, nil)
	conn := connect(t, primary.Server)
	run(t, conn, insert, 100, 0, "before")
	awaitCaughtUp(t, primary, replica)
	replica.kill(t)
	for i := range 200 {
		run(t, conn, insert, 200+i, 0, "meanwhile")
	}
	replica.start(t)
	awaitCaughtUp(t, primary, replica)
	// The primary restarts, too. No snapshot is needed.
	primary.kill(t)
	replica.await(t, "the replica detects the loss of the primary", func(s sut.ReplicationStatus) bool {
		return !s.Connected && s.Problem != "" && s.Serves
	})
	primary.start(t)
	conn = connect(t, primary.Server)
	run(t, conn, insert, 5000, 0, "after")
	awaitCaughtUp(t, primary, replica)
	wantEqual(t, primary, replica)
	if s := replica.ReplicationStatus(); s.Rebuilds != 0 {
		t.Errorf("%d snapshots, want none", s.Rebuilds)
	}
}

func TestSnapshotWhenTooFarBehind(t *testing.T) {
	t.Parallel()
	base := newTemplate(t)
	few := func(cfg *sqlite.Config) { cfg.Replication.KeepEntries = 16 }
	primary := startNode(t, base, "db-1", nil, few)
	replica := startNode(t, base, "db-2", primary, few)
	conn := connect(t, primary.Server)
	run(t, conn, insert, 100, 0, "before")
	awaitCaughtUp(t, primary, replica)
	replica.kill(t)
	// While the replica counts as connected, the log keeps more entries for it.
	primary.await(t, "the primary detects the loss", func(s sut.ReplicationStatus) bool { return len(s.Followers) == 0 })
	for i := range 100 {
		run(t, conn, insert, 200+i, 0, strings.Repeat("meanwhile", 100))
	}
	replica.start(t)
	awaitCaughtUp(t, primary, replica)
	run(t, conn, insert, 5000, 0, "after")
	// A new node without a database gets a snapshot, too.
	empty := startNode(t, "", "db-3", primary, few)
	awaitCaughtUp(t, primary, replica, empty)
	wantEqual(t, primary, replica, empty)
	for _, c := range []*testNode{replica, empty} {
		if s := c.ReplicationStatus(); s.Rebuilds != 1 {
			t.Errorf("%s got %d snapshots, want 1", c.name, s.Rebuilds)
		}
		if left, _ := filepath.Glob(c.dir + "/*.epoch-*"); len(left) != 0 {
			t.Errorf("a replaced copy is kept without lost changes: %v", left)
		}
	}
	if left, _ := filepath.Glob(primary.dir + "/snapshot-*"); len(left) != 0 {
		t.Errorf("temporary snapshots are left: %v", left)
	}
}

func TestSchemaMismatchIsRefused(t *testing.T) {
	t.Parallel()
	base := newTemplate(t)
	const more = "create table others (id integer primary key)"
	ddl := func(cfg *sqlite.Config) { cfg.Statements = append(notes(), sqlite.Statement{SQL: more}) }
	primary := startNode(t, base, "db-1", nil, ddl)
	replica := startNode(t, base, "db-2", primary, nil)
	conn := connect(t, primary.Server)
	run(t, conn, insert, 100, 0, "fits")
	awaitCaughtUp(t, primary, replica)
	run(t, conn, more)
	run(t, conn, insert, 101, 0, "does not fit")
	status := replica.await(t, "the replica stops", func(s sut.ReplicationStatus) bool { return !s.Connected })
	if status.Position != 1 || !strings.Contains(status.Problem, "schema") {
		t.Errorf("the replica reports %+v", status)
	}
	another := startNode(t, base, "db-3", primary, nil)
	another.await(t, "a new replica is refused", func(s sut.ReplicationStatus) bool {
		return !s.Serves && strings.Contains(s.Problem, "schema differs")
	})
}

// TestLargeEntries replicates entries that are larger than a batch.
func TestLargeEntries(t *testing.T) {
	t.Parallel()
	base := newTemplate(t)
	primary := startNode(t, base, "db-1", nil, nil)
	replica := startNode(t, base, "db-2", primary, nil)
	conn := connect(t, primary.Server)
	for round := range 2 {
		run(t, conn, "begin")
		for i := range 36 { // more than batchBytes of package replication
			run(t, conn, insert, 100+1000*round+i, 0, strings.Repeat("x", 30_000))
		}
		run(t, conn, "commit")
	}
	awaitCaughtUp(t, primary, replica)
	if s := replica.ReplicationStatus(); s.Position != 2 || s.Rebuilds != 0 {
		t.Errorf("the replica reports %+v", s)
	}
	wantEqual(t, primary, replica)
}

func TestSync(t *testing.T) {
	t.Parallel()
	base := newTemplate(t)
	primary := startNode(t, base, "db-1", nil, func(cfg *sqlite.Config) {
		cfg.Replication.SyncCopies, cfg.Replication.SyncTimeout = 1, patience
	})
	replica := startNode(t, base, "db-2", primary, nil)
	conn := connect(t, primary.Server)
	for i := range 20 {
		run(t, conn, insert, 100+i, 0, "on both nodes")
		if s := replica.ReplicationStatus(); s.Position != int64(i+1) {
			t.Fatalf("write %d is acknowledged, but the replica is at %d", i+1, s.Position)
		}
	}
	run(t, conn, grow, 1, 1<<40) // changes nothing, so it waits for no replica
	replica.kill(t)
	// No replica has this write. Its wait does not block a second client. Fencing ends both waits.
	write := func(conn *pgx.Conn, id int) func() error {
		return func() error {
			_, err := conn.Exec(context.Background(), insert, id, 0, "alone")
			return err
		}
	}
	first := inBackground(write(conn, 200))
	primary.await(t, "the write is committed", func(s sut.ReplicationStatus) bool { return s.Position == 21 })
	other := connect(t, primary.Server)
	second := inBackground(write(other, 201))
	primary.await(t, "the second write is committed", func(s sut.ReplicationStatus) bool { return s.Position == 22 })
	startNode(t, base, "db-3", primary, func(cfg *sqlite.Config) { cfg.Replication.State.Epoch = 2 })
	wantSQLState(t, "a write that waits for a replica", <-first, "57014")
	wantSQLState(t, "a second one", <-second, "57014")
}

func TestSyncTimeout(t *testing.T) {
	t.Parallel()
	primary := startNode(t, newTemplate(t), "db-1", nil, func(cfg *sqlite.Config) {
		cfg.Replication.SyncCopies, cfg.Replication.SyncTimeout = 2, 20*time.Millisecond
	})
	conn := connect(t, primary.Server)
	_, err := conn.Exec(context.Background(), insert, 100, 0, "alone")
	wantSQLState(t, "a write without replicas", err, "57014")
	if n := countNotes(t, conn); n != 11 {
		t.Errorf("%d notes, want 11", n)
	}
}

// TestLag: no change is applied earlier than the artificial lag after its commit.
func TestLag(t *testing.T) {
	t.Parallel()
	const lag = 300 * time.Millisecond
	base := newTemplate(t)
	primary := startNode(t, base, "db-1", nil, nil)
	replica := startNode(t, base, "db-2", primary, func(cfg *sqlite.Config) { cfg.Replication.Lag = lag })
	replica.await(t, "the first heartbeat is applied", func(s sut.ReplicationStatus) bool { return s.LagNS >= 0 })
	conn := connect(t, primary.Server)
	for i := range 20 {
		sent := time.Now()
		run(t, conn, insert, 100+i, 0, "late")
		if i%5 > 0 {
			continue
		}
		want := int64(i + 1)
		status := replica.await(t, "the replica applies the entry", func(s sut.ReplicationStatus) bool {
			return s.Position >= want
		})
		if passed := time.Since(sent); passed < lag || status.LagNS < int64(lag) {
			t.Errorf("entry %d was applied after %v, and the status has a lag of %v", want, passed, time.Duration(status.LagNS))
		}
	}
	replica.await(t, "the replica has all entries", func(s sut.ReplicationStatus) bool { return s.Position == 20 })
}

// TestDivergedCopyIsReplaced: a change that does not fit the copy leads to a snapshot. The diverged copy is kept.
func TestDivergedCopyIsReplaced(t *testing.T) {
	t.Parallel()
	base := newTemplate(t)
	primary := startNode(t, base, "db-1", nil, nil)
	diverged := newTemplate(t)
	alone := serve(t, sqlite.Config{Dir: diverged, Statements: notes()})
	run(t, connect(t, alone), insert, 100, 0, "of its own")
	if err := alone.Shutdown(cancelledContext()); err != nil {
		t.Fatal(err)
	}
	replica := startNode(t, diverged, "db-2", primary, nil)
	replica.await(t, "the replica serves reads", func(s sut.ReplicationStatus) bool { return s.Serves })
	reader := connect(t, replica.Server) // its open transaction must not block the snapshot for ever
	run(t, reader, "begin read only")
	countNotes(t, reader)
	conn := connect(t, primary.Server)
	run(t, conn, insert, 100, 0, "of the primary")
	awaitCaughtUp(t, primary, replica)
	wantEqual(t, primary, replica)
	if s := replica.ReplicationStatus(); s.Rebuilds != 1 {
		t.Errorf("the replica reports %+v", s)
	}
	if kept := replica.ReplicationStatus().Kept; len(kept) != 1 {
		t.Errorf("%v copies are kept, want 1", kept)
	}
}

// TestRandomTransactions runs random transactions from several clients. Some are rolled back, some fail, and many share
// commits. Meanwhile a replica is killed and restarted several times. It catches up with entries or, because the log is
// short, with a snapshot. At the end all copies are equal.
func TestRandomTransactions(t *testing.T) {
	t.Parallel()
	const clients, transactions = 8, 50 * scale
	base := newTemplate(t)
	primary := startNode(t, base, "db-1", nil, func(cfg *sqlite.Config) { cfg.Replication.KeepEntries = 16 })
	second := startNode(t, base, "db-2", primary, nil)
	third := startNode(t, base, "db-3", primary, func(cfg *sqlite.Config) { cfg.Replication.Lag = 20 * time.Millisecond })
	var writers errgroup.Group
	var restarts atomic.Int64 // the clients write until the last restart
	for i := range clients {
		conn := connect(t, primary.Server)
		writers.Go(func() error {
			random := rand.New(rand.NewPCG(7, uint64(i)))
			for n := 0; n < transactions || restarts.Load() < 3; n++ {
				if err := randomTransaction(conn, random); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for range 3 {
		before := primary.ReplicationStatus().Position
		primary.await(t, "writes go on", func(s sut.ReplicationStatus) bool { return s.Position >= before+20 })
		third.kill(t)
		third.start(t)
		restarts.Add(1)
	}
	fourth := startNode(t, "", "db-4", primary, nil)
	if err := writers.Wait(); err != nil {
		t.Fatal(err)
	}
	awaitCaughtUp(t, primary, second, third, fourth)
	wantEqual(t, primary, second, third, fourth)
	stats := primary.Stats()
	position := primary.ReplicationStatus().Position
	t.Logf("%d transactions, %d commits, %d entries", stats.Transactions, stats.Commits, position)
}

// randomTransaction runs one transaction. A violated key is no error.
func randomTransaction(conn *pgx.Conn, random *rand.Rand) error {
	ctx := context.Background()
	steps, block, keep := random.IntN(4)+1, random.IntN(3) == 0, random.IntN(4) > 0
	if block {
		if _, err := conn.Exec(ctx, "begin"); err != nil {
			return err
		}
	}
	batch := &pgx.Batch{}
	for range steps {
		id := random.IntN(4000)
		if random.IntN(2) == 0 {
			batch.Queue(insert, id, random.IntN(100), fmt.Sprint("text ", random.IntN(1000)))
		} else {
			batch.Queue(grow, random.IntN(3), id)
		}
	}
	if !block && random.IntN(10) == 0 {
		batch.Queue(insert, 1, 0, "the id exists already")
	}
	err := conn.SendBatch(ctx, batch).Close()
	if s := sqlState(err); s != "" && s != "23505" {
		return err
	}
	if !block {
		return nil
	}
	end := "commit"
	if !keep || err != nil {
		end = "rollback"
	}
	_, err = conn.Exec(ctx, end)
	return err
}
