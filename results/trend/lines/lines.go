// Package lines keeps the records of runs in a file of JSON lines, one line for each run, which is made to be kept in
// git.
//
// A line is a trend.Record with its schema version. Unknown fields are ignored, and empty lines too. Lines may be in
// any order, because git merges them so: records have times. Two equal lines count as one.
//
// Add replaces the file by a rename while it holds a lock on the directory. So a reader always finds complete lines, a
// killed process leaves the file as it was, and concurrent calls, also of other processes, lose no line. An error names
// the file and the line, and its second line says what to do. All functions may be called concurrently.
package lines

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/results/trend"
)

// Read returns the records of a file, in the order of their lines. The error is fs.ErrNotExist if there is no file.
func Read(path string) ([]trend.Record, error) {
	text, _, err := load(path)
	if err != nil {
		return nil, err
	}
	records, _, err := parse(text, path)
	return records, err
}

// Added is the result of Add.
type Added struct {
	Runs  int          // in the file
	Known int          // number of the line that already had the run; 0 = the run was added
	Old   trend.Record // of this line
}

// Add adds a record as the last line of a file, which it makes if there is none. If the file has a line of the same
// run, Add changes nothing. It waits for other calls of Add until ctx ends.
func Add(ctx context.Context, path string, r trend.Record) (a Added, err error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // the rename must not replace a link
	}
	unlock, err := lock(ctx, filepath.Dir(path))
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	text, mode, err := load(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	records, numbers, err := parse(text, path)
	if err != nil {
		return a, err
	}
	a.Runs = len(records)
	if i := slices.IndexFunc(records, func(old trend.Record) bool { return old.Run == r.Run }); i >= 0 {
		a.Known, a.Old = numbers[i], records[i]
		return a, nil
	}
	line, err := encode(r)
	if err != nil {
		return a, err
	}
	if len(text) > 0 && !bytes.HasSuffix(text, []byte("\n")) {
		text = append(text, '\n')
	}
	a.Runs++
	return a, replace(path, append(text, line...), mode)
}

// encode returns a record as a line. The keys of its maps are sorted, so equal records are equal lines.
func encode(r trend.Record) ([]byte, error) {
	var line bytes.Buffer
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false) // keep "p99<100ms" readable
	err := encoder.Encode(r)
	return line.Bytes(), err
}

// load returns the text of a file and its mode.
func load(path string) ([]byte, fs.FileMode, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, 0o666, fmt.Errorf("there is no history in %s: %w\n"+
			"add a run: stagebench history add runs/latest", path, err)
	case err != nil:
		return nil, 0, fmt.Errorf("read history: %w\nname a file that you can read", err)
	case !info.Mode().IsRegular(): // a pipe would wait for ever
		return nil, 0, fmt.Errorf("read history: %s is not a regular file\nname another file", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, fmt.Errorf("read history: %w\nname a file that you can read", err)
	}
	return text, info.Mode().Perm(), nil
}

// parse returns the records of a text and the numbers of their lines.
func parse(text []byte, name string) (records []trend.Record, numbers []int, err error) {
	seen := map[string]int{} // index by run
	var raw [][]byte
	number := 0
	for line := range bytes.Lines(text) {
		number++
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		r, err := decode(line)
		if err != nil {
			return nil, nil, fmt.Errorf("%s:%d: %w", name, number, err)
		}
		if i, known := seen[r.Run]; known {
			if bytes.Equal(raw[i], line) {
				continue
			}
			return nil, nil, fmt.Errorf("%s:%d: line %d is also of run %s, with another content\nremove one of these lines",
				name, number, numbers[i], r.Run)
		}
		seen[r.Run] = len(records)
		records, numbers, raw = append(records, r), append(numbers, number), append(raw, line)
	}
	return records, numbers, nil
}

// decode returns the record of a line.
func decode(line []byte) (r trend.Record, err error) {
	for _, marker := range []string{"<<<<<<<", "|||||||", "=======", ">>>>>>>"} {
		if bytes.HasPrefix(line, []byte(marker)) {
			return r, errors.New("a merge conflict of git\nremove the lines of the markers and keep the lines of both sides; " +
				"for the next merges, see merge=union in: stagebench history --help")
		}
	}
	// A newer version may have other types of fields, so its number comes first.
	var version struct {
		Schema *int `json:"schema"`
	}
	const broken = "remove this line, or restore it with git"
	switch err := json.Unmarshal(line, &version); {
	case err != nil:
		return r, fmt.Errorf("not a line of a history: %w\n%s", err, broken)
	case version.Schema == nil || *version.Schema < 1:
		return r, fmt.Errorf("not a line of a history: it has no schema version\n%s", broken)
	case *version.Schema > trend.Schema:
		return r, fmt.Errorf("schema version %d, and this version of stagebench reads up to %d\nuse a newer stagebench",
			*version.Schema, trend.Schema)
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("not a line of a history: %w\n%s", err, broken)
	}
	if missing := missing(r); missing != "" {
		return r, fmt.Errorf("the line %s\n%s", missing, broken)
	}
	return r, nil
}

// missing returns what is wrong with the content of a record, "" if nothing is.
func missing(r trend.Record) string {
	switch {
	case r.Run == "":
		return "has no run"
	case r.Time.IsZero():
		return "has no time"
	}
	names := map[string]bool{}
	for _, c := range r.Cells {
		if c.Stage == "" || c.Workload == "" {
			return "has a cell without a stage or a workload"
		}
		if names[c.Name()] {
			return "has the cell " + c.Name() + " twice"
		}
		names[c.Name()] = true
		for name, f := range c.Metrics {
			if f.Value < 0 {
				return fmt.Sprintf("has a negative %s in the cell %s", name, c.Name())
			}
		}
	}
	return ""
}

// lock waits for the lock of a directory. It needs no file, so nothing is left behind.
func lock(ctx context.Context, dir string) (unlock func() error, err error) {
	const again = 10 * time.Millisecond
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("write history: %w\nname a file in a directory that exists", err)
	}
	ticker := time.NewTicker(again)
	defer ticker.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f.Close, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w\nname a file on another file system", dir, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), f.Close())
		case <-ticker.C:
		}
	}
}

// replace writes a file under another name and renames it. The caller holds the lock, so the name can be a fixed one:
// what a killed process left is overwritten by the next one.
func replace(path string, text []byte, mode fs.FileMode) (err error) {
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	defer func() {
		if err != nil {
			_ = os.Remove(temp)
			err = fmt.Errorf("write history: %w\nname a file that you can write", err)
		}
	}()
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = cmp.Or(err, f.Sync(), f.Close()); err != nil { // all three are called
		return err
	}
	return os.Rename(temp, path)
}
