package budget

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// fakeV2 is a cgroup v2 hierarchy of ordinary directories. It implements filesystem:
// its writes follow the rules of the kernel. Reads go to the directories.
type fakeV2 struct {
	mount string
	deny  map[string]error // directory -> error of every mkdir and write in it

	mu sync.Mutex // one write at a time
}

// newFakeV2 returns a machine with this process in the group own.
func newFakeV2(t *testing.T, own string, controllers string) (root string, fake *fakeV2) {
	t.Helper()
	root = t.TempDir()
	fake = &fakeV2{mount: filepath.Join(root, "sys/fs/cgroup"), deny: map[string]error{}}
	pid := os.Getpid()
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(root, "proc/thread-self/cgroup"), "0::"+own+"\n")
	put(t, filepath.Join(root, "proc/self/mountinfo"),
		"30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n")
	put(t, filepath.Join(root, fmt.Sprintf("proc/%d/stat", pid)), string(stat))
	fake.populate(fake.mount, controllers)
	dir := fake.mount
	for _, name := range strings.Split(strings.Trim(own, "/"), "/") {
		if name == "" {
			continue
		}
		dir = filepath.Join(dir, name)
		fake.populate(dir, "")
	}
	put(t, filepath.Join(dir, "cgroup.procs"), fmt.Sprintln(pid))
	return root, fake
}

// put writes a file and creates its directory.
func put(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// read returns the text of a file below the mount, or the error.
func (f *fakeV2) read(parts ...string) string {
	text, err := os.ReadFile(filepath.Join(append([]string{f.mount}, parts...)...))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}

// populate creates a group like the kernel: with the control files of the controllers
// that its parent gives.
func (f *fakeV2) populate(dir, controllers string) {
	files := map[string]string{
		"cgroup.procs": "", "cgroup.subtree_control": "", "cgroup.controllers": controllers, "cgroup.kill": "",
		"cpu.stat": "usage_usec 0\n",
	}
	for name := range strings.FieldsSeq(controllers) {
		switch name {
		case "cpu":
			files["cpu.max"], files["cpu.max.burst"] = "max 100000", "0"
		case "memory":
			files["memory.max"], files["memory.stat"], files["memory.events"] = "max", "anon 0\n", "oom_kill 0\n"
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		panic(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			panic(err)
		}
	}
}

func (f *fakeV2) mkdir(dir string) error {
	if err := f.deny[filepath.Dir(dir)]; err != nil {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	if _, err := os.Stat(dir); err == nil {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.EEXIST}
	}
	given, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	f.populate(dir, string(given))
	return nil
}

func (f *fakeV2) rmdir(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return err
	}
	if pids, err := procsIn(dir); err != nil || len(pids) > 0 {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: syscall.EBUSY}
	}
	return os.RemoveAll(dir)
}

func (f *fakeV2) write(file, text string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, name := filepath.Dir(file), filepath.Base(file)
	fail := func(err error) error { return &fs.PathError{Op: "write", Path: file, Err: err} }
	if err := f.deny[dir]; err != nil {
		return fail(err)
	}
	_, err := os.Stat(file)
	if err != nil {
		return err
	}
	switch name {
	case "cgroup.subtree_control":
		return f.control(dir, text, fail)
	case "cgroup.procs":
		return f.move(dir, text, fail)
	case "cpu.max.burst":
		quota, _, _ := strings.Cut(f.text(dir, "cpu.max"), " ")
		if quota != "max" && number(text) > number(quota) {
			return fail(syscall.EINVAL)
		}
	case "cpu.max":
		quota, _, _ := strings.Cut(text, " ")
		if quota == "max" {
			text = "max 100000"
		} else if number(f.text(dir, "cpu.max.burst")) > number(quota) {
			return fail(syscall.EINVAL)
		}
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// control adds or removes a controller for nested groups. A group can only give
// controllers that it has. It cannot give any while it contains processes, except the
// root group.
func (f *fakeV2) control(dir, text string, fail func(error) error) error {
	given := strings.Fields(f.text(dir, "cgroup.subtree_control"))
	name := text[1:]
	if text[0] == '-' {
		given = slices.DeleteFunc(given, func(c string) bool { return c == name })
	} else {
		if !slices.Contains(strings.Fields(f.text(dir, "cgroup.controllers")), name) {
			return fail(syscall.ENOENT)
		}
		if dir != f.mount && f.text(dir, "cgroup.procs") != "" {
			return fail(syscall.EBUSY)
		}
		given = append(given, name)
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(strings.Join(given, " ")), 0o644)
}

// move moves a process into a group. It fails if the group gives controllers.
func (f *fakeV2) move(dir, pid string, fail func(error) error) error {
	if dir != f.mount && f.text(dir, "cgroup.subtree_control") != "" {
		return fail(syscall.EBUSY)
	}
	err := filepath.WalkDir(f.mount, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Name() != "cgroup.procs" {
			return err
		}
		pids := strings.Fields(f.text(filepath.Dir(path), "cgroup.procs"))
		pids = slices.DeleteFunc(pids, func(p string) bool { return p == pid })
		return os.WriteFile(path, []byte(strings.Join(pids, "\n")), 0o644)
	})
	if err != nil {
		return err
	}
	pids := append(strings.Fields(f.text(dir, "cgroup.procs")), pid)
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strings.Join(pids, "\n")), 0o644)
}

// text returns the text of a control file, "" if it does not exist.
func (f *fakeV2) text(dir, name string) string {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func number(text string) int {
	var n int
	fmt.Sscan(text, &n)
	return n
}
