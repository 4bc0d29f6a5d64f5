package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite"
)

// patience is how long a test waits for an event before it fails.
const patience = 60 * time.Second

// testNode is a node in this process, with a copy of the database.
type testNode struct {
	*sqlite.Server     // nil = not running
	name, dir, address string
	cfg                sqlite.Config
	ended              <-chan error // the error of Serve
}

// cancelledContext returns a context that has ended.
func cancelledContext() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// newTemplate creates a database with the table of notes and ten notes, and returns its directory.
func newTemplate(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	s, err := sqlite.New(sqlite.Config{Listener: listen(t), Dir: dir, Statements: notes()}.Synchronous("normal"))
	if err != nil {
		t.Fatal(err)
	}
	ended := inBackground(func() error { return s.Serve(context.Background()) })
	conn, err := pgx.Connect(context.Background(), "postgres://u@"+s.Addr().String()+"/d?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	run(t, conn, create)
	for i := range 10 {
		run(t, conn, insert, i, 0, "seeded")
	}
	conn.Close(context.Background())
	if err := errors.Join(s.Shutdown(context.Background()), <-ended); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startNode starts a node on a copy of the template. primary is nil for the primary itself.
func startNode(t testing.TB, template, name string, primary *testNode, change func(*sqlite.Config)) *testNode {
	t.Helper()
	c := &testNode{name: name, dir: t.TempDir(), address: "127.0.0.1:0"}
	if template != "" {
		if err := os.CopyFS(c.dir, os.DirFS(template)); err != nil {
			t.Fatal(err)
		}
	}
	c.cfg = sqlite.Config{
		Dir: c.dir, Statements: notes(),
		Replication: &sqlite.Replication{Node: name, State: sut.Replication{Epoch: 1}},
	}.Synchronous("normal")
	if primary != nil {
		c.cfg.Replication.State.Primary = primary.peer()
	}
	if change != nil {
		change(&c.cfg)
	}
	c.start(t)
	t.Cleanup(func() { c.kill(t) })
	return c
}

func (c *testNode) peer() *sut.Peer { return &sut.Peer{Node: c.name, Address: c.address} }

func (c *testNode) start(t testing.TB) {
	t.Helper()
	// After a restart, an outgoing connection may use the port of the node for a moment.
	err := eventually(t, "the port of "+c.name+" is free", func() (err error) {
		if c.cfg.Listener, err = net.Listen("tcp", c.address); err == nil {
			c.Server, err = sqlite.New(c.cfg)
		}
		return err
	}, func(err error) bool { return !errors.Is(err, syscall.EADDRINUSE) })
	if err != nil {
		t.Fatal(err)
	}
	s := c.Server
	c.address = s.Addr().String()
	c.ended = inBackground(func() error { return s.Serve(context.Background()) })
}

// kill stops the node without waiting for clients and other nodes.
func (c *testNode) kill(t testing.TB) {
	t.Helper()
	if c.Server == nil {
		return
	}
	if err := c.Shutdown(cancelledContext()); err != nil {
		t.Error(err)
	}
	<-c.ended // the error is that of Shutdown, or it says that Serve was called too late
	c.Server = nil
}

// await waits until the status of the node fulfils a condition, and returns it.
func (c *testNode) await(t testing.TB, what string, done func(sut.ReplicationStatus) bool) sut.ReplicationStatus {
	t.Helper()
	return eventually(t, what, c.ReplicationStatus, done)
}

// eventually calls get at short intervals until done returns true for the result, and returns the result. The test
// fails if that takes longer than patience.
func eventually[T any](t testing.TB, what string, get func() T, done func(T) bool) T {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		got := get()
		if done(got) {
			return got
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited %v until %s: the last result is %+v", patience, what, got)
		}
	}
}

// awaitCaughtUp waits until replicas have everything that the primary has, and serve reads.
func awaitCaughtUp(t testing.TB, primary *testNode, replicas ...*testNode) {
	t.Helper()
	want := primary.ReplicationStatus().Position
	for _, c := range replicas {
		c.await(t, c.name+" catches up", func(s sut.ReplicationStatus) bool {
			return s.Position == want && s.Serves && s.Connected && s.Problem == ""
		})
	}
}

// dump returns all notes of a node, sorted.
func (c *testNode) dump(t testing.TB) []string {
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

func wantEqual(t testing.TB, primary *testNode, replicas ...*testNode) {
	t.Helper()
	want := primary.dump(t)
	for _, c := range replicas {
		if got := c.dump(t); !slices.Equal(got, want) {
			t.Errorf("the notes differ: %s has %d, %s has %d", c.name, len(got), primary.name, len(want))
		}
	}
}
