// Package blob stores the bytes of photos. Dir stores them in a directory of files,
// Handler serves a Dir over HTTP, Client calls one blob node, and Ring spreads photos
// over several nodes. Fill writes the objects of a seeded data set.
//
// A photo's id and a variant name an object. Ids are never reused. A second PUT
// replaces the whole object. The package does not parse JPEG: an object is any bytes.
// It keeps no index besides the file system.
//
// Sizes are in bytes. All functions and methods may be called concurrently. Errors
// wrap photos.ErrNotFound, or photos.ErrUnavailable when the node or its disk does not
// work. Dir, Client and Ring pass one conformance kit, blobtest.
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

// fanOut is the number of subdirectories for objects. With 256, each holds about 3,000
// of the 800,000 files of the large data set. A new store makes 256 directories.
const fanOut = 256

// Dir is a directory of objects.
//
// A file is never modified in place: Write creates a temporary file and renames it, and
// Delete removes a name. So hard links are a safe copy of a directory: changes to the
// copy do not change the template. An object survives a crash of the process as soon as
// Write has returned. Objects are not synced to disk: a power failure may lose the
// newest ones.
type Dir struct {
	root string
	// create opens a new temporary file. A test replaces it to simulate a full disk.
	create func(dir string) (*os.File, error)
}

// OpenDir opens the store in a directory, and creates the directory if it does not
// exist. Only one process may open it: OpenDir removes the temporary files of
// interrupted writes, so it would remove those of another process, too.
func OpenDir(root string) (*Dir, error) {
	d := &Dir{root: root, create: func(dir string) (*os.File, error) { return os.CreateTemp(dir, "put-") }}
	if err := os.RemoveAll(d.temporaryDir()); err != nil {
		return nil, fmt.Errorf("remove temporary files: %w", err)
	}
	for _, dir := range d.directories() {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("create a blob directory: %w", err)
		}
	}
	return d, nil
}

// Write stores an object from a reader and returns its size. Readers see the previous
// object until the new one is complete. A failed Write changes nothing.
func (d *Dir) Write(id photos.ID, v photos.Variant, from io.Reader) (int64, error) {
	path, err := d.path(id, v)
	if err != nil {
		return 0, err
	}
	file, err := d.create(d.temporaryDir())
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
		// If this fails, the next OpenDir removes the file.
		_ = os.Remove(file.Name())
		return 0, storeError("write", id, v, err)
	}
	return size, nil
}

// Open returns the file of an object and its size. The caller closes the file.
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

// Delete removes an object. It returns photos.ErrNotFound if there is no such object,
// so that a caller can recognize a repeated delete.
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

// Link gives photo to the objects of photo from, by hard links. So the bytes are on
// disk once. Link copies the bytes where the file system supports no links or no more
// links to a file (ext4 allows 65,000).
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

// path returns the file name of an object. The hash puts adjacent ids into different
// directories, and so ids that differ only in their time bits.
func (d *Dir) path(id photos.ID, v photos.Variant) (string, error) {
	if id < 1 || !v.Valid() {
		return "", fmt.Errorf("blob %d/%s: %w", id, v, photos.ErrNotFound)
	}
	// The multiplier is 2^64 divided by the golden ratio (Knuth, volume 3, 6.4).
	bucket := uint64(id) * 0x9e3779b97f4a7c15 >> 56
	return filepath.Join(d.root, fanName(int(bucket)), strconv.FormatInt(int64(id), 10)+"-"+string(v)+".jpg"), nil
}

// temporaryDir returns the directory of objects that are being written.
func (d *Dir) temporaryDir() string { return filepath.Join(d.root, "unfinished") }

func (d *Dir) directories() []string {
	dirs := []string{d.temporaryDir()}
	for i := range fanOut {
		dirs = append(dirs, filepath.Join(d.root, fanName(i)))
	}
	return dirs
}

func fanName(i int) string { return fmt.Sprintf("%02x", i) }

// storeError wraps an error of the file system: with photos.ErrNotFound if the file does
// not exist, with photos.ErrFull if the disk is full, else with photos.ErrUnavailable.
func storeError(action string, id photos.ID, v photos.Variant, err error) error {
	kind := photos.ErrUnavailable
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s blob %d/%s: %w", action, id, v, photos.ErrNotFound)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind = photos.ErrFull
	}
	return fmt.Errorf("%s blob %d/%s: %w: %w", action, id, v, kind, err)
}

// object is one object of a directory.
type object struct {
	id      photos.ID
	variant photos.Variant
	entry   fs.DirEntry
}

// objects lists the stored objects, in no order. It skips directories that it cannot
// read: their objects cannot be served either.
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

// size returns the sum of the sizes of all objects whose photo is included.
func (d *Dir) size(included func(photos.ID) bool) int64 {
	var sum int64
	for o := range d.objects() {
		if !included(o.id) {
			continue
		}
		if info, err := o.entry.Info(); err == nil {
			sum += info.Size()
		}
	}
	return sum
}
