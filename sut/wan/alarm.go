package wan

import "time"

// alarms makes alarms.
type alarms interface {
	alarm() alarm
	// close releases what the alarms hold. No alarm may be in use. Further calls do nothing.
	close()
}

// alarm wakes up one goroutine, which alone uses it.
type alarm interface {
	// in returns a channel that gets one value after a time. It replaces the time of an earlier call.
	in(d time.Duration) <-chan time.Time
	// stop ends the use of the alarm.
	stop()
}

// timers makes alarms that are timers of Go. On Linux, these are up to 1 ms late in an idle process: the runtime
// waits for whole milliseconds (epoll_wait).
type timers struct{}

func (timers) alarm() alarm {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return timer{t}
}

func (timers) close() {}

type timer struct{ *time.Timer }

func (t timer) in(d time.Duration) <-chan time.Time {
	t.Reset(d)
	return t.C
}

func (t timer) stop() { t.Stop() }
