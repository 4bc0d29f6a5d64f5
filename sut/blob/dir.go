// Package blob keeps the bytes of photos: a directory of files (Dir), a node
// that serves it over HTTP (NewHandler), and the client that the web tier uses
// (Client). Fill makes the template of a seeded data set.
//
// An object is named by a photo's id and a variant, and is written once: ids
// are never used again, and a second PUT replaces the whole object. The package
// knows no JPEG: any bytes will do. It keeps no index; the file system is one.
//
// Sizes are in bytes. Everything may be called concurrently. Errors wrap
// photos.ErrNotFound and, when the store or its disk cannot answer,
// photos.ErrUnavailable. Dir and Client pass one conformance kit, blobtest.
package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/stagebench/stagebench/sut/photos"
)

// fanOut is the number of directories that objects are spread over. 256 keep
// the 800,000 files of the large data set at about 3,000 per directory, and
// cost a new store 256 system calls.
const fanOut = 256

// Dir is a directory of objects.
//
// A file is never modified in place: it is written under a temporary name and
// renamed, and a delete only takes a name away. So a whole directory can be
// copied by hard links, and nothing that happens to the copy reaches the
// template. Objects survive the death of the process as soon as Write returns;
// they are not synced to disk, so a power failure may lose the newest.
type Dir struct {
	root string
	// create opens a new temporary file; a test replaces it by a full disk.
	create func(dir string) (*os.File, error)
}

// OpenDir opens the store in a directory, which is made if it does not exist.
// Only one process may have it open: what writes left unfinished is removed.
func OpenDir(root string) (*Dir, error) {
	d := &Dir{root: root, create: func(dir string) (*os.File, error) { return os.CreateTemp(dir, "put-") }}
	if err := os.RemoveAll(d.unfinished()); err != nil {
		return nil, fmt.Errorf("remove unfinished objects: %w", err)
	}
	for _, dir := range d.directories() {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make a blob directory: %w", err)
		}
	}
	return d, nil
}

// Write stores an object from a reader and returns its size. Until it returns
// without an error, readers see what was there before.
func (d *Dir) Write(id photos.ID, v photos.Variant, from io.Reader) (int64, error) {
	path, err := d.path(id, v)
	if err != nil {
		return 0, err
	}
	file, err := d.create(d.unfinished())
	if err != nil {
		return 0, storeError("write", id, v, err)
	}
	size, err := io.Copy(file, from)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		// What cannot be removed now is removed when the store is next opened.
		_ = os.Remove(file.Name())
		return 0, storeError("write", id, v, err)
	}
	return size, nil
}

// Open returns an object for reading, and its size. The caller closes it.
func (d *Dir) Open(id photos.ID, v photos.Variant) (*os.File, int64, error) {
	path, err := d.path(id, v)
	if err != nil {
		return nil, 0, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, 0, storeError("read", id, v, err)
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, 0, storeError("read", id, v, err)
	}
	return file, info.Size(), nil
}

// Put stores an object.
func (d *Dir) Put(_ context.Context, id photos.ID, v photos.Variant, data []byte) error {
	_, err := d.Write(id, v, bytes.NewReader(data))
	return err
}

// Get returns an object.
func (d *Dir) Get(_ context.Context, id photos.ID, v photos.Variant) ([]byte, error) {
	file, size, err := d.Open(id, v)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data := make([]byte, size)
	if _, err := io.ReadFull(file, data); err != nil {
		return nil, storeError("read", id, v, err)
	}
	return data, nil
}

// Head returns the size of an object.
func (d *Dir) Head(_ context.Context, id photos.ID, v photos.Variant) (int64, error) {
	path, err := d.path(id, v)
	if err != nil {
		return 0, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, storeError("look up", id, v, err)
	}
	return info.Size(), nil
}

// Delete removes an object. One that is not there is an error, so that a
// caller can tell a repeated delete.
func (d *Dir) Delete(_ context.Context, id photos.ID, v photos.Variant) error {
	path, err := d.path(id, v)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return storeError("delete", id, v, err)
	}
	return nil
}

// Link gives every variant of one photo a second name, under another photo:
// the bytes are on disk once. Where the file system has no links left for a
// file (ext4 stops at 65,000) the bytes are copied.
func (d *Dir) Link(from, to photos.ID) error {
	for _, v := range photos.AllVariants() {
		old, err := d.path(from, v)
		if err != nil {
			return err
		}
		name, err := d.path(to, v)
		if err != nil {
			return err
		}
		err = os.Link(old, name)
		if errors.Is(err, syscall.EMLINK) || errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EPERM) {
			err = d.copyFile(old, to, v)
		}
		if err != nil {
			return storeError("link", to, v, err)
		}
	}
	return nil
}

func (d *Dir) copyFile(old string, to photos.ID, v photos.Variant) error {
	file, err := os.Open(old)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = d.Write(to, v, file)
	return err
}

// path returns the file of an object. Neighbouring ids go to different
// directories, and so do ids that differ in their time only.
func (d *Dir) path(id photos.ID, v photos.Variant) (string, error) {
	if id < 1 || !v.Valid() {
		return "", fmt.Errorf("blob %d/%s: %w", id, v, photos.ErrNotFound)
	}
	// The multiplier is 2^64 divided by the golden ratio (Knuth, volume 3, 6.4).
	spread := uint64(id) * 0x9e3779b97f4a7c15 >> 56
	return filepath.Join(d.root, fanName(int(spread)), strconv.FormatInt(int64(id), 10)+"-"+string(v)+".jpg"), nil
}

func (d *Dir) unfinished() string { return filepath.Join(d.root, "unfinished") }

func (d *Dir) directories() []string {
	dirs := []string{d.unfinished()}
	for i := range fanOut {
		dirs = append(dirs, filepath.Join(d.root, fanName(i)))
	}
	return dirs
}

func fanName(i int) string { return fmt.Sprintf("%02x", i) }

// storeError wraps an error of the file system: an object that is not there is
// photos.ErrNotFound, everything else means that the store cannot do its work.
func storeError(action string, id photos.ID, v photos.Variant, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s blob %d/%s: %w", action, id, v, photos.ErrNotFound)
	}
	return fmt.Errorf("%s blob %d/%s: %w: %w", action, id, v, photos.ErrUnavailable, err)
}

// object is one object of a directory.
type object struct {
	id      photos.ID
	variant photos.Variant
	entry   fs.DirEntry
}

// objects lists the objects that are there, in no order. What cannot be read is left
// out: it cannot be served either.
func (d *Dir) objects() iter.Seq[object] {
	return func(yield func(object) bool) {
		for _, dir := range d.directories() {
			entries, _ := os.ReadDir(dir)
			for _, e := range entries {
				text, rest, _ := strings.Cut(e.Name(), "-")
				id, err := strconv.ParseUint(text, 10, 63)
				v := photos.Variant(strings.TrimSuffix(rest, ".jpg"))
				if err == nil && v.Valid() && !yield(object{photos.ID(id), v, e}) {
					return
				}
			}
		}
	}
}

// size is the bytes of all objects of photos that a host holds.
func (d *Dir) size(holds func(photos.ID) bool) int64 {
	var sum int64
	for o := range d.objects() {
		if !holds(o.id) {
			continue
		}
		if info, err := o.entry.Info(); err == nil {
			sum += info.Size()
		}
	}
	return sum
}
