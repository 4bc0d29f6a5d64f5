package driver

import "syscall"

// sleepUntil sleeps until the clock shows at, by the kernel's own timers: they
// are exact to some 50 us, and the thread that sleeps costs no CPU.
func sleepUntil(now func() int64, at int64) {
	for {
		left := at - now()
		if left <= 0 {
			return
		}
		duration := syscall.NsecToTimespec(left)
		// Interrupted by a signal it returns early, and the loop goes on.
		_ = syscall.Nanosleep(&duration, nil)
	}
}
