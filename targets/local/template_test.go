package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// seeds counts the seed nodes that have started: one per built template.
func (s *fixture) seeds(t *testing.T) (count int) {
	t.Helper()
	for _, line := range s.trace(t) {
		if strings.HasPrefix(line, "template-seed started") {
			count++
		}
	}
	return count
}

func TestConcurrentBringUpsBuildOneTemplate(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.Single, nil)
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			system, err := Up(t.Context(), s.options)
			if err != nil {
				t.Error(err)
				return
			}
			if err := system.Down(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	if n := s.seeds(t); n != 1 {
		t.Errorf("the data set was generated %d times", n)
	}
	entries, err := os.ReadDir(s.options.TemplateDir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if want := []string{"small-1-sqlite-v1", "small-1-sqlite-v1.lock"}; !slices.Equal(names, want) {
		t.Errorf("the cache holds %v, want %v", names, want)
	}
}

func TestAnotherVersionIsAnotherTemplate(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.Single, nil)
	for _, v := range []string{"v1", "v1", "v2"} {
		s.options.TemplateVersion = version(v)
		if err := s.up(t).Down(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.seeds(t); n != 2 {
		t.Errorf("the data set was generated %d times, want once per version", n)
	}
}

func TestAnIncompleteTemplateIsNeverUsed(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.Single, nil)
	s.behave("template-seed", "fails")
	if _, err := Up(t.Context(), s.options); err == nil {
		t.Fatal("it came up")
	}
	// A killed builder leaves such a directory.
	incomplete := filepath.Join(s.options.TemplateDir, ".small-1-sqlite-v1.123", templateWork)
	if err := os.MkdirAll(incomplete, 0o755); err != nil {
		t.Fatal(err)
	}
	if built(filepath.Join(s.options.TemplateDir, "small-1-sqlite-v1")) {
		t.Error("a template exists after a failed build")
	}
	s.behave("template-seed", "")
	if err := s.up(t).Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(incomplete); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the incomplete template was not removed: %v", err)
	}
}

// TestSystemsDoNotShareWritableFiles checks that a database gets copies of its template's
// files. Blobs never change, so a blob store gets hard links.
func TestSystemsDoNotShareWritableFiles(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.Single, nil)
	system := s.up(t)
	template := filepath.Join(s.options.TemplateDir, "small-1-sqlite-v1")
	inode := func(parts ...string) (uint64, os.FileMode) {
		info, err := os.Stat(filepath.Join(parts...))
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Ino, info.Mode().Perm()
	}
	rows, mode := inode(template, templateDB, "rows")
	if copied, copiedMode := inode(system.dir, "db-1", "rows"); copied == rows || copiedMode != mode {
		t.Errorf("the database's file is inode %d mode %v, the template's %d %v", copied, copiedMode, rows, mode)
	}
	photo, _ := inode(template, templateBlob, "ab", "photo.jpg")
	if linked, _ := inode(system.dir, "blob-1", "ab", "photo.jpg"); linked != photo {
		t.Error("the photo is not a hard link to the template's")
	}
}

func TestWaitingForALockEnds(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("the test has ended the wait")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Millisecond, cause)
	defer cancel()
	if _, err := lockFile(ctx, path); !errors.Is(err, cause) {
		t.Errorf("error %v", err)
	}
	unlock()
	again, err := lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestCopyTree(t *testing.T) {
	t.Parallel()
	src, dst := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.MkdirAll(filepath.Join(src, "base", "1"), 0o700))
	check(os.WriteFile(filepath.Join(src, "base", "1", "data"), []byte("rows"), 0o600))
	check(os.WriteFile(filepath.Join(src, "read-only"), []byte("conf"), 0o440))
	check(os.Symlink("base/1", filepath.Join(src, "link")))
	check(syscall.Mkfifo(filepath.Join(src, "fifo"), 0o600))
	root := os.Geteuid() == 0
	if root {
		check(os.Chown(filepath.Join(src, "base", "1", "data"), 65534, 65534))
		check(os.Chown(filepath.Join(src, "base"), 65534, 65534))
	}
	check(copyTree(t.Context(), dst, src, false))

	for name, want := range map[string]struct {
		mode  os.FileMode
		text  string
		owned bool
	}{
		"base":        {mode: os.ModeDir | 0o700, owned: true},
		"base/1":      {mode: os.ModeDir | 0o700},
		"base/1/data": {mode: 0o600, text: "rows", owned: true},
		"read-only":   {mode: 0o440, text: "conf"},
	} {
		info, err := os.Stat(filepath.Join(dst, name))
		check(err)
		if info.Mode() != want.mode {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), want.mode)
		}
		if owner := info.Sys().(*syscall.Stat_t).Uid; root && want.owned != (owner == 65534) {
			t.Errorf("%s belongs to user %d", name, owner)
		}
		if !info.IsDir() {
			text, err := os.ReadFile(filepath.Join(dst, name))
			if err != nil || string(text) != want.text {
				t.Errorf("%s holds %q, %v", name, text, err)
			}
		}
	}
	if to, err := os.Readlink(filepath.Join(dst, "link")); err != nil || to != "base/1" {
		t.Errorf("the link points to %q, %v", to, err)
	}
	if _, err := os.Lstat(filepath.Join(dst, "fifo")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pipe was copied: %v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := copyTree(cancelled, dst+"-2", src, true); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled copy returned %v", err)
	}
}

// TestLinksAcrossDevices checks that files are copied when a hard link is impossible.
// /dev/shm is a second filesystem on almost every machine.
func TestLinksAcrossDevices(t *testing.T) {
	t.Parallel()
	other, err := os.MkdirTemp("/dev/shm", "stagebench-test-")
	if err != nil {
		t.Skipf("needs a second filesystem at /dev/shm: %v", err)
	}
	defer os.RemoveAll(other)
	src := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(src, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := copyTree(t.Context(), filepath.Join(other, "copy"), src, true); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(other, "copy", "b")); err != nil || string(text) != "b" {
		t.Errorf("the copy holds %q, %v", text, err)
	}
}

func TestATemplateOnAnotherDevice(t *testing.T) {
	t.Parallel()
	other, err := os.MkdirTemp("/dev/shm", "stagebench-test-")
	if err != nil {
		t.Skipf("needs a second filesystem at /dev/shm: %v", err)
	}
	defer os.RemoveAll(other)
	s := newFixture(t, sut.Single, nil)
	s.options.TemplateDir = other
	if err := s.up(t).Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !built(filepath.Join(other, "small-1-sqlite-v1")) {
		t.Error("there is no template")
	}
}
