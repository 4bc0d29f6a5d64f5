package local

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
)

// shortInterval is a probe interval in seconds, for tests with a failover. The other
// tests probe rarely. On a slow machine a database can answer a probe late. Then the
// supervisor publishes new roles, and the tests would see unexpected wirings.
const shortInterval = "0.05"

// allTiers prepares a system with one host of each tier and one replica.
func allTiers(t *testing.T, knobs sut.Knobs) *fixture {
	t.Helper()
	all := sut.Knobs{"web.hosts": "1", "blob.hosts": "1", "db.replicas": "1", "db.probe_interval": "60"}
	for name, value := range knobs {
		all[name] = value
	}
	return newFixture(t, sut.Caches, all)
}

// wiringsFrom returns the wirings of all nodes after the first lines of the trace, in
// order, as "NODE WIRING".
func (s *fixture) wiringsFrom(t *testing.T, from int) (all []string) {
	t.Helper()
	for _, line := range s.trace(t)[from:] {
		node, text, _ := strings.Cut(line, " ")
		if strings.HasPrefix(text, "wiring ") {
			_, peers, _ := strings.Cut(text, ": ")
			all = append(all, node+" "+peers)
		}
	}
	return all
}

// count counts the nodes of a role in the topology.
func count(system *System, role sut.Role) (nodes int) {
	for _, n := range system.Topology().Nodes {
		if n.Role == role {
			nodes++
		}
	}
	return nodes
}

// sorted sorts each group of wirings that are sent concurrently, so that their order
// is fixed. sizes are the numbers of wirings in the groups.
func sorted(all []string, sizes ...int) []string {
	all = slices.Clone(all)
	from := 0
	for _, size := range sizes {
		slices.Sort(all[min(from, len(all)):min(from+size, len(all))])
		from += size
	}
	return all
}

// TestOrderOfAChangeOfMembers checks the order of the wirings when a tier whose members
// share keys is scaled. First the members learn that keys move. Then the callers use the
// new members. Then the members hand over keys. Last the callers forget the leaving
// members.
func TestOrderOfAChangeOfMembers(t *testing.T) {
	for tier, rest := range map[string][2]string{ // the other peers of web-1, before and after this tier
		"cache": {"", " db:db-1+db-2 blob:blob-1"},
		"blob":  {"cache:cache-1 db:db-1+db-2 ", ""},
	} {
		t.Run(tier, func(t *testing.T) {
			t.Parallel()
			s := allTiers(t, nil)
			system := s.up(t)
			if got := s.wirings(t, tier+"-1"); !slices.Equal(got, []string{tier + ":" + tier + "-1"}) {
				t.Errorf("at the start the only member received %v", got)
			}
			from := len(s.trace(t))
			list := func(text string) string { return strings.ReplaceAll(text, "#", tier+"-") }
			web := func(text string) string { return "web-1 " + rest[0] + list(tier+":"+text) + rest[1] }
			member := func(i int, text, moving string) string {
				return fmt.Sprintf("%s-%d ", tier, i) + list(tier+":"+text) + moving
			}
			scaled := scale(t, system, tier, 3)
			// A test node counts one key per wiring, and each of the three members hands over once.
			if scaled.Moved == nil || *scaled.Moved != 3 || scaled.Hosts != 3 || scaled.Tier != tier || scaled.TookNS <= 0 {
				t.Errorf("%+v", scaled)
			}
			if got, want := sorted(s.wiringsFrom(t, from), 3, 1, 3), []string{
				member(1, "#1+#2+#3", " moving"), member(2, "#1+#2+#3", " moving"), member(3, "#1+#2+#3", " moving"),
				web("#1+#2+#3"),
				member(1, "#1+#2+#3", ""), member(2, "#1+#2+#3", ""), member(3, "#1+#2+#3", ""),
			}; !slices.Equal(got, want) {
				t.Errorf("wirings\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			from = len(s.trace(t))
			scale(t, system, tier, 2)
			if got, want := sorted(s.wiringsFrom(t, from), 3, 1, 3, 1), []string{
				member(1, "#1+#2-#3", " moving"), member(2, "#1+#2-#3", " moving"), member(3, "#1+#2-#3", " moving"),
				web("#1+#2-#3"),
				member(1, "#1+#2-#3", ""), member(2, "#1+#2-#3", ""), member(3, "#1+#2-#3", ""),
				web("#1+#2"),
			}; !slices.Equal(got, want) {
				t.Errorf("wirings\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if got := s.trace(t)[len(s.trace(t))-1]; got != tier+"-3 terminated" {
				t.Errorf("the last line of the trace is %q", got)
			}
			// The epochs of a node never decrease.
			last := map[string]int{}
			for _, line := range s.trace(t) {
				var node string
				var epoch int
				if _, err := fmt.Sscanf(line, "%s wiring %d:", &node, &epoch); err == nil {
					if epoch < last[node] {
						t.Errorf("%s received epoch %d after %d", node, epoch, last[node])
					}
					last[node] = epoch
				}
			}
			// The configuration of a restarted member has the current members.
			if err := system.Kill(tier + "-2"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the member is restarted", func() bool { return status(t, system, tier+"-2").Restarts == 1 })
			if w := configOf(t, status(t, system, tier+"-2").Address).Wiring; wired(w) != list(tier+":#1+#2") || w.Epoch == 0 {
				t.Errorf("restarted with %+v", w)
			}
		})
	}
}

// TestANewMemberStartsMoving checks the configuration of a new member. It has all other
// members, and says that keys move. It cannot have the member itself, which has no
// address yet.
func TestANewMemberStartsMoving(t *testing.T) {
	t.Parallel()
	s := allTiers(t, nil)
	s.behave("cache-2", "keeps its first wiring")
	system := s.up(t)
	scale(t, system, "cache", 2)
	if w := configOf(t, status(t, system, "cache-2").Address).Wiring; wired(w) != "cache:cache-1 moving" {
		t.Errorf("the first wiring of cache-2 is %+v", w)
	}
}

// TestAChangeOfMembersIsRolledBack checks that a change that fails or is cancelled while
// keys move is rolled back: the nodes receive the old members, in the same order.
func TestAChangeOfMembersIsRolledBack(t *testing.T) {
	for name, c := range map[string]struct {
		from, to        int
		node, behaviour string
		cancel          bool
		want            string
		member, web     []string // wirings of cache-1 and web-1
	}{
		"a caller refuses": {
			1, 3, "web-1", "refuses three", false, "too many",
			[]string{"1+2+3 moving", "1-2-3 moving", "1-2-3"},
			[]string{"1+2+3", "1-2-3", "1"},
		},
		"a member is late": {
			1, 2, "cache-2", "never drains", false,
			"cache-2 has not handed over its keys: it did not finish in time",
			[]string{"1+2 moving", "1-2 moving", "1-2"},
			[]string{"1-2", "1"},
		},
		"a leaving member dies": {
			2, 1, "cache-2", "crashes when it hands over", false,
			"cache-2 has not handed over its keys: the node is dead",
			[]string{"1-2 moving", "1-2", "1+2 moving", "1+2"},
			[]string{"1-2", "1+2"},
		},
		"it is cancelled": {
			1, 3, "web-1", "hangs at three", true, "context canceled",
			[]string{"1+2+3 moving", "1-2-3 moving", "1-2-3"},
			[]string{"1+2+3", "1-2-3", "1"},
		},
		"a host does not start": {1, 2, "cache-2", "dies early", false, "disk is full", nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := allTiers(t, sut.Knobs{"cache.hosts": fmt.Sprint(c.from)})
			system := s.up(t)
			before := system.Topology().Digest()
			from := len(s.trace(t))
			s.behave(c.node, c.behaviour)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() {
				_, err := system.Scale(ctx, "cache", c.to)
				done <- err
			}()
			if c.cancel {
				eventually(t, c.node+" receives its wiring", func() bool { return len(s.wirings(t, c.node)) == 1 })
				cancel()
			}
			if err := <-done; err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			got := s.cacheWirings(t, from)
			if !slices.Equal(got["cache-1"], c.member) || !slices.Equal(got["web-1"], c.web) {
				t.Errorf("cache-1 received %q, web-1 %q; want %q and %q", got["cache-1"], got["web-1"], c.member, c.web)
			}
			if system.Topology().Digest() != before || count(system, sut.Cache) != c.from {
				t.Errorf("the topology is not the old one")
			}
			if left, err := filepath.Glob(filepath.Join(system.dir, "cache-*")); err != nil || len(left) != c.from {
				t.Errorf("directories %v, %v", left, err)
			}
			eventually(t, "all nodes serve", func() bool { return serving(system) })
			s.behave(c.node, "")
			scale(t, system, "cache", 3)
		})
	}
}

// TestHostsThatHoldDataStay checks the rollback when a new blob host cannot hand back its
// objects. The host is not stopped, because it may have the only copies. All hosts stay,
// and the change can be tried again.
func TestHostsThatHoldDataStay(t *testing.T) {
	t.Parallel()
	s := allTiers(t, nil)
	system := s.up(t)
	s.behave("blob-2", "never drains")
	if _, err := system.Scale(t.Context(), "blob", 2); err == nil || !strings.Contains(err.Error(), "and all hosts stay") {
		t.Errorf("error %v, want one that says that all hosts stay", err)
	}
	if status(t, system, "blob-2").State != targets.Serving || count(system, sut.Blob) != 2 {
		t.Error("blob-2 does not serve, or is not in the topology")
	}
	s.behave("blob-2", "")
	scale(t, system, "blob", 1)
	scale(t, system, "blob", 2)
}

// cacheWirings returns the cache hosts in the wirings of each node after the first lines
// of the trace. It shortens their names to their numbers.
func (s *fixture) cacheWirings(t *testing.T, from int) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, line := range s.wiringsFrom(t, from) {
		node, text, _ := strings.Cut(line, " ")
		text = strings.TrimSuffix(strings.ReplaceAll(text, "cache-", ""), " db:db-1+db-2 blob:blob-1")
		all[node] = append(all[node], strings.TrimPrefix(text, "cache:"))
	}
	return all
}

// TestNodesThatPreventAChange checks which nodes prevent a change of members. A paused
// caller or member does, because it cannot receive a wiring. A dead leaving member does,
// because it cannot hand over its keys. A dead member that stays does not.
func TestNodesThatPreventAChange(t *testing.T) {
	t.Parallel()
	s := allTiers(t, sut.Knobs{"cache.hosts": "3"})
	s.options.neverRestart = true
	system := s.up(t)
	for _, node := range []string{"web-1", "cache-1", "cache-3"} {
		if err := system.Pause(node); err != nil {
			t.Fatal(err)
		}
		if _, err := system.Scale(t.Context(), "cache", 2); err == nil || !strings.Contains(err.Error(), node+" is paused") {
			t.Errorf("%s is paused: %v", node, err)
		}
		if err := system.Resume(node); err != nil {
			t.Fatal(err)
		}
	}
	if err := system.Kill("cache-3"); err != nil {
		t.Fatal(err)
	}
	const removed = "cache-3 would be removed, but it is dead"
	if _, err := system.Scale(t.Context(), "cache", 2); err == nil || !strings.Contains(err.Error(), removed) {
		t.Errorf("cache-3 is dead: %v", err)
	}
	scale(t, system, "cache", 4)
	if got := s.wirings(t, "cache-2"); got[len(got)-1] != "cache:cache-1+cache-2+cache-3+cache-4" {
		t.Errorf("cache-2 received %v", got)
	}
}

// TestFailoverDuringAChange checks a failover during a change of members. At the end the
// callers must have the new members and the new primary.
func TestFailoverDuringAChange(t *testing.T) {
	t.Parallel()
	s := allTiers(t, sut.Knobs{"web.hosts": "2", "db.probe_interval": shortInterval})
	s.options.restartDelay = time.Second // longer than the detection of the dead primary
	system := s.up(t)
	s.behave("cache-1", "hangs at three")
	done := make(chan error, 1)
	go func() {
		_, err := system.Scale(t.Context(), "cache", 3)
		done <- err
	}()
	eventually(t, "cache-1 receives its wiring", func() bool { return len(s.wirings(t, "cache-1")) == 2 })
	if err := system.Kill("primary"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "db-2 is the primary", func() bool {
		return wired(configOf(t, status(t, system, "web-1").Address).Wiring) == "cache:cache-1 db:db-2+db-1 blob:blob-1"
	})
	s.behave("cache-1", "")
	// The kill ends the pending request. The configuration of the restarted node has the wiring.
	if err := system.Kill("cache-1"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	const want = "cache:cache-1+cache-2+cache-3 db:db-2+db-1 blob:blob-1"
	for _, web := range []string{"web-1", "web-2"} {
		if got := wired(configOf(t, status(t, system, web).Address).Wiring); got != want {
			t.Errorf("%s uses %s, want %s", web, got, want)
		}
	}
}

// TestARefusedWiringIsRetried checks a node that refuses a wiring because it has a newer
// epoch. The wiring is sent again with the current epoch. If the node refuses that too,
// the call fails.
func TestARefusedWiringIsRetried(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.LB, sut.Knobs{"web.hosts": "2"})
	system := s.up(t)
	sent := make(chan error, 1)
	send := func() { sent <- system.sendWiring(t.Context(), system.node("lb-1"), drainBound) }
	s.behave("lb-1", "waits when it drains")
	go send()
	eventually(t, "lb-1 receives its wiring", func() bool { return len(s.wirings(t, "lb-1")) == 1 })
	system.change(func() {})
	s.behave("lb-1", "has epoch 3")
	if err := <-sent; err != nil || len(s.wirings(t, "lb-1")) != 2 {
		t.Errorf("error %v, wirings %v", err, s.wirings(t, "lb-1"))
	}
	s.behave("lb-1", "has epoch 4")
	go send()
	if err := <-sent; err == nil || !strings.Contains(err.Error(), "409 Conflict") {
		t.Errorf("refused with the current epoch: error %v", err)
	}
}

// TestChangesSurviveKills adds and removes cache and blob hosts while nodes of all tiers
// are killed. At the end every node must have the current hosts.
func TestChangesSurviveKills(t *testing.T) {
	t.Parallel()
	s := allTiers(t, sut.Knobs{
		"cache.hosts": "2", "blob.hosts": "2", "db.replicas": "2", "db.probe_interval": shortInterval,
	})
	system := s.up(t)
	stop := make(chan struct{})
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		for {
			for _, name := range []string{"web-1", "cache-1", "blob-1", "primary"} {
				select {
				case <-stop:
					return
				default:
				}
				if serving(system) {
					_ = system.Kill(name) // an error if it has died since
				}
			}
		}
	}()
	for range 3 {
		for _, tier := range []string{"cache", "blob"} {
			for _, hosts := range []int{3, 2} {
				// The change fails when a leaving node is killed.
				if _, err := system.Scale(t.Context(), tier, hosts); err != nil {
					t.Logf("%s to %d: %v", tier, hosts, err)
				}
			}
		}
	}
	close(stop)
	<-killed
	eventually(t, "all nodes serve", func() bool { return serving(system) })
	scale(t, system, "cache", 3)
	scale(t, system, "blob", 3)
	eventually(t, "web-1 uses all hosts", func() bool {
		w := configOf(t, status(t, system, "web-1").Address).Wiring
		return len(w.Active(sut.Cache)) == 3 && len(w.Active(sut.Blob)) == 3 && len(w.Active(sut.DB)) == 3 &&
			!strings.Contains(wired(w), "-cache-")
	})
	for _, node := range []string{"cache-1", "cache-3", "blob-2"} {
		w := configOf(t, status(t, system, node).Address).Wiring
		if role := status(t, system, node).Role; len(w.Active(role)) != 3 || w.Rebalancing {
			t.Errorf("%s has %s", node, wired(w))
		}
	}
}
