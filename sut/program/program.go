// Package program finds the installed programs of native servers, and has what their descriptions share.
package program

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Program describes the program of a server.
type Program struct {
	Name    string         // of its file, such as "haproxy"
	Flag    string         // makes it print its version
	Version *regexp.Regexp // of that text; the first group is the version
	Oldest  [2]int         // major and minor number of the oldest supported version
	Package string         // of Debian
}

// Install is an installed program.
type Install struct {
	Path    string
	Version string // such as "2.6.12"
}

// answerBound is the time in which a program must print its version.
const answerBound = 10 * time.Second

// Find finds the program: on PATH, then in the directories of servers, which may not be on the PATH of an ordinary
// user. The second line of its error says how to install it.
func (p Program) Find() (Install, error) {
	ctx, cancel := context.WithTimeout(context.Background(), answerBound)
	defer cancel()
	return p.choose([]string{"", "/usr/sbin", "/usr/local/sbin"}, func(path string) (string, error) {
		out, err := exec.CommandContext(ctx, path, p.Flag).CombinedOutput() // some print it to their standard error
		if err != nil {
			return "", fmt.Errorf("%s %s: %w", path, p.Flag, err)
		}
		return string(out), nil
	})
}

// choose returns the first program in these directories that is new enough; "" = those of PATH. ask returns what a
// program prints.
func (p Program) choose(dirs []string, ask func(path string) (string, error)) (Install, error) {
	problem := "not found on PATH, in /usr/sbin or /usr/local/sbin"
	for _, dir := range dirs {
		path, err := exec.LookPath(filepath.Join(dir, p.Name))
		if err != nil {
			continue
		}
		text, err := ask(path)
		version := p.Version.FindStringSubmatch(text)
		switch {
		case err != nil:
			problem = err.Error()
		case version == nil:
			line, _, _ := strings.Cut(text, "\n")
			problem = fmt.Sprintf("%s %s printed %q, which has no version", path, p.Flag, line)
		case !p.newEnough(version[1]):
			problem = fmt.Sprintf("found only version %s at %s, want %d.%d or newer",
				version[1], path, p.Oldest[0], p.Oldest[1])
		default:
			return Install{Path: path, Version: version[1]}, nil
		}
	}
	return Install{}, fmt.Errorf("%s: %s\napt-get install %s", p.Name, problem, p.Package)
}

func (p Program) newEnough(version string) bool {
	var major, minor int
	_, _ = fmt.Sscanf(version, "%d.%d", &major, &minor) // the pattern has found both numbers
	return major > p.Oldest[0] || major == p.Oldest[0] && minor >= p.Oldest[1]
}
