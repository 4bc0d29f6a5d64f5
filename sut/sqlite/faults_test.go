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
	value := []sqlite.Column{{Name: "value", Type: sqlite.BigInt}}
	const small, large = "pragma max_page_count = 30", "pragma max_page_count = 100000"
	limits := []sqlite.Statement{{SQL: small, Columns: value}, {SQL: large, Columns: value}}
	s := serve(t, sqlite.Config{Replication: r, Statements: append(notes(), limits...)})
	conn := connect(t, s)
	run(t, conn, create)
	run(t, conn, small)

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
	run(t, conn, large)
	run(t, conn, insert, 1<<40, 0, text)
	if n := countNotes(t, conn); n != want+1 {
		t.Errorf("%d notes, want %d", n, want+1)
	}
}
