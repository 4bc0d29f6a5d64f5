package local

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/proc"
)

// said reports whether an event of the node begins with text.
func hasEvent(system *System, node, text string) bool {
	return slices.ContainsFunc(system.Events(), func(e targets.Event) bool {
		return e.Node == node && strings.HasPrefix(e.Text, text)
	})
}

func TestAKilledNodeComesBackOnItsPort(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.LB, nil)
	s.behave("web-2", "forks")
	system := s.up(t)
	before := status(t, system, "web-2")
	server, idHost := childOf(t, s, before.PID), configOf(t, before.Address).IDHost
	if err := system.Kill("web-2"); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{before.PID, server} {
		if stat, err := proc.ReadStat("/", pid); err == nil && stat.State != 'Z' {
			t.Errorf("process %d is still alive after Kill", pid)
		}
	}
	eventually(t, "web-2 serves again", func() bool { return status(t, system, "web-2").Restarts == 1 })
	after := status(t, system, "web-2")
	if after.Address != before.Address || after.PID == before.PID || after.Cause != "killed by SIGKILL on request" {
		t.Errorf("after %+v, before %+v", after, before)
	}
	if next := configOf(t, after.Address).IDHost; next == idHost || next == 0 {
		t.Errorf("its host number for ids is %d, and was %d before the restart", next, idHost)
	}
	for _, text := range []string{
		"killed on request", "died: killed by SIGKILL on request", "serving on " + before.Address,
	} {
		if !hasEvent(system, "web-2", text) {
			t.Errorf("no event %q in %+v", text, system.Events())
		}
	}
	for _, node := range []string{"web-1", "db-1", "lb-1"} {
		if n := status(t, system, node); n.Restarts != 0 || n.State != targets.Serving {
			t.Errorf("another node was affected: %+v", n)
		}
	}
}

// A node that is killed for some time does not restart before that.
func TestANodeIsKeptDown(t *testing.T) {
	t.Parallel()
	const down = 1500 * time.Millisecond // longer than the usual time until a restart
	system := newFixture(t, sut.LB, nil).up(t)
	if err := system.KillFor("web-2", down); err != nil {
		t.Fatal(err)
	}
	eventually(t, "web-2 serves again", func() bool { return status(t, system, "web-2").Restarts == 1 })
	var killed int64
	for _, e := range system.Events() {
		switch {
		case e.Node != "web-2":
		case e.Text == "killed on request":
			killed = e.UnixNS
		case killed > 0 && strings.HasPrefix(e.Text, "serving on ") && time.Duration(e.UnixNS-killed) < down:
			t.Errorf("it served again after %v, want %v at the earliest", time.Duration(e.UnixNS-killed), down)
		}
	}
}

// childOf returns the process that a node with the behaviour "forks" has started.
func childOf(t *testing.T, s *fixture, parent int) int {
	t.Helper()
	for _, pid := range s.processes() {
		if stat, err := proc.ReadStat("/", pid); err == nil && stat.Parent == parent {
			return pid
		}
	}
	t.Fatalf("process %d has no child", parent)
	return 0
}

func TestAKilledHostComesBackInOrder(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.Single, nil)
	system := s.up(t)
	addresses := map[string]string{}
	for _, n := range system.Status() {
		addresses[n.Node] = n.Address
	}
	begin := len(s.trace(t))
	if err := system.Kill("host-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all nodes are restarted", func() bool {
		return !slices.ContainsFunc(system.Status(), func(n targets.NodeStatus) bool { return n.Restarts != 1 })
	})
	trace := s.trace(t)[begin:]
	at := func(what string) int {
		return slices.IndexFunc(trace, func(line string) bool { return strings.HasPrefix(line, what) })
	}
	for _, used := range []string{"db-1", "blob-1"} {
		if at("web-1 started") < at(used+" ready") {
			t.Errorf("web-1 was restarted before %s was ready:\n%s", used, strings.Join(trace, "\n"))
		}
	}
	for _, n := range system.Status() {
		if n.Address != addresses[n.Node] {
			t.Errorf("the address of %s changed from %s to %s", n.Node, addresses[n.Node], n.Address)
		}
	}
}

// TestKillPrefersHostOverNode checks that Kill takes a name as the name of a host
// first. Host db-1 runs the nodes db-1 and blob-1.
func TestKillPrefersHostOverNode(t *testing.T) {
	t.Parallel()
	system := newFixture(t, sut.DBSplit, nil).up(t)
	if err := system.Kill("db-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both nodes of the host are restarted", func() bool {
		return status(t, system, "db-1").Restarts == 1 && status(t, system, "blob-1").Restarts == 1
	})
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.LB, nil)
	s.behave("web-1", "forks")
	system := s.up(t)
	pid := status(t, system, "web-1").PID
	both := []int{pid, childOf(t, s, pid)}
	stopped := func(want bool) func() bool {
		return func() bool {
			for _, pid := range both {
				if stat, err := proc.ReadStat("/", pid); err != nil || (stat.State == 'T') != want {
					return false
				}
			}
			return true
		}
	}
	if err := system.Resume("web-1"); err == nil || !strings.Contains(err.Error(), "resume web-1: it is serving") {
		t.Errorf("resume of a node that is not paused: %v", err)
	}
	if err := system.Pause("web-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all processes of web-1 are stopped", stopped(true))
	if got := status(t, system, "web-1").State; got != targets.Paused {
		t.Errorf("state %s", got)
	}
	if err := system.Pause("web-1"); err == nil {
		t.Error("a paused node was paused again")
	}
	if err := system.Resume("web-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all processes of web-1 run", stopped(false))
	configOf(t, status(t, system, "web-1").Address)
	// Kill and Down also work on paused nodes.
	if err := system.Pause("web-1"); err != nil {
		t.Fatal(err)
	}
	if err := system.Kill("web-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "web-1 is restarted", func() bool { return status(t, system, "web-1").Restarts == 1 })
	if err := system.Pause("db-1"); err != nil {
		t.Fatal(err)
	}
	if err := system.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.trace(t), "db-1 terminated") {
		t.Error("the paused node did not drain")
	}
}

// TestABudgetOutlivesAFailedRestart checks that after a failed restart the CPU
// budget is in force again for the other nodes of the host.
func TestABudgetOutlivesAFailedRestart(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.Single, nil)
	s.behave("web-1", "dies at its restart")
	system := s.up(t)
	if err := system.Kill("web-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "web-1 is dead, and the budget of its host is in force", func() bool {
		system.mu.Lock()
		defer system.mu.Unlock()
		web := system.nodes[slices.IndexFunc(system.nodes, func(n *node) bool { return n.Name == "web-1" })]
		return web.failures > 1 && web.state == targets.Dead && !web.host.lifted
	})
}

// TestADeadNodeOfAPausedHost checks that no node starts on a paused host, also none
// that was dead before the pause. After Resume or Kill of the host it starts.
func TestADeadNodeOfAPausedHost(t *testing.T) {
	t.Parallel()
	for name, release := range map[string]func(*System, string) error{"resume": (*System).Resume, "kill": (*System).Kill} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFixture(t, sut.Single, nil)
			s.options.restartDelay = time.Second
			system := s.up(t)
			if err := system.Kill("web-1"); err != nil {
				t.Fatal(err)
			}
			if err := system.Pause("host-1"); err != nil {
				t.Fatal(err)
			}
			system.mu.Lock()
			for _, n := range system.nodes {
				if !n.frozen {
					t.Errorf("%s may start on a paused host", n.Name)
				}
			}
			system.mu.Unlock()
			if err := release(system, "host-1"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "web-1 serves again", func() bool {
				n := status(t, system, "web-1")
				return n.Restarts > 0 && n.State == targets.Serving
			})
		})
	}
}

func TestUnknownNames(t *testing.T) {
	t.Parallel()
	system := newFixture(t, sut.Single, nil).up(t)
	for _, act := range []func(string) error{system.Kill, system.Pause, system.Resume} {
		err := act("web-9")
		if err == nil || err.Error() != "there is no host or node \"web-9\"\nwant one of blob-1, db-1, host-1, web-1" {
			t.Errorf("error %v", err)
		}
	}
}

func TestACrashIsExplainedAndRepaired(t *testing.T) {
	t.Parallel()
	system := newFixture(t, sut.DBSplit, nil).up(t)
	address := status(t, system, "web-1").Address
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: timeout}
	if response, err := client.Post("http://"+address+"/exit", "", nil); err == nil {
		response.Body.Close()
		t.Error("the node answered and did not crash")
	}
	eventually(t, "web-1 is restarted", func() bool { return status(t, system, "web-1").Restarts == 1 })
	if n := status(t, system, "web-1"); n.Cause != "exit status 5: giving up: no luck" || n.Address != address {
		t.Errorf("status %+v", n)
	}
	if !hasEvent(system, "web-1", "died: exit status 5: giving up: no luck") {
		t.Errorf("events %+v", system.Events())
	}
}

func TestACrashLoopBacksOffAndIsReported(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.LB, nil)
	s.behave("lb-1", "crashes")
	system := s.up(t)
	eventually(t, "the loop is reported", func() bool {
		return hasEvent(system, "lb-1", "crash loop: it died 4 times in a row, the next start is in 160ms")
	})
	if n := status(t, system, "lb-1"); !strings.HasPrefix(n.Cause, "exit status 2: panic: out of luck") {
		t.Errorf("cause %q", n.Cause)
	}
	if n := status(t, system, "web-1"); n.State != targets.Serving {
		t.Errorf("web-1 is %s", n.State)
	}
}

func TestNeverRestart(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.DBSplit, nil)
	s.options.neverRestart = true
	system := s.up(t)
	if err := system.Kill("web-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "web-1 is dead", func() bool { return hasEvent(system, "web-1", "died: ") })
	if err := system.Kill("web-1"); err == nil || err.Error() != "kill web-1: it is dead" {
		t.Errorf("kill of a dead node: %v", err)
	}
}

func TestDeathLine(t *testing.T) {
	t.Parallel()
	for want, tail := range map[string][]string{
		"":                      nil,
		"plain":                 {"first", "plain"},
		"panic: boom":           {"panic: boom", "", "goroutine 1 [running]:", "main.main()"},
		"fatal error: deadlock": {"x", "fatal error: deadlock", "y"},
		"stopping: broken":      {`{"msg":"stopping","err":"broken"}`},
		"stopping: bad":         {`{"msg":"stopping","error":"bad"}`},
		"only a message":        {`{"msg":"only a message"}`},
		`{"a":1}`:               {`{"a":1}`},
	} {
		if got := deathLine(tail); got != want {
			t.Errorf("%q gave %q, want %q", tail, got, want)
		}
	}
}

// A frozen system uses no CPU. After the thaw, all nodes serve and none was restarted.
func TestFreeze(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.LB, nil)
	system := s.up(t)
	thaw, err := system.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range system.Status() {
		eventually(t, n.Node+" is stopped", func() bool {
			stat, err := proc.ReadStat("/", n.PID)
			return err == nil && stat.State == 'T'
		})
	}
	if err := thaw(); err != nil {
		t.Fatal(err)
	}
	for _, n := range system.Status() {
		configOf(t, n.Address) // it answers
		if n.Restarts != 0 || n.State != targets.Serving {
			t.Errorf("%+v", n)
		}
	}
	if err := system.Pause("web-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := system.Freeze(t.Context()); err == nil || !strings.Contains(err.Error(), "web-1 is paused") {
		t.Errorf("with a paused host: %v", err)
	}
}
