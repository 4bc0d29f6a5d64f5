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
	// traceEnv is the environment variable with the path of the trace, the file to which
	// nodes append their events. Each test has its own trace, so the variable also
	// identifies the processes of a test.
	traceEnv = "STAGEBENCH_LOCAL_TRACE"
	// harnessEnv makes the test binary bring up a system and wait for SIGKILL.
	harnessEnv = "STAGEBENCH_LOCAL_HARNESS"
	// nodeVerb is the argument that makes the test binary a node.
	nodeVerb = "test-node"
	// behaviourPrefix and the name of a node form the name of the file with the behaviour
	// of that node. The file is in the directory of the trace.
	behaviourPrefix = "behaviour-"
	// inFlightBehaviour is the behaviour of a web node that reports a number of requests in flight. The node reads it
	// at each scrape.
	inFlightBehaviour = "in flight %d"
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

// harness brings up a system, prints "up" and waits until standard input is closed.
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

// testNode is a minimal HTTP server that follows the contract of sut.NodeConfig. A
// behaviour makes it deviate from the contract.
type testNode struct {
	behaviour string
	out       io.Writer
	ended     chan struct{} // closed when standard input is closed
	crash     chan exitStatus

	config  sut.NodeConfig
	mu      sync.Mutex // guards config.Wiring, config.Replication and moved while the node serves
	moved   int        // accepted wirings; reported as the number of moved keys
	dropped bool       // guarded by mu: its old copy was removed
}

// exitStatus is the exit status of a node that dies. It is returned as an error.
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
	n.trace("started quota=%s port=%v", cpuQuota(os.Getpid()), n.config.Port != 0)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(n.ended)
	}()
	return n, nil
}

// trace appends one line to the trace. Nodes append concurrently; the kernel does not
// mix short appends.
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
	case "invalid ready line":
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
		// Open blocks until the test opens the other end of the pipe.
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
		select {} // it also ignores the end of its standard input
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

// seed writes a photo to the blob directory, unless it has none, and a row to the database.
func (n *testNode) seed(ready sut.Ready) error {
	if n.behaviour == "fails" {
		return exitStatus(4)
	}
	response, err := http.Post("http://"+n.config.Wiring.Uses[sut.DB][0].Address+"/put", "", nil)
	if err != nil {
		return err
	}
	response.Body.Close()
	if n.config.Dir == "" {
		return n.seeded(ready)
	}
	if err := os.MkdirAll(filepath.Join(n.config.Dir, "ab"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(n.config.Dir, "ab", "photo.jpg"), []byte("bytes"), 0o640); err != nil {
		return err
	}
	return n.seeded(ready)
}

// seeded reports that the seed node's work is done, and waits for its end.
func (n *testNode) seeded(ready sut.Ready) error {
	if err := json.NewEncoder(n.out).Encode(ready); err != nil {
		return err
	}
	<-n.ended
	return nil
}

// checkDir returns an error if a database or blob store does not have the files of its
// template.
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
		rows := fmt.Sprintf("seeded %d", n.config.Shard)
		if err := os.WriteFile(filepath.Join(n.config.Dir, "rows"), []byte(rows), 0o600); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	mux.HandleFunc("PUT "+sut.WiringPath, n.wire)
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		n.mu.Lock()
		defer n.mu.Unlock()
		name := map[sut.Role]string{sut.Cache: "cache_node", sut.Blob: "blob"}[n.config.Role]
		fmt.Fprintf(w, "stagebench_%s_moved_total %d\n", name, n.moved)
		var inFlight int
		_, _ = fmt.Sscanf(behaviourOf(n.config.Node), inFlightBehaviour, &inFlight) // any other behaviour: none
		if n.config.Role == sut.Web {
			fmt.Fprintf(w, "%s %d\n", inFlightMetric, inFlight)
		}
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
	n.handleLost(mux)
	mux.HandleFunc("POST /exit", func(http.ResponseWriter, *http.Request) {
		fmt.Fprintln(os.Stderr, `{"level":"ERROR","msg":"giving up","err":"no luck"}`)
		n.crash <- 5
		select {} // the caller gets no answer
	})
	return mux
}

// replication returns the replication status of a database. The caller holds mu.
func (n *testNode) replication() sut.ReplicationStatus {
	config := n.config.Replication
	if config == nil {
		return sut.ReplicationStatus{Node: n.config.Node}
	}
	status := sut.ReplicationStatus{
		Node: n.config.Node, Epoch: config.Epoch, Serves: n.behaviour != "never catches up",
		Primary: config.Primary == nil,
	}
	if config.Primary != nil {
		status.Following, status.Connected = config.Primary.Node, true
	}
	if !n.dropped && strings.HasPrefix(behaviourOf(n.config.Node), "keeps a") {
		status.Kept = []string{"epoch-1"}
	}
	return status
}

// wire handles a new wiring and traces it.
func (n *testNode) wire(w http.ResponseWriter, r *http.Request) {
	var next sut.Wiring
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&next); err != nil || r.Header.Get(sut.DrainHeader) == "" {
		http.Error(w, "no wiring", http.StatusBadRequest)
		return
	}
	n.trace("wiring %d: %s", next.Epoch, wired(next))
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	drains := r.Header.Get(sut.DrainHeader) == strconv.FormatFloat(drainBound.Seconds(), 'f', -1, 64)
	for drains && behaviourOf(n.config.Node) == "waits when it drains" && r.Context().Err() == nil {
		<-poll.C
	}
	n.mu.Lock()
	current := n.config.Wiring.Epoch
	n.mu.Unlock()
	if text, found := strings.CutPrefix(behaviourOf(n.config.Node), "has epoch "); found {
		current, _ = strconv.ParseInt(text, 10, 64)
	}
	if next.Epoch < current {
		http.Error(w, "an older epoch", http.StatusConflict)
		return
	}
	three, behaviour := false, behaviourOf(n.config.Node) // three or more peers of a role
	for _, role := range []sut.Role{sut.Web, sut.Cache, sut.Blob} {
		three = three || len(next.Active(role)) > 2
	}
	active := slices.ContainsFunc(next.Active(n.config.Role), func(p sut.Peer) bool { return p.Node == n.config.Node })
	switch {
	case behaviour == "refuses three" && three:
		http.Error(w, "too many", http.StatusBadRequest)
	case behaviour == "never drains":
		w.WriteHeader(http.StatusGatewayTimeout)
	case behaviour == "hangs at three" && three:
		<-r.Context().Done()
	case behaviour == "crashes at a wiring":
		n.crash <- 5
		select {} // the caller gets no answer
	case behaviour == "keeps its first wiring":
		w.WriteHeader(http.StatusNoContent)
	case behaviour == "crashes when it hands over" && !next.Rebalancing && !active:
		n.crash <- 5
		select {} // the caller gets no answer
	default:
		n.mu.Lock()
		n.config.Wiring = next
		n.moved++
		n.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	}
}

// wired formats the peers of a wiring, such as "web:web-1+web-2-web-3 moving". A
// draining peer has a minus before its name.
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
	if w.Rebalancing {
		parts = append(parts, "moving")
	}
	return strings.Join(parts, " ")
}

// behaviourOf returns the current behaviour of a node, "" = it works.
func behaviourOf(node string) string {
	text, err := os.ReadFile(filepath.Join(filepath.Dir(os.Getenv(traceEnv)), behaviourPrefix+node))
	if err != nil {
		return ""
	}
	return string(text)
}

// gateOf returns the path of the named pipe of a test, in the directory of its trace.
func gateOf(trace string) string { return filepath.Join(filepath.Dir(trace), "gate") }

// forkServer starts a process in a session of its own, as nodes of native engines do.
func forkServer() (int, error) {
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	return cmd.Process.Pid, nil
}

// cpuQuota returns the CPU quota of the host of a process, in microseconds. It returns
// "none" if the process is in no cgroup v1 of a test.
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

// version returns a TemplateVersion that is the same for all engines.
func version(v string) func(sut.Engine) (string, error) {
	return func(sut.Engine) (string, error) { return v, nil }
}

// optionsIn returns the options of a small system with all its files in dir.
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
		Binary: self, NodeArgs: []string{nodeVerb},
		// With the race detector, a process sleeps for a second before it exits.
		env:      append(os.Environ(), "GORACE=atexit_sleep_ms=0", traceEnv+"="+filepath.Join(dir, "trace")),
		Topology: topology, Data: sut.Data{Size: "small", Seed: 1},
		TemplateDir: filepath.Join(dir, "cache", "templates"), TemplateVersion: version("v1"),
		workDir: filepath.Join(dir, "work"), LogDir: filepath.Join(dir, "logs"),
		restartDelay: 20 * time.Millisecond, readyTimeout: timeout, drainTimeout: timeout,
	}
}
