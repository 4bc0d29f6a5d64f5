package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/budget"
	"github.com/stagebench/stagebench/targets/proc"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// stand is what a test brings systems up with.
type stand struct {
	dir     string
	options Options
}

// newStand prepares a test. When the test is over, no process, directory or
// cgroup of its systems may be left.
func newStand(t *testing.T, stage sut.Stage, knobs sut.Knobs) *stand {
	t.Helper()
	dir := t.TempDir()
	s := &stand{dir: dir, options: optionsIn(dir)}
	topology, err := ladder.Build(stage, knobs, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	s.options.Topology = topology
	prefix := "stagebench-test-" + strings.NewReplacer("/", "_", "-", "_", " ", "_").Replace(t.Name())
	budgets := budget.Detect(budget.Options{Prefix: prefix})
	s.options.Budgets = budgets
	t.Cleanup(func() {
		if err := budgets.Close(); err != nil {
			t.Error(err)
		}
		s.nothingIsLeft(t, prefix)
	})
	return s
}

// behave makes a node misbehave from its next start, or its next wiring, on.
func (s *stand) behave(node, behaviour string) {
	// The node may be reading it: it sees the old behaviour or the new one, never half of it.
	path := filepath.Join(s.dir, behaviourPrefix+node)
	if err := errors.Join(os.WriteFile(path+".new", []byte(behaviour), 0o600), os.Rename(path+".new", path)); err != nil {
		panic(err)
	}
}

func (s *stand) up(t *testing.T) *System {
	t.Helper()
	system, err := Up(t.Context(), s.options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's own context is over by now.
		if err := system.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return system
}

func (s *stand) nothingIsLeft(t *testing.T, prefix string) {
	t.Helper()
	if pids := s.processes(); len(pids) > 0 {
		t.Errorf("processes are left: %v", pids)
	}
	if left, err := os.ReadDir(s.options.WorkDir); err != nil && !errors.Is(err, os.ErrNotExist) || len(left) > 0 {
		t.Errorf("directories are left: %v, %v", left, err)
	}
	if found, err := filepath.Glob("/sys/fs/cgroup/*/" + prefix + "*"); err != nil || len(found) > 0 {
		t.Errorf("cgroups are left: %v, %v", found, err)
	}
}

// processes lists the live processes that inherited the test's trace file.
func (s *stand) processes() []int {
	found, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		panic(err)
	}
	var pids []int
	for _, path := range found {
		text, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(text), traceEnv+"="+filepath.Join(s.dir, "trace")) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if stat, err := proc.ReadStat("/", pid); err == nil && stat.State != 'Z' {
			pids = append(pids, pid)
		}
	}
	return pids
}

// trace returns what the nodes wrote, a line each.
func (s *stand) trace(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "trace"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func status(t *testing.T, system *System, node string) targets.NodeStatus {
	t.Helper()
	all := system.Status()
	i := slices.IndexFunc(all, func(n targets.NodeStatus) bool { return n.Node == node })
	if i < 0 {
		t.Fatalf("no node %s in %+v", node, all)
	}
	return all[i]
}

// configOf asks a node what it was told.
func configOf(t *testing.T, address string) sut.NodeConfig {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	response, err := client.Get("http://" + address + "/config")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var config sut.NodeConfig
	if err := json.NewDecoder(response.Body).Decode(&config); err != nil {
		t.Fatal(err)
	}
	return config
}

func TestEveryStageComesUpAndGoesDown(t *testing.T) {
	t.Parallel()
	for _, rung := range ladder.Rungs() {
		stage := rung.Stage
		t.Run(string(stage), func(t *testing.T) {
			t.Parallel()
			s := newStand(t, stage, nil)
			system := s.up(t)
			t.Logf("up after %v", system.BringUp())
			for _, n := range system.Status() {
				if n.State != targets.Serving || n.PID == 0 || n.Version != "test 1.0" || n.ReadyNS <= 0 || n.Restarts != 0 || n.Cause != "" {
					t.Errorf("status %+v", n)
				}
				if _, err := os.Stat(filepath.Join(system.LogDir(), n.Node+".log")); err != nil {
					t.Error(err)
				}
				if n.Admin != n.Address {
					t.Errorf("admin address %s", n.Admin)
				}
			}
			frontend := status(t, system, system.opts.Topology.Frontends[0])
			if got := system.Endpoints(); len(got) != 1 || got[0] != "http://"+frontend.Address {
				t.Errorf("endpoints %v, the frontend is at %s", got, frontend.Address)
			}
			if err := system.Down(t.Context()); err != nil {
				t.Fatal(err)
			}
			inOrder(t, s.options.Topology, s.trace(t))
			for _, n := range system.Status() {
				if n.State != targets.Stopped {
					t.Errorf("after the end %s is %s", n.Node, n.State)
				}
			}
		})
	}
}

// inOrder checks that every node was born after what it uses was ready, and
// terminated before it.
func inOrder(t *testing.T, topology sut.Topology, trace []string) {
	t.Helper()
	when := func(what string) int {
		i := slices.IndexFunc(trace, func(line string) bool { return strings.HasPrefix(line, what) })
		if i < 0 {
			t.Fatalf("never %q in\n%s", what, strings.Join(trace, "\n"))
		}
		return i
	}
	for _, n := range topology.Nodes {
		for _, used := range n.Uses {
			if when(n.Name+" born") < when(used+" ready") {
				t.Errorf("%s was born before %s was ready", n.Name, used)
			}
			if when(n.Name+" terminated") > when(used+" terminated") {
				t.Errorf("%s was terminated before %s, which uses it", used, n.Name)
			}
		}
	}
}

func TestNodesAreTold(t *testing.T) {
	t.Parallel()
	s := newStand(t, sut.LB, sut.Knobs{"web.hosts": "2", "lb.cpu": "11"})
	system := s.up(t)
	lb := configOf(t, status(t, system, "lb-1").Address)
	if lb.Role != sut.Balance || lb.Engine != sut.OwnBalance || lb.Procs != 2 || lb.Knobs["lb.cpu"] != "11" || lb.Data != s.options.Data {
		t.Errorf("lb-1 was told %+v", lb)
	}
	webs := lb.Wiring.Uses[sut.Web]
	if len(webs) != 2 || webs[0] != (sut.Peer{Node: "web-1", Address: status(t, system, "web-1").Address, Weight: 1}) || webs[1].Node != "web-2" {
		t.Errorf("lb-1 uses %+v", lb.Wiring.Uses)
	}
	web := configOf(t, webs[0].Address)
	if len(web.Wiring.Uses[sut.DB]) != 1 || len(web.Wiring.Uses[sut.Blob]) != 1 || web.Procs != 1 {
		t.Errorf("web-1 was told %+v", web)
	}
	if other := configOf(t, webs[1].Address).IDHost; web.IDHost < 1 || other < 1 || web.IDHost == other || lb.IDHost != 0 {
		t.Errorf("web-1 makes ids as host %d, web-2 as %d, lb-1 as %d", web.IDHost, other, lb.IDHost)
	}
	hosts := map[string]string{}
	for _, n := range system.Status() {
		address, _, _ := strings.Cut(n.Address, ":")
		if other, taken := hosts[address]; taken && other != n.Host {
			t.Errorf("hosts %s and %s share %s", other, n.Host, address)
		}
		hosts[address] = n.Host
	}
}

func TestBudgetsAreAppliedAtReady(t *testing.T) {
	t.Parallel()
	s := newStand(t, sut.Single, nil)
	if !strings.HasPrefix(s.options.Budgets.Describe(), "cgroup v1") {
		t.Skipf("reads cgroup v1, here: %s", s.options.Budgets.Describe())
	}
	system := s.up(t)
	for _, line := range s.trace(t) {
		if strings.Contains(line, " born ") && !strings.Contains(line, "quota=-1 ") {
			t.Errorf("%s: a node was born into a budget in force", line)
		}
	}
	for _, n := range system.Status() {
		if got := cpuQuota(n.PID); got != "1000" {
			t.Errorf("%s: the quota in force is %s us, want 1000", n.Node, got)
		}
	}
	if err := system.Kill("blob-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "blob-1 is restarted", func() bool { return status(t, system, "blob-1").Restarts == 1 })
	born := s.trace(t)
	if last := born[len(born)-2]; !strings.HasPrefix(last, "blob-1 born quota=-1 port=true") {
		t.Errorf("the restart began with %q, want it without a quota", last)
	}
	if got := cpuQuota(status(t, system, "web-1").PID); got != "1000" {
		t.Errorf("after the restart the quota in force is %s us, want 1000", got)
	}
	usage, err := system.Usage()
	if err != nil || len(usage.Hosts) != 1 || len(usage.Nodes) != 3 {
		t.Fatalf("usage %+v, %v", usage, err)
	}
	if host := usage.Hosts[0]; !host.Isolated || host.CPU != 0.1 || host.CPUSeconds <= 0 {
		t.Errorf("host usage %+v", host)
	}
	for _, n := range usage.Nodes {
		if n.CPUSeconds <= 0 || n.RSSBytes <= 0 || n.Host != "host-1" {
			t.Errorf("node usage %+v", n)
		}
	}
}

func TestWithoutBudgets(t *testing.T) {
	t.Parallel()
	s := newStand(t, sut.Single, nil)
	s.options.Budgets = nil
	s.behave("db-1", "forks")
	system := s.up(t)
	if err := system.Kill("host-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all serve again", func() bool { return serving(system) && status(t, system, "web-1").Restarts == 1 })
	usage, err := system.Usage()
	if err != nil || usage.Hosts[0].Isolated || usage.Nodes[0].RSSBytes <= 0 {
		t.Errorf("usage %+v, %v", usage, err)
	}
}

func serving(system *System) bool {
	return !slices.ContainsFunc(system.Status(), func(n targets.NodeStatus) bool { return n.State != targets.Serving })
}

func TestFailedBringUps(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(s *stand)
		want    []string
	}{
		"dies before ready":       {func(s *stand) { s.behave("web-1", "dies early") }, []string{"bring up lb: web-1: exit status 3 before it was ready\n", "disk is full"}},
		"never ready":             {func(s *stand) { s.behave("lb-1", "never ready"); s.options.ReadyTimeout = 15 * time.Second }, []string{"lb-1: not ready after 15s\n"}},
		"talks nonsense":          {func(s *stand) { s.behave("blob-1", "talks nonsense") }, []string{`blob-1: its ready line "hello"`}},
		"the template's database": {func(s *stand) { s.behave("template-db", "dies early") }, []string{"build template small-1-sqlite-v1: template-db: exit status 3"}},
		"the template's seed":     {func(s *stand) { s.behave("template-seed", "fails") }, []string{"template-seed: exit status 4 before it was ready"}},
		"missing binary":          {func(s *stand) { s.options.Binary = "/does/not/exist" }, []string{"no such file or directory"}},
		"a budget too small":      {func(s *stand) { s.options.Topology.Hosts[0].CPU = 0.001 }, []string{"host lb-1: a budget of 0.001 cores"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, sut.LB, nil)
			c.prepare(s)
			system, err := Up(t.Context(), s.options)
			if err == nil {
				system.Down(t.Context())
				t.Fatal("it came up")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q, want %q in it", err, want)
				}
			}
		})
	}
}

// TestInterruptedBringUps ends Up at random moments; newStand's cleanup finds
// what is left.
func TestInterruptedBringUps(t *testing.T) {
	t.Parallel()
	warm := newStand(t, sut.LB, nil)
	system := warm.up(t)
	whole := system.BringUp()
	if err := system.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	const moments = 12
	for i := range moments {
		for _, cold := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d of %d, cold %v", i, moments, cold), func(t *testing.T) {
				s := newStand(t, sut.LB, nil)
				if !cold {
					s.options.TemplateDir = warm.options.TemplateDir
				}
				ctx, cancel := context.WithTimeout(t.Context(), whole*time.Duration(i)/moments)
				defer cancel()
				system, err := Up(ctx, s.options)
				if err == nil { // it was faster this time
					err = system.Down(t.Context())
				} else if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error %v", err)
				}
				if left := s.processes(); len(left) > 0 {
					t.Errorf("processes are left: %v, %v", left, err)
				}
			})
		}
	}
}

func TestTwoSystemsAtOnce(t *testing.T) {
	t.Parallel()
	s := newStand(t, sut.DBSplit, nil)
	first, second := s.up(t), s.up(t)
	seen := map[string]bool{}
	for _, system := range []*System{first, second} {
		for _, n := range system.Status() {
			if seen[n.Address] {
				t.Errorf("%s is used twice", n.Address)
			}
			seen[n.Address] = true
		}
	}
	if err := first.Kill("db-1"); err != nil {
		t.Fatal(err)
	}
	if err := first.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range second.Status() {
		if n.State != targets.Serving || n.Restarts != 0 {
			t.Errorf("the other system suffered: %+v", n)
		}
	}
	configOf(t, status(t, second, "web-1").Address)
}

func TestDownIsBounded(t *testing.T) {
	t.Parallel()
	for name, bound := range map[string]struct {
		drain  time.Duration
		cancel bool
	}{"by the drain timeout": {drain: 50 * time.Millisecond}, "by its context": {drain: patience, cancel: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, sut.Single, nil)
			s.behave("web-1", "ignores SIGTERM")
			s.options.DrainTimeout = bound.drain
			system := s.up(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if bound.cancel {
				cancel()
			}
			var callers sync.WaitGroup
			for range 3 { // Down may be called by several, and each returns when all is gone
				callers.Go(func() {
					if err := system.Down(ctx); err != nil {
						t.Error(err)
					}
					if left := s.processes(); len(left) > 0 {
						t.Errorf("processes are left: %v", left)
					}
				})
			}
			callers.Wait()
			events := system.Events()
			if !slices.ContainsFunc(events, func(e targets.Event) bool { return e.Node == "web-1" && e.Text == "stopped: killed by SIGKILL" }) {
				t.Errorf("events %+v", events)
			}
			if err := system.Kill("web-1"); err == nil {
				t.Error("a system that is down was acted on")
			}
		})
	}
}

// TestAKilledHarnessLeavesNoProcess kills the harness as nothing can be caught
// or handled: its children find out by their standard input.
func TestAKilledHarnessLeavesNoProcess(t *testing.T) {
	t.Parallel()
	s := newStand(t, sut.Single, nil)
	cmd := exec.Command(s.options.Binary)
	cmd.Env = append(os.Environ(), harnessEnv+"="+s.dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 3)
	if _, err := stdout.Read(first); err != nil || string(first) != "up\n" {
		t.Errorf("the harness says %q, %v", first, err)
	}
	if left := s.processes(); len(left) != 5 { // lb, two webs, db, blob
		t.Errorf("%d nodes run, want 5", len(left))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	_ = cmd.Wait()
	eventually(t, "all nodes are gone", func() bool { return len(s.processes()) == 0 })
	t.Logf("all nodes were gone %v after the harness was killed", time.Since(killed))
	// The next one cleans up what cannot end by itself: groups and directories.
	budgets := budget.Detect(budget.Options{Prefix: "stagebench-test-harness"})
	if err := budgets.Close(); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/stagebench-test-harness-%d-*", cmd.Process.Pid)); err != nil || len(left) > 0 {
		t.Errorf("cgroups are left: %v, %v", left, err)
	}
	if err := s.up(t).Down(t.Context()); err != nil {
		t.Error(err)
	}
}
