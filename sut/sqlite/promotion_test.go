package sqlite_test

import (
	"context"
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// TestPromotion: the primary dies with changes that no replica has. One of two replicas is promoted, the other one
// follows it. The old primary returns as a replica, and its lost changes are known.
func TestPromotion(t *testing.T) {
	t.Parallel()
	base := newTemplate(t)
	first := startNode(t, base, "db-1", nil, nil)
	second := startNode(t, base, "db-2", first, nil)
	third := startNode(t, base, "db-3", first, nil)
	conn := connect(t, first.Server)
	run(t, conn, insert, 100, 0, "everywhere")
	awaitCaughtUp(t, first, second, third)

	// The replicas disconnect, so they do not get the next changes of the primary.
	nowhere := sut.Replication{Epoch: 1, Primary: &sut.Peer{Node: "db-1", Address: unreachable}}
	for _, c := range []*testNode{second, third} {
		if err := c.ChangeRole(t.Context(), nowhere); err != nil {
			t.Fatal(err)
		}
	}
	run(t, conn, insert, 101, 7, "lost")
	run(t, conn, grow, 1, 100)
	first.kill(t)

	if err := second.ChangeRole(t.Context(), sut.Replication{Epoch: 2}); err != nil {
		t.Fatal(err)
	}
	if s := second.ReplicationStatus(); !s.Primary || !s.Serves || s.Epoch != 2 || s.Position != 1 {
		t.Errorf("the promoted node reports %+v", s)
	}
	if err := third.ChangeRole(t.Context(), sut.Replication{Epoch: 2, Primary: second.peer()}); err != nil {
		t.Fatal(err)
	}
	old := sut.Replication{Epoch: 1, Primary: first.peer()}
	if err := third.ChangeRole(t.Context(), old); !errors.Is(err, sqlite.ErrRefused) {
		t.Errorf("an older epoch was accepted: %v", err)
	}
	conn = connect(t, second.Server)
	for i := range 5 {
		run(t, conn, insert, 200+i, 0, "of the new primary")
	}
	awaitCaughtUp(t, second, third)
	if s := third.ReplicationStatus(); s.Rebuilds != 0 || s.Epoch != 2 {
		t.Errorf("the second replica reports %+v", s)
	}

	first.cfg.Replication.State = sut.Replication{Epoch: 2, Primary: second.peer()}
	first.start(t)
	awaitCaughtUp(t, second, first)
	wantEqual(t, second, first, third)
	if s := first.ReplicationStatus(); s.Rebuilds != 1 {
		t.Errorf("the old primary reports %+v", s)
	}
	kept, err := filepath.Glob(filepath.Join(first.dir, "stagebench.db.epoch-1-*"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept are %v, %v, want one file", kept, err)
	}
	wantLost(t, kept[0])

	// The node must not restart as the primary of its old epoch.
	first.kill(t)
	cfg := first.cfg
	cfg.Replication = &sqlite.Replication{Node: "db-1", State: sut.Replication{Epoch: 1}}
	if _, err := sqlite.New(cfg); !errors.Is(err, sqlite.ErrRefused) {
		t.Errorf("an old primary of an older epoch: %v", err)
	}
}

// wantLost checks the lost changes of TestPromotion in the file of the old primary.
func wantLost(t *testing.T, path string) {
	t.Helper()
	commits, lost, err := replog.LostChanges(t.Context(), path, 1)
	if err != nil {
		t.Fatal(err)
	}
	if commits != 2 || len(lost) != 2 || lost[0].AtUS == 0 || lost[1].AtUS < lost[0].AtUS {
		t.Fatalf("lost are %d commits with %+v", commits, lost)
	}
	inserted := sut.LostChange{
		Commit: "1/2", Table: "notes", Key: "101", Op: sut.Inserted, AtUS: lost[0].AtUS,
		New: map[string]any{"id": int64(101), "size": int64(7), "text": "lost"},
	}
	updated := sut.LostChange{
		Commit: "1/3", Table: "notes", Key: "100", Op: sut.Updated, AtUS: lost[1].AtUS,
		Old: map[string]any{"size": int64(0)}, New: map[string]any{"size": int64(1)},
	}
	if want := []sut.LostChange{inserted, updated}; !reflect.DeepEqual(lost, want) {
		t.Errorf("lost are %+v, want %+v", lost, want)
	}
}

// unreachable is an address on which no server listens.
const unreachable = "127.0.0.1:1"

// TestFencing: a primary to which a replica of a higher epoch connects takes no more writes. Open transactions cannot
// commit either.
func TestFencing(t *testing.T) {
	t.Parallel()
	base := newTemplate(t)
	primary := startNode(t, base, "db-1", nil, nil)
	open, other := connect(t, primary.Server), connect(t, primary.Server)
	run(t, open, "begin")
	run(t, open, insert, 100, 0, "in an open transaction")
	replica := startNode(t, base, "db-2", primary, func(cfg *sqlite.Config) { cfg.Replication.State.Epoch = 2 })
	status := primary.await(t, "the primary is fenced", func(s sut.ReplicationStatus) bool { return !s.Primary })
	if !strings.Contains(status.Problem, "db-2") {
		t.Errorf("the primary reports %+v", status)
	}
	_, err := open.Exec(context.Background(), "commit")
	wantSQLState(t, "the commit", err, "25006")
	_, err = other.Exec(context.Background(), insert, 101, 0, "too late")
	wantSQLState(t, "a later write", err, "25006")
	if n := countNotes(t, other); n != 10 {
		t.Errorf("%d notes, want 10", n)
	}
	primary.await(t, "the primary stores the epoch", func(s sut.ReplicationStatus) bool { return s.Epoch == 2 })
	replica.await(t, "the replica does not follow", func(s sut.ReplicationStatus) bool {
		return !s.Connected && !s.Serves && strings.Contains(s.Problem, "fenced")
	})
	_, err = connect(t, replica.Server).Exec(context.Background(), countAll)
	wantSQLState(t, "a read on the replica", err, "57P03")
}

// TestPromotionAppliesReceivedEntries promotes a replica whose artificial lag is longer than the test.
func TestPromotionAppliesReceivedEntries(t *testing.T) {
	t.Parallel()
	base := newTemplate(t)
	primary := startNode(t, base, "db-1", nil, nil)
	replica := startNode(t, base, "db-2", primary, func(cfg *sqlite.Config) { cfg.Replication.Lag = time.Hour })
	witness := startNode(t, base, "db-3", primary, nil)
	conn := connect(t, primary.Server)
	for i := range 100 {
		run(t, conn, insert, 100+i, 0, "received")
	}
	awaitCaughtUp(t, primary, witness)
	replica.await(t, "connected", func(s sut.ReplicationStatus) bool { return s.Connected })
	// Before a graceful shutdown the primary sends all entries.
	if err := errors.Join(conn.Close(context.Background()), primary.Shutdown(t.Context()), <-primary.ended); err != nil {
		t.Fatal(err)
	}
	primary.Server = nil
	if s := replica.ReplicationStatus(); s.Position != 0 {
		t.Errorf("before the end of its lag the replica reports %+v", s)
	}
	if err := replica.ChangeRole(t.Context(), sut.Replication{Epoch: 2}); err != nil {
		t.Fatal(err)
	}
	if s := replica.ReplicationStatus(); s.Position != 100 || !s.Primary || !s.Serves {
		t.Errorf("the promoted node reports %+v", s)
	}
	run(t, connect(t, replica.Server), insert, 1000, 0, "by the new primary")
	if err := witness.ChangeRole(t.Context(), sut.Replication{Epoch: 2, Primary: replica.peer()}); err != nil {
		t.Fatal(err)
	}
	awaitCaughtUp(t, replica, witness)
	wantEqual(t, replica, witness)
}
