package budget

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/targets/proc"
)

// removeBound is how long an empty group may stay busy. The kernel keeps a dead
// process in its group for a short time after its pid is gone.
const removeBound = 5 * time.Second

// filesystem has the operations that change a cgroup filesystem. Tests replace it by
// ordinary directories with the rules of the kernel.
type filesystem interface {
	mkdir(dir string) error
	rmdir(dir string) error
	write(file, text string) error
}

type kernelFiles struct{}

func (kernelFiles) mkdir(dir string) error { return os.Mkdir(dir, 0o755) }

func (kernelFiles) rmdir(dir string) error { return os.Remove(dir) }

// write writes a control file in one system call, as the kernel requires. It does not
// create a missing file, because a missing file is a missing feature.
func (kernelFiles) write(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// setting is a control file and the text to write to it.
type setting struct{ file, text string }

// set writes control files in this order. It ignores that a control file of bursts is
// missing: kernels before 5.14 do not have them.
func set(files filesystem, dir string, settings ...setting) error {
	for _, s := range settings {
		err := files.write(filepath.Join(dir, s.file), s.text)
		if err != nil && (!strings.Contains(s.file, "burst") || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return nil
}

// procsIn lists the processes of a group and of its nested groups.
func procsIn(dir string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed since it was listed
			return nil
		case err != nil:
			return err
		case entry.Name() != "cgroup.procs":
			return nil
		}
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			return nil
		}
		for field := range strings.FieldsSeq(string(text)) {
			// The kernel shows a process of another pid namespace as 0.
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return err
	})
	return pids, err
}

func killProcs(pids []int) error {
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return nil
}

// removeGroups removes groups with their nested groups. It waits up to removeBound
// until the last process has left.
func removeGroups(files filesystem, dirs ...string) error {
	for _, dir := range dirs {
		err := within(removeBound, func() (bool, error) {
			err := removeNested(files, dir)
			if errors.Is(err, syscall.EBUSY) {
				return false, nil
			}
			return true, err
		})
		if errors.Is(err, errBound) {
			return fmt.Errorf("remove %s: it is still busy after %v", dir, removeBound)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func removeNested(files filesystem, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeNested(files, filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	if err := files.rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// topName returns the name of a manager's own group. It contains the owner, so that
// Sweep can find groups of dead owners.
func topName(prefix string, owner proc.Owner, n int) string {
	return fmt.Sprintf("%s-%s-%d", prefix, owner, n)
}

// readNumber reads a control file that holds one number.
func readNumber(file string) (int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}

// withMemory adds the usage that the memory controller reports in dir. anonymous and
// mapped are names of lines in memory.stat, and events is the name of the file with
// the number of OOM kills.
func (u Usage) withMemory(dir, anonymous, mapped, events string) (Usage, error) {
	stat, err := readTable(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return Usage{}, err
	}
	u.RSSBytes = stat[anonymous] + stat[mapped]
	kills, err := readTable(filepath.Join(dir, events))
	u.OOMKills = kills["oom_kill"]
	return u, err
}

// readTable reads a control file with lines "name number". It ignores other lines.
func readTable(file string) (map[string]int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	table := map[string]int64{}
	for line := range strings.SplitSeq(string(text), "\n") {
		name, value, _ := strings.Cut(line, " ")
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			table[name] = n
		}
	}
	return table, nil
}

func micros(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) }
