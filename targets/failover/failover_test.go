package failover_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets/failover"
)

var errRefused = errors.New("connection refused")

// databases is a database of three nodes in memory.
type databases struct {
	t *testing.T

	mu       sync.Mutex
	nodes    map[string]*database
	roles    []failover.Roles // one element per call of Use
	useFails int              // how many calls of Use return an error
	log      []string         // calls of Assign and Fence
}

// database is one node.
type database struct {
	sut.ReplicationStatus
	dead, hung, fenced bool
	slow               bool // executes Assign, but its answer comes too late
}

func newDatabases(t *testing.T) *databases {
	c := &databases{t: t, nodes: map[string]*database{}}
	for _, name := range []string{"db-1", "db-2", "db-3"} {
		c.nodes[name] = &database{ReplicationStatus: sut.ReplicationStatus{
			Node: name, Epoch: 1, Position: 100, Serves: true, Following: "db-1",
		}}
	}
	c.nodes["db-1"].Primary, c.nodes["db-1"].Following = true, ""
	return c
}

func (c *databases) Probe(ctx context.Context, name string) (sut.ReplicationStatus, error) {
	c.mu.Lock()
	n := *c.nodes[name]
	c.mu.Unlock()
	switch {
	case n.hung:
		<-ctx.Done()
		return sut.ReplicationStatus{}, ctx.Err()
	case n.dead:
		return sut.ReplicationStatus{}, errRefused
	}
	return n.ReplicationStatus, nil
}

func (c *databases) Assign(ctx context.Context, name string, epoch int64, primary string) error {
	c.mu.Lock()
	n := c.nodes[name]
	if n.dead || n.hung || n.Primary {
		c.mu.Unlock()
		return errRefused
	}
	n.Epoch, n.Primary, n.Following = epoch, primary == name, ""
	if !n.Primary {
		n.Following = primary
	}
	c.log = append(c.log, fmt.Sprintf("assigned %s: epoch %d of %s", name, epoch, primary))
	slow := n.slow
	c.checkOnePrimary()
	c.mu.Unlock()
	if slow {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (c *databases) Fence(_ context.Context, name string) (func(), error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nodes[name]
	n.dead, n.hung, n.fenced = true, false, true
	c.log = append(c.log, "fenced "+name)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		n.fenced = false
	}, nil
}

func (c *databases) PublishRoles(_ context.Context, roles failover.Roles) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.roles = append(c.roles, roles)
	if c.useFails > 0 {
		c.useFails--
		return errors.New("web-2 is paused")
	}
	return nil
}

// checkOnePrimary fails the test if two live nodes are primaries. The caller holds mu.
func (c *databases) checkOnePrimary() {
	var all []string
	for name, n := range c.nodes {
		if n.Primary && !n.dead {
			all = append(all, name)
		}
	}
	if len(all) > 1 {
		c.t.Errorf("two primaries: %v", all)
	}
}

func (c *databases) set(name string, change func(*database)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c.nodes[name])
}

// lastRoles returns the roles of the last call of PublishRoles.
func (c *databases) lastRoles() failover.Roles {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.roles) == 0 {
		return failover.Roles{}
	}
	return c.roles[len(c.roles)-1]
}

// supervise runs a test with a supervisor in a synctest bubble.
func supervise(t *testing.T, test func(*testing.T, *databases, *failover.Supervisor)) {
	superviseWith(t, false, test)
}

// advance advances the fake clock of the bubble and waits until all goroutines are idle.
func advance(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestHealthyDatabaseIsLeftAlone(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		advance(time.Minute)
		if len(c.roles) > 0 || len(c.log) > 0 || len(s.Failovers()) > 0 {
			t.Errorf("published %v, calls %v", c.roles, c.log)
		}
	})
}

func TestDeadPrimary(t *testing.T) {
	for name, die := range map[string]func(*database){
		"refuses": func(n *database) { n.dead = true },
		"hangs":   func(n *database) { n.hung = true },
	} {
		t.Run(name, func(t *testing.T) {
			supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
				c.set("db-3", func(n *database) { n.Position = 105 })
				c.set("db-1", die)
				advance(5 * time.Second)
				all := s.Failovers()
				if len(all) != 1 || all[0].From != "db-1" || all[0].To != "db-3" ||
					all[0].Epoch != 2 || all[0].Position != 105 {
					t.Fatalf("failovers %+v", all)
				}
				bound := time.Second
				if name == "hangs" {
					bound = 4 * time.Second
				}
				if d := time.Duration(all[0].DetectNS); d < 400*time.Millisecond || d > bound {
					t.Errorf("detected after %v", d)
				}
				if got := c.lastRoles(); got.Epoch != 2 || got.Primary != "db-3" || !slices.Equal(got.Replicas, []string{"db-2"}) {
					t.Errorf("roles %+v", got)
				}
				const want = "fenced db-1, assigned db-3: epoch 2 of db-3, assigned db-2: epoch 2 of db-3"
				if got := strings.Join(c.log, ", "); got != want {
					t.Errorf("calls %s, want %s", got, want)
				}
				if c.nodes["db-1"].fenced {
					t.Error("the old primary is still fenced after the failover")
				}
				// The old primary restarts as a replica. It serves reads only after it has caught up.
				c.set("db-1", func(n *database) {
					*n = database{ReplicationStatus: sut.ReplicationStatus{Epoch: 2, Following: "db-3"}}
				})
				advance(time.Second)
				if got := c.lastRoles(); slices.Contains(got.Replicas, "db-1") {
					t.Errorf("db-1 serves reads before it has caught up: %+v", got)
				}
				c.set("db-1", func(n *database) { n.Serves = true })
				advance(time.Second)
				if got := c.lastRoles(); !slices.Equal(got.Replicas, []string{"db-1", "db-2"}) {
					t.Errorf("roles %+v", got)
				}
				if d := time.Duration(s.Failovers()[0].ReplaceNS); d < 6*time.Second || d > 8*time.Second {
					t.Errorf("replaced after %v", d)
				}
			})
		})
	}
}

func TestBusyPrimaryIsNotDead(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		for range 10 {
			c.set("db-1", func(n *database) { n.hung = true })
			advance(900 * time.Millisecond)
			c.set("db-1", func(n *database) { n.hung = false })
			advance(1500 * time.Millisecond)
		}
		if all := s.Failovers(); len(all) > 0 {
			t.Errorf("failovers %+v", all)
		}
	})
}

func TestDeadReplicaIsNotRead(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-2", func(n *database) { n.dead = true })
		advance(2 * time.Second)
		if got := c.lastRoles(); got.Epoch != 1 || got.Primary != "db-1" || !slices.Equal(got.Replicas, []string{"db-3"}) {
			t.Errorf("roles %+v", got)
		}
		c.set("db-3", func(n *database) { n.dead = true })
		advance(2 * time.Second)
		if got := c.lastRoles(); len(got.Replicas) > 0 {
			t.Errorf("roles %+v", got)
		}
		// No replica is left to promote, so the primary must not be fenced.
		c.set("db-1", func(n *database) { n.dead = true })
		advance(5 * time.Second)
		if all := s.Failovers(); len(all) > 0 || slices.Contains(c.log, "fenced db-1") {
			t.Errorf("failovers %+v, calls %v", all, c.log)
		}
	})
}

// A promotion whose answer comes too late counts. No other replica is promoted.
func TestLatePromotion(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-2", func(n *database) { n.slow, n.Position = true, 105 })
		c.set("db-1", func(n *database) { n.dead = true })
		advance(30 * time.Second)
		all := s.Failovers()
		if len(all) != 1 || all[0].To != "db-2" || all[0].Epoch != 2 {
			t.Errorf("failovers %+v", all)
		}
		if got := c.lastRoles(); got.Primary != "db-2" || got.Epoch != 2 {
			t.Errorf("roles %+v", got)
		}
	})
}

// A replica that answers late may have more changes than the others. The supervisor waits
// for it, unless it is dead.
func TestLateReplicaIsWaitedFor(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-3", func(n *database) { n.Position, n.hung = 105, true })
		c.set("db-1", func(n *database) { n.dead = true })
		advance(1500 * time.Millisecond)
		c.set("db-3", func(n *database) { n.hung = false })
		advance(3 * time.Second)
		if all := s.Failovers(); len(all) != 1 || all[0].To != "db-3" {
			t.Errorf("failovers %+v, want one to db-3, which has the most changes", all)
		}
	})
}

// A replica that hangs does not delay the detection of a dead primary.
func TestHungReplicaDelaysNothing(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-3", func(n *database) { n.hung = true })
		advance(5 * time.Second)
		c.set("db-1", func(n *database) { n.dead = true })
		advance(1500 * time.Millisecond)
		if all := s.Failovers(); len(all) != 1 || all[0].To != "db-2" || all[0].DetectNS > time.Second.Nanoseconds() {
			t.Errorf("failovers %+v, want one, detected after three probes", all)
		}
	})
}

// A slow Assign blocks the supervisor while a probe of the busy primary times out. The
// supervisor must probe the primary again before it decides.
func TestLateAnswerIsNotJudged(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-1", func(n *database) { n.hung = true })
		c.set("db-3", func(n *database) { n.slow, n.Following = true, "" }) // its Assign takes 2 s
		advance(900 * time.Millisecond)
		c.set("db-1", func(n *database) { n.hung = false })
		advance(10 * time.Second)
		if all := s.Failovers(); len(all) > 0 || c.nodes["db-1"].dead {
			t.Errorf("failovers %+v, want none: the primary was busy for less than 2 s", all)
		}
	})
}

// A replica that knows a later epoch but has no change of it is behind a replica that has
// more changes.
func TestPositionCountsBeforeKnownEpoch(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-2", func(n *database) { n.Epoch, n.Position = 2, 90 })
		c.set("db-1", func(n *database) { n.dead = true })
		advance(3 * time.Second)
		if all := s.Failovers(); len(all) != 1 || all[0].To != "db-3" {
			t.Errorf("failovers %+v, want one to db-3, which has the most changes", all)
		}
	})
}

// When no replica is left to promote, the old primary comes back with an epoch later than
// the one that was tried. The replica that was asked to become primary is fenced first,
// because it may have done so.
func TestPrimaryComesBackWhenNoReplicaIsLeft(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-3", func(n *database) { n.dead = true })
		advance(3 * time.Second)
		c.set("db-2", func(n *database) { n.slow, n.Position = true, 105 })
		c.set("db-1", func(n *database) { n.dead = true })
		advance(5 * time.Second) // db-2 executes the promotion but does not answer
		c.set("db-2", func(n *database) { n.dead = true })
		advance(15 * time.Second)
		if !c.nodes["db-2"].dead || c.nodes["db-1"].fenced {
			t.Errorf("nodes %+v %+v", *c.nodes["db-1"], *c.nodes["db-2"])
		}
		if got := c.lastRoles(); got.Primary != "db-1" || got.Epoch != 3 {
			t.Errorf("roles %+v, want the old primary in epoch 3", got)
		}
		c.set("db-1", func(n *database) {
			*n = database{ReplicationStatus: sut.ReplicationStatus{Epoch: 3, Primary: true, Serves: true}}
		})
		advance(5 * time.Second)
		if all := s.Failovers(); len(all) > 0 || c.nodes["db-1"].dead {
			t.Errorf("failovers %+v", all)
		}
	})
}

// A primary that reports that it is none is replaced by one of an epoch higher than all that nodes know. Without a
// replica, it is restarted.
func TestFencedPrimary(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, _ *failover.Supervisor) {
		c.set("db-1", func(n *database) { n.Primary, n.Epoch = false, 99 })
		advance(5 * time.Second)
		if got := c.lastRoles(); got.Epoch != 100 || got.Primary != "db-2" || !c.nodes["db-1"].dead {
			t.Fatalf("roles %+v, want db-2 as the primary of epoch 100", got)
		}
		c.set("db-3", func(n *database) { n.dead = true })
		c.set("db-2", func(n *database) { n.Primary, n.Epoch = false, 200 })
		advance(5 * time.Second)
		if got, n := c.lastRoles(), c.nodes["db-2"]; got.Epoch != 201 || got.Primary != "db-2" || !n.dead || n.fenced {
			t.Errorf("roles %+v, node %+v, want db-2 restarted in epoch 201", got, n)
		}
	})
}

// A replica whose promotion succeeds after another replica became the primary is fenced.
func TestSecondPrimaryIsFenced(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-1", func(n *database) { n.dead = true })
		advance(2 * time.Second)
		c.set("db-3", func(n *database) { n.Primary = true })
		advance(time.Second)
		if !c.nodes["db-3"].dead {
			t.Error("the second primary was not fenced")
		}
		if got := c.lastRoles(); got.Primary != "db-2" || slices.Contains(got.Replicas, "db-3") {
			t.Errorf("roles %+v", got)
		}
	})
}

// In a multi-primary database the live primaries get requests. No node is promoted or fenced.
func TestMultiPrimary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDatabases(t)
		for _, n := range c.nodes {
			n.Primary, n.Following = true, ""
		}
		s := failover.New(failover.Config{
			Databases: c, Roles: failover.Roles{Epoch: 1, Primaries: []string{"db-1", "db-2", "db-3"}},
			Interval: 200 * time.Millisecond, Failures: 3, Silence: 2 * time.Second, OnEvent: func(string, string) {},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.Run(ctx); close(done) }()
		advance(5 * time.Second)
		if len(c.roles) > 0 {
			t.Errorf("published %v, want nothing: all primaries are alive", c.roles)
		}
		for _, step := range []struct {
			dead []string
			want []string
		}{
			{[]string{"db-2"}, []string{"db-1", "db-3"}},
			{[]string{"db-1", "db-2", "db-3"}, []string{"db-1", "db-3"}}, // none is left: no change
			{nil, []string{"db-1", "db-2", "db-3"}},
		} {
			for name := range c.nodes {
				c.set(name, func(n *database) { n.dead = slices.Contains(step.dead, name) })
			}
			advance(5 * time.Second)
			if got := c.lastRoles(); !slices.Equal(got.Primaries, step.want) || got.Primary != "" {
				t.Errorf("with %v dead: roles %+v", step.dead, got)
			}
		}
		if len(c.log) > 0 || len(s.Failovers()) > 0 {
			t.Errorf("calls %v", c.log)
		}
		cancel()
		<-done
	})
}

func TestPublishingTheRolesIsRetried(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.useFails = 3
		c.set("db-1", func(n *database) { n.dead = true })
		advance(5 * time.Second)
		if c.useFails != 0 || c.lastRoles().Primary != "db-2" {
			t.Errorf("%d failures are left, roles %+v", c.useFails, c.lastRoles())
		}
	})
}

// Replicas are added and removed under supervision. A new replica serves reads once it
// has caught up. A removed replica serves no reads and is never promoted. The primary
// cannot be removed.
func TestSetNodes(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		set := func(names ...string) error { return s.SetNodes(t.Context(), names) }
		c.mu.Lock()
		c.nodes["db-4"] = &database{ReplicationStatus: sut.ReplicationStatus{
			Node: "db-4", Epoch: 1, Position: 200, Following: "db-1",
		}}
		c.mu.Unlock()
		if err := set("db-1", "db-2", "db-3", "db-4"); err != nil {
			t.Fatal(err)
		}
		advance(time.Second)
		if len(c.roles) > 0 {
			t.Errorf("roles %+v, want no change before db-4 has caught up", c.lastRoles())
		}
		c.set("db-4", func(n *database) { n.Serves = true })
		advance(time.Second)
		if got := c.lastRoles(); !slices.Equal(got.Replicas, []string{"db-2", "db-3", "db-4"}) {
			t.Errorf("roles %+v", got)
		}
		if err := set("db-2", "db-3"); err == nil || !strings.HasPrefix(err.Error(), "db-1 is the primary now") {
			t.Errorf("without the primary: %v", err)
		}
		if err := set("db-1", "db-2"); err != nil {
			t.Fatal(err)
		}
		if got := c.lastRoles(); !slices.Equal(got.Replicas, []string{"db-2"}) {
			t.Errorf("roles after SetNodes returned: %+v", got)
		}
		c.set("db-1", func(n *database) { n.dead = true })
		advance(250 * time.Millisecond)
		const noAnswer = "the primary db-1 does not answer"
		if err := set("db-1", "db-2", "db-3"); err == nil || !strings.HasPrefix(err.Error(), noAnswer) {
			t.Errorf("during a failover: %v", err)
		}
		if err := set("db-2", "db-1"); err != nil {
			t.Errorf("with the nodes unchanged: %v", err)
		}
		advance(5 * time.Second)
		if all := s.Failovers(); len(all) != 1 || all[0].To != "db-2" {
			t.Errorf("failovers %+v, want one to db-2: db-4 has more changes but was removed", all)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.SetNodes(ctx, []string{"db-2"}); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	})
}
