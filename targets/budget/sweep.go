package budget

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/stagebench/stagebench/targets/proc"
)

// Sweep kills the processes of dead harnesses and removes their groups, in every hierarchy where Detect could have made
// some. Most of these processes have ended, because their standard input was closed when their harness died. Sweep
// kills the others, such as a native server whose wrapper was killed. It ignores errors: a group that stays does no
// harm.
func Sweep(opts Options) {
	opts = newManager(opts).opts
	sweepTree(opts.root)
	found, err := findMounts(opts.root)
	if err != nil {
		return
	}
	var bases []string
	for _, controller := range []string{"cpu", "cpuacct", "memory"} {
		if dir := found.v1[controller]; dir != "" && !slices.Contains(bases, dir) {
			bases = append(bases, dir)
		}
	}
	for dir := found.v2; dir != ""; dir = filepath.Dir(dir) {
		bases = append(bases, dir)
		if dir == found.v2Mount || dir == filepath.Dir(dir) {
			break
		}
	}
	for _, base := range bases {
		sweepGroups(opts, base)
	}
}

// sweepGroups removes the groups below base whose owner is dead.
func sweepGroups(opts Options, base string) {
	entries, _ := os.ReadDir(base)
	for _, entry := range entries {
		name, ours := strings.CutPrefix(entry.Name(), opts.Prefix+"-")
		owner, ok := proc.ParseOwner(name)
		if !entry.IsDir() || !ours || !ok || !owner.Gone(opts.root) {
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

// sweepTree kills the processes that carry the mark of a process tree whose owner is dead, and waits until they have
// ended.
func sweepTree(root string) {
	_ = within(removeBound, func() (bool, error) {
		var pids []int
		entries, err := os.ReadDir(filepath.Join(root, "proc"))
		for _, entry := range entries {
			pid, _ := strconv.Atoi(entry.Name()) // 0 for an entry that is no process
			if owner, ok := treeOwner(root, pid); ok && owner.Gone(root) {
				pids = append(pids, pid)
			}
		}
		if len(pids) == 0 {
			return true, err
		}
		return false, killProcs(pids)
	})
}

// treeOwner returns the owner of the process tree to which a process belongs. ok is false if it belongs to none, or
// has ended.
func treeOwner(root string, pid int) (owner proc.Owner, ok bool) {
	if pid == 0 {
		return owner, false
	}
	env, _ := os.ReadFile(filepath.Join(root, "proc", strconv.Itoa(pid), "environ"))
	for variable := range bytes.SplitSeq(env, []byte{0}) {
		if path, marked := strings.CutPrefix(string(variable), treeEnv+"="); marked {
			return proc.ParseOwner(path)
		}
	}
	return owner, false
}
