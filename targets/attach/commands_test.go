package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serveVariable is an environment variable that makes the test binary run Serve.
const serveVariable = "ATTACH_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(serveVariable) != "" {
		ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer cancel()
		if err := Serve(ctx, os.Stdin, os.Stdout, os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// start starts commands in a directory, with a server that answers with a status.
func start(t *testing.T, c Commands, status int) (stop func(context.Context) error, dir string, err error) {
	t.Helper()
	t.Setenv(serveVariable, "1")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	t.Cleanup(server.Close)
	dir = t.TempDir()
	c.Dir = dir
	ready := Ready{URL: server.URL, Patience: 2 * time.Second}
	stop, err = Start(t.Context(), os.Args[0], nil, c, ready, dir)
	return stop, dir, err
}

// text returns a file.
func text(t *testing.T, path ...string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// alive reports whether a process runs. A zombie does not.
func alive(t *testing.T, pid string) bool {
	t.Helper()
	number, err := strconv.Atoi(strings.TrimSpace(pid))
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", number))
	return err == nil && !strings.Contains(string(stat), ") Z ") && !errors.Is(syscall.Kill(number, 0), syscall.ESRCH)
}

func TestDownRunsAfterUp(t *testing.T) {
	stop, dir, err := start(t, Commands{
		Up:   "echo up $SIZE >> calls; setsid sleep 1000 & echo $! > new; mv new daemon; exec sleep 1000",
		Down: "echo down $SIZE >> calls", Env: []string{"SIZE=3"},
	}, http.StatusNotFound)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { _, err := os.Stat(filepath.Join(dir, "daemon")); return err == nil })
	if err := stop(t.Context()); err != nil {
		t.Error(err)
	}
	if got := text(t, dir, "calls"); got != "up 3\ndown 3\n" {
		t.Errorf("calls %q", got)
	}
	if alive(t, text(t, dir, "daemon")) {
		t.Error("the daemon still runs")
	}
}

// An up command may end, if it leaves a daemon.
func TestUpMayEnd(t *testing.T) {
	stop, dir, err := start(t, Commands{Up: "sleep 1000 & echo $! > new; mv new daemon"}, http.StatusOK)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { _, err := os.Stat(filepath.Join(dir, "daemon")); return err == nil })
	if err := stop(t.Context()); err != nil {
		t.Error(err)
	}
	if alive(t, text(t, dir, "daemon")) {
		t.Error("the daemon still runs")
	}
}

func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for end := time.Now().Add(20 * time.Second); !condition(); <-again.C {
		if time.Now().After(end) {
			t.Fatal("it did not happen within 20 s")
		}
	}
}

func TestFailures(t *testing.T) {
	_, dir, err := start(t, Commands{Up: "echo no such port; exit 3", Down: "echo down > calls"}, http.StatusBadGateway)
	want := "the up command failed before the target answered\nthe commands printed:\n  no such port"
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("a failed up command: %v, want %s", err, want)
	}
	if text(t, dir, "calls") != "down\n" {
		t.Error("down did not run after a failed up command")
	}
	_, dir, err = start(t, Commands{Up: "exec sleep 1000", Down: "echo down > calls"}, http.StatusBadGateway)
	if err == nil || !strings.Contains(err.Error(), "did not answer within 2s: status 502 Bad Gateway") {
		t.Errorf("a target that is not ready: %v", err)
	}
	if text(t, dir, "calls") != "down\n" {
		t.Error("down did not run for a target that was never ready")
	}
	stop, _, err := start(t, Commands{Up: "exec sleep 1000", Down: "echo cannot; exit 4"}, http.StatusOK)
	if err != nil {
		t.Fatal(err)
	}
	if err := stop(t.Context()); err == nil || !strings.Contains(err.Error(), "the down command: exit status 4") {
		t.Errorf("a failed down command: %v", err)
	}
	stop, dir, err = start(t, Commands{Up: "while ! test -e end; do sleep 0.01; done; exit 5"}, http.StatusOK)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "end"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return strings.Contains(text(t, dir, "target.log"), "exit status 5") })
	if err := stop(t.Context()); err == nil || !strings.Contains(err.Error(), "failed after it was ready") {
		t.Errorf("an up command that ends early: %v", err)
	}
}

// Two processes with one lock are never up at the same time.
func TestUpWaitsForTheLock(t *testing.T) {
	lock := filepath.Join(t.TempDir(), "lock")
	unlock, err := Commands{Lock: lock}.lock()
	if err != nil {
		t.Fatal(err)
	}
	calls := filepath.Join(t.TempDir(), "calls")
	started := make(chan error, 1)
	go func() {
		stop, _, err := start(t, Commands{Up: "echo up > " + calls + "; exec sleep 1000", Lock: lock}, http.StatusOK)
		if err == nil {
			err = stop(context.WithoutCancel(t.Context()))
		}
		started <- err
	}()
	select {
	case err := <-started:
		t.Errorf("it did not wait for the lock: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if _, err := os.Stat(calls); err == nil {
		t.Error("up ran without the lock")
	}
	unlock()
	if err := <-started; err != nil {
		t.Error(err)
	}
}

// Without commands, it only waits for the answer.
func TestReadyWithoutCommands(t *testing.T) {
	if stop, _, err := start(t, Commands{}, http.StatusOK); err != nil || stop != nil {
		t.Errorf("a target that runs: %v", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	ready := Ready{URL: "http://" + listener.Addr().String(), Patience: time.Hour}
	if _, err := Start(ctx, os.Args[0], nil, Commands{}, ready, t.TempDir()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an interruption while it waits: %v", err)
	}
}
