package proc

import (
	"cmp"
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Exit describes how a child ended.
type Exit struct {
	Cause  string         // "exit status 1", "killed by SIGKILL"
	Status int            // exit status, -1 when a signal killed it
	Signal syscall.Signal // the signal that killed it, 0 when it exited by itself
	Tail   []string       // the last lines of its log, oldest first
}

// Clean reports whether the child exited by itself with status 0.
func (e Exit) Clean() bool { return e.Signal == 0 && e.Status == 0 }

func exitOf(status syscall.WaitStatus, tail []string) Exit {
	if !status.Signaled() {
		return Exit{Cause: fmt.Sprintf("exit status %d", status.ExitStatus()), Status: status.ExitStatus(), Tail: tail}
	}
	sig := status.Signal()
	name := cmp.Or(unix.SignalName(sig), fmt.Sprintf("signal %d", int(sig))) // real-time signals have no name
	return Exit{Cause: "killed by " + name, Status: -1, Signal: sig, Tail: tail}
}

// StartError is the error of a child that never became ready.
type StartError struct {
	Name   string // of the node
	Reason string // "exit status 1 before it was ready", "not ready after 30s"
	Exit   Exit   // how it ended: by itself, or killed by Start
}

// Error returns the reason on the first line and the log tail below it.
func (e *StartError) Error() string {
	text := e.Name + ": " + e.Reason
	if len(e.Exit.Tail) == 0 {
		return text + "\nit logged nothing"
	}
	return text + "\nits log ends with:\n  " + strings.Join(e.Exit.Tail, "\n  ")
}
