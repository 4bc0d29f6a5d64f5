package tidy

import (
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"slices"
	"strings"
	"testing"
)

// constants lists constructors of immutable values, by import path. A package variable may
// hold such a value.
func constants() map[string][]string {
	return map[string][]string{
		"errors":        {"New"},
		"fmt":           {"Errorf"},
		"regexp":        {"MustCompile"},
		"strings":       {"NewReplacer"},
		"html/template": {"Must"},
		"text/template": {"Must"},
		"net/netip":     {"MustParseAddr", "MustParsePrefix"},

		"github.com/prometheus/client_golang/prometheus": {"NewDesc"},
	}
}

// sleepers lists the test files that may sleep outside a call of synctest.Test, with the
// reason.
func sleepers() map[string]string {
	return map[string]string{
		"results/live/live_test.go":         "a helper of tests inside synctest.Test, where the clock is fake",
		"targets/failover/failover_test.go": "a helper of tests inside synctest.Test, where the clock is fake",
	}
}

// children lists the files of tests and kits that may end the process and write to its
// standard output. Their code runs when the test binary starts itself as a child process.
func children() map[string]string {
	return map[string]string{
		"targets/proc/child_test.go":            "a child process that starts and ends in many ways",
		"workloads/driver/vegeta/bench_test.go": "the benchmark client reports its figures to its parent",
		"workloads/driver/drivertest/freeze.go": "client and server must not share a scheduler, so each has a process",
	}
}

// entry is the only file that may use arguments, exit status and streams of the process.
const entry = "cmd/stagebench/main.go"

func TestState(t *testing.T) { report(t, repository(t).checkState()) }

func TestSleeps(t *testing.T) { report(t, repository(t).checkSleeps(sleepers())) }

func TestProcess(t *testing.T) { report(t, repository(t).checkProcess(children())) }

// checkState finds init functions, mutable package variables, blank imports, and random
// numbers without a seed.
func (t *tree) checkState() []string {
	var problems []string
	add := func(pos token.Pos, format string, args ...any) {
		problems = append(problems, fmt.Sprintf("state: %s: %s", t.at(pos), fmt.Sprintf(format, args...)))
	}
	seeded := []string{"Rand", "Source", "Zipf", "PCG", "ChaCha8"} // types of math/rand
	for _, p := range t.packages {
		inCommand := match("cmd/...", p.path)
		for _, f := range p.files {
			for i, spec := range f.syntax.Imports {
				if spec.Name != nil && spec.Name.Name == "_" && !inCommand && f.imports()[i] != "embed" {
					add(spec.Pos(), "blank import of %s: call the function that it registers", f.imports()[i])
				}
			}
			for _, declaration := range f.syntax.Decls {
				switch d := declaration.(type) {
				case *ast.FuncDecl:
					if d.Recv == nil && d.Name.Name == "init" {
						add(d.Pos(), "func init: replace it by a named function that main calls")
					}
				case *ast.GenDecl:
					for _, name := range f.mutable(d) {
						add(name.Pos(), "package variable %s: replace it by a function that returns the value, or by a field", name.Name)
					}
				}
			}
			if f.test || inCommand {
				continue
			}
			for _, random := range []string{"math/rand", "math/rand/v2"} {
				for _, u := range f.uses(random) {
					if ast.IsExported(u.name) && !strings.HasPrefix(u.name, "New") && !slices.Contains(seeded, u.name) {
						add(u.pos, "rand.%s draws from a source without a seed: take a *rand.Rand", u.name)
					}
				}
			}
		}
	}
	return problems
}

// mutable returns the names of mutable package variables.
func (f *file) mutable(d *ast.GenDecl) []*ast.Ident {
	if d.Tok != token.VAR {
		return nil
	}
	var found []*ast.Ident
	for _, spec := range d.Specs {
		value := spec.(*ast.ValueSpec)
		if embedded(d.Doc) || embedded(value.Doc) {
			continue
		}
		for i, name := range value.Names {
			if name.Name == "_" || len(value.Values) == len(value.Names) && f.constant(value.Values[i]) {
				continue
			}
			found = append(found, name)
		}
	}
	return found
}

// embedded reports whether a comment embeds a file into a variable.
func embedded(comment *ast.CommentGroup) bool {
	return comment != nil && slices.ContainsFunc(comment.List, func(c *ast.Comment) bool {
		return strings.HasPrefix(c.Text, "//go:embed ")
	})
}

// constant reports whether an expression returns an immutable value. In tests, a flag counts
// as immutable.
func (f *file) constant(value ast.Expr) bool {
	call, ok := value.(*ast.CallExpr)
	if !ok {
		return false
	}
	if f.test && slices.ContainsFunc(f.uses("flag"), func(u use) bool { return u.pos == call.Fun.Pos() }) {
		return true
	}
	for imported, names := range constants() {
		for _, u := range f.uses(imported) {
			if u.pos == call.Fun.Pos() && slices.Contains(names, u.name) {
				return true
			}
		}
	}
	return false
}

// checkSleeps finds tests that sleep instead of waiting for an event. The statement
// `<-time.After(d)` is a sleep in every file. As a case of a select it is a timeout, which is
// allowed.
func (t *tree) checkSleeps(exceptions map[string]string) []string {
	var problems []string
	needed := map[string]bool{}
	for _, p := range t.packages {
		for _, f := range p.files {
			for _, pos := range f.sleeps() {
				if _, excepted := exceptions[f.path]; excepted {
					needed[f.path] = true
					continue
				}
				problems = append(problems, fmt.Sprintf(
					"sleeps: %s: this sleeps: wait for the event, with a deadline", t.at(pos)))
			}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(exceptions)) {
		if !needed[path] {
			problems = append(problems, fmt.Sprintf("sleeps: %s does not sleep: remove its exception", path))
		}
	}
	return problems
}

// sleeps returns the positions of the sleeps in a file, in order.
func (f *file) sleeps() []token.Pos {
	var found []token.Pos
	after := map[token.Pos]bool{} // calls of time.After
	for _, u := range f.uses("time") {
		switch {
		case f.inBubble(u.pos):
		case u.name == "Sleep" && f.test:
			found = append(found, u.pos)
		case u.name == "After":
			after[u.pos] = true
		}
	}
	cases := map[ast.Stmt]bool{} // of select statements
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CommClause:
			cases[n.Comm] = true
		case *ast.ExprStmt:
			receive, ok := n.X.(*ast.UnaryExpr)
			if !ok || cases[n] {
				return true
			}
			if call, ok := receive.X.(*ast.CallExpr); ok && after[call.Fun.Pos()] {
				found = append(found, n.Pos())
			}
		}
		return true
	})
	slices.Sort(found)
	return found
}

// inBubble reports whether a position is inside a call of synctest.Test, where the clock is
// fake.
func (f *file) inBubble(pos token.Pos) bool {
	inside := false
	for _, u := range f.uses("testing/synctest") {
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if ok && u.name == "Test" && call.Fun.Pos() == u.pos && call.Pos() <= pos && pos < call.End() {
				inside = true
			}
			return !inside
		})
	}
	return inside
}

// checkProcess finds uses of arguments, exit status and standard output outside main and
// TestMain.
func (t *tree) checkProcess(exceptions map[string]string) []string {
	var problems []string
	needed := map[string]bool{}
	for _, p := range t.packages {
		for _, f := range p.files {
			testing := f.test || kit(p.path)
			for _, u := range f.ofProcess() {
				_, excepted := exceptions[f.path]
				switch {
				case f.path == entry, testing && f.inTestMain(u.pos):
				case testing && (u.name == "os.Args" || strings.HasPrefix(u.name, "fmt.")): // examples print
				case testing && excepted:
					needed[f.path] = true
				default:
					problems = append(problems, fmt.Sprintf(
						"process: %s: only %s may use %s: take a parameter instead", t.at(u.pos), entry, u.name))
				}
			}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(exceptions)) {
		if !needed[path] {
			problems = append(problems, fmt.Sprintf(
				"process: %s does not use the arguments, exit status or output of the process: remove its exception", path))
		}
	}
	return problems
}

// ofProcess lists the uses of arguments, exit status and standard output of the process.
func (f *file) ofProcess() []use {
	var found []use
	for imported, names := range map[string][]string{
		"os":  {"Args", "Exit", "Stdout"},
		"fmt": {"Print", "Printf", "Println"},
		"log": {"Fatal", "Fatalf", "Fatalln", "Panic", "Panicf", "Panicln", "Print", "Printf", "Println"},
	} {
		for _, u := range f.uses(imported) {
			if slices.Contains(names, u.name) {
				found = append(found, use{imported + "." + u.name, u.pos})
			}
		}
	}
	slices.SortFunc(found, func(a, b use) int { return int(a.pos - b.pos) })
	return found
}

// inTestMain reports whether a position is inside TestMain.
func (f *file) inTestMain(pos token.Pos) bool {
	return slices.ContainsFunc(f.syntax.Decls, func(d ast.Decl) bool {
		function, ok := d.(*ast.FuncDecl)
		return ok && function.Name.Name == "TestMain" && function.Pos() <= pos && pos < function.End()
	})
}
