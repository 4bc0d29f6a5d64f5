package tidy

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/rogpeppe/go-internal/txtar"
)

// TestChecks shows that each check finds the problems of a small tree, and no others.
func TestChecks(t *testing.T) {
	for _, test := range []struct {
		name  string
		check func(*tree) []string
		files string
		want  []string // a substring of each problem, in order
	}{
		{"arrows", arrowsOfExample, arrowsExample, []string{
			"the rule for gone/... matches no package",
			"no rule matches stray",
			"sut/web/web.go imports sut/db, but sut/web may import only [sut]: separate",
			"sut/web/web_test.go imports sut/db",
		}},
		{"pure", func(t *tree) []string { return t.checkPure([]string{"a", "gone"}) }, pureExample, []string{
			"a/a.go imports os", "a/a.go:6: time.Now", "a/serve.go imports net/http", "there is no package gone",
		}},
		{"package names", (*tree).checkPackageNames, namesExample, []string{
			`package a/util: "util" does not say`, "package b has the name other",
		}},
		{"package comments", (*tree).checkPackageComments, commentsExample, []string{
			`b/b.go: the package comment must begin with "Package b ..."`,
			"package c has 0 package comments", "package d has 2 package comments",
		}},
		{"text", (*tree).checkText, textExample(), []string{
			"README.md:1:", "README.md:2:", "a/testdata/x.txt:1:", "a/testdata/x.txt:2:", "build/ci.yaml:1:",
		}},
		{"width", func(t *tree) []string { return t.checkWidth(map[string]int{"a": 1, "b": 2}) }, widthExample(), []string{
			"Makefile:1 has more than 120", "README.md:5 has more than 120",
			"b has 1 wide lines: lower its exception from 2",
		}},
		{"documents", (*tree).checkDocuments, documentsExample, []string{
			`README.md: no test has the name of "-run Gone"`, `README.md: no test has the name of "-bench Speed"`,
		}},
		{"state", (*tree).checkState, stateExample, []string{
			"a/a.go:8: blank import of embed/fake",
			"a/a.go:19: package variable table", "a/a.go:20: package variable zero", "a/a.go:22: package variable two",
			"a/a.go:26: func init", "a/a.go:29: rand.IntN draws", "a/a_test.go:7: package variable counter",
		}},
		{"sleeps", func(t *tree) []string {
			return t.checkSleeps(map[string]string{"a/b_test.go": "why", "a/c_test.go": "why"})
		}, sleepsExample, []string{
			"a/a.go:5: this sleeps", "a/a_test.go:11: this sleeps",
			"a/c_test.go does not sleep: remove its exception",
		}},
		{"process", func(t *tree) []string {
			return t.checkProcess(map[string]string{"a/child_test.go": "why", "a/idle_test.go": "why"})
		}, processExample, []string{
			"a/a.go:10: only cmd/stagebench/main.go may use os.Args",
			"a/a.go:11: only cmd/stagebench/main.go may use fmt.Println",
			"a/a.go:12: only cmd/stagebench/main.go may use log.Fatal",
			"a/a_test.go:13: only cmd/stagebench/main.go may use os.Exit",
			"a/idle_test.go does not use",
		}},
		{"dependencies", func(t *tree) []string {
			return t.checkDependencies(dependenciesOfExample())
		}, dependenciesExample, []string{
			"write\n\texample.org/bar v1.0.0 // draws bars", "example.org/unlisted, which is not on the list",
			"go.mod does not require example.org/dropped",
			"a/a.go imports example.org/bar/v, but only [b] may", "a/a.go imports example.org/cmp, but only tests may",
			"a/a.go imports example.org/hidden, but no direct requirement",
			"go.mod requires example.org/unlisted, which no package imports",
		}},
		{"nested modules are not checked", (*tree).checkPackageComments, nestedExample, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			compare(t, test.check(example(t, test.files)), test.want)
		})
	}
}

// Files that start an engine do not count for the size of a package. Other files do.
func TestEnginesDoNotCount(t *testing.T) {
	files := "-- go.mod --\nmodule m\n"
	for i := range 20 {
		files += fmt.Sprintf("-- a/engine%d.go --\npackage a\n\n"+
			"func start%d(_ context.Context, n process.Node) (c process.Component, err error) { return }\n", i, i)
		files += fmt.Sprintf("-- b/other%d.go --\npackage b\n\nfunc start%d(n process.Node) error { return nil }\n", i, i)
	}
	compare(t, example(t, files).checkSizes(nil), []string{"b is 20, the limit is 12"})
}

func TestSizeExceptionsOnlyShrink(t *testing.T) {
	long := "func Long() {\n" + strings.Repeat("\t_ = 1 // code\n\n\t// no code\n", 69) + "}\n" // 71 lines of code
	raw := "const raw = `\n" + strings.Repeat("\n", 400) + "`\n"
	files := "-- go.mod --\nmodule m\n-- a/a.go --\npackage a\n\n" + long +
		"-- a/b.go --\npackage a\n\n" + strings.Replace(long, "Long()", "(t *T[K]) Method()", 1) +
		"type T[K any] struct{}\n" + raw
	for _, test := range []struct {
		name       string
		exceptions map[string]int
		want       []string
	}{
		{
			"no exceptions", nil,
			[]string{"a/a.go Long is 71, the limit is 70", "a/b.go is 614, the limit is 500", "a/b.go T.Method is 71"},
		},
		{"exact exceptions", map[string]int{"a/a.go Long": 71, "a/b.go T.Method": 71, "a/b.go": 614}, nil},
		{
			"grown",
			map[string]int{"a/a.go Long": 70, "a/b.go T.Method": 71, "a/b.go": 614},
			[]string{"a/a.go Long has grown to 71, its exception is 70"},
		},
		{
			"shrunk",
			map[string]int{"a/a.go Long": 72, "a/b.go T.Method": 71, "a/b.go": 614},
			[]string{"a/a.go Long has shrunk to 71: lower its exception from 72"},
		},
		{
			"not needed",
			map[string]int{"a/a.go Long": 71, "a/b.go T.Method": 71, "a/b.go": 614, "a": 13, "gone": 1},
			[]string{"a is within the limit of 12: remove", "there is no gone"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			compare(t, example(t, files).checkSizes(test.exceptions), test.want)
		})
	}

	var many strings.Builder
	for name := 'a'; name < 'a'+13; name++ {
		many.WriteString("-- p/" + string(name) + ".go --\npackage p\n-- p/" + string(name) + "_test.go --\npackage p\n")
	}
	compare(t, example(t, "-- go.mod --\nmodule m\n"+many.String()).checkSizes(nil), []string{"p is 13, the limit is 12"})
}

func TestTheLongestRuleApplies(t *testing.T) {
	rules := []arrow{{from: "..."}, {from: "a"}, {from: "a/..."}, {from: "a/b/..."}, {from: "a/b/c"}}
	for path, want := range map[string]string{
		"a": "a", "a/x": "a/...", "a/b": "a/b/...", "a/b/x": "a/b/...", "a/b/c": "a/b/c", "ab": "...",
	} {
		if rule, found := ruleFor(rules, path); !found || rule.from != want {
			t.Errorf("rule for %s is %q, want %q", path, rule.from, want)
		}
	}
}

// example parses a tree that is written as a txtar archive.
func example(t *testing.T, files string) *tree {
	t.Helper()
	root := fstest.MapFS{}
	for _, f := range txtar.Parse([]byte(files)).Files {
		root[f.Name] = &fstest.MapFile{Data: f.Data}
	}
	parsed, err := parse(root)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// compare compares problems with their expected substrings.
func compare(t *testing.T, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Errorf("missing: %s", want[i])
		case i >= len(want):
			t.Errorf("unexpected: %s", got[i])
		case !strings.Contains(got[i], want[i]):
			t.Errorf("%q, want a problem with %q", got[i], want[i])
		}
	}
}

func arrowsOfExample(t *tree) []string {
	return t.checkArrows([]arrow{
		{"sut", nil, "pure"},
		{"sut/...", []string{"sut"}, "separate"},
		{"cmd", []string{"..."}, "connects all"},
		{"gone/...", nil, "old"},
	})
}

const arrowsExample = `
-- go.mod --
module example.org/m
-- sut/sut.go --
package sut
-- sut/db/db.go --
package db
import _ "example.org/m/sut"
-- sut/db/dbtest/kit.go --
package dbtest
import (
	_ "example.org/m/sut"
	_ "example.org/m/sut/db"
)
-- sut/web/web.go --
package web
import (
	_ "example.org/m/sut"
	_ "example.org/m/sut/db"
	_ "example.org/other/sut/db"
)
-- sut/web/web_test.go --
package web_test
import (
	_ "example.org/m/sut/web"
	_ "example.org/m/sut/db/dbtest"
	_ "example.org/m/sut/db"
)
-- cmd/cmd.go --
package main
import _ "example.org/m/sut/web"
-- stray/stray.go --
package stray
`

const pureExample = `
-- go.mod --
module m
-- a/a.go --
package a
import (
	"os"
	clock "time"
)
var now = clock.Now()
var sum = clock.Duration(os.Getpid())
-- a/a_test.go --
package a
import "os"
-- a/serve.go --
package a
import "net/http"
var x = http.Get
-- a/words.go --
package a
import "net/http"
const y = http.MethodGet
-- b/b.go --
package b
import "os"
`

const namesExample = `
-- go.mod --
module m
-- a/util/x.go --
package util
-- b/b.go --
package other
-- c/c.go --
package main
-- d/d_test.go --
package d_test
`

const nestedExample = `
-- go.mod --
module m
-- tools/go.mod --
module tools
-- tools/x/x.go --
package x
`

const commentsExample = `
-- go.mod --
module m
-- a/a.go --
// Package a is good.
package a
-- a/b.go --
package a
-- b/b.go --
// This is b.
package b
-- c/c.go --
package c
-- d/d.go --
// Package d is one.
package d
-- d/e.go --
// Package d is two.
package d
-- e/main.go --
// Example does something.
package main
`

// textExample is assembled from parts, so that this file does not contain banned text.
func textExample() string {
	return "-- go.mod --\nmodule m\n" +
		"-- README.md --\nsee /ho" + "me/someone/x\n[x](/ro" + "ot/x) but ./work/x and example.org/home/x are fine\n" +
		"-- build/ci.yaml --\nurl: https://proxy.go" + "lang.org\n" +
		"-- a/testdata/x.txt --\nsee is" + "sue #7\nTO" + "DO later, context.TO" + "DO() never\n"
}

const stateExample = `
-- go.mod --
module m
-- a/a.go --
package a

import (
	_ "embed"
	"errors"
	"math/rand/v2"

	_ "embed/fake"
)

//go:embed a.txt
var text string

var (
	_    I = (*T)(nil)
	ErrX   = errors.New("x")
)

var table = map[string]int{}
var zero int

var one, two = errors.New("one"), 2

func (T) init() {}

func init() {}

func draw(r *rand.Rand) int {
	return r.IntN(6) + rand.IntN(6) + rand.New(rand.NewPCG(1, 2)).IntN(6)
}
-- a/a_test.go --
package a

import "flag"

var verbose = flag.Bool("verbose", false, "")

var counter int
-- cmd/x/main.go --
package main
import _ "m/a"
`

func widthExample() string {
	wide := strings.Repeat("é", lineCharacters+1) + "\n"
	return "-- go.mod --\nmodule m\n-- a/testdata/x.txt --\n" + wide + "-- a/a.go --\npackage a\n// " + wide +
		"-- b/b.go --\npackage b\n// " + wide + "-- Makefile --\n" + wide +
		"-- README.md --\n| " + wide + "```\n" + wide + "```\n" + wide
}

const documentsExample = `
-- go.mod --
module example.org/m
-- README.md --
go test -run Speed ./a; go test -run Gone ./a; go test -bench Speed ./a
-- a/a_test.go --
package a

func TestSpeed() {}
`

const sleepsExample = `
-- go.mod --
module m
-- a/a_test.go --
package a

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { time.Sleep(1) })
	time.Sleep(1)
}
-- a/a.go --
package a
import "time"
func wait() {
	time.Sleep(1)
	<-time.After(1)
	select {
	case <-time.After(1):
	}
}
-- a/b_test.go --
package a
import "time"
func b() { time.Sleep(1) }
-- a/c_test.go --
package a
import "time"
type sleeper struct{ Sleep func() }
func c(time sleeper) { time.Sleep() }
var _ time.Duration
`

const processExample = `
-- go.mod --
module m
-- a/a.go --
package a

import (
	"fmt"
	"log"
	"os"
)

func A() {
	_ = os.Args
	fmt.Println()
	log.Fatal()
	fmt.Fprintln(os.Stderr)
}
-- a/a_test.go --
package a

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	os.Exit(m.Run())
}

func TestA(t *testing.T) {
	os.Exit(len(os.Args))
}
-- a/child_test.go --
package a
import "os"
func child() { os.Exit(1) }
-- a/idle_test.go --
package a
-- cmd/stagebench/main.go --
package main
import "os"
func main() { os.Exit(len(os.Args)) }
`

func dependenciesOfExample() []dependency {
	return []dependency{
		{"example.org/bar", "draws bars", []string{"b"}},
		{"example.org/cmp", "tests: compares", nil},
		{"example.org/dropped", "was needed once", []string{"..."}},
		{"example.org/good", "is good", []string{"a/..."}},
	}
}

const dependenciesExample = `
-- go.mod --
module m

require example.org/good/v2 v2.0.0 // indirect

require (
	example.org/bar v1.0.0 // draws lines
	example.org/cmp v1.0.0 // tests: compares
	example.org/good v1.0.0 // is good
	example.org/unlisted v1.0.0
	example.org/indirect v1.0.0 // indirect
)
-- a/a.go --
package a
import (
	"fmt"
	"m/b"
	"example.org/bar/v"
	"example.org/cmp"
	"example.org/good/x"
	"example.org/hidden"
)
-- a/a_test.go --
package a
import (
	"example.org/bar"
	"example.org/cmp"
)
-- b/b.go --
package b
import "example.org/bar"
`
