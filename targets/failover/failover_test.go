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

// databases is three databases in memory.
type databases struct {
	t *testing.T

	mu       sync.Mutex
	nodes    map[string]*copied
	roles    []failover.Roles // all that were told
	useFails int              // times that some web node cannot be told
	log      []string
}

// copied is one of them.
type copied struct {
	sut.ReplicationStatus
	dead, hung, fenced bool
	slow               bool // becomes what it is told, and answers too late
}

func newDatabases(t *testing.T) *databases {
	c := &databases{t: t, nodes: map[string]*copied{}}
	for _, name := range []string{"db-1", "db-2", "db-3"} {
		c.nodes[name] = &copied{ReplicationStatus: sut.ReplicationStatus{Node: name, Epoch: 1, Position: 100, Serves: true, Following: "db-1"}}
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
	c.log = append(c.log, fmt.Sprintf("%s becomes %d %s", name, epoch, primary))
	slow := n.slow
	c.onePrimary()
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

func (c *databases) Use(_ context.Context, roles failover.Roles) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.roles = append(c.roles, roles)
	if c.useFails > 0 {
		c.useFails--
		return errors.New("web-2 is paused")
	}
	return nil
}

// onePrimary: of those that live there is one at most; the mutex is held.
func (c *databases) onePrimary() {
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

func (c *databases) set(name string, change func(*copied)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c.nodes[name])
}

func (c *databases) last() failover.Roles {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.roles) == 0 {
		return failover.Roles{}
	}
	return c.roles[len(c.roles)-1]
}

// supervise runs a test with a supervisor in a bubble of its own time.
func supervise(t *testing.T, test func(t *testing.T, c *databases, s *failover.Supervisor)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newDatabases(t)
		s := failover.New(failover.Config{
			Databases: c, Roles: failover.Roles{Epoch: 1, Primary: "db-1", Replicas: []string{"db-2", "db-3"}},
			Interval: 200 * time.Millisecond, Failures: 3, Silence: 2 * time.Second,
			Note: func(node, text string) { t.Logf("%v %s %s", time.Now().Format("05.000"), node, text) },
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.Run(ctx); close(done) }()
		pass(time.Second)
		test(t, c, s)
		cancel()
		<-done
	})
}

// pass lets time of the bubble pass.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestNothingHappens(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		pass(time.Minute)
		if len(c.roles) > 0 || len(c.log) > 0 || len(s.Failovers()) > 0 {
			t.Errorf("told %v, did %v", c.roles, c.log)
		}
	})
}

func TestDeadPrimary(t *testing.T) {
	for name, die := range map[string]func(*copied){
		"refuses": func(n *copied) { n.dead = true },
		"hangs":   func(n *copied) { n.hung = true },
	} {
		t.Run(name, func(t *testing.T) {
			supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
				c.set("db-3", func(n *copied) { n.Position = 105 })
				c.set("db-1", die)
				pass(5 * time.Second)
				all := s.Failovers()
				if len(all) != 1 || all[0].From != "db-1" || all[0].To != "db-3" || all[0].Epoch != 2 || all[0].Position != 105 {
					t.Fatalf("failovers %+v", all)
				}
				bound := time.Second
				if name == "hangs" {
					bound = 4 * time.Second
				}
				if d := time.Duration(all[0].DetectNS); d < 400*time.Millisecond || d > bound {
					t.Errorf("detected after %v", d)
				}
				if got := c.last(); got.Epoch != 2 || got.Primary != "db-3" || !slices.Equal(got.Replicas, []string{"db-2"}) {
					t.Errorf("in use: %+v", got)
				}
				if want := "fenced db-1, db-3 becomes 2 db-3, db-2 becomes 2 db-3"; strings.Join(c.log, ", ") != want {
					t.Errorf("did %v, want %s", c.log, want)
				}
				if c.nodes["db-1"].fenced {
					t.Error("the old primary cannot come back")
				}
				// It comes back as a replica, is told whom to follow, and is read once it serves.
				c.set("db-1", func(n *copied) {
					*n = copied{ReplicationStatus: sut.ReplicationStatus{Epoch: 2, Following: "db-3"}}
				})
				pass(time.Second)
				if got := c.last(); slices.Contains(got.Replicas, "db-1") {
					t.Errorf("read before it serves: %+v", got)
				}
				c.set("db-1", func(n *copied) { n.Serves = true })
				pass(time.Second)
				if got := c.last(); !slices.Equal(got.Replicas, []string{"db-1", "db-2"}) {
					t.Errorf("in use: %+v", got)
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
			c.set("db-1", func(n *copied) { n.hung = true })
			pass(900 * time.Millisecond)
			c.set("db-1", func(n *copied) { n.hung = false })
			pass(1500 * time.Millisecond)
		}
		if all := s.Failovers(); len(all) > 0 {
			t.Errorf("failovers %+v", all)
		}
	})
}

func TestDeadReplicaIsNotRead(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-2", func(n *copied) { n.dead = true })
		pass(2 * time.Second)
		if got := c.last(); got.Epoch != 1 || got.Primary != "db-1" || !slices.Equal(got.Replicas, []string{"db-3"}) {
			t.Errorf("in use: %+v", got)
		}
		c.set("db-3", func(n *copied) { n.dead = true })
		pass(2 * time.Second)
		if got := c.last(); len(got.Replicas) > 0 {
			t.Errorf("in use: %+v", got)
		}
		// Nobody can take the place of the primary: it is left alone.
		c.set("db-1", func(n *copied) { n.dead = true })
		pass(5 * time.Second)
		if all := s.Failovers(); len(all) > 0 || slices.Contains(c.log, "fenced db-1") {
			t.Errorf("failovers %+v, did %v", all, c.log)
		}
	})
}

// A promotion whose answer came too late counts; nobody else is promoted.
func TestLatePromotion(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-2", func(n *copied) { n.slow, n.Position = true, 105 })
		c.set("db-1", func(n *copied) { n.dead = true })
		pass(30 * time.Second)
		all := s.Failovers()
		if len(all) != 1 || all[0].To != "db-2" || all[0].Epoch != 2 {
			t.Errorf("failovers %+v", all)
		}
		if got := c.last(); got.Primary != "db-2" || got.Epoch != 2 {
			t.Errorf("in use: %+v", got)
		}
	})
}

// A replica that is late may hold more than the one that answers: it is waited for,
// as long as it is not dead.
func TestLateReplicaIsWaitedFor(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-3", func(n *copied) { n.Position, n.hung = 105, true })
		c.set("db-1", func(n *copied) { n.dead = true })
		pass(1500 * time.Millisecond)
		c.set("db-3", func(n *copied) { n.hung = false })
		pass(3 * time.Second)
		if all := s.Failovers(); len(all) != 1 || all[0].To != "db-3" {
			t.Errorf("failovers %+v, want to the one that holds most", all)
		}
	})
}

// A replica that hangs does not keep the death of the primary from being noticed.
func TestHungReplicaDelaysNothing(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-3", func(n *copied) { n.hung = true })
		pass(5 * time.Second)
		c.set("db-1", func(n *copied) { n.dead = true })
		pass(1500 * time.Millisecond)
		if all := s.Failovers(); len(all) != 1 || all[0].To != "db-2" || all[0].DetectNS > time.Second.Nanoseconds() {
			t.Errorf("failovers %+v, want one that was detected after three probes", all)
		}
	})
}

// What a busy primary did not answer while everybody else was told something is no sign
// of its death: it is asked anew before it is judged.
func TestLateAnswerIsNotJudged(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-1", func(n *copied) { n.hung = true })
		c.set("db-3", func(n *copied) { n.slow, n.Following = true, "" }) // to be told takes 2 s
		pass(900 * time.Millisecond)
		c.set("db-1", func(n *copied) { n.hung = false })
		pass(10 * time.Second)
		if all := s.Failovers(); len(all) > 0 || c.nodes["db-1"].dead {
			t.Errorf("failovers %+v of a primary that was busy for less than 2 s", all)
		}
	})
}

// One that has been told of a later epoch, and holds nothing of it, holds less than one
// that was not told and holds more.
func TestWhatIsHeldCounts(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-2", func(n *copied) { n.Epoch, n.Position = 2, 90 })
		c.set("db-1", func(n *copied) { n.dead = true })
		pass(3 * time.Second)
		if all := s.Failovers(); len(all) != 1 || all[0].To != "db-3" {
			t.Errorf("failovers %+v, want to the one that holds most", all)
		}
	})
}

// When nobody is left who could take its place, the old primary comes back, in an
// epoch that is later than the one that was tried; and who was tried is ended, for
// it may have become the primary.
func TestPrimaryComesBackWhenNobodyIsLeft(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-3", func(n *copied) { n.dead = true })
		pass(3 * time.Second)
		c.set("db-2", func(n *copied) { n.slow, n.Position = true, 105 })
		c.set("db-1", func(n *copied) { n.dead = true })
		pass(5 * time.Second) // it is told, and does not answer
		c.set("db-2", func(n *copied) { n.dead = true })
		pass(15 * time.Second)
		if !c.nodes["db-2"].dead || c.nodes["db-1"].fenced {
			t.Errorf("nodes %+v %+v", *c.nodes["db-1"], *c.nodes["db-2"])
		}
		if got := c.last(); got.Primary != "db-1" || got.Epoch != 3 {
			t.Errorf("in use: %+v, want the old primary in epoch 3", got)
		}
		c.set("db-1", func(n *copied) {
			*n = copied{ReplicationStatus: sut.ReplicationStatus{Epoch: 3, Primary: true, Serves: true}}
		})
		pass(5 * time.Second)
		if all := s.Failovers(); len(all) > 0 || c.nodes["db-1"].dead {
			t.Errorf("failovers %+v", all)
		}
	})
}

// One that was promoted and hung before it could say so is not the primary when
// another one has become it.
func TestSecondPrimaryIsEnded(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.set("db-1", func(n *copied) { n.dead = true })
		pass(2 * time.Second)
		c.set("db-3", func(n *copied) { n.Primary = true })
		pass(time.Second)
		if !c.nodes["db-3"].dead {
			t.Error("a second primary was left alone")
		}
		if got := c.last(); got.Primary != "db-2" || slices.Contains(got.Replicas, "db-3") {
			t.Errorf("in use: %+v", got)
		}
	})
}

// Of several primaries those that live are used; nobody is promoted or ended.
func TestMultiPrimary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newDatabases(t)
		for _, n := range c.nodes {
			n.Primary, n.Following = true, ""
		}
		s := failover.New(failover.Config{
			Databases: c, Roles: failover.Roles{Epoch: 1, Primaries: []string{"db-1", "db-2", "db-3"}},
			Interval: 200 * time.Millisecond, Failures: 3, Silence: 2 * time.Second, Note: func(string, string) {},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.Run(ctx); close(done) }()
		pass(5 * time.Second)
		if len(c.roles) > 0 {
			t.Errorf("told %v when nothing had happened", c.roles)
		}
		for _, step := range []struct {
			dead []string
			want []string
		}{
			{[]string{"db-2"}, []string{"db-1", "db-3"}},
			{[]string{"db-1", "db-2", "db-3"}, []string{"db-1", "db-3"}}, // nobody is left: as it was
			{nil, []string{"db-1", "db-2", "db-3"}},
		} {
			for name := range c.nodes {
				c.set(name, func(n *copied) { n.dead = slices.Contains(step.dead, name) })
			}
			pass(5 * time.Second)
			if got := c.last(); !slices.Equal(got.Primaries, step.want) || got.Primary != "" {
				t.Errorf("with %v dead: in use %+v", step.dead, got)
			}
		}
		if len(c.log) > 0 || len(s.Failovers()) > 0 {
			t.Errorf("did %v", c.log)
		}
		cancel()
		<-done
	})
}

func TestWhoCouldNotBeToldIsToldAgain(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		c.useFails = 3
		c.set("db-1", func(n *copied) { n.dead = true })
		pass(5 * time.Second)
		if c.useFails != 0 || c.last().Primary != "db-2" {
			t.Errorf("%d tries are left, in use %+v", c.useFails, c.last())
		}
	})
}

// Replicas come and go while they are supervised: a new one is read when it serves, one
// that is gone is read no more and never promoted, and the primary does not go.
func TestReplicasComeAndGo(t *testing.T) {
	supervise(t, func(t *testing.T, c *databases, s *failover.Supervisor) {
		set := func(names ...string) error { return s.SetNodes(t.Context(), names) }
		c.mu.Lock()
		c.nodes["db-4"] = &copied{ReplicationStatus: sut.ReplicationStatus{Node: "db-4", Epoch: 1, Position: 200, Following: "db-1"}}
		c.mu.Unlock()
		if err := set("db-1", "db-2", "db-3", "db-4"); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		if len(c.roles) > 0 {
			t.Errorf("in use: %+v: db-4 does not serve yet", c.last())
		}
		c.set("db-4", func(n *copied) { n.Serves = true })
		pass(time.Second)
		if got := c.last(); !slices.Equal(got.Replicas, []string{"db-2", "db-3", "db-4"}) {
			t.Errorf("in use: %+v", got)
		}
		if err := set("db-2", "db-3"); err == nil || !strings.HasPrefix(err.Error(), "db-1 is the primary now") {
			t.Errorf("without the primary: %v", err)
		}
		if err := set("db-1", "db-2"); err != nil {
			t.Fatal(err)
		}
		if got := c.last(); !slices.Equal(got.Replicas, []string{"db-2"}) {
			t.Errorf("in use when it returns: %+v", got)
		}
		c.set("db-1", func(n *copied) { n.dead = true })
		pass(250 * time.Millisecond)
		if err := set("db-1", "db-2", "db-3"); err == nil || !strings.HasPrefix(err.Error(), "the primary db-1 does not answer") {
			t.Errorf("during a failover: %v", err)
		}
		if err := set("db-2", "db-1"); err != nil {
			t.Errorf("what they are already: %v", err)
		}
		pass(5 * time.Second)
		if all := s.Failovers(); len(all) != 1 || all[0].To != "db-2" {
			t.Errorf("failovers %+v, want to db-2: db-4 holds more, and is gone", all)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.SetNodes(ctx, []string{"db-2"}); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	})
}
