package budget

import (
	"fmt"
	"strings"
	"testing"
)

// TestABusyHostStaysWithinItsBudget compares the CPU time that the kernel reports with
// the number of quota periods. It does not measure wall time.
func TestABusyHostStaysWithinItsBudget(t *testing.T) {
	t.Parallel()
	m := Detect(Options{Prefix: prefix(t)})
	defer func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}()
	if !m.Isolated() {
		t.Skipf("needs cgroups: %s", m.Describe())
	}
	host, err := m.NewHost("host-1", 0.2, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := host.Leaf("node-1")
	if err != nil {
		t.Fatal(err)
	}
	launch(t, "busy", leaf.Start)
	if usage := hostUsage(t, host); usage.ThrottledPeriods != 0 {
		t.Errorf("throttled before the budget was applied: %+v", usage)
	}
	if err := host.Apply(); err != nil {
		t.Fatal(err)
	}
	// The first periods do not count, because a host starts with a full quota.
	usageAfter := func(periods int64) Usage {
		var usage Usage
		eventually(t, fmt.Sprintf("%d quota periods", periods), func() bool {
			usage = hostUsage(t, host)
			return usage.Periods >= periods
		})
		return usage
	}
	to := usageAfter(20)
	from := to
	for attempt := 1; ; attempt++ { // CPU time and periods are not read at the same instant
		from, to = to, usageAfter(to.Periods+200)
		periods := to.Periods - from.Periods
		used, budget := to.CPUSeconds-from.CPUSeconds, float64(periods)*host.quota.Quota.Seconds()
		t.Logf("%d periods: %.1f ms of CPU, budget %.1f ms, throttled in %d periods for %.2f s",
			periods, used*1e3, budget*1e3,
			to.ThrottledPeriods-from.ThrottledPeriods, to.ThrottledSeconds-from.ThrottledSeconds)
		if used <= 1.15*budget {
			break
		}
		if attempt == 3 {
			t.Fatalf("used %.1f ms of CPU in %d periods, the budget is %.1f ms", used*1e3, periods, budget*1e3)
		}
	}
	if to.ThrottledPeriods == from.ThrottledPeriods || to.ThrottledSeconds <= from.ThrottledSeconds {
		t.Errorf("the host was not throttled from %+v to %+v", from, to)
	}
	if err := host.Lift(); err != nil {
		t.Fatal(err)
	}
	lifted := hostUsage(t, host)
	eventually(t, "without the budget the host uses CPU and is not throttled", func() bool {
		usage := hostUsage(t, host)
		return usage.CPUSeconds > lifted.CPUSeconds+0.1 && usage.ThrottledPeriods <= lifted.ThrottledPeriods+1
	})
}

// TestAProcessOverTheMemoryLimitIsKilled also checks that the usage counts the kill.
func TestAProcessOverTheMemoryLimitIsKilled(t *testing.T) {
	t.Parallel()
	m := Detect(Options{Prefix: prefix(t)})
	defer m.Close()
	if !m.Isolated() || strings.Contains(m.Describe(), "no memory limits") {
		t.Skipf("needs cgroups with memory limits: %s", m.Describe())
	}
	host, err := m.NewHost("host-1", 0, 96<<20)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := host.Leaf("node-1")
	if err != nil {
		t.Fatal(err)
	}
	c := launch(t, "hungry", leaf.Start)
	if usage, err := leaf.Usage(); err != nil || usage.OOMKills != 0 {
		t.Fatalf("at the start: %+v, %v", usage, err)
	}
	if _, err := c.stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the child ended with %v", err)
	}
	if usage, err := leaf.Usage(); err != nil || usage.OOMKills != 1 {
		t.Errorf("at the end: %+v, %v", usage, err)
	}
}

func hostUsage(t *testing.T, host *Host) Usage {
	t.Helper()
	usage, err := host.Usage()
	if err != nil {
		t.Fatal(err)
	}
	return usage
}
