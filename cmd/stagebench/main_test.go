package main

import (
	"errors"
	"flag"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/stagebench/stagebench/internal/porttest"
)

// actVariable is an environment variable. If it is set, the test binary runs as stagebench, so
// the nodes that tests start run the code under test.
const actVariable = "STAGEBENCH_TEST_ACT"

// templatesVariable is an environment variable with the directory of the shared templates.
const templatesVariable = "STAGEBENCH_TEST_TEMPLATES"

func TestMain(m *testing.M) {
	if os.Getenv(strangerVariable) != "" {
		if err := stranger(os.Stdin, os.Stdout); err != nil {
			panic(err)
		}
		return
	}
	if os.Getenv(actVariable) != "" {
		main()
		return
	}
	dir, err := os.MkdirTemp("", "stagebench-test-templates-")
	if err != nil {
		panic(err)
	}
	// Native servers do not run as root, and must be able to read the templates.
	err = errors.Join(os.Chmod(dir, 0o755), os.Setenv(templatesVariable, dir), os.Setenv(actVariable, "1"))
	if err != nil {
		panic(err)
	}
	testscript.Main(cleaning{m, dir}, map[string]func(){"stagebench": main})
}

// cleaning runs the tests and then removes the directory that they share.
type cleaning struct {
	m   *testing.M
	dir string
}

func (c cleaning) Run() int {
	defer func() { _ = os.RemoveAll(c.dir) }()
	return c.m.Run()
}

var update = flag.Bool("update", false, "rewrite the golden output in the scripts")

// TestScripts runs the scripts of testdata/script. They use the command line as a user does.
func TestScripts(t *testing.T) {
	cache := t.TempDir() // all scripts share the templates
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			env.Setenv("XDG_CACHE_HOME", cache)
			env.Setenv("XDG_RUNTIME_DIR", env.WorkDir)
			env.Setenv("ADDRESS", porttest.Free(t).String())
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "slices": slicesRun,
			// listens ADDRESS waits until something listens there.
			"listens": func(ts *testscript.TestScript, _ bool, args []string) {
				again := time.NewTicker(pollInterval)
				defer again.Stop()
				for end := time.Now().Add(testTimeout); time.Now().Before(end); <-again.C {
					if conn, err := net.Dial("tcp", args[0]); err == nil {
						_ = conn.Close()
						return
					}
				}
				ts.Fatalf("nothing listens at %s", args[0])
			},
		},
	})
}

// exits is a script command that runs a command and compares its exit status, for example:
// exits 2 stagebench nonsense. Several statuses are separated by '|': on a busy machine, a measurement may be invalid.
func exits(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS COMMAND [ARGUMENT...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	status := 0
	if exit, ok := err.(*exec.ExitError); ok {
		status = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if !slices.Contains(strings.Split(args[0], "|"), strconv.Itoa(status)) {
		ts.Fatalf("exit status %d, want %s", status, args[0])
	}
}
