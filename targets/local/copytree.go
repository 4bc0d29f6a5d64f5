package local

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// copier copies one tree.
type copier struct {
	link  bool // try hard links; false after the filesystem has refused one
	clone bool // try reflinks (shared blocks); false after the filesystem has refused one
}

// copyTree copies a directory with modes and owners, because a server refuses data that
// another user owns. With link, it makes hard links instead of copies of files. That is
// only for files that are replaced and never written in place. Sockets and pipes are
// left out.
func copyTree(ctx context.Context, dst, src string, link bool) error {
	c := &copier{link: link, clone: true}
	return filepath.WalkDir(src, func(path string, entry fs.DirEntry, err error) error {
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		return c.copy(filepath.Join(dst, rel), path, info)
	})
}

func (c *copier) copy(dst, src string, info fs.FileInfo) error {
	switch info.Mode().Type() {
	case fs.ModeDir:
		if err := os.Mkdir(dst, 0o700); err != nil {
			return err
		}
		if err := own(dst, info); err != nil {
			return err
		}
		return os.Chmod(dst, info.Mode().Perm())
	case fs.ModeSymlink:
		to, err := os.Readlink(src)
		if err != nil {
			return err
		}
		if err := os.Symlink(to, dst); err != nil {
			return err
		}
		return own(dst, info)
	case 0:
		if c.link {
			err := os.Link(src, dst)
			if err == nil {
				return nil
			}
			// Copy if the device differs, the filesystem has no links, or a file has too many.
			if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EMLINK) {
				return err
			}
			c.link = errors.Is(err, unix.EMLINK)
		}
		return c.copyFile(dst, src, info)
	default:
		return nil
	}
}

func (c *copier) copyFile(dst, src string, info fs.FileInfo) (err error) {
	from, err := os.Open(src)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if c.clone {
		c.clone = unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil
	}
	if !c.clone {
		if _, err := io.Copy(to, from); err != nil { // uses copy_file_range(2) if the kernel supports it
			return err
		}
	}
	if err := own(dst, info); err != nil {
		return err
	}
	return to.Chmod(info.Mode().Perm())
}

// own sets the owner of a copy to the owner of the original. It does nothing unless we are
// root, because only root may change owners.
func own(path string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(path, int(stat.Uid), int(stat.Gid))
}
