package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// minMajor is the oldest supported major version, that of Debian 12.
const minMajor = 15

// howToInstall is the second line of errors about a missing server.
const howToInstall = "apt-get install postgresql"

// Install is an installed PostgreSQL.
type Install struct {
	Bin     string // directory of postgres and initdb
	Version string // such as "15.18"
}

// FilesVersion identifies a new data directory: its roles and rights, and the file format.
func (i Install) FilesVersion() string {
	sum := sha256.Sum256([]byte(setup))
	return hex.EncodeToString(sum[:4]) + "-" + i.Version
}

// Find returns the installed server on PATH, else the newest one under /usr/lib/postgresql.
// The second line of its error says how to install one.
func Find() (Install, error) {
	var bins []string
	if path, err := exec.LookPath("postgres"); err == nil {
		// The target of a link in /usr/local/bin is in a directory with initdb.
		if real, err := filepath.EvalSymlinks(path); err == nil {
			bins = append(bins, filepath.Dir(real))
		}
	}
	// Glob fails only for a malformed pattern.
	packaged, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return chooseInstall(bins, packaged, func(bin string) (string, error) {
		if _, err := exec.LookPath(filepath.Join(bin, "initdb")); err != nil {
			return "", err
		}
		return programVersion(ctx, bin)
	})
}

// chooseInstall returns the first preferred directory with a supported server, else the
// newest one of the others. It ignores directories for which version fails.
func chooseInstall(preferred, others []string, version func(bin string) (string, error)) (Install, error) {
	installs := func(bins []string) (found []Install) {
		for _, bin := range bins {
			if v, err := version(bin); err == nil {
				found = append(found, Install{Bin: bin, Version: v})
			}
		}
		return found
	}
	newest := installs(others)
	slices.SortStableFunc(newest, func(a, b Install) int {
		return slices.Compare(versionNumbers(b.Version), versionNumbers(a.Version))
	})
	all := append(installs(preferred), newest...)
	supported := func(install Install) bool { return versionNumbers(install.Version)[0] >= minMajor }
	if i := slices.IndexFunc(all, supported); i >= 0 {
		return all[i], nil
	}
	if len(all) > 0 {
		return Install{}, fmt.Errorf("postgres: found only version %s in %s, want version %d or newer\n%s",
			all[0].Version, all[0].Bin, minMajor, howToInstall)
	}
	return Install{}, errors.New("postgres: no server found on PATH or under /usr/lib/postgresql\n" + howToInstall)
}

// programVersion returns the version of the server in a directory.
func programVersion(ctx context.Context, bin string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return "", err
	}
	version := parseVersion(string(out))
	if version == "" {
		return "", fmt.Errorf("postgres --version printed %q: no version found", strings.TrimSpace(string(out)))
	}
	return version, nil
}

// parseVersion returns 15.18 for "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)",
// 19 for a prerelease such as 19devel or 19beta1, and "" for other text.
func parseVersion(text string) string {
	match := regexp.MustCompile(`\(PostgreSQL\) (\d+(?:\.\d+)*)`).FindStringSubmatch(text)
	if match == nil {
		return ""
	}
	return match[1]
}

// versionNumbers splits "15.18" into 15 and 18. A part that is not a number counts as 0.
func versionNumbers(version string) []int {
	var numbers []int
	for part := range strings.SplitSeq(version, ".") {
		n, _ := strconv.Atoi(part)
		numbers = append(numbers, n)
	}
	return numbers
}
