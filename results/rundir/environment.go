package rundir

import (
	"bufio"
	"bytes"
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

// Environment is the binary and the machine that a run was made with.
type Environment struct {
	Version   string // of stagebench: a release, or the revision it was built from
	BinarySHA string // SHA-256 of the binary, in hexadecimal
	Go        string // version of the toolchain that built it
	OS        string // system, architecture and distribution
	Kernel    string
	CPUModel  string
	Cores     int // that this process may use
}

// ReadEnvironment reads the machine's facts from the file system at root (that
// is os.DirFS("/")) and hashes the binary, which takes a tenth of a second: call
// it once. Facts that the machine does not tell are "unknown"; a binary that
// cannot be read is an error. On Linux /proc/self/exe is the binary that runs,
// even after a newer one took its place.
func ReadEnvironment(root fs.FS, binary string) (Environment, error) {
	f, err := os.Open(binary)
	if err != nil {
		return Environment{}, fmt.Errorf("hash the binary: %w", err)
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return Environment{}, fmt.Errorf("hash the binary: %w", err)
	}
	info, _ := debug.ReadBuildInfo()
	return Environment{
		Version:   version(info),
		BinarySHA: hex.EncodeToString(hash.Sum(nil)),
		Go:        runtime.Version(),
		OS:        fmt.Sprintf("%s/%s, %s", runtime.GOOS, runtime.GOARCH, fact(root, "etc/os-release", "=", "PRETTY_NAME")),
		Kernel:    kernel(root),
		CPUModel:  fact(root, "proc/cpuinfo", ":", "model name"),
		Cores:     runtime.NumCPU(),
	}, nil
}

// Fill copies the environment into a manifest.
func (e Environment) Fill(m *results.Manifest) {
	m.Version, m.BinarySHA, m.Go = e.Version, e.BinarySHA, e.Go
	m.OS, m.Kernel, m.CPUModel, m.Cores = e.OS, e.Kernel, e.CPUModel, e.Cores
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
	text, err := fs.ReadFile(root, "proc/sys/kernel/osrelease")
	if release := strings.TrimSpace(string(text)); err == nil && release != "" {
		return release
	}
	return unknown
}

// fact looks a key up in a file of lines "key SEPARATOR value".
func fact(root fs.FS, name, separator, key string) string {
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return unknown
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		k, v, found := strings.Cut(lines.Text(), separator)
		if v = strings.Trim(strings.TrimSpace(v), `"`); found && strings.TrimSpace(k) == key && v != "" {
			return v
		}
	}
	return unknown
}
