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

// removeBound is how long an emptied group may stay busy: the kernel accounts
// for a dead process a little longer than its pid lives.
const removeBound = 5 * time.Second

// filesystem is what changes a cgroup filesystem. Tests put one with the
// kernel's rules over ordinary directories in its place.
type filesystem interface {
	mkdir(dir string) error
	rmdir(dir string) error
	write(file, text string) error
}

type kernelFiles struct{}

func (kernelFiles) mkdir(dir string) error { return os.Mkdir(dir, 0o755) }

// rmdir is not os.Remove, whose error for a busy directory is that of its
// other try, "is a directory".
func (kernelFiles) rmdir(dir string) error {
	if err := syscall.Rmdir(dir); err != nil {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// write writes a control file in one system call, as the kernel wants it, and
// never creates one: a missing file is a missing feature.
func (kernelFiles) write(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// setting is a text for a control file.
type setting struct{ file, text string }

// set writes control files in the order given. Those of bursts may be missing: a
// kernel before 5.14 has none.
func set(files filesystem, dir string, settings ...setting) error {
	for _, s := range settings {
		err := files.write(filepath.Join(dir, s.file), s.text)
		if err != nil && (!strings.Contains(s.file, "burst") || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return nil
}

// procsIn lists the processes of a group and of those nested in it.
func procsIn(dir string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
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
			// A process of another pid namespace is shown as 0.
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

// removeGroups removes groups with all that are nested in them. They must be
// empty of processes, or become so within removeBound.
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
			return fmt.Errorf("remove %s: it was still busy after %v", dir, removeBound)
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

// topName is the name of a manager's own group: it carries its owner.
func topName(prefix string, owner proc.Owner, n int) string {
	return fmt.Sprintf("%s-%s-%d", prefix, owner, n)
}

// sweep removes the groups below base whose owner is gone. Their processes
// died with the owner, whose end of their standard input closed; what did not
// (a native server whose wrapper was killed) is killed. Errors are not
// reported: what cannot be removed now is in nobody's way.
func sweep(opts Options, base string) {
	entries, _ := os.ReadDir(base)
	for _, entry := range entries {
		name, ours := strings.CutPrefix(entry.Name(), opts.Prefix+"-")
		owner, ok := proc.ParseOwner(name)
		if !entry.IsDir() || !ours || !ok || !owner.Gone(opts.Root) {
			continue
		}
		dir := filepath.Join(base, entry.Name())
		_ = within(removeBound, func() (bool, error) {
			pids, err := procsIn(dir)
			if err != nil || len(pids) == 0 {
				return true, err
			}
			return false, killProcs(pids)
		})
		_ = removeGroups(opts.files, dir)
	}
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

// withMemory adds what the memory controller accounts in dir: two figures of its
// stat, and the kills in the file of its events.
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

// readTable reads a control file of lines "name number". Other lines are left
// out.
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
