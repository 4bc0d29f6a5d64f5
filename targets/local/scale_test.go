package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
)

// wirings returns the wirings that a node has received, in order, without epochs.
func (s *fixture) wirings(t *testing.T, node string) (all []string) {
	t.Helper()
	for _, line := range s.trace(t) {
		if text, found := strings.CutPrefix(line, node+" wiring "); found {
			_, peers, _ := strings.Cut(text, ": ")
			all = append(all, peers)
		}
	}
	return all
}

func webNodes(system *System) (names []string) {
	for _, n := range system.Status() {
		if n.Role == sut.Web && n.State == targets.Serving {
			names = append(names, n.Node)
		}
	}
	return names
}

// scale changes the number of hosts of a tier.
func scale(t *testing.T, system *System, tier string, hosts int) targets.Scaled {
	t.Helper()
	scaled, err := system.Scale(t.Context(), tier, hosts)
	if err != nil {
		t.Fatal(err)
	}
	return scaled
}

// TestScaleUpAndDown checks that added hosts are used by all their callers, and that
// nothing of them is left after they are removed.
func TestScaleUpAndDown(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.LB, sut.Knobs{"web.hosts": "2", "web.upload_hosts": "1", "web.split": "true", "lb.hosts": "2"})
	system := s.up(t)
	before := system.Topology().Digest()
	scale(t, system, "web", 4)
	if got := webNodes(system); !slices.Equal(got, []string{"web-2", "web-1", "web-3", "web-4"}) {
		t.Errorf("web nodes %v", got)
	}
	if digest := system.Topology().Digest(); digest == before || system.Topology().Knobs["web.hosts"] != "4" {
		t.Errorf("the topology did not change: %v", system.Topology().Knobs)
	}
	for _, node := range []string{"lb-1", "lb-2"} {
		if got := s.wirings(t, node); !slices.Equal(got, []string{"web:web-1+web-2+web-3+web-4"}) {
			t.Errorf("%s received %v", node, got)
		}
	}
	if got := s.wirings(t, "web-1"); !slices.Equal(got, []string{"web:web-2+web-3+web-4 db:db-1 blob:blob-1"}) {
		t.Errorf("web-1, which asks the other web hosts for sessions, received %v", got)
	}
	addresses := map[string]bool{}
	for _, n := range system.Status() {
		host, _, _ := strings.Cut(n.Address, ":")
		addresses[host] = true
	}
	if len(addresses) != 7 {
		t.Errorf("7 hosts have %d addresses", len(addresses))
	}
	// The configuration of a restarted node has the current hosts.
	if err := system.Kill("lb-2"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "lb-2 is restarted", func() bool { return status(t, system, "lb-2").Restarts == 1 })
	if webs := configOf(t, status(t, system, "lb-2").Address).Wiring.Uses[sut.Web]; len(webs) != 4 {
		t.Errorf("the restarted lb-2 uses %v", webs)
	}
	scale(t, system, "web", 2)
	want := []string{"web:web-1+web-2-web-3-web-4", "web:web-1+web-2"}
	if got := s.wirings(t, "lb-1")[1:]; !slices.Equal(got, want) {
		t.Errorf("lb-1 received %v, want %v", got, want)
	}
	if digest := system.Topology().Digest(); digest != before || len(webNodes(system)) != 2 {
		t.Errorf("nodes %v: want the first topology again", webNodes(system))
	}
	usage, err := system.Usage()
	if err != nil || len(usage.Hosts) != 5 {
		t.Errorf("usage of %d hosts, %v; want 5", len(usage.Hosts), err)
	}
	if left, err := filepath.Glob(filepath.Join(system.dir, "web-[34]")); err != nil || len(left) > 0 {
		t.Errorf("directories are left: %v, %v", left, err)
	}
	terminated := 0
	for _, line := range s.trace(t) {
		if line == "web-3 terminated" || line == "web-4 terminated" {
			terminated++
		}
	}
	if terminated != 2 {
		t.Errorf("%d of 2 nodes received SIGTERM", terminated)
	}
}

// TestScaleFails checks that a failed change is rolled back.
func TestScaleFails(t *testing.T) {
	for name, c := range map[string]struct {
		node, behaviour, want string
		wirings               []string // of lb-1
	}{
		"a host does not start": {"web-3", "dies early", "disk is full", nil},
		"a balancer refuses": {
			"lb-1", "refuses three", "send a wiring to lb-1: PUT /wiring of lb-1: 400 Bad Request: too many",
			[]string{"web:web-1+web-2+web-3", "web:web-1+web-2-web-3", "web:web-1+web-2"},
		},
		"a host that cannot drain": {"lb-1", "never drains", "", []string{"web:web-1+web-2+web-3"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFixture(t, sut.LB, sut.Knobs{"web.hosts": "2"})
			s.behave(c.node, c.behaviour)
			system := s.up(t)
			_, err := system.Scale(t.Context(), "web", 3)
			if c.want == "" {
				if err != nil || len(webNodes(system)) != 3 {
					t.Errorf("error %v, nodes %v: want three nodes", err, webNodes(system))
				}
			} else if err == nil || !strings.Contains(err.Error(), c.want) ||
				len(webNodes(system)) != 2 || system.Topology().Knobs["web.hosts"] != "2" {
				t.Errorf("error %v, nodes %v: want an error with %q, and two nodes", err, webNodes(system), c.want)
			}
			if got := s.wirings(t, "lb-1"); !slices.Equal(got, c.wirings) {
				t.Errorf("lb-1 received %v, want %v", got, c.wirings)
			}
		})
	}
}

// TestScaleIsInterrupted checks that nothing of a change is left when its context is
// cancelled, or when Down is called during the change.
func TestScaleIsInterrupted(t *testing.T) {
	for _, how := range []string{"cancelled", "taken down"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s := newFixture(t, sut.LB, sut.Knobs{"web.hosts": "2"})
			s.behave("lb-1", "hangs at three")
			system := s.up(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() {
				_, err := system.Scale(ctx, "web", 3)
				done <- err
			}()
			eventually(t, "lb-1 receives its wiring", func() bool { return len(s.wirings(t, "lb-1")) == 1 })
			_, err := system.Scale(t.Context(), "web", 4)
			if err == nil || !strings.Contains(err.Error(), "being changed already") {
				t.Errorf("a second, concurrent change: %v", err)
			}
			if how == "cancelled" {
				cancel()
				if err := <-done; !errors.Is(err, context.Canceled) || len(webNodes(system)) != 2 {
					t.Errorf("error %v, nodes %v", err, webNodes(system))
				}
				return
			}
			if err := system.Down(t.Context()); err != nil {
				t.Error(err)
			}
			if err := <-done; err == nil {
				t.Error("Scale returned no error")
			}
			if left, err := os.ReadDir(s.options.workDir); err == nil && len(left) > 0 || len(s.processes()) > 0 {
				t.Errorf("left: %v, processes %v", left, s.processes())
			}
			if _, err := system.Scale(t.Context(), "web", 4); err == nil || !strings.Contains(err.Error(), "going down") {
				t.Errorf("Scale after Down: %v", err)
			}
		})
	}
}

// webPeers returns the web nodes that a node uses now.
func webPeers(t *testing.T, system *System, node string) (names []string) {
	t.Helper()
	for _, peer := range configOf(t, status(t, system, node).Address).Wiring.Uses[sut.Web] {
		names = append(names, peer.Node)
	}
	return names
}

// TestScaleWhileABalancerStarts checks a balancer that is starting when hosts are
// added. Its configuration has the old hosts. It receives the new ones when it serves.
func TestScaleWhileABalancerStarts(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.LB, sut.Knobs{"web.hosts": "2"})
	s.behave("lb-1", "waits at its restart")
	gate := gateOf(filepath.Join(s.dir, "trace"))
	if err := syscall.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	system := s.up(t)
	if err := system.Kill("lb-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the restart of lb-1 begins", func() bool {
		return slices.ContainsFunc(s.trace(t), func(line string) bool {
			return strings.HasPrefix(line, "lb-1 started") && strings.HasSuffix(line, "port=true")
		})
	})
	done := make(chan error, 1)
	go func() {
		_, err := system.Scale(t.Context(), "web", 3)
		done <- err
	}()
	eventually(t, "the topology has changed", func() bool { return len(system.Topology().Hosts) == 5 })
	opened, err := os.OpenFile(gate, os.O_WRONLY, 0) // waits until lb-1 opens it
	if err != nil {
		t.Fatal(err)
	}
	opened.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := webPeers(t, system, "lb-1"); !slices.Equal(got, []string{"web-1", "web-2", "web-3"}) {
		t.Errorf("lb-1 uses %v", got)
	}
}

// TestABalancerDiesAtAWiring checks that a balancer that dies when it receives a
// wiring has the new hosts after its restart.
func TestABalancerDiesAtAWiring(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.LB, sut.Knobs{"web.hosts": "2"})
	s.behave("lb-1", "crashes at a wiring")
	system := s.up(t)
	scale(t, system, "web", 3)
	eventually(t, "lb-1 is restarted", func() bool { return status(t, system, "lb-1").Restarts == 1 })
	if got := webPeers(t, system, "lb-1"); !slices.Equal(got, []string{"web-1", "web-2", "web-3"}) {
		t.Errorf("lb-1 uses %v", got)
	}
	if got := s.wirings(t, "lb-1"); len(got) != 1 {
		t.Errorf("lb-1 received %d wirings, want 1: its configuration has the new hosts", len(got))
	}
}

// TestAPausedBalancerPreventsScale checks that Scale starts no host while a balancer
// is paused, because the balancer cannot receive a wiring.
func TestAPausedBalancerPreventsScale(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.LB, sut.Knobs{"web.hosts": "2"})
	system := s.up(t)
	if err := system.Pause("lb-1"); err != nil {
		t.Fatal(err)
	}
	_, err := system.Scale(t.Context(), "web", 3)
	if err == nil || !strings.Contains(err.Error(), "lb-1 is paused") ||
		!strings.HasSuffix(err.Error(), "stagebench resume lb-1") {
		t.Errorf("error %v, want one about the paused lb-1", err)
	}
	if slices.ContainsFunc(s.trace(t), func(line string) bool { return strings.HasPrefix(line, "web-3 started") }) {
		t.Error("web-3 was started")
	}
	if err := system.Resume("lb-1"); err != nil {
		t.Fatal(err)
	}
	scale(t, system, "web", 3)
	if got := webPeers(t, system, "lb-1"); len(got) != 3 {
		t.Errorf("lb-1 uses %v", got)
	}
}

// TestScaleSurvivesKills adds and removes hosts while nodes are killed and the usage is
// read. At the end every balancer must use the current hosts.
func TestScaleSurvivesKills(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.LB, sut.Knobs{"web.hosts": "2", "lb.hosts": "2"})
	system := s.up(t)
	scaled := make(chan struct{})
	var others sync.WaitGroup
	for _, name := range []string{"lb-1", "lb-2", "web-1"} {
		others.Go(func() {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for killed := 0; ; {
				select {
				case <-scaled:
					return
				case <-tick.C:
				}
				if status(t, system, name).Restarts == killed {
					if err := system.Kill(name); err == nil {
						killed++
					}
				}
				if _, err := system.Usage(); err != nil {
					t.Errorf("usage: %v", err)
				}
			}
		})
	}
	for _, hosts := range []int{4, 2, 3, 2, 4} {
		if _, err := system.Scale(t.Context(), "web", hosts); err != nil {
			t.Errorf("to %d hosts: %v", hosts, err)
		}
	}
	close(scaled)
	others.Wait()
	eventually(t, "all nodes serve", func() bool { return serving(system) })
	for _, lb := range []string{"lb-1", "lb-2"} {
		if got := webPeers(t, system, lb); !slices.Equal(got, []string{"web-1", "web-2", "web-3", "web-4"}) {
			t.Errorf("%s uses %v", lb, got)
		}
	}
	if _, err := os.Stat(filepath.Join(system.LogDir(), "web-4.log")); err != nil {
		t.Errorf("the log of a host that was removed and added again: %v", err)
	}
}

// TestScaleIsRefused checks the reasons why Scale refuses a change.
func TestScaleIsRefused(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.LB, sut.Knobs{"web.hosts": "2", "db.replicas": "5"})
	s.options.Admit = func(next sut.Topology) error {
		if len(next.Hosts) > 8 {
			return errors.New("the machine is too small")
		}
		return nil
	}
	system := s.up(t)
	for _, c := range []struct {
		tier  string
		hosts int
		want  string
	}{
		{"db", 2, "scale db to 2: the number of \"db\" hosts cannot change while the system serves\n" +
			"want one of: edge, web, replica, shard, blob, cache"},
		{"web", 0, "want a whole number"},
		{"web", 9, "the machine is too small"},
		{"cache", 2, "stage lb has no cache hosts\n"},
		{"replica", 2, "without replicas"},
		{"blob", 2, "on the database host"},
	} {
		if _, err := system.Scale(t.Context(), c.tier, c.hosts); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s to %d: error %v, want one with %q", c.tier, c.hosts, err, c.want)
		}
	}
	scale(t, system, "web", 2) // no change
	larger, err := ladder.Build(sut.LB, sut.Knobs{"web.hosts": "2"}, 0.2)
	if err != nil {
		t.Fatal(err)
	}
	err = checkDifference(system.Topology(), larger)
	if err == nil || !strings.Contains(err.Error(), "the size of host lb-1 would change") {
		t.Errorf("a host of another size: %v", err)
	}
	moved, err := ladder.Build(sut.LB, sut.Knobs{"web.hosts": "2", "blob.hosts": "1"}, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	err = checkDifference(system.Topology(), moved)
	if err == nil || !strings.Contains(err.Error(), "the settings of node blob-1 would change") {
		t.Errorf("a node on another host: %v", err)
	}
}

func TestASingleHostIsNotScaled(t *testing.T) {
	t.Parallel()
	system := newFixture(t, sut.Single, nil).up(t)
	if _, err := system.Scale(t.Context(), "web", 2); err == nil || !strings.Contains(err.Error(), "has no balancer") {
		t.Errorf("scale of a single host: %v", err)
	}
}
