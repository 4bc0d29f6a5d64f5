package local

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
)

// probing has databases probed often. In other tests they are not: a slow machine
// would make one that is late be told of, and that would be among what is told.
const probing = "0.05"

// allTiers is a system with one host of each tier.
func allTiers(t *testing.T, knobs sut.Knobs) *stand {
	t.Helper()
	all := sut.Knobs{"web.hosts": "1", "blob.hosts": "1", "db.replicas": "1", "db.probe_interval": "60"}
	for name, value := range knobs {
		all[name] = value
	}
	return newStand(t, sut.Caches, all)
}

// tellings lists what was told from a line of the trace on, in order, as "NODE WIRING",
// without what several nodes are told at the same time in another order.
func (s *stand) tellings(t *testing.T, from int) (all []string) {
	t.Helper()
	for _, line := range s.trace(t)[from:] {
		node, text, _ := strings.Cut(line, " ")
		if strings.HasPrefix(text, "told ") {
			_, wiring, _ := strings.Cut(text, " of ")
			all = append(all, node+" "+wiring)
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

// sorted sorts groups of tellings that happen at the same time.
func sorted(all []string, sizes ...int) []string {
	all = slices.Clone(all)
	from := 0
	for _, size := range sizes {
		slices.Sort(all[min(from, len(all)):min(from+size, len(all))])
		from += size
	}
	return all
}

// The members of a tier that share keys are told that these move, then the callers are
// told, then the members hand over, then the callers forget those that leave.
func TestOrderOfAChangeOfMembers(t *testing.T) {
	for tier, rest := range map[string][2]string{"cache": {"", " db:db-1+db-2 blob:blob-1"}, "blob": {"cache:cache-1 db:db-1+db-2 ", ""}} {
		t.Run(tier, func(t *testing.T) {
			t.Parallel()
			s := allTiers(t, nil)
			system := s.up(t)
			if got := s.told(t, tier+"-1"); !slices.Equal(got, []string{tier + ":" + tier + "-1"}) {
				t.Errorf("at the start the only member was told of %v", got)
			}
			from := len(s.trace(t))
			list := func(text string) string { return strings.ReplaceAll(text, "#", tier+"-") }
			web := func(text string) string { return "web-1 " + rest[0] + list(tier+":"+text) + rest[1] }
			member := func(i int, text, moving string) string {
				return fmt.Sprintf("%s-%d ", tier, i) + list(tier+":"+text) + moving
			}
			scaled := scale(t, system, tier, 3)
			// The fake counts documents as keys: each of the three hands over once.
			if scaled.Moved == nil || *scaled.Moved != 3 || scaled.Hosts != 3 || scaled.Tier != tier || scaled.TookNS <= 0 {
				t.Errorf("%+v", scaled)
			}
			if got, want := sorted(s.tellings(t, from), 3, 1, 3), []string{
				member(1, "#1+#2+#3", " moving"), member(2, "#1+#2+#3", " moving"), member(3, "#1+#2+#3", " moving"),
				web("#1+#2+#3"),
				member(1, "#1+#2+#3", ""), member(2, "#1+#2+#3", ""), member(3, "#1+#2+#3", ""),
			}; !slices.Equal(got, want) {
				t.Errorf("told\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			from = len(s.trace(t))
			scale(t, system, tier, 2)
			if got, want := sorted(s.tellings(t, from), 3, 1, 3, 1), []string{
				member(1, "#1+#2-#3", " moving"), member(2, "#1+#2-#3", " moving"), member(3, "#1+#2-#3", " moving"),
				web("#1+#2-#3"),
				member(1, "#1+#2-#3", ""), member(2, "#1+#2-#3", ""), member(3, "#1+#2-#3", ""),
				web("#1+#2"),
			}; !slices.Equal(got, want) {
				t.Errorf("told\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if got := s.trace(t)[len(s.trace(t))-1]; got != tier+"-3 terminated" {
				t.Errorf("last: %s", got)
			}
			// The epochs of what each node was told only grow.
			last := map[string]int{}
			for _, line := range s.trace(t) {
				var node string
				var epoch int
				if _, err := fmt.Sscanf(line, "%s told %d of", &node, &epoch); err == nil {
					if epoch < last[node] {
						t.Errorf("%s was told %d after %d", node, epoch, last[node])
					}
					last[node] = epoch
				}
			}
			// One that is restarted has the members of now with its configuration.
			if err := system.Kill(tier + "-2"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is restarted", func() bool { return status(t, system, tier+"-2").Restarts == 1 })
			if w := configOf(t, status(t, system, tier+"-2").Address).Wiring; wired(w) != list(tier+":#1+#2") || w.Epoch == 0 {
				t.Errorf("restarted with %+v", w)
			}
		})
	}
}

// A new member is born with all members, itself not, as it has no address yet, and with
// the notice that keys move.
func TestANewMemberIsBornMoving(t *testing.T) {
	t.Parallel()
	s := allTiers(t, nil)
	s.behave("cache-2", "keeps its first wiring")
	system := s.up(t)
	scale(t, system, "cache", 2)
	if w := configOf(t, status(t, system, "cache-2").Address).Wiring; wired(w) != "cache:cache-1 moving" {
		t.Errorf("born with %+v", w)
	}
}

// What fails or is cancelled while keys move is taken back: everybody is told, in the same
// order, what was before.
func TestAChangeOfMembersIsTakenBack(t *testing.T) {
	for name, c := range map[string]struct {
		from, to        int
		node, behaviour string
		cancel          bool
		want            string
		member, web     []string // what cache-1 and web-1 are told
	}{
		"a caller refuses": {
			1, 3, "web-1", "refuses", false, "too many",
			[]string{"1+2+3 moving", "1-2-3 moving", "1-2-3"},
			[]string{"1+2+3", "1-2-3", "1"},
		},
		"a member is late": {
			1, 2, "cache-2", "never drains", false, "cache-2 has not handed over its keys: it did not finish in time",
			[]string{"1+2 moving", "1-2 moving", "1-2"},
			[]string{"1-2", "1"},
		},
		"one that leaves dies": {
			2, 1, "cache-2", "crashes when it hands over", false, "cache-2 has not handed over its keys: the node is dead",
			[]string{"1-2 moving", "1-2", "1+2 moving", "1+2"},
			[]string{"1-2", "1+2"},
		},
		"it is cancelled": {
			1, 3, "web-1", "hangs", true, "context canceled",
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
				eventually(t, "it is told", func() bool { return len(s.told(t, c.node)) == 1 })
				cancel()
			}
			if err := <-done; err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			told := s.toldOfCaches(t, from)
			if !slices.Equal(told["cache-1"], c.member) || !slices.Equal(told["web-1"], c.web) {
				t.Errorf("cache-1 was told %q, web-1 %q; want %q and %q", told["cache-1"], told["web-1"], c.member, c.web)
			}
			if system.Topology().Digest() != before || count(system, sut.Cache) != c.from {
				t.Errorf("the topology is not the one of before")
			}
			if left, err := filepath.Glob(filepath.Join(system.dir, "cache-*")); err != nil || len(left) != c.from {
				t.Errorf("directories %v, %v", left, err)
			}
			eventually(t, "all serve", func() bool { return serving(system) })
			s.behave(c.node, "")
			scale(t, system, "cache", 3)
		})
	}
}

// A blob host that could not hand back what it got is not stopped when a change fails: no
// other host may have that. All hosts stay, and the change can be asked for again.
func TestHostsThatHoldDataStay(t *testing.T) {
	t.Parallel()
	s := allTiers(t, nil)
	system := s.up(t)
	s.behave("blob-2", "never drains")
	if _, err := system.Scale(t.Context(), "blob", 2); err == nil || !strings.Contains(err.Error(), "and all hosts stay") {
		t.Errorf("error %v, want one that says that all hosts stay", err)
	}
	if status(t, system, "blob-2").State != targets.Serving || count(system, sut.Blob) != 2 {
		t.Error("blob-2 has left, or is no part of the topology")
	}
	s.behave("blob-2", "")
	scale(t, system, "blob", 1)
	scale(t, system, "blob", 2)
}

// toldOfCaches is what each node was told of cache hosts, by their numbers.
func (s *stand) toldOfCaches(t *testing.T, from int) map[string][]string {
	told := map[string][]string{}
	for _, line := range s.tellings(t, from) {
		node, text, _ := strings.Cut(line, " ")
		text = strings.TrimSuffix(strings.ReplaceAll(text, "cache-", ""), " db:db-1+db-2 blob:blob-1")
		told[node] = append(told[node], strings.TrimPrefix(text, "cache:"))
	}
	return told
}

// Who has to be told and cannot be is in the way of a change, and so is one that leaves and
// cannot hand over what it holds; one that stays and is dead is not.
func TestWhoIsInTheWay(t *testing.T) {
	t.Parallel()
	s := allTiers(t, sut.Knobs{"cache.hosts": "3"})
	s.options.Restart.Never = true
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
	if got := s.told(t, "cache-2"); got[len(got)-1] != "cache:cache-1+cache-2+cache-3+cache-4" {
		t.Errorf("cache-2 was told %v", got)
	}
}

// A replica that is added is used once it has caught up, and one that leaves is used no
// more before it is stopped; the primary does not leave.
func TestReplicasComeAndGo(t *testing.T) {
	t.Parallel()
	s := allTiers(t, sut.Knobs{"cache.read": "read_through", "db.probe_interval": probing})
	s.options.Restart.Delay = time.Second // longer than it takes to find the primary dead
	s.behave("db-3", "never catches up")
	system := s.up(t)
	uses := func() string { return wired(configOf(t, status(t, system, "web-1").Address).Wiring) }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := system.Scale(ctx, "replica", 2)
		done <- err
	}()
	eventually(t, "db-3 follows", func() bool {
		last, known := system.failover.Last("db-3")
		return known && last.Following == "db-1"
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || count(system, sut.DB) != 2 {
		t.Errorf("error %v, %v", err, system.Topology().Nodes)
	}
	s.behave("db-3", "")
	scale(t, system, "replica", 3)
	if got := uses(); got != "cache:cache-1 db:db-1+db-2+db-3+db-4 blob:blob-1" {
		t.Errorf("web-1 uses %s", got)
	}
	if got := status(t, system, "db-4"); got.ReplicationRole != targets.Replica || got.State != targets.Serving {
		t.Errorf("%+v", got)
	}
	from := len(s.trace(t))
	scale(t, system, "replica", 1)
	if got := uses(); got != "cache:cache-1 db:db-1+db-2 blob:blob-1" {
		t.Errorf("web-1 uses %s", got)
	}
	if got := s.tellings(t, from); !slices.Contains(got, "cache-1 cache:cache-1 db:db-1+db-2-db-3-db-4") {
		t.Errorf("a cache host that loads records was told %q", got)
	}
	if _, err := system.Scale(t.Context(), "replica", 0); err == nil || !strings.Contains(err.Error(), "at least one host must stay") {
		t.Errorf("no replicas at all: %v", err)
	}
	if err := system.Kill("primary"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "db-2 is the primary, and db-1 is read", func() bool { return uses() == "cache:cache-1 db:db-2+db-1 blob:blob-1" })
	scale(t, system, "replica", 2)
	eventually(t, "db-3 is read", func() bool { return uses() == "cache:cache-1 db:db-2+db-1+db-3 blob:blob-1" })
	if err := system.Kill("primary"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "db-2 is read", func() bool { return strings.Contains(uses(), "+db-2") })
	if primary := system.roles.Primary; primary == "db-3" {
		const removed = "db-3 would be removed, but it is the primary now"
		if _, err := system.Scale(t.Context(), "replica", 1); err == nil || !strings.Contains(err.Error(), removed) {
			t.Errorf("the primary would leave: %v", err)
		}
	}
}

// A change of replicas that cannot be taken back, because the primary has died meanwhile,
// stays, and the system works on with it.
func TestAChangeOfReplicasStays(t *testing.T) {
	t.Parallel()
	s := allTiers(t, sut.Knobs{"db.replicas": "2", "db.probe_failures": "100", "db.probe_interval": probing})
	s.options.Restart.Never, s.options.Silence = true, patience // there is no failover meanwhile
	system := s.up(t)
	s.behave("web-1", "waits")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := system.Scale(ctx, "replica", 1)
		done <- err
	}()
	eventually(t, "web-1 is told that db-3 leaves", func() bool {
		told := s.told(t, "web-1")
		return len(told) > 0 && strings.Contains(told[len(told)-1], "-db-3")
	})
	if err := system.Kill("primary"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its death is noticed", func() bool {
		err := system.failover.SetNodes(t.Context(), []string{"db-2"}) // refused, for one reason or the other
		return strings.Contains(err.Error(), "does not answer")
	})
	cancel()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "and the change stays: the primary db-1 does not answer") {
		t.Errorf("error %v", err)
	}
	s.behave("web-1", "")
	if count(system, sut.DB) != 2 || system.node("db-3") != nil {
		t.Errorf("the change did not stay: %+v", system.Status())
	}
	if _, err := system.Scale(t.Context(), "replica", 2); err == nil || !strings.Contains(err.Error(), "the primary db-1 is dead") {
		t.Errorf("without a primary: %v", err)
	}
	eventually(t, "db-2 is the primary", func() bool { return len(system.Failovers()) == 1 })
	scale(t, system, "web", 2)
}

// A failover in the middle of a change tells the callers something newer: both come into
// force.
func TestFailoverDuringAChange(t *testing.T) {
	t.Parallel()
	s := allTiers(t, sut.Knobs{"web.hosts": "2", "db.probe_interval": probing})
	s.options.Restart.Delay = time.Second // longer than it takes to find the primary dead
	system := s.up(t)
	s.behave("cache-1", "hangs") // as long as three members are listed
	done := make(chan error, 1)
	go func() {
		_, err := system.Scale(t.Context(), "cache", 3)
		done <- err
	}()
	eventually(t, "cache-1 is told", func() bool { return len(s.told(t, "cache-1")) == 2 })
	if err := system.Kill("primary"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "db-2 is the primary", func() bool {
		return wired(configOf(t, status(t, system, "web-1").Address).Wiring) == "cache:cache-1 db:db-2+db-1 blob:blob-1"
	})
	s.behave("cache-1", "")
	if err := system.Kill("cache-1"); err != nil { // which ends the telling; its next start has the wiring
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, web := range []string{"web-1", "web-2"} {
		if got := wired(configOf(t, status(t, system, web).Address).Wiring); got != "cache:cache-1+cache-2+cache-3 db:db-2+db-1 blob:blob-1" {
			t.Errorf("%s uses %s", web, got)
		}
	}
}

// A telling that is overtaken by a newer one is repeated with what holds now: its answer
// says that this is in force.
func TestAnOvertakenTellingIsRepeated(t *testing.T) {
	t.Parallel()
	s := newStand(t, sut.LB, sut.Knobs{"web.hosts": "2"})
	system := s.up(t)
	told := make(chan error, 1)
	send := func() { told <- system.sendWiring(t.Context(), system.node("lb-1"), drainBound) }
	s.behave("lb-1", "waits")
	go send()
	eventually(t, "lb-1 is told", func() bool { return len(s.told(t, "lb-1")) == 1 })
	system.change(func() {})
	s.behave("lb-1", "knows 3")
	if err := <-told; err != nil || len(s.told(t, "lb-1")) != 2 {
		t.Errorf("error %v, told of %v", err, s.told(t, "lb-1"))
	}
	s.behave("lb-1", "knows 4")
	go send()
	if err := <-told; err == nil || !strings.Contains(err.Error(), "409 Conflict") {
		t.Errorf("nobody has told it anything newer: %v", err)
	}
}

// Hosts of all tiers come and go while nodes are killed, again and again; in the end every
// node knows the hosts that there are.
func TestChangesSurviveKills(t *testing.T) {
	t.Parallel()
	s := allTiers(t, sut.Knobs{"cache.hosts": "2", "blob.hosts": "2", "db.replicas": "2", "db.probe_interval": probing})
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
					_ = system.Kill(name) // it may be dead by now
				}
			}
		}
	}()
	for range 3 {
		for _, tier := range []string{"cache", "blob"} {
			for _, hosts := range []int{3, 2} {
				// One that leaves dies now and then, which is an error.
				if _, err := system.Scale(t.Context(), tier, hosts); err != nil {
					t.Logf("%s to %d: %v", tier, hosts, err)
				}
			}
		}
	}
	close(stop)
	<-killed
	eventually(t, "all serve", func() bool { return serving(system) })
	scale(t, system, "cache", 3)
	scale(t, system, "blob", 3)
	eventually(t, "web-1 uses all there is", func() bool {
		w := configOf(t, status(t, system, "web-1").Address).Wiring
		return len(w.Active(sut.Cache)) == 3 && len(w.Active(sut.Blob)) == 3 && len(w.Active(sut.DB)) == 3 && !strings.Contains(wired(w), "-cache-")
	})
	for _, node := range []string{"cache-1", "cache-3", "blob-2"} {
		w := configOf(t, status(t, system, node).Address).Wiring
		if role := status(t, system, node).Role; len(w.Active(role)) != 3 || w.Moving {
			t.Errorf("%s has %s", node, wired(w))
		}
	}
}
