package proc

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// PrivateDir makes a directory that only this user can enter, with its parents. An existing one must belong to this
// user and must not be a link: another user who made it first could read and replace what is in it.
func PrivateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return MakePrivate(dir)
}

// MakePrivate is PrivateDir for a directory that exists.
func MakePrivate(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || ok && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("%s is not a directory of this user\nremove it, or choose another directory", dir)
	}
	if info.Mode().Perm() == 0o700 {
		return nil
	}
	return os.Chmod(dir, 0o700)
}
