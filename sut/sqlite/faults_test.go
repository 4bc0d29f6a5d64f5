package sqlite_test

import (
	"context"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite"
)

// TestDiskFull fills a database that may not grow: writers are told so, what
// was acknowledged stays, and with room again all is well. SQLite takes the
// whole transaction back when this happens, with those that share it.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	t.Run("alone", func(t *testing.T) { diskFull(t, nil) })
	t.Run("with a log", func(t *testing.T) {
		diskFull(t, &sqlite.Replication{Node: "db-1", State: sut.Replication{Epoch: 1}})
	})
}

func diskFull(t *testing.T, r *sqlite.Replication) {
	value := []sqlite.Column{{Name: "value", Type: sqlite.BigInt}}
	const little, plenty = "pragma max_page_count = 30", "pragma max_page_count = 100000"
	s := serve(t, sqlite.Config{Replication: r, Statements: append(notes(), sqlite.Statement{SQL: little, Columns: value}, sqlite.Statement{SQL: plenty, Columns: value})})
	conn := connect(t, s)
	must(t, conn, create)
	must(t, conn, little)

	text := strings.Repeat("x", 1000)
	var acknowledged [8]int
	var writers errgroup.Group
	for i := range acknowledged {
		c := connect(t, s)
		writers.Go(func() error {
			for n := 0; ; n++ {
				_, err := c.Exec(context.Background(), insert, 1000*i+n, 0, text)
				switch state(err) {
				case "":
					acknowledged[i]++
				case "53100": // disk full
					return nil
				case "40001": // a commit that it shared was rolled back
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
		t.Errorf("%d notes are there, %d were acknowledged", n, want)
	}
	must(t, conn, plenty)
	must(t, conn, insert, 1<<40, 0, text)
	if n := countNotes(t, conn); n != want+1 {
		t.Errorf("%d notes, want %d", n, want+1)
	}
}
