package failover_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/targets/failover"
)

// While the supervision is suspended, all nodes may hang. Nothing happens to them, also not
// afterwards. A database that does not answer cannot be suspended.
func TestSuspend(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		all := func(hung bool) {
			for name := range c.nodes {
				c.set(name, func(n *database) { n.hung = hung })
			}
		}
		resume, err := s.Suspend(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all(true)
		advance(time.Minute)
		all(false)
		resume()
		resume()
		advance(5 * time.Second)
		if len(c.roles) > 0 || len(c.log) > 0 || len(s.Failovers()) > 0 {
			t.Errorf("after a minute of silence: published %v, calls %v", c.roles, c.log)
		}
		c.set("db-3", func(n *database) { n.dead = true })
		advance(time.Second)
		if _, err := s.Suspend(t.Context()); err == nil || !strings.Contains(err.Error(), "db-3 does not answer") {
			t.Errorf("with a dead node: %v", err)
		}
		c.set("db-1", func(n *database) { n.hung = true })
		advance(5 * time.Second)
		if len(s.Failovers()) != 1 {
			t.Error("the supervision does not go on after a refused suspension")
		}
	})
}
