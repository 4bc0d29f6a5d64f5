package failover_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
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

// Two primaries die one after the other. With sync, the replica that has not received yet what the second one inherited
// is not promoted: the second one is the last that has it. Without sync the service goes on.
func TestLastCopyOfAcknowledgedWrites(t *testing.T) {
	for name, test := range map[string]struct {
		sync     bool
		position int64  // of the last replica
		epoch    int64  // of what it holds
		want     string // the primary
	}{
		"sync, it lacks something":          {true, 100, 1, "db-2"},
		"sync, it has what was inherited":   {true, 105, 1, "db-3"},
		"sync, it has changes of the epoch": {true, 106, 2, "db-3"},
		"async, it lacks something":         {false, 100, 1, "db-3"},
	} {
		t.Run(name, func(t *testing.T) {
			superviseWith(t, test.sync, func(t *testing.T, c *databases, s *failover.Supervisor) {
				c.set("db-2", func(n *database) { n.HeldEpoch, n.Position = 1, 105 })
				c.set("db-3", func(n *database) { n.HeldEpoch, n.Position = 1, 100 })
				c.set("db-1", func(n *database) { n.dead = true })
				advance(5 * time.Second)
				if all := s.Failovers(); len(all) != 1 || all[0].To != "db-2" {
					t.Fatalf("failovers %+v", all)
				}
				c.set("db-3", func(n *database) { n.HeldEpoch, n.Position = test.epoch, test.position })
				c.set("db-2", func(n *database) { n.dead = true })
				advance(5 * time.Second)
				if got := c.lastRoles().Primary; got != test.want {
					t.Errorf("the primary is %s, want %s", got, test.want)
				}
			})
		})
	}
}

// An old primary comes back at any moment of the next failover, even between the last probe of the next primary and the
// publication of the roles. It counts as replaced.
func TestOldPrimaryComesBackDuringAFailover(t *testing.T) {
	for after := time.Duration(0); after < time.Second; after += 50 * time.Millisecond {
		t.Run(after.String(), func(t *testing.T) {
			supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
				c.set("db-1", func(n *database) { n.dead = true })
				advance(3 * time.Second)
				c.set("db-2", func(n *database) { n.dead = true })
				advance(after)
				c.set("db-1", func(n *database) {
					*n = database{ReplicationStatus: sut.ReplicationStatus{
						Node: "db-1", Epoch: 2, Position: 90, Serves: true, Following: "db-2",
					}}
				})
				advance(5 * time.Second)
				all := s.Failovers()
				if len(all) != 2 || all[0].From != "db-1" || all[1].From != "db-2" {
					t.Fatalf("failovers %+v", all)
				}
				if got := c.lastRoles(); !slices.Equal(got.Replicas, []string{"db-1"}) {
					t.Errorf("roles %+v", got)
				}
				if all[0].ReplaceNS == 0 || all[1].ReplaceNS != 0 {
					t.Errorf("db-1 is back and db-2 is not, but the failovers are %+v", all)
				}
			})
		})
	}
}
