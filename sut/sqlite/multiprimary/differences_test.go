package multiprimary

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// TestDifferences: three databases add to counters of the same rows, in transactions of one or more additions. In any
// order of arrival, each counts exactly what is missing in its counters.
func TestDifferences(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		random := rand.New(rand.NewPCG(seed, 1))
		at := int64(0)
		wall := func() time.Time { at++; return time.UnixMicro(at) }
		var dbs []*testDB
		for i := range 3 {
			dbs = append(dbs, open(t, fmt.Sprint("db-", i), wall, unlimited()))
			dbs[i].exec("create table counters (id integer primary key, likes integer, name text)")
			dbs[i].exec("insert into counters values (1, 10, 'x'), (2, 20, 'x')")
		}
		added := int64(0)
		for range 200 {
			db, from := dbs[random.IntN(3)], dbs[random.IntN(3)]
			switch {
			case from != db:
				db.receive(from, random.IntN(4))
			case random.IntN(4) == 0: // a rename can win over an addition
				db.transact(retainAll(), true, fmt.Sprintf("update counters set name = 'y%d' where id = 1", at))
			default:
				by := int64(1 + random.IntN(3))
				const add = "update counters set likes = likes + %d where id = %d"
				db.transact(retainAll(), true, fmt.Sprintf(add, by, 1+random.IntN(2)))
				added += by
			}
		}
		for _, db := range dbs {
			for _, from := range dbs {
				if from != db {
					db.receive(from, math.MaxInt)
				}
			}
			db.reopen(nodeOf(db.ledger.self))
			total, err := replog.Number(db.conn, "select sum(likes) from counters")
			if err != nil {
				t.Fatal(err)
			}
			missing := 30 + added - total
			if got := db.ledger.now.differences["counters.likes"]; got != missing || missing == 0 {
				t.Errorf("seed %d: %s misses %d of %d likes and reports %d", seed, db.ledger.self, missing, added, got)
			}
		}
	}
}
