package proc

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// childEnv is the environment variable that makes the test binary act as a child. Its value
// is a behaviour of the function child.
const childEnv = "STAGEBENCH_PROC_CHILD"

func TestMain(m *testing.M) {
	if behaviour := os.Getenv(childEnv); behaviour != "" {
		child(behaviour)
		return
	}
	goleak.VerifyTestMain(m)
}

// child follows the rules of the package comment, except where the behaviour breaks one.
func child(behaviour string) {
	stdin := bufio.NewReader(os.Stdin)
	ready := func(text string) { fmt.Println(text) }
	untilStdinCloses := func() { _, _ = io.Copy(io.Discard, stdin) }
	switch behaviour {
	case "good":
		document, _ := stdin.ReadString('\n')
		fmt.Fprintln(os.Stderr, "got", strings.TrimSpace(document))
		ready(`{"echo":` + strings.TrimSpace(document) + `}`)
		fmt.Println("a line after ready")
		untilStdinCloses()
		os.Exit(7)
	case "drains":
		terminated := make(chan os.Signal, 1)
		signal.Notify(terminated, syscall.SIGTERM)
		ready("{}")
		<-terminated
		fmt.Fprintln(os.Stderr, "drained")
	case "ignores SIGTERM":
		signal.Ignore(syscall.SIGTERM)
		ready("{}")
		untilStdinCloses()
		select {} // a closed standard input does not end it either
	case "dies before ready":
		for i := range 50 {
			fmt.Fprintln(os.Stderr, "line", i)
		}
		fmt.Fprint(os.Stderr, "no room left")
		os.Exit(3)
	case "never ready":
		fmt.Fprintln(os.Stderr, "thinking")
		untilStdinCloses()
	case "closes stdout":
		os.Stdout.Close()
		untilStdinCloses()
	case "endless ready line":
		fmt.Print(strings.Repeat("x", maxReadyLine+1))
		untilStdinCloses()
	case "never reads":
		ready("{}")
		select {}
	case "kills itself":
		ready("{}")
		_, _ = stdin.ReadString('\n')
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "forks", "forks and leaves the group":
		cmd := exec.Command("sleep", "1000")
		cmd.Stderr = os.Stderr // holds the log pipe open
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: behaviour != "forks"}
		if err := cmd.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		ready(fmt.Sprint(cmd.Process.Pid))
		untilStdinCloses()
	}
}
