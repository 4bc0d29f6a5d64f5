package sqlite_test

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// TestPromotion lets the primary die with changes that no replica has: one of
// two replicas is promoted, the other follows it, and the old primary comes
// back as a replica.
func TestPromotion(t *testing.T) {
	t.Parallel()
	base := template(t)
	first := startNode(t, base, "db-1", nil, nil)
	second := startNode(t, base, "db-2", first, nil)
	third := startNode(t, base, "db-3", first, nil)
	conn := connect(t, first.Server)
	must(t, conn, insert, 100, 0, "everywhere")
	caughtUp(t, first, second, third)

	// Without connections from the replicas the primary goes on alone.
	gone := sut.Replication{Epoch: 1, Primary: &sut.Peer{Node: "db-1", Address: deaf}}
	for _, c := range []*copyOf{second, third} {
		if err := c.Become(t.Context(), gone); err != nil {
			t.Fatal(err)
		}
	}
	must(t, conn, insert, 101, 7, "lost")
	must(t, conn, grow, 1, 100)
	first.kill(t)

	if err := second.Become(t.Context(), sut.Replication{Epoch: 2}); err != nil {
		t.Fatal(err)
	}
	if s := second.ReplicationStatus(); !s.Primary || !s.Serves || s.Epoch != 2 || s.Position != 1 {
		t.Errorf("the promoted one says %+v", s)
	}
	if err := third.Become(t.Context(), sut.Replication{Epoch: 2, Primary: second.peer()}); err != nil {
		t.Fatal(err)
	}
	if err := third.Become(t.Context(), sut.Replication{Epoch: 1, Primary: first.peer()}); !errors.Is(err, sqlite.ErrRefused) {
		t.Errorf("an older epoch was accepted: %v", err)
	}
	conn = connect(t, second.Server)
	for i := range 5 {
		must(t, conn, insert, 200+i, 0, "of the new primary")
	}
	caughtUp(t, second, third)
	if s := third.ReplicationStatus(); s.Rebuilds != 0 || s.Epoch != 2 {
		t.Errorf("the second replica says %+v", s)
	}

	first.cfg.Replication.State = sut.Replication{Epoch: 2, Primary: second.peer()}
	first.start(t)
	caughtUp(t, second, first)
	wantEqual(t, second, first, third)
	if s := first.ReplicationStatus(); s.Rebuilds != 1 {
		t.Errorf("the old primary says %+v", s)
	}
	commits, lost, err := replog.LostChanges(t.Context(), filepath.Join(first.dir, "stagebench.db.epoch-1"), 1)
	if err != nil {
		t.Fatal(err)
	}
	if commits != 2 || len(lost) != 2 || lost[0].AtUS == 0 || lost[1].AtUS < lost[0].AtUS {
		t.Fatalf("the surplus is %d commits, %+v", commits, lost)
	}
	if c := lost[0]; c.Table != "notes" || c.Op != sut.Inserted || c.Key != "101" || !maps.Equal(c.New, map[string]any{"id": int64(101), "size": int64(7), "text": "lost"}) || c.Old != nil {
		t.Errorf("the lost insert is %+v", c)
	}
	if c := lost[1]; c.Op != sut.Updated || c.Key != "100" || !maps.Equal(c.Old, map[string]any{"size": int64(0)}) || !maps.Equal(c.New, map[string]any{"size": int64(1)}) {
		t.Errorf("the lost update is %+v", c)
	}

	// As the primary of its old epoch it is not let in again.
	first.kill(t)
	old := first.cfg
	old.Replication = &sqlite.Replication{Node: "db-1", State: sut.Replication{Epoch: 1}}
	if _, err := sqlite.New(old); !errors.Is(err, sqlite.ErrRefused) {
		t.Errorf("an old primary of an older epoch: %v", err)
	}
}

// deaf is an address where nobody listens.
const deaf = "127.0.0.1:1"

// TestFencing: a primary that meets a replica of a higher epoch takes no more
// writes, not even those that are under way.
func TestFencing(t *testing.T) {
	t.Parallel()
	base := template(t)
	primary := startNode(t, base, "db-1", nil, nil)
	open, other := connect(t, primary.Server), connect(t, primary.Server)
	must(t, open, "begin")
	must(t, open, insert, 100, 0, "under way")
	replica := startNode(t, base, "db-2", primary, func(cfg *sqlite.Config) { cfg.Replication.State.Epoch = 2 })
	status := primary.await(t, "the primary is fenced", func(s sut.ReplicationStatus) bool { return !s.Primary })
	if !strings.Contains(status.Problem, "db-2") {
		t.Errorf("the primary says %+v", status)
	}
	_, err := open.Exec(context.Background(), "commit")
	wantState(t, "the commit", err, "25006")
	_, err = other.Exec(context.Background(), insert, 101, 0, "too late")
	wantState(t, "a later write", err, "25006")
	if n := countNotes(t, other); n != 10 {
		t.Errorf("%d notes, want 10", n)
	}
	primary.await(t, "the epoch is kept", func(s sut.ReplicationStatus) bool { return s.Epoch == 2 })
	replica.await(t, "the replica does not follow", func(s sut.ReplicationStatus) bool {
		return !s.Connected && !s.Serves && strings.Contains(s.Problem, "fenced")
	})
	_, err = connect(t, replica.Server).Exec(context.Background(), howMany)
	wantState(t, "a read there", err, "57P03")
}

// TestPromotionAppliesWhatWasReceived promotes a replica whose lag is longer
// than the test.
func TestPromotionAppliesWhatWasReceived(t *testing.T) {
	t.Parallel()
	base := template(t)
	primary := startNode(t, base, "db-1", nil, nil)
	replica := startNode(t, base, "db-2", primary, func(cfg *sqlite.Config) { cfg.Replication.Lag = time.Hour })
	witness := startNode(t, base, "db-3", primary, nil)
	conn := connect(t, primary.Server)
	for i := range 100 {
		must(t, conn, insert, 100+i, 0, "received")
	}
	caughtUp(t, primary, witness)
	replica.await(t, "connected", func(s sut.ReplicationStatus) bool { return s.Connected })
	// A graceful end of the primary sends all that it has.
	if err := errors.Join(connClose(conn), primary.Shutdown(t.Context()), <-primary.ended); err != nil {
		t.Fatal(err)
	}
	primary.Server = nil
	if s := replica.ReplicationStatus(); s.Position != 0 {
		t.Errorf("before its time the replica says %+v", s)
	}
	if err := replica.Become(t.Context(), sut.Replication{Epoch: 2}); err != nil {
		t.Fatal(err)
	}
	if s := replica.ReplicationStatus(); s.Position != 100 || !s.Primary || !s.Serves {
		t.Errorf("the promoted one says %+v", s)
	}
	must(t, connect(t, replica.Server), insert, 1000, 0, "by the new primary")
	if err := witness.Become(t.Context(), sut.Replication{Epoch: 2, Primary: replica.peer()}); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, replica, witness)
	wantEqual(t, replica, witness)
}

func connClose(conn *pgx.Conn) error { return conn.Close(context.Background()) }
