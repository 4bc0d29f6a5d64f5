package main

import (
	"errors"
	"flag"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// actVariable makes the test binary act as the stagebench binary, so that tests
// can bring up systems whose nodes are this very code.
const actVariable = "STAGEBENCH_TEST_ACT"

// templatesVariable names the directory of the templates that tests share.
const templatesVariable = "STAGEBENCH_TEST_TEMPLATES"

func TestMain(m *testing.M) {
	if os.Getenv(actVariable) != "" {
		main()
		return
	}
	dir, err := os.MkdirTemp("", "stagebench-test-templates-")
	if err != nil {
		panic(err)
	}
	// Native servers are not root, and must get at what is copied from here.
	if err := errors.Join(os.Chmod(dir, 0o755), os.Setenv(templatesVariable, dir), os.Setenv(actVariable, "1")); err != nil {
		panic(err)
	}
	testscript.Main(cleaning{m, dir}, map[string]func(){"stagebench": main})
}

// cleaning removes what the tests of this package share when they are over.
type cleaning struct {
	m   *testing.M
	dir string
}

func (c cleaning) Run() int {
	defer func() { _ = os.RemoveAll(c.dir) }()
	return c.m.Run()
}

var update = flag.Bool("update", false, "rewrite the golden output in the scripts")

// TestScripts runs the command line as a user would: testdata/script, one file
// per reason.
func TestScripts(t *testing.T) {
	cache := t.TempDir() // templates are built once for all scripts
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			env.Setenv("XDG_CACHE_HOME", cache)
			env.Setenv("XDG_RUNTIME_DIR", env.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// exits runs a command and compares its exit status: exits 2 stagebench nonsense.
func exits(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS COMMAND [ARGUMENT...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	status := 0
	if exit, ok := err.(*exec.ExitError); ok {
		status = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if status != want {
		ts.Fatalf("exit status %d, want %d", status, want)
	}
}
