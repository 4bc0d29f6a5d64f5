package driver

import "syscall"

// sleepUntil sleeps until the clock shows at. It uses nanosleep, which is accurate to
// about 50 us and uses no CPU while waiting.
func sleepUntil(now func() int64, at int64) {
	for {
		left := at - now()
		if left <= 0 {
			return
		}
		duration := syscall.NsecToTimespec(left)
		// A signal can end the sleep early: the loop then sleeps for the remaining time.
		_ = syscall.Nanosleep(&duration, nil)
	}
}
