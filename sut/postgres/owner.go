package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// owner is the ordinary user who owns the data directory and runs the server
// when we are root. The nil owner is ourselves: its methods do nothing.
type owner struct {
	name     string
	uid, gid uint32
}

// serverOwner chooses who runs the server: whoever we are, or, as the server
// refuses root, the user postgres or nobody.
func serverOwner() (*owner, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		account, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.ParseUint(account.Uid, 10, 32)
		gid, errGID := strconv.ParseUint(account.Gid, 10, 32)
		if err := errors.Join(errUID, errGID); err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		return &owner{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
	}
	return nil, errors.New("the server refuses to run as root, and there is neither a user postgres nor nobody\n" +
		"run as an ordinary user, or add one: useradd --system postgres")
}

// credential is what a process of the owner runs with: no other groups.
func (o *owner) credential() *syscall.Credential {
	return &syscall.Credential{Uid: o.uid, Gid: o.gid, Groups: []uint32{}}
}

// own gives a directory and all that is in it to the owner.
func (o *owner) own(dir string) error {
	if o == nil {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		// A restart finds everything in place: reading is cheaper than writing.
		if have := info.Sys().(*syscall.Stat_t); have.Uid == o.uid && have.Gid == o.gid {
			return nil
		}
		return os.Lchown(path, int(o.uid), int(o.gid))
	})
}

// reach makes sure that the owner may pass through a directory, given without
// symbolic links, and all above it. Where it may not, it gets the right to pass
// through by name, and not the one to list.
//
// It never opens somebody's home directory: that is not ours to decide.
func (o *owner) reach(dir string, log *slog.Logger) error {
	if o == nil {
		return nil
	}
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		have := info.Sys().(*syscall.Stat_t)
		if need := o.passBit(have); info.Mode().Perm()&need == 0 {
			const refused = "user %s, who runs the server because it refuses root, may not pass through %s"
			if isHome(dir, have.Uid) {
				return fmt.Errorf(refused+"\nchoose a directory outside of it, for example under /var/tmp, "+
					"or allow it: chmod o+x %s", o.name, dir, dir)
			}
			if err := os.Chmod(dir, info.Mode()|need); err != nil {
				return fmt.Errorf(refused+": %w\nchoose a directory that it may reach, for example under /var/tmp",
					o.name, dir, err)
			}
			log.Info("made a directory passable for the server's user", "dir", dir, "user", o.name)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// passBit is the permission that lets the owner pass through a directory: the
// kernel looks at one class only, the first that fits.
func (o *owner) passBit(have *syscall.Stat_t) fs.FileMode {
	switch {
	case have.Uid == o.uid:
		return 0o100
	case have.Gid == o.gid:
		return 0o010
	}
	return 0o001
}

// isHome reports whether a directory is the home of the user it belongs to.
func isHome(dir string, uid uint32) bool {
	account, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	return err == nil && account.HomeDir == dir
}
