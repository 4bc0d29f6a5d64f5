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

// constants lists the constructors whose results nobody can change, by import
// path: a package may keep these in a variable.
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

// sleepers lists the test files that may call time.Sleep outside a literal
// synctest.Test, each with its reason.
func sleepers() map[string]string {
	return map[string]string{
		"results/live/live_test.go":         "one run for several tests; each of them plays it inside synctest.Test, where the clock is fake",
		"targets/failover/failover_test.go": "a helper of tests inside synctest.Test, where the clock is fake",
		"sut/cache/aside_test.go":           "it asks a server again until something has happened: the server has no event to wait for yet",
		"sut/cache/cache_test.go":           "it asks a server again until something has happened: the server has no event to wait for yet",
		"sut/cache/memcached_test.go":       "it asks a server again until something has happened: the server has no event to wait for yet",
		"sut/cache/cacheproxy/rig_test.go":  "it asks a server again until something has happened: the server has no event to wait for yet",
		"sut/haproxy/live_test.go":          "it asks a server again until something has happened: the server has no event to wait for yet",
	}
}

// children lists the files of tests and kits that may leave the process and
// write to its standard output, because the test binary becomes a child there.
func children() map[string]string {
	return map[string]string{
		"targets/proc/child_test.go":                "a child in every way in which one can begin and end",
		"workloads/driver/drivertest/drivertest.go": "the sender writes its figures for its parent",
		"workloads/driver/vegeta/bench_test.go":     "the client of the benchmark, alone on its core, writes its figures for its parent",
		"workloads/driver/drivertest/freeze.go":     "client and server need a process each, or they would wait for each other's scheduler",
	}
}

// entry is the only file that may touch what belongs to the process.
const entry = "cmd/stagebench/main.go"

func TestState(t *testing.T) { report(t, repository(t).checkState()) }

func TestSleeps(t *testing.T) { report(t, repository(t).checkSleeps(sleepers())) }

func TestProcess(t *testing.T) { report(t, repository(t).checkProcess(children())) }

// checkState finds what runs or changes behind the reader's back.
func (t *tree) checkState() []string {
	var problems []string
	add := func(pos token.Pos, format string, args ...any) {
		problems = append(problems, fmt.Sprintf("state: %s: %s", t.at(pos), fmt.Sprintf(format, args...)))
	}
	for _, p := range t.packages {
		inCommand := match("cmd/...", p.path)
		for _, f := range p.files {
			for i, spec := range f.syntax.Imports {
				if spec.Name != nil && spec.Name.Name == "_" && !inCommand && f.imports()[i] != "embed" {
					add(spec.Pos(), "blank import of %s: call what it registers", f.imports()[i])
				}
			}
			for _, declaration := range f.syntax.Decls {
				switch d := declaration.(type) {
				case *ast.FuncDecl:
					if d.Recv == nil && d.Name.Name == "init" {
						add(d.Pos(), "func init: let main call a function with a name")
					}
				case *ast.GenDecl:
					for _, name := range f.mutable(d) {
						add(name.Pos(), "package variable %s: make it a function that returns the value, or a field of who owns it", name.Name)
					}
				}
			}
			if f.test || inCommand {
				continue
			}
			for _, random := range []string{"math/rand", "math/rand/v2"} {
				for _, u := range f.uses(random) {
					if ast.IsExported(u.name) && !strings.HasPrefix(u.name, "New") && !slices.Contains([]string{"Rand", "Source", "Zipf", "PCG", "ChaCha8"}, u.name) {
						add(u.pos, "rand.%s draws from a source without a seed: take a *rand.Rand", u.name)
					}
				}
			}
		}
	}
	return problems
}

// mutable returns the names of package variables that could be written to.
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

// embedded reports whether a comment makes a variable hold a file.
func embedded(comment *ast.CommentGroup) bool {
	return comment != nil && slices.ContainsFunc(comment.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
}

// constant reports whether an expression makes a value that nobody can change.
// In tests a flag is one: the testing package itself has them so.
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

// checkSleeps finds tests that wait for time to pass instead of for an event. The
// statement `<-time.After(d)` is a sleep in any file: as a case of a select it is a
// timeout, which is allowed.
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
				problems = append(problems, fmt.Sprintf("sleeps: %s: this sleeps: wait for the event, with a deadline", t.at(pos)))
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

// sleeps returns where a file sleeps, in order.
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

// inBubble reports whether a place is inside a call of synctest.Test, where
// sleeping takes no time.
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

// checkProcess finds what belongs to main. A TestMain is the main of its tests.
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
					problems = append(problems, fmt.Sprintf("process: %s: %s belongs to %s: pass in what is needed", t.at(u.pos), u.name, entry))
				}
			}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(exceptions)) {
		if !needed[path] {
			problems = append(problems, fmt.Sprintf("process: %s leaves the process alone: remove its exception", path))
		}
	}
	return problems
}

// ofProcess lists the mentions of what the process has only one of: its
// arguments, its end, its standard output.
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

func (f *file) inTestMain(pos token.Pos) bool {
	return slices.ContainsFunc(f.syntax.Decls, func(d ast.Decl) bool {
		function, ok := d.(*ast.FuncDecl)
		return ok && function.Name.Name == "TestMain" && function.Pos() <= pos && pos < function.End()
	})
}
