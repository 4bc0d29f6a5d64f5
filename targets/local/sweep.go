package local

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/targets/budget"
	"github.com/stagebench/stagebench/targets/proc"
)

// Sweep removes what killed harnesses of this user have left behind: their processes and cgroups, their private
// directories with logs and with what Options.Release frees, and half-built templates. It needs no Topology, and
// without a TemplateDir it sweeps no templates. It ignores errors: what stays does no harm, and the next Sweep tries
// again.
//
// Several processes may call Sweep at the same time, also while systems run.
func Sweep(opts Options) {
	opts = opts.withDefaults()
	budget.Sweep(budget.Options{}) // first: the processes use the directories
	entries, _ := os.ReadDir(opts.workDir)
	for _, entry := range entries {
		name, ours := strings.CutPrefix(entry.Name(), dirPrefix)
		if owner, ok := proc.ParseOwner(name); ours && ok && isOwn(entry) && owner.Gone("/") {
			_ = opts.discard(filepath.Join(opts.workDir, entry.Name()))
		}
	}
	if opts.TemplateDir == "" { // else the pattern would match files of the user in the working directory
		return
	}
	locks, _ := filepath.Glob(filepath.Join(opts.TemplateDir, "*"+lockSuffix))
	for _, lock := range locks {
		sweepTemplate(strings.TrimSuffix(lock, lockSuffix))
	}
}

// isOwn reports whether an entry is a directory of this user, and not a link to one.
func isOwn(entry os.DirEntry) bool {
	info, err := entry.Info()
	if err != nil || !info.IsDir() {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

// sweepTemplate removes what builders of a template left behind that died, unless it is being built.
func sweepTemplate(dir string) {
	file, err := os.OpenFile(dir+lockSuffix, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer file.Close()
	if unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		_ = removeStaged(dir)
	}
}

// discard removes a directory of nodes whose processes have all ended.
func (o Options) discard(dir string) error {
	return errors.Join(o.Release(dir), os.RemoveAll(dir))
}
