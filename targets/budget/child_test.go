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
)

// childEnv names the behaviour that the test binary shows as a child.
const childEnv = "STAGEBENCH_BUDGET_CHILD"

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		goleak.VerifyTestMain(m)
		return
	case "busy": // spends all CPU that it gets, on every thread
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
	case "hungry": // takes 512 MiB once its standard input says so
		fmt.Println("ready")
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
		memory := make([]byte, 512<<20)
		for i := range memory {
			memory[i] = 1
		}
	case "forks": // starts a process that leaves session, process group and log
		cmd := exec.Command("sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(cmd.Process.Pid)
	case "harness": // leaves a group with a process in it behind when it is killed
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

// child is a started child of a test.
type child struct {
	cmd   *exec.Cmd
	stdin io.Writer
	first string // the first line that it printed
	end   func() // kills and reaps it
}

// launch starts a child by the given function and waits until it is ready.
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
		t.Fatalf("%s: no ready line: %v", behaviour, err)
	}
	return child{cmd: cmd, stdin: stdin, first: strings.TrimSpace(first), end: end}
}

// pid reads the pid that the child printed.
func (c child) pid(t *testing.T) int {
	t.Helper()
	pid, err := strconv.Atoi(c.first)
	if err != nil {
		t.Fatalf("the child says %q", c.first)
	}
	return pid
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
