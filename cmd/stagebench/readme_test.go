package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/internal/porttest"
)

// example is a command line of README.md.
type example struct {
	block int // its shell block
	line  string
}

// examples returns the stagebench commands in the shell blocks of README.md, without their comments.
func examples(t *testing.T) (all []example) {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	block, shell := 0, false
	// Something else may listen at the addresses that readers are told to use.
	addresses := strings.NewReplacer("127.0.0.1:8080", porttest.Free(t).String(),
		"127.0.0.1:8099", porttest.Free(t).String())
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "```sh":
			block, shell = block+1, true
		case line == "```":
			shell = false
		case shell && strings.HasPrefix(line, "stagebench "):
			command, _, _ := strings.Cut(line, " #")
			all = append(all, example{block, addresses.Replace(strings.TrimSpace(command))})
		}
	}
	if len(all) < 10 {
		t.Fatalf("%d examples in README.md: are its blocks still marked as sh?", len(all))
	}
	return all
}

// slow reports whether an example takes minutes, or needs the run of one that does.
func (e example) slow() bool {
	slow := []string{"run", "scorecard", "sizing", "capacity", "show", "compare", "gate", "history"}
	return slices.Contains(slow, strings.Fields(e.line)[1])
}

// Every example of README.md runs as printed. Those that take minutes run in TestSlowExamplesOfReadme.
func TestExamplesOfReadme(t *testing.T) {
	t.Parallel()
	runExamples(t, func(e example) bool { return !e.slow() })
}

// runExamples runs examples as a reader types them: one after the other, and those with & in the background until the
// end of their block.
func runExamples(t *testing.T, wanted func(example) bool) {
	t.Helper()
	dir := t.TempDir()
	docs, err := filepath.Abs("../../docs")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o711); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"bin/stagebench": os.Args[0], "docs": docs} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{filepath.Dir(dir), dir} { // native servers do not run as root
		if err := os.Chmod(path, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	var background []*exec.Cmd
	stop := func() {
		for _, cmd := range background {
			_ = cmd.Process.Signal(os.Interrupt) // `down` may have ended it
			_ = cmd.Wait()
		}
		background = nil
	}
	defer stop()
	block := 0
	for _, e := range examples(t) {
		if e.block != block {
			stop()
			block = e.block
		}
		if !wanted(e) {
			continue
		}
		line, stays := strings.CutSuffix(e.line, "&")
		cmd := exec.Command("bash", "-c", "exec "+line)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "XDG_RUNTIME_DIR="+dir,
			"XDG_CACHE_HOME="+templates())
		if stays {
			startInBackground(t, cmd)
			background = append(background, cmd)
			continue
		}
		output, err := cmd.CombinedOutput()
		switch status := cmd.ProcessState.ExitCode(); {
		case err == nil, status == exit.Invalid: // on a busy machine
		case strings.HasPrefix(e.line, "stagebench gate") && (status == exit.Missed || status == exit.Undecided):
		case status == exit.Missed && regexp.MustCompile("the objective .* was missed").Match(output):
		default:
			t.Errorf("%s: %v\n%s", e.line, err, output)
		}
	}
}

// startInBackground starts a command and waits for its first output, which says that it serves.
func startInBackground(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	out := &output{started: make(chan struct{})}
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-out.started:
	case <-time.After(testTimeout):
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatalf("%v printed nothing", cmd.Args)
	}
}
