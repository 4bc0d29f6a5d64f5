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
	"strings"
	"syscall"
)

// owner is the ordinary user who owns the data directory and runs the server when this
// process is root. nil means the user of this process: own and makeReachable then do
// nothing.
type owner struct {
	name     string
	uid, gid uint32
}

// serverOwner returns nil, or, if this process is root, user postgres or else user nobody:
// the server refuses to run as root.
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
	return nil, errors.New("the server refuses to run as root, and there is no user postgres or nobody\n" +
		"run as an ordinary user, or add one: useradd --system postgres")
}

// credential returns the owner's credential, without supplementary groups.
func (o *owner) credential() *syscall.Credential {
	return &syscall.Credential{Uid: o.uid, Gid: o.gid, Groups: []uint32{}}
}

// own makes the owner the owner of a directory and of everything in it.
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
		// After a restart nothing has to change. A read is cheaper than a write.
		if stat := info.Sys().(*syscall.Stat_t); stat.Uid == o.uid && stat.Gid == o.gid {
			return nil
		}
		return os.Lchown(path, int(o.uid), int(o.gid))
	})
}

// makeReachable gives the owner search permission (x) on a directory and all its parents,
// where the owner lacks it. It gives no permission to list them. dir must not contain
// symbolic links.
//
// It changes only directories inside the temporary directory, where our caller makes its own. For any other it returns
// an error, because the decision is the user's.
func (o *owner) makeReachable(dir string, log *slog.Logger) error {
	if o == nil {
		return nil
	}
	temporary, err := filepath.EvalSymlinks(os.TempDir())
	if err != nil {
		return err
	}
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		if need := o.searchBit(stat); info.Mode().Perm()&need == 0 {
			const refused = "user %s, who runs the server because it refuses root, has no access to %s"
			if !strings.HasPrefix(dir, temporary+"/") {
				return fmt.Errorf(refused+"\nchoose a directory outside it, for example under /var/tmp, "+
					"or give access: chmod o+x %s", o.name, dir, dir)
			}
			if err := os.Chmod(dir, info.Mode()|need); err != nil {
				return fmt.Errorf(refused+": %w\nchoose a directory that this user can reach, for example under /var/tmp",
					o.name, dir, err)
			}
			log.Info("gave the user of the server access to a directory", "dir", dir, "user", o.name)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// searchBit returns the mode bit that gives the owner search permission on a directory.
// The kernel checks one class only: user, else group, else others.
func (o *owner) searchBit(stat *syscall.Stat_t) fs.FileMode {
	switch {
	case stat.Uid == o.uid:
		return 0o100
	case stat.Gid == o.gid:
		return 0o010
	}
	return 0o001
}
