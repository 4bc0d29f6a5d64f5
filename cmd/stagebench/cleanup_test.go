package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results/rundir"
)

// harness is a stagebench process with its own temporary directory. The directory identifies
// its child processes and the files that it leaves behind.
type harness struct {
	cmd    *exec.Cmd
	output output
	temp   string
}

// output collects the output of a process. It can be read while the process writes.
type output struct {
	started chan struct{} // closed by the first write

	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.text.Len() == 0 {
		close(o.started)
	}
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// startHarness starts stagebench. If the test fails, its log shows the output and the
// remaining processes.
func startHarness(t *testing.T, args ...string) *harness {
	t.Helper()
	h := &harness{temp: t.TempDir(), output: output{started: make(chan struct{})}}
	h.cmd = exec.Command(os.Args[0], args...)
	h.cmd.Dir = h.temp
	h.cmd.Env = h.environment()
	h.cmd.Stdout, h.cmd.Stderr = &h.output, &h.output
	if err := unix.Mkfifo(filepath.Join(h.temp, pipeName), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(h.temp), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(h.temp, 0o711); err != nil { // native servers do not run as root
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("stagebench %s: processes %q, output:\n%s", strings.Join(args, " "), h.processes(t), h.output.String())
		}
		if h.cmd.ProcessState == nil {
			_ = h.cmd.Process.Kill()
			_ = h.cmd.Wait()
		}
	})
	return h
}

// harnessVariable is an environment variable with the temporary directory of a harness. Native servers get it, too.
const harnessVariable = "STAGEBENCH_TEST_HARNESS"

// environment returns the environment of the harness, and of commands for its system.
func (h *harness) environment() []string {
	return append(os.Environ(), harnessVariable+"="+h.temp, "TMPDIR="+h.temp, "XDG_RUNTIME_DIR="+h.temp,
		"XDG_CACHE_HOME="+templates())
}

// processes lists the running processes of the harness and their descendants. All of them
// have its temporary directory in their environment.
func (h *harness) processes(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, entry := range entries {
		environment, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "environ"))
		if err != nil || !bytes.Contains(environment, []byte(harnessVariable+"="+h.temp+"\x00")) {
			continue // another process, or it has ended
		}
		command, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		found = append(found, entry.Name()+" "+strings.ReplaceAll(string(command), "\x00", " "))
	}
	return found
}

// groups lists the control groups whose names have the pid of the harness.
func (h *harness) groups() []string {
	found, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/stagebench-%d-*", h.cmd.Process.Pid))
	unified, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/stagebench-%d-*", h.cmd.Process.Pid))
	nested, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/*/*/stagebench-%d-*", h.cmd.Process.Pid))
	return append(append(found, unified...), nested...)
}

// segments lists the shared memory segments of the databases of the harness. Call it while they run.
func (h *harness) segments() (ids []int) {
	_ = filepath.WalkDir(h.temp, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Name() != "postmaster.pid" {
			return nil // a directory may just be removed
		}
		text, _ := os.ReadFile(path)
		if lines := strings.Split(string(text), "\n"); len(lines) > 6 {
			var key, id int
			if n, _ := fmt.Sscan(lines[6], &key, &id); n == 2 {
				ids = append(ids, id)
			}
		}
		return nil
	})
	return ids
}

// leftovers lists the files in the temporary directory, except the results of the run.
func (h *harness) leftovers(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(h.temp)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !slices.Contains([]string{"runs", "stagebench", pipeName}, e.Name()) { // results; control directory; a trace
			names = append(names, e.Name())
		}
	}
	sockets, _ := filepath.Glob(filepath.Join(h.temp, "stagebench", "*"))
	return append(names, sockets...)
}

// nothingLeft checks that nothing of the harness is left. segments are those of its databases.
func (h *harness) nothingLeft(t *testing.T, when string, segments []int) {
	t.Helper()
	for what, left := range map[string][]string{
		"processes": h.processes(t), "control groups": h.groups(), "files": h.leftovers(t),
	} {
		if len(left) > 0 {
			t.Errorf("%s: %s are left: %q", when, what, left)
		}
	}
	for _, id := range segments {
		if _, err := unix.SysvShmCtl(id, unix.IPC_STAT, &unix.SysvShmDesc{}); err == nil {
			t.Errorf("%s: shared memory segment %d is left", when, id)
		}
	}
}

// killed waits for a harness that was killed, and starts another command, which must remove all that is left.
func (h *harness) killed(t *testing.T, when string, segments []int) {
	t.Helper()
	_ = h.cmd.Wait() // its error is the kill
	h.call(t, "list", "stages")
	h.nothingLeft(t, when+", after the next start", segments)
}

// gone waits until no process is left. It fails the test if that takes longer than the bound.
func (h *harness) gone(t *testing.T, bound time.Duration) {
	t.Helper()
	start := time.Now()
	eventually(t, "all processes have ended", func() bool { return len(h.processes(t)) == 0 })
	took := time.Since(start).Round(time.Millisecond)
	t.Logf("all processes ended after %v", took)
	if took > bound {
		t.Errorf("all processes ended after %v, want at most %v", took, bound)
	}
}

// pipeName is the name of a trace that is a pipe.
const pipeName = "trace.log"

// interruption is a signal to a command at some time after it handles signals.
type interruption struct {
	signal  syscall.Signal
	engines string
	trace   bool // the command reads a trace from a pipe that never ends; else it measures the ladder
	at      time.Duration
}

func (i interruption) String() string {
	what := "run with " + i.engines + " engines"
	if i.trace {
		what = "attack that reads a trace"
	}
	return fmt.Sprintf("%s after %v of %s", unix.SignalName(i.signal), i.at.Round(time.Millisecond), what)
}

// interruptions returns n interruptions: all signals and engines in turn, every sixth while a trace is read.
func interruptions(t *testing.T, n int, longest time.Duration) (all []interruption) {
	seed := *interruptSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("to repeat it: -interrupt-seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	signals := []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGKILL}
	for i := range n {
		all = append(all, interruption{
			signal: signals[i%len(signals)], engines: []string{"embedded", "native"}[i/len(signals)%2],
			trace: i%6 == 3, at: time.Duration(random.Int64N(int64(longest))),
		})
	}
	return all
}

var interruptSeed = flag.Uint64("interrupt-seed", 0, "seed of the random interruptions; 0 = a new one")

// interrupt runs a command and interrupts it. The first signal must end it, nothing may be left, and the cells that
// were measured must be readable.
func interrupt(t *testing.T, i interruption) {
	skipWithoutEngines(t, engines()[i.engines])
	var h *harness
	if i.trace {
		h = startHarness(t, "attack", "http://127.0.0.1:1/", "--workload", "trace:"+pipeName)
	} else {
		h = startHarness(t, "run", "--quick", "--engines", i.engines, "--out", "runs/interrupted")
	}
	select {
	case <-h.listening(t, i.trace):
	case <-time.After(testTimeout):
		t.Fatalf("no output within %v", testTimeout)
	}
	found := make(chan []int, 1)
	time.AfterFunc(i.at, func() {
		found <- h.segments()
		if err := h.cmd.Process.Signal(i.signal); err != nil {
			t.Errorf("%v: %v", i, err)
		}
	})
	segments := <-found
	if i.signal == syscall.SIGKILL {
		h.killed(t, i.String(), segments)
	} else {
		err := h.cmd.Wait()
		if status := h.cmd.ProcessState.ExitCode(); status != 128+int(i.signal) ||
			!strings.Contains(h.output.String(), "interrupted") {
			t.Errorf("%v: %v, want exit status %d\n%s", i, err, 128+int(i.signal), h.output.String())
		}
		h.nothingLeft(t, i.String(), segments)
	}
	dir := filepath.Join(h.temp, "runs", "interrupted")
	if _, err := os.Stat(dir); err != nil {
		return // the run directory did not exist yet
	}
	if run, _, err := rundir.Read(dir); err != nil || run.Complete {
		t.Errorf("%v: complete=%v, error %v, want a readable incomplete run", i, run.Complete, err)
	}
}

// listening returns a channel that is closed when the harness handles signals: at its first output, or when it opens
// its trace.
func (h *harness) listening(t *testing.T, trace bool) <-chan struct{} {
	if !trace {
		return h.output.started
	}
	opened := make(chan struct{})
	go func() {
		pipe, err := os.OpenFile(filepath.Join(h.temp, pipeName), os.O_WRONLY, 0)
		if err != nil {
			return
		}
		close(opened)
		_, _ = pipe.WriteString(`127.0.0.1 - - [21/Nov/2026:06:40:00 +0000] "GET / HTTP/1.1" 200 1` + "\n")
		<-t.Context().Done()
		_ = pipe.Close()
	}()
	return opened
}

// TestInterrupted interrupts ten commands at random times. A long test does it a hundred times.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	for _, i := range interruptions(t, 10, 6*time.Second) {
		t.Run(i.String(), func(t *testing.T) {
			t.Parallel()
			interrupt(t, i)
		})
	}
}

// TestParentKilled kills the harness with SIGKILL. All its nodes must end, native servers
// included. A long test has the strict time limit.
func TestParentKilled(t *testing.T) {
	t.Parallel()
	parentKilled(t, 30*time.Second)
}

// parentKilled kills a harness. Its nodes must end within the bound.
func parentKilled(t *testing.T, bound time.Duration) {
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			if name == "native" {
				skipWithoutEngines(t, knobs)
			}
			h := startHarness(t, "up", "--stage", "lb", "--engines", name)
			awaitUp(t, h)
			if n := len(h.processes(t)); n < 7 {
				t.Fatalf("%d processes, want at least 7: a harness and 6 nodes", n)
			}
			segments := h.segments()
			if name == "native" && len(segments) == 0 {
				t.Fatal("the database has no shared memory segment, so the test proves nothing")
			}
			h.call(t, "kill", "db-1") // its server cannot remove its segment, and is not restarted in time
			if err := h.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = h.cmd.Wait() // its error is the kill
			h.gone(t, bound)
			h.killed(t, "killed", segments)
		})
	}
}

// awaitUp waits until the harness has a control socket.
func awaitUp(t *testing.T, h *harness) {
	t.Helper()
	eventually(t, "the control socket of `up` exists", func() bool {
		sockets, _ := filepath.Glob(filepath.Join(h.temp, "stagebench", "*.sock"))
		return len(sockets) == 1
	})
}

// TestUpIsTakenDown runs up, status, kill, attack and down, as from two terminals.
func TestUpIsTakenDown(t *testing.T) {
	t.Parallel()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	h := startHarness(t, "up", "--stage", "lb", "--set", "web.hosts=2", "--listen", address)
	awaitUp(t, h)
	if out := h.output.String(); !strings.Contains(out, "http://"+address) || !strings.Contains(out, "user-1") {
		t.Errorf("up does not say where the service is, and who its users are\n%s", out)
	}
	status := h.call(t, "status", "--format", "csv")
	if n := strings.Count(status, "serving"); n != 5 {
		t.Errorf("%d nodes are serving, want 5:\n%s", n, status)
	}
	if names := h.call(t, "__complete", "kill", ""); !strings.Contains(names, "web-2\n") {
		t.Errorf("the shell completes kill with %q, want the nodes of the system", names)
	}
	if out := h.call(t, "kill", "web-2"); !strings.Contains(out, "killed web-2") {
		t.Errorf("kill printed %q", out)
	}
	attack := h.call(t, "attack", "--workload", "read-heavy", "--rate", "20", "--duration", "1s")
	if !strings.Contains(attack, "scheduled") {
		t.Errorf("attack printed %q", attack)
	}
	h.call(t, "down")
	if err := h.cmd.Wait(); err != nil {
		t.Errorf("up ended with %v:\n%s", err, h.output.String())
	}
	if left := append(h.processes(t), h.leftovers(t)...); len(left) > 0 {
		t.Errorf("left after down: %q", left)
	}
}

// call runs a stagebench command for the system of the harness and returns its output.
func (h *harness) call(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = h.environment()
	cmd.Dir = h.temp
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	doubtful := []int{exit.Invalid, exit.Missed}
	if err := cmd.Run(); err != nil && !slices.Contains(doubtful, cmd.ProcessState.ExitCode()) {
		t.Errorf("stagebench %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out.String()
}
