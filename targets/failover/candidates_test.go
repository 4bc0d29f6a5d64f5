package failover_test

import (
	"testing"
	"time"

	"github.com/stagebench/stagebench/targets/failover"
)

// With sync, a write counts as soon as any replica holds it, also one that has not caught up when its primary dies.
func TestReplicaThatCatchesUp(t *testing.T) {
	for name, test := range map[string]struct {
		db2, db3 func(*database)
		want     string // the new primary, "" = none
	}{
		"holds more":      {db3: func(n *database) { n.Position, n.Serves, n.CatchingUp = 105, false, true }, want: "db-3"},
		"holds less":      {db3: func(n *database) { n.Position, n.Serves, n.CatchingUp = 95, false, true }, want: "db-2"},
		"must be rebuilt": {db3: func(n *database) { n.Position, n.Serves = 105, false }, want: "db-2"},
		"is alone": {
			db2: func(n *database) { n.dead = true },
			db3: func(n *database) { n.Position, n.Serves, n.CatchingUp = 105, false, true },
		},
	} {
		t.Run(name, func(t *testing.T) {
			supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
				if test.db2 != nil {
					c.set("db-2", test.db2)
				}
				c.set("db-3", test.db3)
				advance(time.Second)
				c.set("db-1", func(n *database) { n.dead = true })
				advance(5 * time.Second)
				got := ""
				for _, f := range s.Failovers() {
					got += f.To
				}
				if got != test.want {
					t.Errorf("the new primary is %q, want %q", got, test.want)
				}
			})
		})
	}
}
