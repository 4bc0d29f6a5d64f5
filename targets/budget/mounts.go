package budget

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// mounts has the directory of this process's group in each hierarchy.
type mounts struct {
	v1      map[string]string // controller -> directory of this process's group
	v2      string            // directory of this process's group, "" without cgroup v2
	v2Mount string            // mount point of the v2 hierarchy
}

// findMounts reads /proc/thread-self/cgroup and /proc/self/mountinfo under root. This
// process may be in a nested group, and in a different group in each hierarchy. See
// cgroups(7) and proc(5).
func findMounts(root string) (mounts, error) {
	own, err := ownGroups(root)
	if err != nil {
		return mounts{}, err
	}
	text, err := os.ReadFile(filepath.Join(root, "proc/self/mountinfo"))
	if err != nil {
		return mounts{}, fmt.Errorf("find cgroup mounts: %w", err)
	}
	found := mounts{v1: map[string]string{}}
	for line := range strings.Lines(string(text)) {
		left, right, ok := strings.Cut(line, " - ")
		fields, fs := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 5 || len(fs) < 3 {
			continue
		}
		mountRoot, mountPoint := unescape(fields[3]), filepath.Join(root, unescape(fields[4]))
		switch fs[0] {
		case "cgroup2":
			if path, ok := own[""]; ok && found.v2 == "" {
				found.v2, found.v2Mount = groupDir(mountRoot, mountPoint, path), mountPoint
			}
		case "cgroup":
			for _, controller := range strings.Split(fs[2], ",") {
				if path, ok := own[controller]; ok && found.v1[controller] == "" {
					found.v1[controller] = groupDir(mountRoot, mountPoint, path)
				}
			}
		}
	}
	return found, nil
}

// ownGroups returns the path of this process's group by controller. The key of cgroup
// v2 is "". It reads the group of the calling thread. /proc/self would show the group
// of the main thread, which can be inside a leaf for a moment (v1Group.start). The
// calling thread cannot, because a thread inside a leaf only runs that function.
func ownGroups(root string) (map[string]string, error) {
	text, err := os.ReadFile(filepath.Join(root, "proc/thread-self/cgroup"))
	if err != nil {
		return nil, fmt.Errorf("find the cgroup of this process: %w", err)
	}
	own := map[string]string{}
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for _, controller := range strings.Split(parts[1], ",") {
			own[controller] = parts[2]
		}
	}
	if len(own) == 0 {
		return nil, errors.New("find the cgroup of this process: this kernel has no cgroups")
	}
	return own, nil
}

// groupDir maps a path inside a hierarchy to a directory. A mount may show only the
// part of the hierarchy below mountRoot. For a path outside of that part, groupDir
// returns the mount point.
func groupDir(mountRoot, mountPoint, path string) string {
	rel, err := filepath.Rel(mountRoot, path)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return mountPoint
	}
	return filepath.Join(mountPoint, rel)
}

// unescape decodes the octal escapes of mountinfo. The kernel escapes these four
// characters (fs/proc_namespace.c, show_mountinfo).
func unescape(field string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(field)
}
