package driver

import (
	"errors"
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
// it within newThreads. Processes that start in between do not get it: a node that is
// restarted during a step keeps the ordinary priority. A scheduling that the user has chosen,
// for example with chrt, is kept.
//
// An error means that the system does not permit it. Then nothing has changed.
func RaisePriority() (lower func(), err error) {
	before, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return nil, fmt.Errorf("read the scheduling of the driver: %w", err)
	}
	if before.Policy != unix.SCHED_NORMAL {
		return func() {}, nil
	}
	attr := func(policy, priority uint32, nice int32) *unix.SchedAttr {
		return &unix.SchedAttr{
			Size: unix.SizeofSchedAttr, Policy: policy, Priority: priority, Nice: nice,
			Flags: unix.SCHED_FLAG_RESET_ON_FORK, // children start with the ordinary scheduling
		}
	}
	realTime, ordinary := attr(unix.SCHED_RR, 1, 0), attr(unix.SCHED_NORMAL, 0, before.Nice)
	if err := schedule(realTime); err != nil {
		return nil, errors.Join(fmt.Errorf("real-time priority: %w", err), schedule(ordinary))
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

// schedule sets the scheduling of all threads of this process.
func schedule(attr *unix.SchedAttr) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, task := range tasks {
		thread, err := strconv.Atoi(task.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetAttr(thread, attr, 0); err != nil && !errors.Is(err, unix.ESRCH) { // the thread has ended
			return err
		}
	}
	return nil
}
