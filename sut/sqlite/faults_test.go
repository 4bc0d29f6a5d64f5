package sqlite_test

import (
	"context"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite"
)

// TestDiskFull fills a database up to a limit. Writers get an error, and acknowledged writes stay. With more space,
// writes succeed again. When the disk is full, SQLite rolls back the whole transaction, with all clients that share it.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	t.Run("alone", func(t *testing.T) { diskFull(t, nil) })
	t.Run("with a log", func(t *testing.T) {
		diskFull(t, &sqlite.Replication{Node: "db-1", State: sut.Replication{Epoch: 1}})
	})
}

func diskFull(t *testing.T, r *sqlite.Replication) {
	config := sqlite.Config{Dir: t.TempDir(), Replication: r, Statements: notes(), MaxBytes: 30 * 4096}
	s := serve(t, config)
	conn := connect(t, s)
	run(t, conn, create)

	text := strings.Repeat("x", 1000)
	var acknowledged [8]int
	var writers errgroup.Group
	for i := range acknowledged {
		c := connect(t, s)
		writers.Go(func() error {
			for n := 0; ; n++ {
				_, err := c.Exec(context.Background(), insert, 1000*i+n, 0, text)
				switch sqlState(err) {
				case "":
					acknowledged[i]++
				case "53100": // disk full
					return nil
				case "40001": // the shared commit was rolled back
				default:
					return err
				}
			}
		})
	}
	if err := writers.Wait(); err != nil {
		t.Fatal(err)
	}
	var want int64
	for _, n := range acknowledged {
		want += int64(n)
	}
	if n := countNotes(t, conn); n != want || n == 0 {
		t.Errorf("%d notes, but %d were acknowledged", n, want)
	}
	if err := s.Shutdown(cancelledContext()); err != nil {
		t.Fatal(err)
	}
	config.MaxBytes = 0
	conn = connect(t, serve(t, config))
	run(t, conn, insert, 1<<40, 0, text)
	if n := countNotes(t, conn); n != want+1 {
		t.Errorf("%d notes, want %d", n, want+1)
	}
}

// TestFullReplica: a database takes all changes of others, also above its limit. The limit holds for its own clients.
func TestFullReplica(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("x", 1000)
	small := func(cfg *sqlite.Config) { cfg.MaxBytes = 30 * 4096 }
	fill := func(c *testNode) {
		for i, conn := 0, connect(t, c.Server); i < 100; i++ {
			run(t, conn, insert, 1000+i, 0, text)
		}
	}
	refuses := func(c *testNode) {
		conn, err := connect(t, c.Server), error(nil)
		for i := 0; i < 200 && err == nil; i++ {
			_, err = conn.Exec(t.Context(), insert, 2000+i, 0, text)
		}
		if sqlState(err) != "53100" {
			t.Errorf("a write to the full database: %v", err)
		}
		for range 200 { // they need no space but in the log of the replication
			run(t, conn, grow, 1, 1000)
		}
	}
	t.Run("promoted", func(t *testing.T) {
		base := newTemplate(t)
		primary := startNode(t, base, "db-1", nil, nil)
		replica := startNode(t, base, "db-2", primary, small)
		fill(primary)
		awaitCaughtUp(t, primary, replica)
		wantEqual(t, primary, replica)
		primary.kill(t)
		if err := replica.ChangeRole(t.Context(), sut.Replication{Epoch: 2}); err != nil {
			t.Fatal(err)
		}
		refuses(replica)
	})
	t.Run("multi-primary", func(t *testing.T) {
		c := startPrimaries(t, topologies()["multi-primary"], func(cfg *sqlite.Config) {
			if cfg.Replication.Node == "db-1" {
				small(cfg)
			}
		})
		refuses(c.nodes[0])
		fill(c.nodes[1])
		c.awaitEqual(t)
	})
}
