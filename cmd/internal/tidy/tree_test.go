package tidy

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// tree is a parsed repository.
type tree struct {
	module   string // path of the module
	set      *token.FileSet
	packages []*pkg            // packages of the module, sorted by path; without nested modules
	texts    map[string]string // all text files by path, with nested modules
}

// pkg is a directory with Go files.
type pkg struct {
	path  string // relative to the module; "." for its root
	name  string // without the _test of an external test package
	files []*file
}

// file is a Go file.
type file struct {
	path   string // relative to the module
	test   bool
	syntax *ast.File
}

// repository parses this repository.
func repository(t *testing.T) *tree {
	t.Helper()
	parsed, err := parse(os.DirFS("../../.."))
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// report fails the test with each problem.
func report(t *testing.T, problems []string) {
	t.Helper()
	for _, p := range problems {
		t.Error(p)
	}
}

// parse parses a tree, without build results and measurements.
func parse(root fs.FS) (*tree, error) {
	t := &tree{set: token.NewFileSet(), texts: map[string]string{}}
	byPath := map[string]*pkg{}
	err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name == ".git", name == "bin", name == "runs":
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		case !entry.Type().IsRegular():
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		if bytes.IndexByte(text, 0) >= 0 {
			return nil
		}
		t.texts[name] = string(text)
		if path.Ext(name) != ".go" || strings.Contains("/"+name, "/testdata/") {
			return nil
		}
		return t.add(byPath, name, text)
	})
	if err != nil {
		return nil, err
	}
	for _, p := range byPath {
		if !t.nested(p.path) {
			t.packages = append(t.packages, p)
		}
	}
	slices.SortFunc(t.packages, func(a, b *pkg) int { return strings.Compare(a.path, b.path) })
	_, rest, found := strings.Cut("\n"+t.texts["go.mod"], "\nmodule ")
	if !found {
		return nil, errors.New("go.mod has no module line")
	}
	t.module, _, _ = strings.Cut(rest, "\n")
	return t, nil
}

// add parses a Go file and adds it to its package.
func (t *tree) add(byPath map[string]*pkg, name string, text []byte) error {
	syntax, err := parser.ParseFile(t.set, name, text, parser.ParseComments)
	if err != nil {
		return err
	}
	dir := path.Dir(name)
	p := byPath[dir]
	if p == nil {
		p = &pkg{path: dir}
		byPath[dir] = p
	}
	p.name = strings.TrimSuffix(syntax.Name.Name, "_test")
	p.files = append(p.files, &file{path: name, test: strings.HasSuffix(name, "_test.go"), syntax: syntax})
	return nil
}

// nested reports whether a directory belongs to a nested module.
func (t *tree) nested(dir string) bool {
	for ; dir != "."; dir = path.Dir(dir) {
		if _, found := t.texts[path.Join(dir, "go.mod")]; found {
			return true
		}
	}
	return false
}

// at returns a position as file:line.
func (t *tree) at(pos token.Pos) string {
	p := t.set.Position(pos)
	return fmt.Sprintf("%s:%d", p.Filename, p.Line)
}

// kit reports whether a package is a conformance kit, which is code for tests of other
// packages.
func kit(path string) bool { return strings.HasSuffix(path, "test") }

// imports lists the import paths of a file.
func (f *file) imports() []string {
	var paths []string
	for _, spec := range f.syntax.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			panic("tidy: the parser accepted an import path that is not a string: " + spec.Path.Value)
		}
		paths = append(paths, p)
	}
	return paths
}

// use is one use of a name of an imported package.
type use struct {
	name string
	pos  token.Pos
}

// uses lists the uses of names of an imported package.
func (f *file) uses(imported string) []use {
	local := ""
	for i, spec := range f.syntax.Imports {
		if f.imports()[i] != imported {
			continue
		}
		local = path.Base(strings.TrimSuffix(imported, "/v2"))
		if spec.Name != nil {
			local = spec.Name.Name
		}
	}
	if local == "" {
		return nil
	}
	var found []use
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		selector, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		// An identifier with an object is a variable that shadows the package.
		if x, ok := selector.X.(*ast.Ident); ok && x.Name == local && x.Obj == nil {
			found = append(found, use{selector.Sel.Name, selector.Pos()})
		}
		return true
	})
	return found
}

// match reports whether a path matches a pattern. A pattern is a path, "x/..." for x and
// everything below it, or "..." for all paths.
func match(pattern, name string) bool {
	prefix, open := strings.CutSuffix(pattern, "...")
	if !open {
		return pattern == name
	}
	return prefix == "" || strings.HasPrefix(name+"/", prefix)
}

func matchAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, name) })
}
