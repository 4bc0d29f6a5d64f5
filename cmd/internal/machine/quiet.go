package machine

import (
	"context"
	"fmt"
	"time"
)

// A machine is quiet if in one second other processes use less than maxOutside of its CPU, and
// tasks wait for the disk and for memory in less than these parts of the time.
const (
	maxOutside = 0.10
	maxDisk    = 0.10
	maxMemory  = 0.01
	oneLook    = time.Second
)

// AwaitQuiet waits until the machine is quiet, but at most for the given time. Before it
// waits, it calls waiting with the reason. It returns why the machine is not quiet in the
// end, "" if it is, and an error if ctx ends.
func AwaitQuiet(ctx context.Context, limit time.Duration, waiting func(reason string)) (reason string, err error) {
	end := time.Now().Add(limit)
	for first := true; ; first = false {
		if reason, err = disturbance(ctx); err != nil || reason == "" || time.Now().After(end) {
			return reason, err
		}
		if first {
			waiting(reason)
		}
	}
}

// reading is the state of the machine at one moment.
type reading struct {
	cpu      CPU
	own      float64 // CPU seconds of this process
	pressure Pressure
	known    bool // the pressure is known
}

func read() (r reading) {
	r.own, r.cpu = OwnCPU().Seconds(), ReadCPU()
	r.pressure, r.known = ReadPressure()
	return r
}

// disturbance looks at the machine for a second and returns what disturbs it.
func disturbance(ctx context.Context) (string, error) {
	before := read()
	look := time.NewTimer(oneLook)
	defer look.Stop()
	select {
	case <-look.C:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	return disturbed(before, read(), oneLook), nil
}

// disturbed returns what disturbed the machine between two readings.
func disturbed(before, after reading, elapsed time.Duration) string {
	if share := after.cpu.Outside(before.cpu, after.own-before.own); share > maxOutside {
		return fmt.Sprintf("other processes use %.0f%% of the CPU", share*100)
	}
	if !before.known || !after.known {
		return ""
	}
	waits := func(before, after time.Duration) float64 { return float64(after-before) / float64(elapsed) }
	if share := waits(before.pressure.Disk, after.pressure.Disk); share > maxDisk {
		return fmt.Sprintf("processes wait for the disk in %.0f%% of the time", share*100)
	}
	if share := waits(before.pressure.Memory, after.pressure.Memory); share > maxMemory {
		return fmt.Sprintf("processes wait for memory in %.0f%% of the time", share*100)
	}
	return ""
}
