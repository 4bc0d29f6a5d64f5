package budget

import (
	"fmt"
	"math"
	"time"
)

const (
	// minQuota is the kernel's own limit: it refuses less as a quota and as a
	// period (kernel/sched/core.c, min_cfs_quota_period).
	minQuota = time.Millisecond
	// basePeriod is the period of every host for which minQuota permits it. A
	// shorter one would only add timer interrupts; a longer one stalls the
	// host for longer and so fakes its tail latency.
	basePeriod = 5 * time.Millisecond
	// maxPeriod bounds the stall of a very small host.
	maxPeriod = 100 * time.Millisecond
)

// Quota is a CPU budget as the kernel takes it: in every Period the host runs
// for at most Quota, summed over all CPUs, plus what it saved up to Burst.
type Quota struct {
	Quota  time.Duration
	Period time.Duration
	Burst  time.Duration
}

// QuotaFor returns the quota of a host with that many cores. The period is
// 5 ms, or as long as a quota of 1 ms makes it: 0.1 cores get 1 ms in 10 ms,
// 0.3 cores 1.5 ms in 5 ms. scale multiplies the period (1 = as said) to see
// whether a measurement depends on it; the kernel's limits still hold, so a
// host whose quota is at 1 ms already has no shorter period: compare the
// periods of two scales before comparing what was measured. burst is a share
// of the quota, from 0 to 1.
func QuotaFor(cores, scale, burst float64) (Quota, error) {
	if !(cores > 0) || math.IsInf(cores, 0) {
		return Quota{}, fmt.Errorf("a budget of %v cores: want more than 0", cores)
	}
	if !(scale > 0) || !(burst >= 0 && burst <= 1) {
		return Quota{}, fmt.Errorf("period scale %v and burst %v: want more than 0, and 0 to 1", scale, burst)
	}
	shortest := time.Duration(math.Ceil(minQuota.Seconds()/cores*1e6-1e-6)) * time.Microsecond
	if shortest > maxPeriod {
		return Quota{}, fmt.Errorf("a budget of %v cores: the kernel enforces no less than %v", cores, minQuota.Seconds()/maxPeriod.Seconds())
	}
	period := time.Duration(float64(max(basePeriod, shortest)) * scale).Round(time.Microsecond)
	period = min(max(period, shortest, minQuota), maxPeriod)
	quota := max(time.Duration(cores*float64(period)).Round(time.Microsecond), minQuota)
	return Quota{
		Quota: quota, Period: period,
		Burst: time.Duration(burst * float64(quota)).Round(time.Microsecond),
	}, nil
}

// Procs is the number of threads that a node of a host with that many cores
// should run at once: its cores, rounded up. More of them spend the quota
// together and then all wait for the next period; at 0.1 cores two threads
// gave five times the p99 of one. 0 cores, a host without a budget, gives 0:
// the runtime's own choice.
func Procs(cores float64) int { return int(math.Ceil(cores)) }
