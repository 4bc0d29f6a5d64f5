package rundir

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// unknown stands for a fact that this machine does not tell.
const unknown = "unknown"

// FillEnvironment says in a manifest with which binary and on which machine a run
// is made. It reads the machine's facts from the file system at root (that is
// os.DirFS("/")) and hashes the binary, which takes a tenth of a second. Facts
// that the machine does not tell are "unknown"; a binary that cannot be read is an
// error. On Linux /proc/self/exe is the binary that runs, even after a newer one
// took its place.
func FillEnvironment(m *results.Manifest, root fs.FS, binary string) error {
	f, err := os.Open(binary)
	if err != nil {
		return fmt.Errorf("hash the binary: %w", err)
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return fmt.Errorf("hash the binary: %w", err)
	}
	info, _ := debug.ReadBuildInfo()
	m.Version = version(info)
	m.BinarySHA = hex.EncodeToString(hash.Sum(nil))
	m.Go = runtime.Version()
	m.OS = fmt.Sprintf("%s/%s, %s", runtime.GOOS, runtime.GOARCH, fact(root, "etc/os-release", "=", "PRETTY_NAME"))
	m.Kernel = kernel(root)
	m.CPUModel = fact(root, "proc/cpuinfo", ":", "model name")
	m.Cores = runtime.NumCPU()
	return nil
}

// version names the release, or else the revision, marked when the tree had
// changes of its own.
func version(info *debug.BuildInfo) string {
	if info == nil {
		return unknown
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	revision := settings["vcs.revision"]
	if revision == "" {
		return "devel"
	}
	if settings["vcs.modified"] == "true" {
		return revision + " with changes"
	}
	return revision
}

func kernel(root fs.FS) string {
	text, _ := fs.ReadFile(root, "proc/sys/kernel/osrelease")
	return cmp.Or(strings.TrimSpace(string(text)), unknown)
}

// fact looks a key up in a file of lines "key SEPARATOR value".
func fact(root fs.FS, name, separator, key string) string {
	text, _ := fs.ReadFile(root, name)
	for line := range strings.Lines(string(text)) {
		k, v, found := strings.Cut(line, separator)
		if v = strings.Trim(strings.TrimSpace(v), `"`); found && strings.TrimSpace(k) == key && v != "" {
			return v
		}
	}
	return unknown
}
