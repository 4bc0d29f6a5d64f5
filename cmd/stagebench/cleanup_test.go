package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results/rundir"
)

// harness is a stagebench process with a temporary directory of its own, so that
// what it leaves behind can be told from everything else.
type harness struct {
	cmd    *exec.Cmd
	output output
	temp   string
}

// output is what a process has written, which may be read while it writes.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func startHarness(t *testing.T, args ...string) *harness {
	t.Helper()
	h := &harness{temp: t.TempDir()}
	h.cmd = exec.Command(os.Args[0], args...)
	h.cmd.Dir = h.temp
	h.cmd.Env = append(os.Environ(), "TMPDIR="+h.temp, "XDG_RUNTIME_DIR="+h.temp, "XDG_CACHE_HOME="+templates())
	h.cmd.Stdout, h.cmd.Stderr = &h.output, &h.output
	if err := os.Chmod(filepath.Dir(h.temp), 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(h.temp, 0o711); err != nil { // for native servers, which are not root
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if h.cmd.ProcessState == nil {
			_ = h.cmd.Process.Kill()
			_ = h.cmd.Wait()
		}
	})
	return h
}

// processes lists what runs with the harness's temporary directory in its
// environment: all that it started, and what that started.
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
			continue // another's, or gone meanwhile
		}
		command, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		found = append(found, entry.Name()+" "+strings.ReplaceAll(string(command), "\x00", " "))
	}
	return found
}

// groups lists the control groups that carry the pid of the harness.
func (h *harness) groups() []string {
	found, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/stagebench-%d-*", h.cmd.Process.Pid))
	unified, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/stagebench-%d-*", h.cmd.Process.Pid))
	nested, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/*/*/stagebench-%d-*", h.cmd.Process.Pid))
	return append(append(found, unified...), nested...)
}

// leftovers lists what is in the temporary directory, the run itself left out.
func (h *harness) leftovers(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(h.temp)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "runs" && e.Name() != "stagebench" { // the run, and the empty control directory
			names = append(names, e.Name())
		}
	}
	return names
}

// gone waits until no process is left, at most for the bound.
func (h *harness) gone(t *testing.T, bound time.Duration) {
	t.Helper()
	begun := time.Now()
	deadline := begun.Add(bound)
	for {
		left := h.processes(t)
		if len(left) == 0 {
			t.Logf("all gone after %v", time.Since(begun).Round(time.Millisecond))
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still running after %v: %q", bound, left)
		}
		pause()
	}
}

// interruptAt runs the ladder and sends it Ctrl-C at a moment after its first word,
// by which it knows what to do with one: nothing may be left, and what was measured
// until then must be readable.
func interruptAt(t *testing.T, at time.Duration, args ...string) {
	h := startHarness(t, append([]string{"run", "--quick", "--out", "runs/interrupted"}, args...)...)
	for deadline := time.Now().Add(time.Minute); h.output.String() == ""; pause() {
		if time.Now().After(deadline) {
			t.Fatal("it said nothing within a minute")
		}
	}
	timer := time.NewTimer(at)
	<-timer.C
	if err := h.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	err := h.cmd.Wait()
	if h.cmd.ProcessState.ExitCode() != exit.Failed || !strings.Contains(h.output.String(), "interrupted") {
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
		return // it had not begun
	}
	if run, _, err := rundir.Read(dir); err != nil || run.Complete {
		t.Errorf("interrupted after %v: the run says complete=%v, error %v", at, run.Complete, err)
	}
}

// TestInterrupted sends Ctrl-C at three moments; the long tests do it at twenty.
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

// TestParentKilled kills the harness by SIGKILL: its nodes, the native servers
// among them, must go, too. The long tests say how soon.
func TestParentKilled(t *testing.T) {
	t.Parallel()
	parentKilled(t, 30*time.Second)
}

// parentKilled kills a harness, whose nodes must be gone within the bound.
func parentKilled(t *testing.T, bound time.Duration) {
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			if name == "native" {
				skipWithoutEngines(t, knobs)
			}
			h := startHarness(t, "up", "--stage", "lb", "--engines", name)
			awaitUp(t, h)
			if n := len(h.processes(t)); n < 7 {
				t.Fatalf("%d processes for a harness and 6 nodes", n)
			}
			if err := h.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = h.cmd.Wait() // killed, as asked for
			h.gone(t, bound)
		})
	}
}

// awaitUp waits until the control socket of the harness answers.
func awaitUp(t *testing.T, h *harness) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for time.Now().Before(deadline) {
		if sockets, _ := filepath.Glob(filepath.Join(h.temp, "stagebench", "*.sock")); len(sockets) == 1 {
			return
		}
		if h.cmd.Process.Signal(syscall.Signal(0)) != nil {
			break
		}
		pause()
	}
	t.Fatalf("it did not come up:\n%s", h.output.String())
}

// TestUpIsTakenDown walks through up, status, kill and down as two users would.
func TestUpIsTakenDown(t *testing.T) {
	t.Parallel()
	h := startHarness(t, "up", "--stage", "lb", "--set", "web.hosts=2")
	awaitUp(t, h)
	status := h.call(t, "status", "--format", "csv")
	if n := strings.Count(status, "serving"); n != 5 {
		t.Errorf("%d nodes serve, want 5:\n%s", n, status)
	}
	if out := h.call(t, "kill", "web-2"); !strings.Contains(out, "killed web-2") {
		t.Errorf("kill said %q", out)
	}
	if out := h.call(t, "attack", "--workload", "read-heavy", "--rate", "20", "--duration", "1s"); !strings.Contains(out, "scheduled") {
		t.Errorf("attack said %q", out)
	}
	h.call(t, "down")
	if err := h.cmd.Wait(); err != nil {
		t.Errorf("up ended with %v:\n%s", err, h.output.String())
	}
	if left := append(h.processes(t), h.leftovers(t)...); len(left) > 0 {
		t.Errorf("left after down: %q", left)
	}
}

// call runs another stagebench beside the harness and returns what it prints.
func (h *harness) call(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+h.temp, "XDG_CACHE_HOME="+templates())
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState.ExitCode() != exit.Invalid {
		t.Errorf("stagebench %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out.String()
}
