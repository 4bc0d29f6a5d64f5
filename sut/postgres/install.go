package postgres

import (
	"context"
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

// minMajor is the oldest major version that is supported: Debian 12's.
const minMajor = 15

// howToInstall is the second line of every error about a missing server.
const howToInstall = "apt-get install postgresql"

// Install is an installed PostgreSQL.
type Install struct {
	// Bin is the directory of postgres and initdb.
	Bin string
	// Version is what the server says of itself, such as "15.18".
	Version string
}

// Find looks for an installed server: the one on PATH, else the newest under
// /usr/lib/postgresql. The second line of its error says how to get one.
func Find() (Install, error) {
	var bins []string
	if path, err := exec.LookPath("postgres"); err == nil {
		// A link in /usr/local/bin stands for a directory that has initdb, too.
		if real, err := filepath.EvalSymlinks(path); err == nil {
			bins = append(bins, filepath.Dir(real))
		}
	}
	// The pattern is constant and well formed, the only error that Glob has.
	packaged, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return choose(bins, packaged, func(bin string) (string, error) {
		if _, err := exec.LookPath(filepath.Join(bin, "initdb")); err != nil {
			return "", err
		}
		return programVersion(ctx, bin)
	})
}

// choose picks the first preferred directory that holds a server new enough,
// else the newest of the others. A directory without a version does not count.
func choose(preferred, others []string, version func(bin string) (string, error)) (Install, error) {
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
	newEnough := func(install Install) bool { return versionNumbers(install.Version)[0] >= minMajor }
	if i := slices.IndexFunc(all, newEnough); i >= 0 {
		return all[i], nil
	}
	if len(all) > 0 {
		return Install{}, fmt.Errorf("postgres: found only version %s in %s, want %d or newer\n%s",
			all[0].Version, all[0].Bin, minMajor, howToInstall)
	}
	return Install{}, errors.New("postgres: no server found on PATH or under /usr/lib/postgresql\n" + howToInstall)
}

// programVersion asks the server in a directory for its version.
func programVersion(ctx context.Context, bin string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return "", err
	}
	version := parseVersion(string(out))
	if version == "" {
		return "", fmt.Errorf("%q is no version of PostgreSQL", strings.TrimSpace(string(out)))
	}
	return version, nil
}

// parseVersion reads "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"; ""
// when it says something else. Releases to come call themselves 19devel, 19beta1.
func parseVersion(text string) string {
	match := regexp.MustCompile(`\(PostgreSQL\) (\d+(?:\.\d+)*)`).FindStringSubmatch(text)
	if match == nil {
		return ""
	}
	return match[1]
}

// versionNumbers splits "15.18" into 15 and 18; what is no number counts as 0.
func versionNumbers(version string) []int {
	var numbers []int
	for part := range strings.SplitSeq(version, ".") {
		n, _ := strconv.Atoi(part)
		numbers = append(numbers, n)
	}
	return numbers
}
