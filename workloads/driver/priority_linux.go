package driver

import (
	"cmp"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// newThreads is the time between two searches for threads that the Go runtime has started.
const newThreads = 250 * time.Millisecond

// RaisePriority gives all threads of this process real-time priority until lower is called,
// so that a busy machine does not delay the sending of ops. Threads that start in between get
// it within newThreads. Processes that start in between do not get it: a node that is restarted
// during a step has the ordinary priority, with a niceness of 0.
//
// An error says why the process keeps its scheduling: the system does not permit it, or the
// user has chosen one, for example with chrt. A real-time scheduling of the user is kept
// without an error. Calls must not overlap; call lower once.
func RaisePriority() (lower func(), err error) {
	before, err := unix.SchedGetAttr(os.Getpid(), 0) // of the main thread
	if err != nil {
		return nil, fmt.Errorf("read the scheduling of the driver: %w", err)
	}
	switch before.Policy {
	case unix.SCHED_NORMAL:
	case unix.SCHED_RR, unix.SCHED_FIFO, unix.SCHED_DEADLINE:
		return func() {}, nil
	default:
		return nil, fmt.Errorf("real-time priority: the process was started with scheduling policy %d of chrt", before.Policy)
	}
	attr := func(policy, priority uint32, nice int32) *unix.SchedAttr {
		return &unix.SchedAttr{
			Size: unix.SizeofSchedAttr, Policy: policy, Priority: priority, Nice: nice,
			Flags: unix.SCHED_FLAG_RESET_ON_FORK, // children start with the ordinary scheduling
		}
	}
	realTime, ordinary := attr(unix.SCHED_RR, 1, 0), attr(unix.SCHED_NORMAL, 0, before.Nice)
	if err := schedule(realTime); err != nil {
		return nil, fmt.Errorf("real-time priority: %w", err)
	}
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		again := time.NewTicker(newThreads)
		defer again.Stop()
		for {
			select {
			case <-again.C:
				_ = schedule(realTime) // it was permitted before
			case <-stop:
				return
			}
		}
	})
	return func() {
		close(stop)
		watch.Wait()
		_ = schedule(ordinary) // lowering is always permitted
	}, nil
}

// schedule sets the scheduling of all threads of this process. It returns an error if it set that
// of none: a single thread may have ended, or may be starting a process in a control group that
// permits no real-time priority.
func schedule(attr *unix.SchedAttr) (err error) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	changed := false
	for _, task := range tasks {
		thread, failed := strconv.Atoi(task.Name())
		if failed == nil {
			failed = unix.SchedSetAttr(thread, attr, 0)
		}
		changed = changed || failed == nil
		err = cmp.Or(err, failed)
	}
	if changed {
		return nil
	}
	return err
}
