package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

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
	h.cmd.Env = append(os.Environ(), "TMPDIR="+h.temp, "XDG_RUNTIME_DIR="+h.temp, "XDG_CACHE_HOME="+templates())
	h.cmd.Stdout, h.cmd.Stderr = &h.output, &h.output
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
		if err != nil || !bytes.Contains(environment, []byte("TMPDIR="+h.temp+"\x00")) {
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

// leftovers lists the files in the temporary directory, except the results of the run.
func (h *harness) leftovers(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(h.temp)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "runs" && e.Name() != "stagebench" { // results; the empty control directory
			names = append(names, e.Name())
		}
	}
	return names
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

// interruptAt runs the ladder and sends it Ctrl-C at a time after its first output, when it
// handles signals. Nothing may be left, and the cells that were measured must be readable.
func interruptAt(t *testing.T, at time.Duration, args ...string) {
	h := startHarness(t, append([]string{"run", "--quick", "--out", "runs/interrupted"}, args...)...)
	select {
	case <-h.output.started:
	case <-time.After(testTimeout):
		t.Fatalf("no output within %v", testTimeout)
	}
	interrupt := time.AfterFunc(at, func() {
		if err := h.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Errorf("interrupted after %v: %v", at, err)
		}
	})
	err := h.cmd.Wait()
	interrupt.Stop()
	if h.cmd.ProcessState.ExitCode() != exit.Interrupted || !strings.Contains(h.output.String(), "interrupted") {
		t.Errorf("interrupted after %v: %v\n%s", at, err, h.output.String())
	}
	if left := h.processes(t); len(left) > 0 {
		t.Errorf("interrupted after %v: processes are left: %q", at, left)
	}
	if left := h.groups(); len(left) > 0 {
		t.Errorf("interrupted after %v: control groups are left: %q", at, left)
	}
	if left := h.leftovers(t); len(left) > 0 {
		t.Errorf("interrupted after %v: files are left: %q", at, left)
	}
	dir := filepath.Join(h.temp, "runs", "interrupted")
	if _, err := os.Stat(dir); err != nil {
		return // the run directory did not exist yet
	}
	if run, _, err := rundir.Read(dir); err != nil || run.Complete {
		t.Errorf("interrupted after %v: complete=%v, error %v, want a readable incomplete run", at, run.Complete, err)
	}
}

// TestInterrupted sends Ctrl-C at three random times. The long tests use twenty.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(11, 12))
	for range 3 {
		at := time.Duration(random.Int64N(int64(6 * time.Second)))
		t.Run(at.String(), func(t *testing.T) {
			t.Parallel()
			interruptAt(t, at)
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
			if err := h.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = h.cmd.Wait() // its error is the kill
			h.gone(t, bound)
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
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+h.temp, "XDG_CACHE_HOME="+templates())
	cmd.Dir = h.temp
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	doubtful := []int{exit.Invalid, exit.Missed}
	if err := cmd.Run(); err != nil && !slices.Contains(doubtful, cmd.ProcessState.ExitCode()) {
		t.Errorf("stagebench %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out.String()
}
