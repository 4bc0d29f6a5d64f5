package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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
	"time"

	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets/budget"
)

const (
	// traceEnv names the file in which nodes write what happens to them. As it
	// is unique to a test, it also finds the test's processes.
	traceEnv = "STAGEBENCH_LOCAL_TRACE"
	// harnessEnv makes the test binary bring a system up and wait to be killed.
	harnessEnv = "STAGEBENCH_LOCAL_HARNESS"
	// nodeVerb makes the test binary a node.
	nodeVerb = "test-node"
	// behaviourPrefix precedes a node's name in the name of the file, beside the trace,
	// that makes it misbehave.
	behaviourPrefix = "behaviour-"
)

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == nodeVerb:
		node, err := newTestNode(os.Stdout)
		if err == nil {
			err = node.run()
		}
		var exit exitStatus
		switch {
		case errors.As(err, &exit):
			os.Exit(int(exit))
		case err != nil:
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case os.Getenv(harnessEnv) != "":
		if err := harness(os.Getenv(harnessEnv)); err != nil {
			fmt.Println(err)
		}
	default:
		goleak.VerifyTestMain(m)
	}
}

// harness brings a system up, says so, and waits for its end.
func harness(dir string) error {
	options := optionsIn(dir)
	options.Budgets = budget.Detect(budget.Options{Prefix: "stagebench-test-harness"})
	if _, err := Up(context.Background(), options); err != nil {
		return err
	}
	fmt.Println("up")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// testNode keeps the contract of sut.NodeConfig with a trivial HTTP server,
// but for the behaviour that a file asks for.
type testNode struct {
	behaviour string
	out       io.Writer
	ended     chan struct{} // closed when standard input is
	crash     chan exitStatus

	config sut.NodeConfig
	mu     sync.Mutex // guards config.Wiring, config.Replication and moved once the node serves
	moved  int        // documents, for want of keys
}

// exitStatus is the death that a behaviour asks for.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func newTestNode(out io.Writer) (*testNode, error) {
	decoder := json.NewDecoder(os.Stdin)
	decoder.DisallowUnknownFields()
	n := &testNode{out: out, ended: make(chan struct{}), crash: make(chan exitStatus, 1)}
	if err := decoder.Decode(&n.config); err != nil {
		return nil, err
	}
	n.behaviour = behaviourOf(n.config.Node)
	n.trace("born quota=%s port=%v", cpuQuota(os.Getpid()), n.config.Port != 0)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(n.ended)
	}()
	return n, nil
}

// trace writes one line; small appends do not mix.
func (n *testNode) trace(format string, args ...any) {
	file, err := os.OpenFile(os.Getenv(traceEnv), os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o666)
	if err != nil {
		return
	}
	defer file.Close()
	fmt.Fprintf(file, "%s %s\n", n.config.Node, fmt.Sprintf(format, args...))
}

func (n *testNode) run() error {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	ready := sut.Ready{Node: n.config.Node, Version: "test 1.0"}
	switch n.behaviour {
	case "dies early":
		fmt.Fprintln(os.Stderr, `{"level":"ERROR","msg":"cannot start","error":"disk is full"}`)
		return exitStatus(3)
	case "never ready":
		<-n.ended
		return nil
	case "talks nonsense":
		fmt.Fprintln(n.out, "hello")
		<-n.ended
		return nil
	case "forks":
		pid, err := forkServer()
		if err != nil {
			return err
		}
		ready.PIDs = []int{pid}
	}
	if n.behaviour == "waits at its restart" && n.config.Port != 0 {
		// Opening the pipe ends when the test opens its other end.
		gate, err := os.Open(gateOf(os.Getenv(traceEnv)))
		if err != nil {
			return err
		}
		gate.Close()
	}
	if n.behaviour == "dies at its restart" && n.config.Port != 0 {
		return exitStatus(3)
	}
	if n.config.Role == sut.Seed {
		return n.seed(ready)
	}
	if err := n.checkDir(); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(n.config.Listen, strconv.Itoa(n.config.Port)))
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(listener, n.handler()) }()
	ready.Address = listener.Addr().String()
	ready.Admin = ready.Address
	n.trace("ready")
	if err := json.NewEncoder(n.out).Encode(ready); err != nil {
		return err
	}
	if n.behaviour == "crashes" {
		panic("out of luck")
	}
	if n.behaviour == "ignores SIGTERM" {
		<-terminated
		n.trace("terminated")
		select {} // nor does it end with its standard input
	}
	select {
	case <-n.ended:
		n.trace("orphaned")
	case status := <-n.crash:
		return status
	case <-terminated:
		n.trace("terminated")
	}
	return nil
}

// seed fills the blob directory and tells the database.
func (n *testNode) seed(ready sut.Ready) error {
	if n.behaviour == "fails" {
		return exitStatus(4)
	}
	response, err := http.Post("http://"+n.config.Wiring.Uses[sut.DB][0].Address+"/put", "", nil)
	if err != nil {
		return err
	}
	response.Body.Close()
	if err := os.MkdirAll(filepath.Join(n.config.Dir, "ab"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(n.config.Dir, "ab", "photo.jpg"), []byte("bytes"), 0o640); err != nil {
		return err
	}
	if err := json.NewEncoder(n.out).Encode(ready); err != nil {
		return err
	}
	<-n.ended
	return nil
}

// checkDir shows that databases and blob stores begin with their template.
func (n *testNode) checkDir() error {
	var want string
	switch {
	case n.config.Host == templateHost:
		return nil
	case n.config.Role == sut.DB:
		want = "rows"
	case n.config.Role == sut.Blob:
		want = "ab/photo.jpg"
	default:
		want = "."
	}
	_, err := os.Stat(filepath.Join(n.config.Dir, want))
	return err
}

func (n *testNode) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /config", func(w http.ResponseWriter, _ *http.Request) {
		n.mu.Lock()
		defer n.mu.Unlock()
		_ = json.NewEncoder(w).Encode(n.config)
	})
	mux.HandleFunc("POST /put", func(w http.ResponseWriter, _ *http.Request) {
		if err := os.WriteFile(filepath.Join(n.config.Dir, "rows"), []byte("seeded"), 0o600); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	mux.HandleFunc("PUT "+sut.WiringPath, n.wire)
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		n.mu.Lock()
		defer n.mu.Unlock()
		fmt.Fprintf(w, "stagebench_%s_moved_total %d\n", map[sut.Role]string{sut.Cache: "cache_node", sut.Blob: "blob"}[n.config.Role], n.moved)
	})
	mux.HandleFunc("GET "+sut.ReplicationPath, func(w http.ResponseWriter, _ *http.Request) {
		n.mu.Lock()
		defer n.mu.Unlock()
		_ = json.NewEncoder(w).Encode(n.replication())
	})
	mux.HandleFunc("PUT "+sut.ReplicationPath, func(w http.ResponseWriter, r *http.Request) {
		var next sut.Replication
		if err := json.NewDecoder(r.Body).Decode(&next); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		n.config.Replication = &next
		_ = json.NewEncoder(w).Encode(n.replication())
	})
	mux.HandleFunc("POST /exit", func(http.ResponseWriter, *http.Request) {
		fmt.Fprintln(os.Stderr, `{"level":"ERROR","msg":"giving up","err":"no luck"}`)
		n.crash <- 5
		select {} // without an answer
	})
	return mux
}

// replication is what a database says of its copy; the caller holds mu.
func (n *testNode) replication() sut.ReplicationStatus {
	told := n.config.Replication
	if told == nil {
		return sut.ReplicationStatus{Node: n.config.Node}
	}
	status := sut.ReplicationStatus{Node: n.config.Node, Epoch: told.Epoch, Serves: n.behaviour != "never catches up", Primary: told.Primary == nil}
	if told.Primary != nil {
		status.Following = told.Primary.Node
	}
	return status
}

// wire takes a wiring. What is traced is the active peers under each role that is not the
// node's own, or the members of its tier; one that drains has a minus before it.
func (n *testNode) wire(w http.ResponseWriter, r *http.Request) {
	var next sut.Wiring
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&next); err != nil || r.Header.Get(sut.DrainHeader) == "" {
		http.Error(w, "no wiring", http.StatusBadRequest)
		return
	}
	n.trace("told %d of %s", next.Epoch, wired(next))
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for behaviourOf(n.config.Node) == "waits" && r.Context().Err() == nil {
		<-poll.C
	}
	n.mu.Lock()
	known := n.config.Wiring.Epoch
	n.mu.Unlock()
	if text, knows := strings.CutPrefix(behaviourOf(n.config.Node), "knows "); knows {
		known, _ = strconv.ParseInt(text, 10, 64)
	}
	if next.Epoch < known {
		http.Error(w, "an older epoch", http.StatusConflict)
		return
	}
	many, behaviour := false, behaviourOf(n.config.Node)
	for _, role := range []sut.Role{sut.Web, sut.Cache, sut.Blob} {
		many = many || len(next.Active(role)) > 2
	}
	switch {
	case behaviour == "refuses" && many:
		http.Error(w, "too many", http.StatusBadRequest)
	case behaviour == "never drains":
		w.WriteHeader(http.StatusGatewayTimeout)
	case behaviour == "hangs" && many:
		<-r.Context().Done()
	case behaviour == "crashes when told":
		n.crash <- 5
		select {} // without an answer
	case behaviour == "keeps its first wiring":
		w.WriteHeader(http.StatusNoContent)
	case behaviour == "crashes when it hands over" && !next.Moving && !slices.ContainsFunc(next.Active(n.config.Role), func(p sut.Peer) bool { return p.Node == n.config.Node }):
		n.crash <- 5
		select {} // without an answer
	default:
		n.mu.Lock()
		n.config.Wiring = next
		n.moved++
		n.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	}
}

// wired is a wiring as a trace has it, such as "web:web-1+web-2-web-3 moving".
func wired(w sut.Wiring) string {
	var parts []string
	for _, role := range []sut.Role{sut.Web, sut.Cache, sut.DB, sut.Blob} {
		text := ""
		for _, peer := range w.Uses[role] {
			switch {
			case peer.Draining:
				text += "-"
			case text != "":
				text += "+"
			}
			text += peer.Node
		}
		if text != "" {
			parts = append(parts, string(role)+":"+text)
		}
	}
	if w.Moving {
		parts = append(parts, "moving")
	}
	return strings.Join(parts, " ")
}

// behaviourOf is how a node misbehaves, "" = not at all.
func behaviourOf(node string) string {
	text, err := os.ReadFile(filepath.Join(filepath.Dir(os.Getenv(traceEnv)), behaviourPrefix+node))
	if err != nil {
		return ""
	}
	return string(text)
}

// gateOf is the named pipe of a test, beside its trace.
func gateOf(trace string) string { return filepath.Join(filepath.Dir(trace), "gate") }

// forkServer starts a process in a session of its own, as native servers are.
func forkServer() (int, error) {
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	return cmd.Process.Pid, nil
}

// cpuQuota is the quota of the host of a process, "none" where it has no
// cgroup v1 of ours.
func cpuQuota(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "none"
	}
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && strings.Contains(","+parts[1]+",", ",cpu,") {
			// The leaf's parent is the host.
			quota, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", parts[1], filepath.Dir(parts[2]), "cpu.cfs_quota_us"))
			if err == nil && strings.Contains(parts[2], "stagebench") {
				return strings.TrimSpace(string(quota))
			}
		}
	}
	return "none"
}

// optionsIn are the options of a small system whose files are all in dir.
// version is a template version that depends on nothing.
func version(v string) func(sut.Engine) (string, error) {
	return func(sut.Engine) (string, error) { return v, nil }
}

func optionsIn(dir string) Options {
	topology, err := ladder.Build(sut.LB, sut.Knobs{"web.hosts": "2"}, 0.1)
	if err != nil {
		panic(err)
	}
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return Options{
		Binary: self, NodeArgs: []string{nodeVerb}, // A binary built with the race detector lingers for a second at its end.
		Env:      append(os.Environ(), "GORACE=atexit_sleep_ms=0", traceEnv+"="+filepath.Join(dir, "trace")),
		Topology: topology, Data: sut.Data{Size: "small", Seed: 1},
		TemplateDir: filepath.Join(dir, "cache", "templates"), TemplateVersion: version("v1"),
		WorkDir: filepath.Join(dir, "work"), LogDir: filepath.Join(dir, "logs"),
		Restart:      Restart{Delay: 20 * time.Millisecond},
		ReadyTimeout: patience, DrainTimeout: patience,
	}
}
