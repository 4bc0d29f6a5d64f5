package proc

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit says how a child ended.
type Exit struct {
	Cause  string         // "exit status 1", "killed by SIGKILL"
	Status int            // exit status, -1 when a signal killed it
	Signal syscall.Signal // that killed it, 0 when it exited by itself
	Tail   []string       // the last lines of its log, oldest first
}

// Clean reports whether the child exited by itself with status 0.
func (e Exit) Clean() bool { return e.Signal == 0 && e.Status == 0 }

func exitOf(state *os.ProcessState, tail []string) Exit {
	status, ok := state.Sys().(syscall.WaitStatus)
	if !ok {
		return Exit{Cause: state.String(), Status: state.ExitCode(), Tail: tail}
	}
	if status.Signaled() {
		return Exit{Cause: "killed by " + signalName(status.Signal()), Status: -1, Signal: status.Signal(), Tail: tail}
	}
	return Exit{Cause: fmt.Sprintf("exit status %d", status.ExitStatus()), Status: status.ExitStatus(), Tail: tail}
}

func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return name
	}
	return fmt.Sprintf("signal %d", int(sig)) // real-time signals have no name
}

// StartError says that a child never became ready, and what it last said.
type StartError struct {
	Name   string // of the node
	Reason string // "exit status 1 before it was ready", "not ready after 30s"
	Exit   Exit   // how it ended, by itself or by our hand
}

// Error gives the reason on its first line and the log tail below it.
func (e *StartError) Error() string {
	text := e.Name + ": " + e.Reason
	if len(e.Exit.Tail) == 0 {
		return text + "\nit logged nothing"
	}
	return text + "\nits log ends with:\n  " + strings.Join(e.Exit.Tail, "\n  ")
}
