package main

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node"
	"github.com/stagebench/stagebench/targets/budget"
)

func doctorCommand(s streams) *cobra.Command {
	var o outputFlags
	cmd := &cobra.Command{
		Use:     "doctor",
		Short:   "Check what this machine supports, and how to enable the rest",
		Example: "  stagebench doctor",
		RunE:    func(*cobra.Command, []string) error { return o.print(s, diagnose()) },
	}
	o.flags(cmd)
	return cmd
}

// minOpenFiles is enough for a driver with many connections and a system with many
// nodes.
const minOpenFiles = 4096

func diagnose() table.Table {
	t := table.Table{Title: "What this machine supports", Columns: columns("what", "found", "good", "what to do")}
	row := func(what, found string, good bool, todo string) {
		if good {
			todo = ""
		}
		t.Rows = append(t.Rows, append(texts(what, found), table.YesNo(good), table.Text(todo)))
	}
	cores := cell.Cores()
	row("cores", fmt.Sprintf("%d; %.2f of them reserved for the driver; 1 unit = %.3f cores",
		cores, cell.Reserve(cores), cell.Unit(cores)),
		cores >= 2, "hosts and driver share one core, so figures will be invalid: use a machine with more cores")
	budgets := budget.Detect(budget.Options{})
	row("CPU and memory budgets", budgets.Describe(), budgets.Isolated(),
		"run as root, or in a delegated cgroup: systemd-run --user --scope -p Delegate=yes stagebench run")
	if err := budgets.Close(); err != nil {
		row("cleanup of cgroups", err.Error(), false, "remove these cgroups with rmdir")
	}
	priority, realTime := cell.DriverPriority(budgets.Isolated())
	row("priority of the driver", priority, realTime,
		"isolate the hosts, start without chrt, and permit it as root: setcap cap_sys_nice+ep /path/to/stagebench")
	row("loopback addresses", loopback(), loopback() == "127.x.y.z",
		"hosts share 127.0.0.1 and differ by port; for own addresses on macOS: ifconfig lo0 alias 127.0.0.2")
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil {
		row("open files", fmt.Sprint(files.Cur), files.Cur >= minOpenFiles, fmt.Sprintf("ulimit -n %d", minOpenFiles))
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = err.Error()
	}
	row("cache for templates", cache, err == nil, "set HOME or XDG_CACHE_HOME")
	for _, tier := range ladder.Tiers() {
		for _, engine := range tier.Engines {
			if !engine.Native {
				continue
			}
			err := node.Installed(engine.Name)
			found := "installed"
			if err != nil {
				found = "not installed"
			}
			row("engine "+string(engine.Name), found, err == nil, fmt.Sprint(err))
		}
	}
	return t
}

// loopback returns the loopback addresses that hosts can use.
func loopback() string {
	listener, err := net.Listen("tcp", "127.77.77.77:0")
	if err != nil {
		return "127.0.0.1 only"
	}
	if err := listener.Close(); err != nil {
		return err.Error()
	}
	return "127.x.y.z"
}
