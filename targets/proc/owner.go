package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Owner identifies a process uniquely until the machine reboots. A pid alone does not: the
// kernel reuses it after the process has died. Cgroups and directories that can outlive a
// killed harness have its Owner in their names, so that the next harness can recognize and
// remove them.
type Owner struct {
	PID       int
	Start     uint64 // start time, in clock ticks since boot
	Namespace uint64 // inode of the pid namespace, 0 when it cannot be read
}

// Self returns the Owner of this process. root is where procfs is found: "/".
func Self(root string) (Owner, error) {
	pid := os.Getpid()
	stat, err := ReadStat(root, pid)
	if err != nil {
		return Owner{}, err
	}
	return Owner{PID: pid, Start: stat.Start, Namespace: pidNamespace(root)}, nil
}

// String returns the owner in a form that can be part of a file name.
func (o Owner) String() string {
	return fmt.Sprintf("%d-%d-%d", o.PID, o.Start, o.Namespace)
}

// ParseOwner parses the result of String. More text may follow after another dash.
func ParseOwner(text string) (o Owner, ok bool) {
	parts := strings.SplitN(text, "-", 4)
	if len(parts) < 3 {
		return Owner{}, false
	}
	pid, err1 := strconv.Atoi(parts[0])
	start, err2 := strconv.ParseUint(parts[1], 10, 64)
	namespace, err3 := strconv.ParseUint(parts[2], 10, 64)
	if errors.Join(err1, err2, err3) != nil || pid <= 0 {
		return Owner{}, false
	}
	return Owner{PID: pid, Start: start, Namespace: namespace}, true
}

// Gone reports whether the owner is certainly dead. It returns false for a process of
// another pid namespace, because that process cannot be looked up from here.
func (o Owner) Gone(root string) bool {
	if o.Namespace != pidNamespace(root) {
		return false
	}
	stat, err := ReadStat(root, o.PID)
	if err != nil {
		// ESRCH: the process died after its file was opened and before it was read.
		return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
	}
	return stat.Start != o.Start || stat.State == 'Z'
}

func pidNamespace(root string) (inode uint64) {
	link, _ := os.Readlink(filepath.Join(root, "proc/self/ns/pid"))
	_, _ = fmt.Sscanf(link, "pid:[%d]", &inode)
	return inode
}

// Stat is the part of /proc/PID/stat that is used here; see proc(5).
type Stat struct {
	PID      int
	State    byte // R, S, D, Z, T ...
	Parent   int
	Ticks    uint64 // user and system CPU time of the process and its reaped children, in clock ticks
	Start    uint64 // in clock ticks since boot
	RSSPages int64
}

// TicksPerSecond is the unit of the times in Stat. The kernel gives it to user
// space as 100 on every architecture that Go supports on Linux.
const TicksPerSecond = 100

// ReadStat reads /proc/PID/stat under root.
func ReadStat(root string, pid int) (Stat, error) {
	text, err := os.ReadFile(filepath.Join(root, "proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return Stat{}, err
	}
	stat, err := parseStat(string(text))
	if err != nil {
		return Stat{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	stat.PID = pid
	return stat, nil
}

func parseStat(text string) (Stat, error) {
	// The name of the program is in parentheses. It can contain spaces and parentheses,
	// so the other fields start after the last closing one.
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 22 {
		return Stat{}, fmt.Errorf("%d fields after the name, want 22 or more", len(fields))
	}
	var n [22]uint64
	for _, i := range []int{1, 11, 12, 13, 14, 19, 21} {
		var err error
		if n[i], err = strconv.ParseUint(fields[i], 10, 64); err != nil {
			return Stat{}, err
		}
	}
	return Stat{
		State: fields[0][0], Parent: int(n[1]),
		Ticks: n[11] + n[12] + n[13] + n[14], Start: n[19], RSSPages: int64(n[21]),
	}, nil
}
