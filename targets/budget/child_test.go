package budget

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/internal/polltest"
)

// childEnv is an environment variable with the behaviour of the test binary as a child.
const childEnv = "STAGEBENCH_BUDGET_CHILD"

// timeout bounds how long a test waits for an event.
const timeout = 20 * time.Second

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		goleak.VerifyTestMain(m)
		return
	case "busy": // uses all CPU that it gets, with GOMAXPROCS threads
		for range runtime.GOMAXPROCS(0) - 1 {
			go spin()
		}
		go spin()
		fmt.Println("ready")
	case "threads": // has many threads
		var running sync.WaitGroup
		for range 20 {
			running.Add(1)
			go func() {
				runtime.LockOSThread()
				running.Done()
				select {}
			}()
		}
		running.Wait()
		fmt.Println("ready")
	case "hungry": // allocates 512 MiB after the first byte on its standard input
		fmt.Println("ready")
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
		memory := make([]byte, 512<<20)
		for i := range memory {
			memory[i] = 1
		}
	case "forks": // starts a process in a session and process group of its own
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(cmd.Process.Pid)
	case "harness": // starts a process in a group, and leaves both behind when it is killed
		m := Detect(Options{Prefix: os.Getenv("STAGEBENCH_BUDGET_PREFIX")})
		host, err := m.NewHost("h", 0, 0)
		if err == nil {
			var leaf *Leaf
			if leaf, err = host.Leaf("n"); err == nil {
				cmd := exec.Command("sleep", "1000")
				if err = leaf.Start(cmd); err == nil {
					fmt.Println(cmd.Process.Pid)
				}
			}
		}
		if err != nil {
			fmt.Println(err)
		}
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func spin() {
	for n := 0; ; n++ {
		if n < 0 {
			runtime.Gosched()
		}
	}
}

// child is a child process of a test.
type child struct {
	cmd   *exec.Cmd
	stdin io.Writer
	first string // first line of its output
	end   func() // kills the child and waits for it
}

// launch starts a child with the function start and waits for its first line of output.
func launch(t *testing.T, behaviour string, start func(*exec.Cmd) error, env ...string) child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(append(os.Environ(), childEnv+"="+behaviour), env...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() {
		if !ended {
			ended = true
			stdin.Close()
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(end)
	first, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("%s: no output: %v", behaviour, err)
	}
	return child{cmd: cmd, stdin: stdin, first: strings.TrimSpace(first), end: end}
}

// pid returns the pid that the child has printed.
func (c child) pid(t *testing.T) int {
	t.Helper()
	pid, err := strconv.Atoi(c.first)
	if err != nil {
		t.Fatalf("the child printed %q, want a pid", c.first)
	}
	return pid
}

// eventually polls until a condition holds. It ends the test after timeout.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, timeout, 5*time.Millisecond, what, holds)
}
