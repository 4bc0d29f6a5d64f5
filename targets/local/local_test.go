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

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/budget"
	"github.com/stagebench/stagebench/targets/proc"
)

// timeout bounds how long a test waits for an event.
const timeout = 30 * time.Second

// fixture has the options and the directory of the systems of one test.
type fixture struct {
	dir     string
	options Options
}

// newFixture returns the options of a system of this stage. The test's cleanup
// checks that no process, directory or cgroup of its systems is left.
func newFixture(t *testing.T, stage sut.Stage, knobs sut.Knobs) *fixture {
	t.Helper()
	dir := t.TempDir()
	s := &fixture{dir: dir, options: optionsIn(dir)}
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
		s.checkNothingLeft(t, prefix)
	})
	return s
}

// behave sets the behaviour of a node, "" = it works. The node reads it at its start
// and at each wiring.
func (s *fixture) behave(node, behaviour string) {
	// The node may read the file now. The rename prevents that it reads half of the text.
	path := filepath.Join(s.dir, behaviourPrefix+node)
	if err := errors.Join(os.WriteFile(path+".new", []byte(behaviour), 0o600), os.Rename(path+".new", path)); err != nil {
		panic(err)
	}
}

func (s *fixture) up(t *testing.T) *System {
	t.Helper()
	system, err := Up(t.Context(), s.options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The context of the test has ended.
		if err := system.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return system
}

func (s *fixture) checkNothingLeft(t *testing.T, prefix string) {
	t.Helper()
	if pids := s.processes(); len(pids) > 0 {
		t.Errorf("processes are left: %v", pids)
	}
	if left, err := os.ReadDir(s.options.workDir); err != nil && !errors.Is(err, os.ErrNotExist) || len(left) > 0 {
		t.Errorf("directories are left: %v, %v", left, err)
	}
	if found, err := filepath.Glob("/sys/fs/cgroup/*/" + prefix + "*"); err != nil || len(found) > 0 {
		t.Errorf("cgroups are left: %v, %v", found, err)
	}
}

// processes lists the live processes that inherited the test's trace file.
func (s *fixture) processes() []int {
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

// trace returns the lines that the nodes have written with testNode.trace.
func (s *fixture) trace(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, "trace"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

// eventually polls until a condition holds. It ends the test after timeout.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, timeout, 5*time.Millisecond, what, holds)
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

// configOf asks a node for its current configuration.
func configOf(t *testing.T, address string) sut.NodeConfig {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: timeout}
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
	for _, info := range ladder.Stages() {
		stage := info.Stage
		t.Run(string(stage), func(t *testing.T) {
			t.Parallel()
			s := newFixture(t, stage, nil)
			system := s.up(t)
			t.Logf("up after %v", system.BringUp())
			for _, n := range system.Status() {
				if n.State != targets.Serving || n.PID == 0 || n.Version != "test 1.0" || n.ReadyNS <= 0 ||
					n.Restarts != 0 || n.Cause != "" {
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
			checkOrder(t, s.options.Topology, s.trace(t))
			for _, n := range system.Status() {
				if n.State != targets.Stopped {
					t.Errorf("after Down %s is %s", n.Node, n.State)
				}
			}
		})
	}
}

// checkOrder checks that every node was started after the nodes that it uses were ready,
// and was terminated before them.
func checkOrder(t *testing.T, topology sut.Topology, trace []string) {
	t.Helper()
	when := func(event string) int {
		i := slices.IndexFunc(trace, func(line string) bool { return strings.HasPrefix(line, event) })
		if i < 0 {
			t.Fatalf("no line %q in\n%s", event, strings.Join(trace, "\n"))
		}
		return i
	}
	for _, n := range topology.Nodes {
		for _, used := range n.Uses {
			if when(n.Name+" started") < when(used+" ready") {
				t.Errorf("%s was started before %s was ready", n.Name, used)
			}
			if when(n.Name+" terminated") > when(used+" terminated") {
				t.Errorf("%s was terminated before %s, which uses it", used, n.Name)
			}
		}
	}
}

func TestNodesGetTheirConfiguration(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.LB, sut.Knobs{"web.hosts": "2", "lb.cpu": "11"})
	system := s.up(t)
	lb := configOf(t, status(t, system, "lb-1").Address)
	if lb.Role != sut.Balance || lb.Engine != sut.OwnBalance || lb.Procs != 2 || lb.Knobs["lb.cpu"] != "11" ||
		lb.Data != s.options.Data {
		t.Errorf("the configuration of lb-1 is %+v", lb)
	}
	webs := lb.Wiring.Uses[sut.Web]
	first := sut.Peer{Node: "web-1", Address: status(t, system, "web-1").Address, Weight: 1}
	if len(webs) != 2 || webs[0] != first || webs[1].Node != "web-2" {
		t.Errorf("lb-1 uses %+v", lb.Wiring.Uses)
	}
	web := configOf(t, webs[0].Address)
	if len(web.Wiring.Uses[sut.DB]) != 1 || len(web.Wiring.Uses[sut.Blob]) != 1 || web.Procs != 1 {
		t.Errorf("the configuration of web-1 is %+v", web)
	}
	other := configOf(t, webs[1].Address).IDHost
	if web.IDHost < 1 || other < 1 || web.IDHost == other || lb.IDHost != 0 {
		t.Errorf("the host numbers for ids are %d of web-1, %d of web-2, %d of lb-1", web.IDHost, other, lb.IDHost)
	}
	hosts := map[string]string{}
	for _, n := range system.Status() {
		address, _, _ := strings.Cut(n.Address, ":")
		if other, taken := hosts[address]; taken && other != n.Host {
			t.Errorf("hosts %s and %s have the same address %s", other, n.Host, address)
		}
		hosts[address] = n.Host
	}
}

func TestBudgetsAreAppliedAtReady(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.Single, nil)
	if !strings.HasPrefix(s.options.Budgets.Describe(), "cgroup v1") {
		t.Skipf("needs cgroup v1, here: %s", s.options.Budgets.Describe())
	}
	system := s.up(t)
	for _, line := range s.trace(t) {
		if strings.Contains(line, " started ") && !strings.Contains(line, "quota=-1 ") {
			t.Errorf("%s: a node was started while the budget was in force", line)
		}
	}
	for _, n := range system.Status() {
		if got := cpuQuota(n.PID); got != "4000" {
			t.Errorf("%s: the quota in force is %s us, want 4000", n.Node, got)
		}
	}
	if err := system.Kill("blob-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "blob-1 is restarted", func() bool { return status(t, system, "blob-1").Restarts == 1 })
	trace := s.trace(t)
	if start := trace[len(trace)-2]; !strings.HasPrefix(start, "blob-1 started quota=-1 port=true") {
		t.Errorf("the restart began with %q, want no quota", start)
	}
	if got := cpuQuota(status(t, system, "web-1").PID); got != "4000" {
		t.Errorf("after the restart the quota in force is %s us, want 4000", got)
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
	s := newFixture(t, sut.Single, nil)
	s.options.Budgets = nil
	s.behave("db-1", "forks")
	system := s.up(t)
	if err := system.Kill("host-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all nodes serve again", func() bool {
		return serving(system) && status(t, system, "web-1").Restarts == 1
	})
	usage, err := system.Usage()
	if err != nil || usage.Hosts[0].Isolated || usage.Nodes[0].RSSBytes <= 0 {
		t.Errorf("usage %+v, %v", usage, err)
	}
}

func serving(system *System) bool {
	return !slices.ContainsFunc(system.Status(), func(n targets.NodeStatus) bool { return n.State != targets.Serving })
}

func TestTwoSystemsAtOnce(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.DBSplit, nil)
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
			t.Errorf("the other system was affected: %+v", n)
		}
	}
	configOf(t, status(t, second, "web-1").Address)
}

func TestDownIsBounded(t *testing.T) {
	t.Parallel()
	for name, bound := range map[string]struct {
		drain  time.Duration
		cancel bool
	}{"by the drain timeout": {drain: 50 * time.Millisecond}, "by its context": {drain: timeout, cancel: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFixture(t, sut.Single, nil)
			s.behave("web-1", "ignores SIGTERM")
			s.options.drainTimeout = bound.drain
			system := s.up(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if bound.cancel {
				cancel()
			}
			var callers sync.WaitGroup
			for range 3 { // concurrent calls of Down all return after the last process has ended
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
			if !hasEvent(system, "web-1", "stopped: killed by SIGKILL") {
				t.Errorf("events %+v", system.Events())
			}
			if err := system.Kill("web-1"); err == nil {
				t.Error("Kill succeeded after Down")
			}
		})
	}
}

// TestAKilledHarnessLeavesNoProcess kills the harness with SIGKILL. Its nodes end when
// their standard input is closed.
func TestAKilledHarnessLeavesNoProcess(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.Single, nil)
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
		t.Errorf("the harness printed %q, %v", first, err)
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
	// The next start removes the groups and directories of the killed one.
	Sweep(s.options)
	budgets := budget.Detect(budget.Options{Prefix: "stagebench-test-harness"})
	if err := budgets.Close(); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/stagebench-test-harness-%d-*", cmd.Process.Pid))
	if err != nil || len(left) > 0 {
		t.Errorf("cgroups are left: %v, %v", left, err)
	}
	if err := s.up(t).Down(t.Context()); err != nil {
		t.Error(err)
	}
}
