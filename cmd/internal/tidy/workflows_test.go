package tidy

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// root is the directory of the repository.
const root = "../../.."

// The workflow and the action have no errors that actionlint knows.
func TestActionlint(t *testing.T) {
	lint := exec.Command("go", "tool", "-modfile=build/tools/go.mod", "actionlint", "-shellcheck=", "-pyflakes=")
	lint.Dir = root
	if out, err := lint.CombinedOutput(); err != nil {
		t.Errorf("actionlint: %v\n%s", err, out)
	}
}

// No file of a CI system has a construction that hides a failure.
func TestNoFailureIsHidden(t *testing.T) {
	hides := regexp.MustCompile(`\|\| *(true|:)|continue-on-error|set \+e|allow_failure: *true|; *true$`)
	for _, name := range []string{"action.yml", ".github/workflows/gate.yml", "build/ci/gitlab.yml"} {
		text := readFile(t, name)
		if found := hides.FindString(text); found != "" {
			t.Errorf("%s: %q hides a failure: remove it", name, found)
		}
		if !strings.Contains(text, "set -euo pipefail") {
			t.Errorf("%s: a script without set -euo pipefail goes on after a failure", name)
		}
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// gateScripts returns the scripts that run the gate, by file.
func gateScripts(t *testing.T) map[string]string {
	t.Helper()
	var action struct {
		Runs struct{ Steps []struct{ Run string } }
	}
	var gitlab map[string]struct{ Script []string }
	for name, into := range map[string]any{"action.yml": &action, "build/ci/gitlab.yml": &gitlab} {
		if err := yaml.Unmarshal([]byte(readFile(t, name)), into); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return map[string]string{
		"action.yml":          action.Runs.Steps[len(action.Runs.Steps)-1].Run,
		"build/ci/gitlab.yml": strings.Join(gitlab[".stagebench-gate"].Script, "\n"),
	}
}

// The scripts end with the exit status of the gate, whatever it is, and also if there is no gate.
func TestGateScripts(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(dir, "stagebench")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\necho \"$@\"\nexit $STATUS\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, script := range gateScripts(t) {
		run := func(program string, status int, warnOnly string) (string, int) {
			shell := exec.Command("bash", "-c", script)
			shell.Env = append(os.Environ(), "STAGEBENCH="+program, "STATUS="+strconv.Itoa(status), "BASE=a b", "HEAD=$(false)",
				"STAGE=lb", "WORKLOAD=read-heavy", "JUNIT=gate.xml", "WARN_ONLY="+warnOnly, "STAGEBENCH_BASE=a b",
				"STAGEBENCH_HEAD=$(false)", "STAGEBENCH_STAGE=lb", "STAGEBENCH_WORKLOAD=read-heavy")
			out, err := shell.CombinedOutput()
			if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			return string(out), shell.ProcessState.ExitCode()
		}
		for _, want := range []int{0, 1, 2, 3, 4, 5, 130} {
			out, got := run(fake, want, "false")
			if got != want {
				t.Errorf("%s: status %d for a gate with status %d\n%s", name, got, want, out)
			}
			for _, argument := range []string{
				"gate --base a b --head $(false) ", "--stage lb --workload read-heavy --junit gate.xml",
			} {
				if !strings.Contains(out, argument) {
					t.Errorf("%s: the gate got %q, want %q", name, out, argument)
				}
			}
		}
		if out, got := run(filepath.Join(dir, "missing"), 0, "false"); got == 0 {
			t.Errorf("%s succeeds without a gate\n%s", name, out)
		}
		if name != "action.yml" {
			continue
		}
		if out, got := run(fake, 0, "yes"); got != 2 {
			t.Errorf("%s: status %d for warn-only: yes\n%s", name, got, out)
		}
		if out, _ := run(fake, 0, "true"); !strings.Contains(out, "--warn-only") {
			t.Errorf("%s: warn-only is not passed on: %s", name, out)
		}
	}
}
