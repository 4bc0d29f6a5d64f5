package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/exit"
)

// The kinds of contenders, as errors name them.
const (
	aBinary   = "a binary"
	aRun      = "a run"
	aURL      = "a URL"
	aTopology = "a setting of knobs"
	aFile     = "a file of another tool"
)

// contender is the base or the head of a gate.
type contender struct {
	kind  string
	side  string // "base" or "head"
	text  string // as the user wrote it
	stage string // of a topology; "" = that of --stage
	knobs []string
}

// contenderOf finds out what a user has named.
func contenderOf(ctx context.Context, side, text string) (contender, error) {
	c := contender{side: side, text: text}
	info, err := os.Stat(text)
	switch {
	case text == "":
		return c, exit.Usagef("gate wants --%s\nsee: stagebench gate --help", side)
	case strings.Contains(text, "://"):
		c.kind = aURL
	case err == nil && info.IsDir():
		c.kind = aRun
	case err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0:
		c.kind = aBinary
		return c, checkBinary(ctx, side, text)
	case err == nil && info.Mode().IsRegular() || areFiles(strings.Split(text, ",")):
		c.kind = aFile
	case strings.Contains(text, "="):
		c.kind = aTopology
		for _, setting := range strings.Split(text, ",") {
			if name, value, _ := strings.Cut(setting, "="); name == "stage" {
				c.stage = value
			} else {
				c.knobs = append(c.knobs, setting)
			}
		}
	default:
		return c, exit.Usagef("--%s %s: no such file or directory\n"+
			"want a binary, the directory of a run, a URL, knobs such as cache.engine=redis, or files of another tool",
			side, text)
	}
	return c, nil
}

// areFiles reports whether all of these are regular files.
func areFiles(names []string) bool {
	for _, name := range names {
		if info, err := os.Stat(name); err != nil || !info.Mode().IsRegular() {
			return false
		}
	}
	return true
}

// checkBinary returns an error if a file is no stagebench binary.
func checkBinary(ctx context.Context, side, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	name, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, name, "--version")
	cmd.WaitDelay = time.Second // what it has started may hold its output open
	out, err := cmd.Output()
	if err != nil || !strings.HasPrefix(string(out), "stagebench version ") {
		return exit.Usagef("--%s %s: this file is not a stagebench binary\n"+
			"name the path of one, such as bin/stagebench of another checkout", side, path)
	}
	return nil
}
