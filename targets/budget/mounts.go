package budget

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// mounts says where this process's own group is found in each hierarchy.
type mounts struct {
	v1      map[string]string // controller -> directory of the own group
	v2      string            // directory of the own group, "" without cgroup v2
	v2Mount string            // where the v2 hierarchy is mounted
}

// findMounts reads /proc/thread-self/cgroup and /proc/self/mountinfo under
// root. The own group is what counts: the harness may sit in a nested one, and
// in another one in each hierarchy. See cgroups(7) and proc(5).
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

// ownGroups returns the path of this process's group by controller; the key of
// cgroup v2 is "". It asks for the calling thread: what /proc/self shows is
// the main thread, and that one may be on its way into a leaf (v1Group.start),
// while a thread in a leaf never runs anything but that start.
func ownGroups(root string) (map[string]string, error) {
	text, err := os.ReadFile(filepath.Join(root, "proc/thread-self/cgroup"))
	if err != nil {
		return nil, fmt.Errorf("find the own cgroup: %w", err)
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
		return nil, errors.New("find the own cgroup: this kernel has no cgroups")
	}
	return own, nil
}

// groupDir maps a path inside a hierarchy to a directory. A mount may show
// only a part of the hierarchy (mountRoot); where the own group lies outside
// of that part, the top of what is shown stands for it.
func groupDir(mountRoot, mountPoint, path string) string {
	rel, err := filepath.Rel(mountRoot, path)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return mountPoint
	}
	return filepath.Join(mountPoint, rel)
}

// unescape undoes the octal escapes of mountinfo: the kernel writes these four
// characters so (fs/proc_namespace.c, show_mountinfo).
func unescape(field string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(field)
}
