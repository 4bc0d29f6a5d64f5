package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/sut"
)

// TestReplication creates a template with a table once. Primaries and replicas start from
// copies of it.
func TestReplication(t *testing.T) {
	t.Parallel()
	template := newServer(t, filepath.Join(t.TempDir(), "template"))
	template.cfg.Secret = "secret of another system"
	process := start(t, template)
	query(t, template, "CREATE TABLE t (id bigint PRIMARY KEY, text text NOT NULL)", nil)
	process.stop(t, template)
	for _, test := range []struct {
		name string
		run  func(t *testing.T, template string)
	}{
		{"replicas have the contents of the primary", testCatchUp},
		{"a replica that is too far behind fetches a new copy", testTooFarBehind},
		{"a replica is promoted after the loss of the primary", testPromotion},
		{"a synchronous write waits for a replica", testSynchronous},
		{"no acknowledged synchronous write is lost", testNothingAcknowledgedIsLost},
		{"a replica detects a frozen primary", testFrozenPrimary},
		{"the configured lag is exact", testLag},
		{"the configured lag does not delay a promotion", testLagAndPromotion},
		{"two histories with the same timeline number are distinguished", testTwoPromotions},
		{"a new copy has the epoch of its primary", testLateRebuild},
		{"an interrupted rebuild changes nothing", testInterruptedRebuild},
		{"invalid roles and directories are refused", testInvalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, template.dir)
		})
	}
}

// newCopy returns the description of a server with Replication.
func newCopy(t testing.TB, dir, name string, r Replication) *Server {
	t.Helper()
	cfg := newServer(t, dir).cfg
	r.Node = name
	cfg.Name, cfg.Replication = name, &r
	return New(cfg)
}

// primaryOf returns the description of a primary, db-1, on a copy of a template.
func primaryOf(t testing.TB, template string, r Replication) *Server {
	t.Helper()
	r.State = sut.Replication{Epoch: 1}
	return newCopy(t, copyOf(t, template), "db-1", r)
}

// replicaOf returns the description of a replica of primary on a copy of a template.
func replicaOf(t testing.TB, template, name string, primary *Server, r Replication) *Server {
	t.Helper()
	r.State = following(1, primary)
	return newCopy(t, copyOf(t, template), name, r)
}

// following returns the role of a replica of primary.
func following(epoch int64, primary *Server) sut.Replication {
	return sut.Replication{Epoch: epoch, Primary: &sut.Peer{Node: primary.cfg.Name, Address: primary.Address()}}
}

// watch starts a server, and a Watch that ends with it.
func watch(t testing.TB, server *Server) *process {
	t.Helper()
	p := start(t, server)
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { server.Watch(ctx) })
	var once sync.Once
	end := func() { once.Do(func() { cancel(); done.Wait() }) }
	go func() {
		<-p.done
		end()
	}()
	t.Cleanup(end)
	return p
}

// eventually polls until a condition holds. It ends the test after testTimeout.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, testTimeout, pollInterval, what, holds)
}

// status returns the status of a running server.
func status(t testing.TB, server *Server) sut.ReplicationStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	s, err := server.ReplicationStatus(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// awaitReplica waits until a replica serves and has applied the present WAL of the primary.
func awaitReplica(t testing.TB, replica, primary *Server) sut.ReplicationStatus {
	t.Helper()
	var s sut.ReplicationStatus
	want := status(t, primary).Position
	eventually(t, replica.cfg.Name+" has caught up", func() bool {
		s = status(t, replica)
		var applied int64
		query(t, replica, "SELECT (pg_last_wal_replay_lsn() - '0/0')::bigint", nil, &applied)
		return s.Serves && s.Connected && applied >= want
	})
	return s
}

// contents returns the number of rows and a digest of the table.
func contents(t testing.TB, server *Server) string {
	t.Helper()
	var text string
	query(t, server, "SELECT count(*) || ' rows ' || md5(coalesce(string_agg(id || text, ',' ORDER BY id), '')) FROM t",
		nil, &text)
	return text
}

// transactions runs n random transactions of up to five changes each. It rolls back every
// fifth one.
func transactions(t testing.TB, server *Server, seed uint64, n int) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 0))
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, server.url(User))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	for i := range n {
		tx, err := conn.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 1 + random.IntN(5) {
			id, text := random.IntN(200), fmt.Sprint(random.Uint64())
			switch random.IntN(3) {
			case 0:
				_, err = tx.Exec(ctx, "DELETE FROM t WHERE id = $1", id)
			default:
				_, err = tx.Exec(ctx, "INSERT INTO t VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET text = EXCLUDED.text", id, text)
			}
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		end := tx.Commit
		if i%5 == 4 {
			end = tx.Rollback
		}
		if err := end(ctx); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// sqlState runs a statement and returns the SQLSTATE of the error; "" = none.
func sqlState(t testing.TB, server *Server, role, sql string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, server.url(role))
	if err == nil {
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, sql)
	}
	refused, isRefused := errors.AsType[*pgconn.PgError](err)
	switch {
	case isRefused:
		return refused.Code
	case err != nil:
		t.Fatalf("%s: %v, want an error of the server", sql, err)
	}
	return ""
}

func testCatchUp(t *testing.T, template string) {
	primary := primaryOf(t, template, Replication{})
	watch(t, primary)
	transactions(t, primary, 1, 100)
	first := replicaOf(t, template, "db-2", primary, Replication{})
	second := replicaOf(t, template, "db-3", primary, Replication{})
	one := watch(t, first)
	watch(t, second)
	transactions(t, primary, 2, 200)

	same := func() {
		t.Helper()
		for _, replica := range []*Server{first, second} {
			s := awaitReplica(t, replica, primary)
			if s.Rebuilds != 0 || s.Primary || s.Epoch != 1 || s.Following != "db-1" || s.Problem != "" {
				t.Errorf("status %+v", s)
			}
			if diff := cmp.Diff(contents(t, primary), contents(t, replica)); diff != "" {
				t.Errorf("contents of %s (-primary +replica):\n%s", replica.cfg.Name, diff)
			}
		}
	}
	same()
	if got := sqlState(t, first, User, "INSERT INTO t VALUES (1, 'x')"); got != "25006" {
		t.Errorf("a write on a replica fails with SQLSTATE %s, want 25006", got)
	}
	eventually(t, "the primary reports both followers", func() bool {
		s := status(t, primary)
		return s.Primary && s.Serves && len(s.Followers) == 2 && s.Followers["db-2"] > 0 && s.Followers["db-3"] > 0
	})
	eventually(t, "the replica has received a heartbeat", func() bool { return status(t, first).LagNS >= 0 })

	one.stop(t, first)
	transactions(t, primary, 3, 50)
	one = watch(t, first)
	same()
	one.kill(t)
	transactions(t, primary, 4, 50)
	watch(t, first)
	same()
}

// advance makes a primary remove the WAL before its present position.
func advance(t testing.TB, primary *Server) {
	t.Helper()
	for range 2 + walKept>>24 {
		query(t, primary, "SELECT pg_logical_emit_message(true, 'x', repeat('x', 1 << 24))", nil)
	}
	queryAs(t, primary, nodeUser, "CHECKPOINT", nil)
}

func testTooFarBehind(t *testing.T, template string) {
	primary := primaryOf(t, template, Replication{})
	watch(t, primary)
	replica := replicaOf(t, template, "db-2", primary, Replication{})
	process := watch(t, replica)
	awaitReplica(t, replica, primary)
	process.stop(t, replica)

	transactions(t, primary, 5, 20)
	advance(t, primary)
	process = watch(t, replica)
	if s := awaitReplica(t, replica, primary); s.Rebuilds != 1 {
		t.Errorf("%d rebuilds, want 1", s.Rebuilds)
	}
	process.stop(t, replica)

	// A running server detects it, too.
	if err := replica.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	transactions(t, primary, 6, 20)
	advance(t, primary)
	process = launch(t, replica)
	eventually(t, "the replica is lost", func() bool { return replica.Lost() != "" })
	eventually(t, "the replica is ready", func() bool { return replica.Ready(t.Context()) == nil })
	if s := status(t, replica); s.Serves || s.Connected || !strings.Contains(s.Problem, "too far behind") {
		t.Errorf("status of a lost replica: %+v", s)
	}
	process.stop(t, replica)
	watch(t, replica)
	if s := awaitReplica(t, replica, primary); s.Rebuilds != 2 || replica.Lost() != "" {
		t.Errorf("%d rebuilds, want 2; lost %q", s.Rebuilds, replica.Lost())
	}
	if got, want := contents(t, replica), contents(t, primary); got != want {
		t.Errorf("contents %s, want %s", got, want)
	}
	if kept, _ := filepath.Glob(replica.dir + ".*"); len(kept) > 0 {
		t.Errorf("a replica without changes of its own keeps %v", kept)
	}
	// A replica without a data directory.
	third := newCopy(t, filepath.Join(t.TempDir(), "data"), "db-3", Replication{State: following(1, primary)})
	begin := time.Now()
	watch(t, third)
	t.Logf("a replica without a data directory was ready after %v", time.Since(begin))
	awaitReplica(t, third, primary)
}

// testInterruptedRebuild checks that an interrupted rebuild leaves the directory unchanged
// and no process behind.
func testInterruptedRebuild(t *testing.T, template string) {
	primary := primaryOf(t, template, Replication{})
	watch(t, primary)
	query(t, primary, "INSERT INTO t SELECT n, repeat('x', 500) FROM generate_series(1, 50000) AS n", nil)
	replica := replicaOf(t, template, "db-2", primary, Replication{})
	if err := replica.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	replica.markLost("for a test", true)
	tempDir := replica.dir + ".new"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	prepared := make(chan error)
	go func() { prepared <- replica.Prepare(ctx) }()
	eventually(t, "the backup runs", func() bool {
		_, err := os.Stat(filepath.Join(tempDir, "base"))
		return err == nil
	})
	cancel()
	if err := <-prepared; err == nil {
		t.Fatal("Prepare() = nil after an interruption")
	}
	if m, found, err := readMarker(replica.dir); err != nil || !found || m.Lost != "for a test" {
		t.Errorf("marker %+v, %v, %v", m, found, err)
	}
	if left, _ := filepath.Glob(replica.dir + ".*"); len(left) > 0 {
		t.Errorf("an interrupted Prepare left %v", left)
	}
	eventually(t, "no backup is connected", func() bool {
		var n int
		query(t, primary, "SELECT count(*) FROM pg_stat_replication", nil, &n)
		return n == 0
	})
	watch(t, replica)
	if s := awaitReplica(t, replica, primary); s.Rebuilds != 1 {
		t.Errorf("%d rebuilds, want 1", s.Rebuilds)
	}
}

func testInvalid(t *testing.T, template string) {
	primary := primaryOf(t, template, Replication{})
	watch(t, primary)
	replica := replicaOf(t, template, "db-2", primary, Replication{})
	process := watch(t, replica)
	awaitReplica(t, replica, primary)
	if err := replica.ChangeRole(t.Context(), sut.Replication{}); err == nil || errors.Is(err, ErrConflict) {
		t.Errorf("a role without an epoch: %v", err)
	}
	process.stop(t, replica)

	cfg := replica.cfg
	cfg.Replication = &Replication{Node: "db-2", State: sut.Replication{Epoch: 2}}
	if err := New(cfg).Prepare(t.Context()); err == nil ||
		!strings.Contains(err.Error(), "never promoted\nstart it as a replica") {
		t.Errorf("the directory of a replica as that of a primary: %v", err)
	}
	cfg.Replication = &Replication{Node: "db-2", State: following(5, primary)}
	later := New(cfg)
	if err := later.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	cfg.Replication = &Replication{Node: "db-2", State: following(4, primary)}
	if err := New(cfg).Prepare(t.Context()); !errors.Is(err, ErrConflict) {
		t.Errorf("a lower epoch: %v, want a conflict", err)
	}
	// The directory of another database is kept and replaced by a copy.
	other := newServer(t, filepath.Join(t.TempDir(), "data"))
	start(t, other).stop(t, other)
	foreign := newCopy(t, other.dir, "db-3", Replication{State: following(1, primary)})
	watch(t, foreign)
	awaitReplica(t, foreign, primary)
	onlyCopy(t, foreign, 0)
	if _, err := newServer(t, other.dir).ReplicationStatus(t.Context()); err == nil {
		t.Error("ReplicationStatus() = nil error for a server without replication")
	}
}
