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

// unknown is the value of a fact that could not be read.
const unknown = "unknown"

// FillEnvironment adds the binary and the machine of a run to its manifest. It reads
// facts about the machine from the file system at root, normally os.DirFS("/").
// Facts that it cannot read are "unknown". It hashes the binary, which takes about
// 0.1 s, and returns an error if it cannot read it. On Linux, /proc/self/exe is the
// running binary, even after its file was replaced.
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
	m.Version = Version()
	m.BinarySHA = hex.EncodeToString(hash.Sum(nil))
	m.Go = runtime.Version()
	m.OS = fmt.Sprintf("%s/%s, %s", runtime.GOOS, runtime.GOARCH, fact(root, "etc/os-release", "=", "PRETTY_NAME"))
	m.Kernel = kernel(root)
	m.CPUModel = fact(root, "proc/cpuinfo", ":", "model name")
	m.Cores = runtime.NumCPU()
	return nil
}

// Version returns the version of this binary.
func Version() string {
	info, _ := debug.ReadBuildInfo()
	return version(info)
}

// version returns the release, or else the revision, with a mark if the working
// tree had changes.
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

// fact returns the value of a key in a file with lines "key SEPARATOR value".
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
