// Package machine observes the machine that driver and target share: what other processes
// take from it, how long tasks wait for it, and how fast it is at the moment.
//
// It reads /proc (proc(5)) and, in Calibrate, works for a tenth of a second. It changes
// nothing. What the kernel does not tell is reported as unknown, never as zero. All functions
// may be called concurrently.
package machine

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// CPU is the CPU time of the machine since boot in seconds, summed over its CPUs. Busy
// includes Stolen: the time in which the hypervisor ran something else.
type CPU struct{ Busy, Stolen, Total float64 }

// ticksPerSecond is the unit of /proc/stat, fixed at 100 on Linux.
const ticksPerSecond = 100

// ReadCPU reads the CPU time. Without /proc/stat it returns zero.
func ReadCPU() CPU {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return CPU{}
	}
	line, _, _ := strings.Cut(string(text), "\n")
	var cpu CPU
	// cpu user nice system idle iowait irq softirq steal; guest time is in user.
	for i, field := range strings.Fields(line) {
		if i == 0 {
			continue
		}
		ticks, err := strconv.ParseFloat(field, 64)
		if err != nil || i > 8 {
			break
		}
		cpu.Total += ticks / ticksPerSecond
		if i != 4 && i != 5 {
			cpu.Busy += ticks / ticksPerSecond
		}
		if i == 8 {
			cpu.Stolen = ticks / ticksPerSecond
		}
	}
	return cpu
}

// Covers reports whether there is enough CPU time since an earlier reading for shares of it. The kernel counts ticks,
// and of a few milliseconds one tick would be a large share.
func (c CPU) Covers(before CPU) bool { return c.Total-before.Total >= 20.0/ticksPerSecond }

// Outside returns the share of the machine's CPU time since an earlier reading that other
// processes used. Own is the CPU time of the run in seconds.
func (c CPU) Outside(before CPU, own float64) float64 {
	total := c.Total - before.Total
	if total <= 0 {
		return 0
	}
	return max(0, (c.Busy-before.Busy-own)/total)
}

// StolenShare returns the share of the machine's CPU time that was stolen since an earlier reading.
func (c CPU) StolenShare(before CPU) float64 {
	if c.Total <= before.Total {
		return 0
	}
	return (c.Stolen - before.Stolen) / (c.Total - before.Total)
}

// OwnCPU returns the CPU time of this process since its start.
func OwnCPU() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic("machine: getrusage of the own process cannot fail: " + err.Error())
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// Pressure is the time since boot in which at least one task waited for a resource; see
// Documentation/accounting/psi.rst of Linux.
type Pressure struct{ Disk, Memory time.Duration }

// ReadPressure reads the pressure. Known is false if the kernel does not report it.
func ReadPressure() (p Pressure, known bool) {
	disk, known := some("io")
	memory, alsoKnown := some("memory")
	return Pressure{Disk: disk, Memory: memory}, known && alsoKnown
}

// some returns the total of the line "some avg10=0.00 avg60=0.51 avg300=1.73 total=835624176",
// which is in microseconds.
func some(resource string) (time.Duration, bool) {
	text, err := os.ReadFile("/proc/pressure/" + resource)
	if err != nil {
		return 0, false
	}
	line, _, _ := strings.Cut(string(text), "\n")
	_, total, found := strings.Cut(line, "total=")
	n, err := strconv.ParseInt(total, 10, 64)
	return time.Duration(n) * time.Microsecond, found && err == nil && strings.HasPrefix(line, "some ")
}

// minSpareMemory is the part of the memory that must be free for more systems to stay up.
const minSpareMemory = 0.2

// SpareMemory reports whether a fifth of the memory is available, by /proc/meminfo. Where that
// is unknown, it is.
func SpareMemory() bool {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return true
	}
	values := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if fields := strings.Fields(value); len(fields) > 0 {
			values[name], _ = strconv.ParseFloat(fields[0], 64)
		}
	}
	available, known := values["MemAvailable"]
	return !known || available >= minSpareMemory*values["MemTotal"]
}
