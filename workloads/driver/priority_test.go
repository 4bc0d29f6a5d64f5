//go:build linux

package driver_test

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/workloads/driver"
)

// policies returns the scheduling policies of the threads of this process.
func policies(t *testing.T) map[uint32]int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	count := map[uint32]int{}
	for _, task := range tasks {
		thread, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		if attr, err := unix.SchedGetAttr(thread, 0); err == nil { // else the thread has ended
			count[attr.Policy]++
		}
	}
	return count
}

// The driver has real-time priority for a while. Processes that it starts in this time do not.
func TestRaisePriority(t *testing.T) {
	lower, err := driver.RaisePriority()
	if err != nil {
		if got := policies(t); got[unix.SCHED_RR] > 0 {
			t.Errorf("threads by policy after an error: %v", got)
		}
		t.Skipf("not permitted here: %v", err)
	}
	if got := policies(t); got[unix.SCHED_RR] == 0 {
		t.Errorf("threads by policy: %v, want round robin", got)
	}
	child, err := exec.Command("cat", "/proc/self/stat").Output()
	if err != nil {
		t.Fatal(err)
	}
	// proc(5): policy is field 41; the fields after the name in parentheses begin with 3.
	fields := strings.Fields(string(child[strings.LastIndex(string(child), ")")+1:]))
	if policy := fields[41-3]; policy != "0" {
		t.Errorf("a child has policy %s, want 0, the ordinary one", policy)
	}
	lower()
	if got := policies(t); got[unix.SCHED_RR] > 0 {
		t.Errorf("threads by policy at the end: %v, want no round robin", got)
	}
}
