package tidy

import (
	"bytes"
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

// tree is the repository, parsed.
type tree struct {
	module   string // path of the module
	set      *token.FileSet
	packages []*pkg            // of the module, by path; those of nested modules are not ours
	texts    map[string]string // every text file by path, those of nested modules too
}

// pkg is one directory with Go files.
type pkg struct {
	path  string // relative to the module; "." for its root
	name  string // without the _test of an external test package
	files []*file
}

// file is one Go file.
type file struct {
	path   string // relative to the module
	test   bool
	syntax *ast.File
}

// repository parses the tree that this package is part of.
func repository(t *testing.T) *tree {
	t.Helper()
	parsed, err := parse(os.DirFS("../../.."))
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// report fails with every problem, or passes without any.
func report(t *testing.T, problems []string) {
	t.Helper()
	for _, p := range problems {
		t.Error(p)
	}
}

// parse reads a tree. What is built or measured is not part of it.
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
		return nil, fmt.Errorf("go.mod names no module")
	}
	t.module, _, _ = strings.Cut(rest, "\n")
	return t, nil
}

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

// nested reports whether a directory belongs to a module of its own.
func (t *tree) nested(dir string) bool {
	for ; dir != "."; dir = path.Dir(dir) {
		if _, found := t.texts[path.Join(dir, "go.mod")]; found {
			return true
		}
	}
	return false
}

// at says where something is.
func (t *tree) at(pos token.Pos) string {
	p := t.set.Position(pos)
	return fmt.Sprintf("%s:%d", p.Filename, p.Line)
}

// kit reports whether a package is a conformance kit: code for the tests of
// others.
func kit(path string) bool { return strings.HasSuffix(path, "test") }

// imports lists what a file imports.
func (f *file) imports() []string {
	var paths []string
	for _, spec := range f.syntax.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			panic("tidy: the parser let an import through that is no string: " + spec.Path.Value)
		}
		paths = append(paths, p)
	}
	return paths
}

// use is one mention of an exported name of an imported package.
type use struct {
	name string
	pos  token.Pos
}

// uses lists the mentions of what a package exports.
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
		// An identifier with an object is a variable that hides the package.
		if x, ok := selector.X.(*ast.Ident); ok && x.Name == local && x.Obj == nil {
			found = append(found, use{selector.Sel.Name, selector.Pos()})
		}
		return true
	})
	return found
}

// match tells whether a path fits a pattern: a path, or "x/..." for x and all
// that is below it, or "..." for everything.
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
