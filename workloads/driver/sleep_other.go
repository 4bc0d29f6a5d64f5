//go:build !linux

package driver

import "time"

// sleepUntil sleeps until the clock shows at.
func sleepUntil(now func() int64, at int64) {
	if left := at - now(); left > 0 {
		time.Sleep(time.Duration(left))
	}
}
