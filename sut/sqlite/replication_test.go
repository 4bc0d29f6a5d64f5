package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite"
)

// patience is how long a test waits for an event before it fails.
const patience = 60 * time.Second

// copyOf is a node with a copy of the database, in this process.
type copyOf struct {
	*sqlite.Server
	name, dir, address string
	cfg                sqlite.Config
	ended              chan error
}

// template makes a database with the notes' table and some notes, and returns
// its directory.
func template(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	s, err := sqlite.New(sqlite.Config{Dir: dir, Statements: notes()})
	if err != nil {
		t.Fatal(err)
	}
	ended := later(func() error { return s.Serve(context.Background()) })
	conn, err := pgx.Connect(context.Background(), "postgres://u@"+s.Addr().String()+"/d?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	must(t, conn, create)
	for i := range 10 {
		must(t, conn, insert, i, 0, "seeded")
	}
	conn.Close(context.Background())
	if err := errors.Join(s.Shutdown(context.Background()), <-ended); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startNode starts a node on a copy of the template; of is nil for the primary.
func startNode(t testing.TB, template, name string, of *copyOf, change func(*sqlite.Config)) *copyOf {
	t.Helper()
	c := &copyOf{name: name, dir: t.TempDir(), address: "127.0.0.1:0"}
	if template != "" {
		if err := os.CopyFS(c.dir, os.DirFS(template)); err != nil {
			t.Fatal(err)
		}
	}
	c.cfg = sqlite.Config{Dir: c.dir, Statements: notes(), Durability: sqlite.Normal, Replication: &sqlite.Replication{Node: name, State: sut.Replication{Epoch: 1}}}
	if of != nil {
		c.cfg.Replication.State.Primary = of.peer()
	}
	if change != nil {
		change(&c.cfg)
	}
	c.start(t)
	t.Cleanup(func() { c.kill(t) })
	return c
}

func (c *copyOf) peer() *sut.Peer { return &sut.Peer{Node: c.name, Address: c.address} }

func (c *copyOf) start(t testing.TB) {
	t.Helper()
	c.cfg.Address = c.address
	s, err := sqlite.New(c.cfg)
	// An outgoing connection may have the port of a dead node for a moment.
	for deadline := time.Now().Add(patience); errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(deadline); {
		<-time.After(5 * time.Millisecond)
		s, err = sqlite.New(c.cfg)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.Server, c.address = s, s.Addr().String()
	c.ended = make(chan error, 1)
	go func() { c.ended <- s.Serve(context.Background()) }()
}

// kill ends the node without a word to anybody.
func (c *copyOf) kill(t testing.TB) {
	t.Helper()
	if c.Server == nil {
		return
	}
	now, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Shutdown(now); err != nil {
		t.Error(err)
	}
	<-c.ended // with the same error, or that it came too late to serve
	c.Server = nil
}

// await waits until a node says that something is so.
func (c *copyOf) await(t testing.TB, what string, so func(sut.ReplicationStatus) bool) sut.ReplicationStatus {
	t.Helper()
	return awaitUntil(t, what, c.ReplicationStatus, so)
}

func awaitUntil[T any](t testing.TB, what string, ask func() T, so func(T) bool) T {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		now := ask()
		if so(now) {
			return now
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: not in time; at the end %+v", what, now)
		}
	}
}

// caughtUp waits until copies hold what the primary holds and may be read.
func caughtUp(t testing.TB, primary *copyOf, copies ...*copyOf) {
	t.Helper()
	want := primary.ReplicationStatus().Position
	for _, c := range copies {
		c.await(t, c.name+" catches up", func(s sut.ReplicationStatus) bool {
			return s.Position == want && s.Serves && s.Connected && s.Problem == ""
		})
	}
}

// dump is all notes of a node.
func (c *copyOf) dump(t testing.TB) []string {
	t.Helper()
	conn := connect(t, c.Server)
	rows, err := conn.Query(context.Background(), all)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
		values, err := row.Values()
		return fmt.Sprint(values...), err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

func wantEqual(t testing.TB, primary *copyOf, copies ...*copyOf) {
	t.Helper()
	want := primary.dump(t)
	for _, c := range copies {
		if got := c.dump(t); !slices.Equal(got, want) {
			t.Errorf("%s has %d notes, %s has %d, and they differ", c.name, len(got), primary.name, len(want))
		}
	}
}

func TestReplicaFollows(t *testing.T) {
	t.Parallel()
	base := template(t)
	primary := startNode(t, base, "db-1", nil, nil)
	replica := startNode(t, base, "db-2", primary, nil)
	conn := connect(t, primary.Server)
	for i := range 50 {
		must(t, conn, insert, 100+i, i, "note")
		must(t, conn, grow, 1, 100+i/2)
	}
	caughtUp(t, primary, replica)
	wantEqual(t, primary, replica)
	status := replica.ReplicationStatus()
	if status.Primary || status.Epoch != 1 || status.Position != 100 || status.Rebuilds != 0 || status.LagNS < 0 {
		t.Errorf("the replica says %+v", status)
	}
	primary.await(t, "the primary hears of it", func(s sut.ReplicationStatus) bool { return s.Primary && s.Followers["db-2"] == 100 })

	// What a client may do there.
	reader := connect(t, replica.Server)
	_, err := reader.Exec(context.Background(), insert, 1000, 0, "x")
	wantState(t, "a write on a replica", err, "25006")
	if !strings.Contains(err.Error(), primary.address) {
		t.Errorf("the refusal does not name the primary: %v", err)
	}
	must(t, reader, "begin")
	if n := countNotes(t, reader); n != 60 {
		t.Errorf("%d notes inside of BEGIN, want 60", n)
	}
	_, err = reader.Exec(context.Background(), grow, 1, 1)
	wantState(t, "a write in a transaction on a replica", err, "25006")
	must(t, reader, "rollback")
	if err := primary.Become(t.Context(), sut.Replication{Epoch: 9}); !errors.Is(err, sqlite.ErrRefused) {
		t.Errorf("a primary took a new role: %v", err)
	}
	if err := replica.Become(t.Context(), sut.Replication{Epoch: 1}); !errors.Is(err, sqlite.ErrRefused) {
		t.Errorf("promotion without a higher epoch: %v", err)
	}
}

func TestReplicaRestarts(t *testing.T) {
	t.Parallel()
	base := template(t)
	primary := startNode(t, base, "db-1", nil, nil)
	replica := startNode(t, base, "db-2", primary, nil)
	conn := connect(t, primary.Server)
	must(t, conn, insert, 100, 0, "before")
	caughtUp(t, primary, replica)
	replica.kill(t)
	for i := range 1000 {
		must(t, conn, insert, 200+i, 0, "meanwhile")
	}
	replica.start(t)
	caughtUp(t, primary, replica)
	// The other one restarts, too, and nothing is fetched anew.
	primary.kill(t)
	replica.await(t, "the loss of the primary is seen", func(s sut.ReplicationStatus) bool { return !s.Connected && s.Problem != "" && s.Serves })
	primary.start(t)
	conn = connect(t, primary.Server)
	must(t, conn, insert, 5000, 0, "after")
	caughtUp(t, primary, replica)
	wantEqual(t, primary, replica)
	if s := replica.ReplicationStatus(); s.Rebuilds != 0 {
		t.Errorf("the copy was fetched anew %d times", s.Rebuilds)
	}
}

func TestSnapshotWhenTooFarBehind(t *testing.T) {
	t.Parallel()
	base := template(t)
	few := func(cfg *sqlite.Config) { cfg.Replication.KeepEntries = 16 }
	primary := startNode(t, base, "db-1", nil, few)
	replica := startNode(t, base, "db-2", primary, few)
	conn := connect(t, primary.Server)
	must(t, conn, insert, 100, 0, "before")
	caughtUp(t, primary, replica)
	replica.kill(t)
	for i := range 500 {
		must(t, conn, insert, 200+i, 0, strings.Repeat("meanwhile", 100))
	}
	replica.start(t)
	caughtUp(t, primary, replica)
	must(t, conn, insert, 5000, 0, "after")
	// A new one without any database gets it in the same way.
	empty := startNode(t, "", "db-3", primary, few)
	caughtUp(t, primary, replica, empty)
	wantEqual(t, primary, replica, empty)
	for _, c := range []*copyOf{replica, empty} {
		if s := c.ReplicationStatus(); s.Rebuilds != 1 {
			t.Errorf("the copy of %s was fetched anew %d times", c.name, s.Rebuilds)
		}
		if left, _ := filepath.Glob(c.dir + "/*.epoch-*"); len(left) != 0 {
			t.Errorf("a copy that was only behind is kept: %v", left)
		}
	}
	if left, _ := filepath.Glob(primary.dir + "/snapshot-*"); len(left) != 0 {
		t.Errorf("snapshots are left: %v", left)
	}
}

func TestSchemaMismatchIsRefused(t *testing.T) {
	t.Parallel()
	base := template(t)
	const more = "create table others (id integer primary key)"
	ddl := func(cfg *sqlite.Config) { cfg.Statements = append(notes(), sqlite.Statement{SQL: more}) }
	primary := startNode(t, base, "db-1", nil, ddl)
	replica := startNode(t, base, "db-2", primary, nil)
	conn := connect(t, primary.Server)
	must(t, conn, insert, 100, 0, "fits")
	caughtUp(t, primary, replica)
	must(t, conn, more)
	must(t, conn, insert, 101, 0, "does not")
	status := replica.await(t, "the replica stops", func(s sut.ReplicationStatus) bool { return !s.Connected })
	if status.Position != 1 || !strings.Contains(status.Problem, "schema") {
		t.Errorf("the replica says %+v", status)
	}
	another := startNode(t, base, "db-3", primary, nil)
	another.await(t, "a new one is refused", func(s sut.ReplicationStatus) bool {
		return !s.Serves && strings.Contains(s.Problem, "schema differs")
	})
}

func TestLargeEntries(t *testing.T) {
	t.Parallel()
	base := template(t)
	primary := startNode(t, base, "db-1", nil, func(cfg *sqlite.Config) { cfg.Replication.KeepBytes = 4 << 20 })
	replica := startNode(t, base, "db-2", primary, nil)
	conn := connect(t, primary.Server)
	for round := range 3 {
		must(t, conn, "begin")
		for i := range 1500 {
			must(t, conn, insert, 100+10_000*round+i, 0, strings.Repeat("x", 700))
		}
		must(t, conn, "commit")
	}
	caughtUp(t, primary, replica)
	if s := replica.ReplicationStatus(); s.Position != 3 || s.Rebuilds != 0 {
		t.Errorf("the replica says %+v", s)
	}
	wantEqual(t, primary, replica)
}

func TestSync(t *testing.T) {
	t.Parallel()
	base := template(t)
	primary := startNode(t, base, "db-1", nil, func(cfg *sqlite.Config) {
		cfg.Replication.SyncCopies, cfg.Replication.SyncTimeout = 1, patience
	})
	replica := startNode(t, base, "db-2", primary, nil)
	conn := connect(t, primary.Server)
	for i := range 20 {
		must(t, conn, insert, 100+i, 0, "both")
		if s := replica.ReplicationStatus(); s.Position != int64(i+1) {
			t.Fatalf("write %d is acknowledged, and the replica is at %d", i+1, s.Position)
		}
	}
	must(t, conn, grow, 1, 1<<40) // changes nothing: nobody is waited for
	replica.kill(t)
	// Nobody has it; a second client is not kept from the line, and a fence
	// ends both waits.
	waiting := later(func() error { _, err := conn.Exec(context.Background(), insert, 200, 0, "alone"); return err })
	primary.await(t, "the write is committed", func(s sut.ReplicationStatus) bool { return s.Position == 21 })
	other := connect(t, primary.Server)
	too := later(func() error { _, err := other.Exec(context.Background(), insert, 201, 0, "alone"); return err })
	primary.await(t, "the other one, too", func(s sut.ReplicationStatus) bool { return s.Position == 22 })
	startNode(t, base, "db-3", primary, func(cfg *sqlite.Config) { cfg.Replication.State.Epoch = 2 })
	wantState(t, "a write that waits for a replica", <-waiting, "57014")
	wantState(t, "another one", <-too, "57014")
}

func TestSyncTimeout(t *testing.T) {
	t.Parallel()
	primary := startNode(t, template(t), "db-1", nil, func(cfg *sqlite.Config) {
		cfg.Replication.SyncCopies, cfg.Replication.SyncTimeout = 2, 20*time.Millisecond
	})
	conn := connect(t, primary.Server)
	_, err := conn.Exec(context.Background(), insert, 100, 0, "alone")
	wantState(t, "a write without replicas", err, "57014")
	if n := countNotes(t, conn); n != 11 {
		t.Errorf("%d notes, want 11", n)
	}
}

func TestLagIsExact(t *testing.T) {
	t.Parallel()
	const lag = 300 * time.Millisecond
	base := template(t)
	primary := startNode(t, base, "db-1", nil, nil)
	replica := startNode(t, base, "db-2", primary, func(cfg *sqlite.Config) { cfg.Replication.Lag = lag })
	replica.await(t, "heartbeats pass", func(s sut.ReplicationStatus) bool { return s.LagNS >= 0 })
	conn := connect(t, primary.Server)
	for i := range 20 {
		sent := time.Now()
		must(t, conn, insert, 100+i, 0, "late")
		if i%5 > 0 {
			continue
		}
		want := int64(i + 1)
		status := replica.await(t, "it comes", func(s sut.ReplicationStatus) bool { return s.Position >= want })
		if passed := time.Since(sent); passed < lag || status.LagNS < int64(lag) {
			t.Errorf("entry %d was there after %v, the lag is said to be %v", want, passed, time.Duration(status.LagNS))
		}
	}
	// A promotion waits for no lag, and loses nothing that was received.
	primary.await(t, "all is sent", func(s sut.ReplicationStatus) bool { return s.Position == 20 })
	replica.await(t, "all is there", func(s sut.ReplicationStatus) bool { return s.Position == 20 })
}

// TestDivergedCopyIsReplaced: changes that do not fit end in a snapshot, and
// the wrong copy is kept.
func TestDivergedCopyIsReplaced(t *testing.T) {
	t.Parallel()
	base := template(t)
	primary := startNode(t, base, "db-1", nil, nil)
	wrong := template(t)
	alone := serve(t, sqlite.Config{Dir: wrong, Statements: notes()})
	must(t, connect(t, alone), insert, 100, 0, "of its own")
	if err := alone.Shutdown(ended(t)); err != nil {
		t.Fatal(err)
	}
	replica := startNode(t, wrong, "db-2", primary, nil)
	replica.await(t, "it looks like a copy", func(s sut.ReplicationStatus) bool { return s.Serves })
	held := connect(t, replica.Server) // keeps a reader busy, which must not last
	must(t, held, "begin read only")
	countNotes(t, held)
	conn := connect(t, primary.Server)
	must(t, conn, insert, 100, 0, "of the primary")
	caughtUp(t, primary, replica)
	wantEqual(t, primary, replica)
	if s := replica.ReplicationStatus(); s.Rebuilds != 1 {
		t.Errorf("the replica says %+v", s)
	}
	if _, err := os.Stat(filepath.Join(replica.dir, "stagebench.db.epoch-0")); err != nil {
		t.Error(err)
	}
}

func ended(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// TestRandomTransactions runs 2,000 transactions from several connections,
// some rolled back, some failing, many of them in groups, while replicas are
// killed and come back, with entries or, the log being short, with a snapshot:
// all copies are the same at the end.
func TestRandomTransactions(t *testing.T) {
	t.Parallel()
	const clients, transactions = 8, 250
	base := template(t)
	primary := startNode(t, base, "db-1", nil, func(cfg *sqlite.Config) { cfg.Replication.KeepEntries = 16 })
	second := startNode(t, base, "db-2", primary, nil)
	third := startNode(t, base, "db-3", primary, func(cfg *sqlite.Config) { cfg.Replication.Lag = 20 * time.Millisecond })
	var writers errgroup.Group
	for i := range clients {
		conn := connect(t, primary.Server)
		writers.Go(func() error {
			random := rand.New(rand.NewPCG(7, uint64(i)))
			for range transactions {
				if err := randomTransaction(conn, random); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for _, at := range []int64{40, 100, 180} {
		primary.await(t, "writes go on", func(s sut.ReplicationStatus) bool { return s.Position >= at })
		third.kill(t)
		third.start(t)
	}
	fourth := startNode(t, "", "db-4", primary, nil)
	if err := writers.Wait(); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, primary, second, third, fourth)
	wantEqual(t, primary, second, third, fourth)
	stats := primary.Stats()
	t.Logf("%d transactions, %d commits, %d entries", stats.Transactions, stats.Commits, primary.ReplicationStatus().Position)
}

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
		batch.Queue(insert, 1, 0, "is there already")
	}
	err := conn.SendBatch(ctx, batch).Close()
	if s := state(err); s != "" && s != "23505" {
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
