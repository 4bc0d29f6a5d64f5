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

// Owner identifies a process for as long as the machine is up: a pid alone is
// given to somebody else after its process died. What outlives a killed
// harness (a cgroup, a directory) carries its Owner in its name, so that the
// next one can tell leftovers from what is in use.
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

// String is a form of the owner that fits into file names.
func (o Owner) String() string {
	return fmt.Sprintf("%d-%d-%d", o.PID, o.Start, o.Namespace)
}

// ParseOwner reads what String wrote, alone or with another dash behind it.
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

// Gone reports whether the owner is surely dead. A process of another pid
// namespace cannot be looked up from here, so it is never surely dead.
func (o Owner) Gone(root string) bool {
	if o.Namespace != pidNamespace(root) {
		return false
	}
	stat, err := ReadStat(root, o.PID)
	if err != nil {
		// ESRCH: it died between the opening and the reading of its file.
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
	Ticks    uint64 // CPU time, user and system, of it and of children that it waited for, in clock ticks
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
	// The name of the program is in parentheses and may hold any character,
	// also spaces and parentheses: what counts starts after the last one.
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
