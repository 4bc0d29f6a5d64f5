package node_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node"
	"github.com/stagebench/stagebench/sut/store/replicatest"
)

// nodeVerb is the argument that makes the test binary run as a node. Tests can kill it.
const nodeVerb = "test-node"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == nodeVerb {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := node.Run(ctx, os.Stdin, os.Stdout, os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestReplication(t *testing.T) {
	for _, engine := range []sut.Engine{sut.SQLite, sut.Postgres} {
		t.Run(string(engine), func(t *testing.T) {
			t.Parallel()
			if err := node.Installed(engine); err != nil {
				t.Skipf("install the Debian package postgresql: %v", err)
			}
			replicatest.Run(t, &engineUnderTest{
				engine: engine, template: seeded(t, engine), free: map[string]netip.AddrPort{}, dirs: map[string]string{},
			})
		})
	}
}

// openDir returns a directory that other users can enter: PostgreSQL does not run as root.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "stagebench-node-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(node.Release(dir), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// seeded returns the directory of a stopped database with the small data set.
func seeded(t *testing.T, engine sut.Engine) string {
	t.Helper()
	dir := filepath.Join(openDir(t), "template")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	db := start(t, sut.NodeConfig{Node: "template", Role: sut.DB, Engine: engine, Dir: dir})
	uses := map[sut.Role][]sut.Peer{sut.DB: {db.peer("template")}}
	start(t, sut.NodeConfig{
		Node: "seed", Role: sut.Seed, Engine: engine, Dir: t.TempDir(), Wiring: sut.Wiring{Uses: uses},
	})
	db.drain()
	if err := db.end(t); err != nil {
		t.Fatal(err)
	}
	return dir
}

// engineUnderTest starts each node as a process.
type engineUnderTest struct {
	engine   sut.Engine
	template string
	free     map[string]netip.AddrPort // by test and node
	dirs     map[string]string         // by test and node
}

// Counts implements replicatest.Engine.
func (e *engineUnderTest) Counts() sut.DataCounts {
	counts, _ := sut.Data{Size: "small", Seed: 1}.Counts()
	return counts
}

// Start implements replicatest.Engine.
func (e *engineUnderTest) Start(t *testing.T, name string, knobs sut.Knobs, role sut.Replication) replicatest.Node {
	t.Helper()
	key := t.Name() + name
	if e.dirs[key] == "" {
		e.free[key] = porttest.Free(t)
		e.dirs[key] = filepath.Join(openDir(t), name)
		if out, err := exec.Command("cp", "-a", e.template, e.dirs[key]).CombinedOutput(); err != nil {
			t.Fatalf("copy the template: %v: %s", err, out)
		}
	}
	config := sut.NodeConfig{
		Node: name, Host: name, Role: sut.DB, Engine: e.engine, Dir: e.dirs[key], Procs: 1,
		Listen: e.free[key].Addr().String(), Port: int(e.free[key].Port()), DrainSeconds: 5,
		Replication: &role, Knobs: ladder.Complete(knobs), Data: sut.Data{Size: "small", Seed: 1}, Secret: secret,
		Wiring: sut.Wiring{Members: []string{"db-1", "db-2", "db-3"}}, // the nodes of the kit
	}
	return launch(t, config)
}

// nodeProcess is a node that runs as a process.
type nodeProcess struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	ready  sut.Ready
	exited chan struct{}
	end    sync.Once
}

func launch(t *testing.T, config sut.NodeConfig) *nodeProcess {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, nodeVerb)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	log := &nodeLog{t: t, node: config.Node}
	cmd.Stderr = log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &nodeProcess{cmd: cmd, stdin: stdin, exited: make(chan struct{})}
	t.Cleanup(func() { p.Kill(t); log.flush() })
	if err := json.NewEncoder(stdin).Encode(config); err != nil {
		t.Fatal(err)
	}
	err = json.NewDecoder(stdout).Decode(&p.ready)
	go func() { _ = cmd.Wait(); close(p.exited) }() // tests kill the node, so its exit status says nothing
	if err != nil {
		p.Kill(t)
		log.flush()
		t.Fatalf("node %s: no ready line: %v", config.Node, err)
	}
	return p
}

// Address implements replicatest.Node.
func (p *nodeProcess) Address() string { return p.ready.Address }

// Admin implements replicatest.Node.
func (p *nodeProcess) Admin() string { return p.ready.Admin }

// Secret implements replicatest.Node.
func (p *nodeProcess) Secret() sut.Secret { return secret }

// Kill implements replicatest.Node.
func (p *nodeProcess) Kill(t *testing.T) {
	p.end.Do(func() {
		all := p.family(t)
		for _, pid := range all {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended with its parent
		}
		_ = p.stdin.Close()
		<-p.exited
		for _, pid := range all {
			eventually(t, "process "+strconv.Itoa(pid)+" is gone", func() bool {
				state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
				return err != nil || strings.Contains(string(state), ") Z ")
			})
		}
	})
}

// Pause implements replicatest.Node.
func (p *nodeProcess) Pause(t *testing.T) { p.signal(t, syscall.SIGSTOP) }

// Resume implements replicatest.Node.
func (p *nodeProcess) Resume(t *testing.T) { p.signal(t, syscall.SIGCONT) }

func (p *nodeProcess) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	for _, pid := range p.family(t) {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
}

// family lists the process and all its descendants. A signal to the process group would
// miss the processes of a native server, which are in other groups.
func (p *nodeProcess) family(t *testing.T) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	parents := map[int]int{}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the process has ended
		}
		var state string
		var parent int
		fields := string(text[strings.LastIndexByte(string(text), ')')+1:])
		if _, err := fmt.Sscan(fields, &state, &parent); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		parents[pid] = parent
	}
	all := []int{p.cmd.Process.Pid}
	for grown := true; grown; {
		grown = false
		for _, pid := range slices.Sorted(maps.Keys(parents)) {
			if slices.Contains(all, parents[pid]) && !slices.Contains(all, pid) {
				all, grown = append(all, pid), true
			}
		}
	}
	return all
}

// nodeLog keeps the log of a node and shows it if the test fails.
type nodeLog struct {
	t    *testing.T
	node string
	mu   sync.Mutex
	text []byte
}

func (l *nodeLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	return len(p), nil
}

func (l *nodeLog) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t.Failed() {
		l.t.Logf("log of %s:\n%s", l.node, l.text)
	}
	l.text = nil
}

// The databases of a web node change while it serves.
func TestDatabasesOfAWebNode(t *testing.T) {
	dirs := []string{t.TempDir(), t.TempDir()}
	var dbs []*running
	blobDirs := []string{t.TempDir(), t.TempDir()} // both get the same bytes
	for i, dir := range dirs {
		db := start(t, sut.NodeConfig{Node: fmt.Sprintf("db-%d", i+1), Role: sut.DB, Engine: sut.SQLite, Dir: dir})
		dbs = append(dbs, db)
		start(t, sut.NodeConfig{
			Node: "seed", Role: sut.Seed, Engine: sut.SQLite, Dir: blobDirs[i],
			Wiring: sut.Wiring{Uses: map[sut.Role][]sut.Peer{sut.DB: {db.peer("db-1")}}},
		})
	}
	blob := start(t, sut.NodeConfig{Node: "blob-1", Role: sut.Blob, Engine: sut.Files, Dir: blobDirs[0]})
	with := func(epoch int64, databases ...sut.Peer) sut.Wiring {
		return sut.Wiring{
			Epoch: epoch, Uses: map[sut.Role][]sut.Peer{sut.DB: databases, sut.Blob: {blob.peer("blob-1")}},
		}
	}
	// The databases do not replicate, so the version shows which one answered.
	w := start(t, sut.NodeConfig{
		Node: "web-1", Role: sut.Web, Engine: sut.App, Dir: t.TempDir(),
		Wiring: with(1, dbs[0].peer("db-1"), dbs[1].peer("db-2")),
	})
	s, c := w.service(), browser(t)
	s.logIn(t, c, 1)
	like := func() string {
		response, text := s.do(t, c, http.MethodPost, photoPath(1)+"/like", "", nil)
		if response.StatusCode >= 300 {
			t.Fatalf("like: %d %s", response.StatusCode, text)
		}
		return response.Header.Get("X-Record-Version")
	}
	read := func() string {
		response, _ := s.do(t, c, http.MethodGet, photoPath(1), "", nil)
		return response.Header.Get("X-Record-Version")
	}
	before := read()
	if after := like(); after == before || read() != before {
		t.Errorf("version %s before the like, %s at the primary and %s at the replica", before, after, read())
	}
	leaving := dbs[0].peer("db-1")
	leaving.Draining = true
	if status, text := w.rewire(t, with(2, dbs[1].peer("db-2"), leaving)); status != http.StatusNoContent {
		t.Fatalf("another primary: %d %s", status, text)
	}
	if after := like(); after == before || read() != after {
		t.Errorf("version %s after a like at the new primary, %s after a read", after, read())
	}
	if status, text := w.rewire(t, with(1, dbs[0].peer("db-1"))); status != http.StatusConflict {
		t.Errorf("lower epoch: %d %s", status, text)
	}
	if status, text := w.rewire(t, with(3)); status != http.StatusBadRequest {
		t.Errorf("no database: %d %s", status, text)
	}
	// Reads still work after a replica dies.
	if status, text := w.rewire(t, with(3, dbs[1].peer("db-2"), dbs[0].peer("db-1"))); status != http.StatusNoContent {
		t.Fatalf("another replica: %d %s", status, text)
	}
	_ = dbs[0].stdin.Close()
	if err := dbs[0].end(t); err != nil {
		t.Error(err)
	}
	if got := read(); got == "" {
		t.Error("a read failed after the replica died")
	}
}
