package wan

import (
	"container/heap"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// exactAlarms makes alarms from one timer of the kernel, a timerfd. The runtime waits for it as for a socket, so the
// alarms are as exact as the kernel's timers: about 50 us.
type exactAlarms struct {
	file *os.File
	fd   int           // of file; File.Fd would make reads block a thread
	over chan struct{} // closed when run has ended

	mu     sync.Mutex
	set    alarmHeap
	next   time.Time // what the timerfd is set to; zero = not set
	closed bool
}

// openAlarms returns exact alarms.
func openAlarms() (alarms, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("timerfd_create: %w", err)
	}
	a := &exactAlarms{file: os.NewFile(uintptr(fd), "timerfd"), fd: fd, over: make(chan struct{})}
	go a.run()
	return a, nil
}

// run rings the alarms that are due, until the file is closed.
func (a *exactAlarms) run() {
	defer close(a.over)
	expirations := make([]byte, 8)
	for {
		if _, err := a.file.Read(expirations); err != nil {
			return
		}
		a.mu.Lock()
		now := time.Now()
		for len(a.set) > 0 && !a.set[0].at.After(now) {
			heap.Pop(&a.set).(*exactAlarm).rings <- now
		}
		a.next = time.Time{}
		a.arm()
		a.mu.Unlock()
	}
}

// arm sets the timerfd to the first alarm. The caller holds the lock.
func (a *exactAlarms) arm() {
	if len(a.set) == 0 || a.closed || a.set[0].at.Equal(a.next) {
		return
	}
	a.next = a.set[0].at
	left := max(time.Until(a.next), 1) // 0 would disarm it
	// It cannot fail: the file is open and the time is valid.
	_ = unix.TimerfdSettime(a.fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(left))}, nil)
}

func (a *exactAlarms) alarm() alarm {
	return &exactAlarm{of: a, index: -1, rings: make(chan time.Time, 1)}
}

func (a *exactAlarms) close() {
	a.mu.Lock()
	closed := a.closed
	a.closed = true
	a.mu.Unlock()
	if !closed {
		_ = a.file.Close() // ends run
	}
	<-a.over
}

// exactAlarm is one alarm of exactAlarms.
type exactAlarm struct {
	of    *exactAlarms
	rings chan time.Time

	// Guarded by exactAlarms.mu.
	at    time.Time
	index int // in the heap; -1 = not set
}

func (e *exactAlarm) in(d time.Duration) <-chan time.Time {
	e.of.mu.Lock()
	defer e.of.mu.Unlock()
	e.unset()
	e.at = time.Now().Add(d)
	heap.Push(&e.of.set, e)
	e.of.arm()
	return e.rings
}

func (e *exactAlarm) stop() {
	e.of.mu.Lock()
	defer e.of.mu.Unlock()
	e.unset()
}

// unset removes the alarm from the heap, and a value that nobody received. The caller holds the lock.
func (e *exactAlarm) unset() {
	if e.index >= 0 {
		heap.Remove(&e.of.set, e.index)
	}
	select {
	case <-e.rings:
	default:
	}
}

// alarmHeap has the earliest alarm first. It implements heap.Interface.
type alarmHeap []*exactAlarm

func (h alarmHeap) Len() int           { return len(h) }
func (h alarmHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }

func (h alarmHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *alarmHeap) Push(x any) {
	e := x.(*exactAlarm)
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *alarmHeap) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	e.index = -1
	return e
}
