package tidy

import (
	"fmt"
	"go/ast"
	"go/scanner"
	"go/token"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// The size limits.
const (
	functionLines = 70  // lines of code; blank lines and comments do not count
	fileLines     = 500 // all lines
	packageFiles  = 12  // without tests, and without files that start an engine or make a subcommand

	lineCharacters = 120 // a tab is one character
)

// tooLarge lists exceptions to the limits, with their sizes: functions as
// "path/file.go Name" or "path/file.go Type.Name", files as "path/file.go", packages as
// "path". The sizes may only shrink.
func tooLarge() map[string]int {
	return map[string]int{
		"sut/balance/dispatch_test.go TestDispatch": 96, // rows of a table
	}
}

func TestSizes(t *testing.T) { report(t, repository(t).checkSizes(tooLarge())) }

// wideFolders lists the folders that have lines over the limit, with the number of these
// lines. The numbers may only shrink.
func wideFolders() map[string]int {
	return map[string]int{}
}

func TestWidth(t *testing.T) { report(t, repository(t).checkWidth(wideFolders())) }

// checkWidth finds lines over the limit in Go files, the Makefile and documents. Tables and
// code blocks of documents are exempt, because they quote output that is wide.
func (t *tree) checkWidth(exceptions map[string]int) []string {
	var problems []string
	wide := map[string]int{} // by folder
	for _, name := range slices.Sorted(maps.Keys(t.texts)) {
		lines := wideLines(name, t.texts[name])
		folder := path.Dir(name)
		wide[folder] += len(lines)
		if len(lines) > 0 && wide[folder] > exceptions[folder] {
			problems = append(problems, fmt.Sprintf(
				"width: %s:%d has more than %d characters: break the line", name, lines[len(lines)-1], lineCharacters))
		}
	}
	for _, folder := range slices.Sorted(maps.Keys(exceptions)) {
		if got := wide[folder]; got < exceptions[folder] {
			problems = append(problems, fmt.Sprintf(
				"width: %s has %d wide lines: lower its exception from %d", folder, got, exceptions[folder]))
		}
	}
	return problems
}

// wideLines returns the numbers of the lines of a file that are over the limit.
func wideLines(name, text string) (numbers []int) {
	document := path.Ext(name) == ".md"
	if path.Ext(name) != ".go" && path.Base(name) != "Makefile" && !document || strings.Contains(name, "testdata/") {
		return nil
	}
	quoted := false
	for i, line := range strings.Split(text, "\n") {
		if document && strings.HasPrefix(line, "```") {
			quoted = !quoted
		}
		exempt := quoted || document && strings.HasPrefix(line, "|")
		if utf8.RuneCountInString(line) > lineCharacters && !exempt {
			numbers = append(numbers, i+1)
		}
	}
	return numbers
}

// checkSizes finds functions, files and packages over the limits, and wrong exceptions.
func (t *tree) checkSizes(exceptions map[string]int) []string {
	sizes, limits := map[string]int{}, map[string]int{}
	measure := func(name string, size, limit int) { sizes[name], limits[name] = size, limit }
	for _, p := range t.packages {
		files := 0
		for _, f := range p.files {
			if !f.test && !slices.ContainsFunc(f.syntax.Decls, startsEngine) &&
				!slices.ContainsFunc(f.syntax.Decls, isSubcommand) {
				files++
			}
			measure(f.path, strings.Count(t.texts[f.path], "\n"), fileLines)
			code := codeLines(t.texts[f.path])
			for _, declaration := range f.syntax.Decls {
				if function, ok := declaration.(*ast.FuncDecl); ok {
					measure(f.path+" "+functionName(function), t.linesOf(function, code), functionLines)
				}
			}
		}
		measure(p.path, files, packageFiles)
	}

	var problems []string
	add := func(format string, args ...any) {
		problems = append(problems, "sizes: "+fmt.Sprintf(format, args...))
	}
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		size, limit := sizes[name], limits[name]
		exception, excepted := exceptions[name]
		switch {
		case excepted && size <= limit:
			add("%s is within the limit of %d: remove its exception", name, limit)
		case excepted && size < exception:
			add("%s has shrunk to %d: lower its exception from %d", name, size, exception)
		case excepted && size > exception:
			add("%s has grown to %d, its exception is %d: split it", name, size, exception)
		case !excepted && size > limit:
			add("%s is %d, the limit is %d: split it into parts with good names", name, size, limit)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(exceptions)) {
		if _, exists := sizes[name]; !exists {
			add("there is no %s: remove its exception", name)
		}
	}
	return problems
}

// startsEngine reports whether a declaration is the function that starts a node of one
// engine. sut/node has one file per engine, and these files do not count.
func startsEngine(declaration ast.Decl) bool {
	f, ok := declaration.(*ast.FuncDecl)
	if !ok || !strings.HasPrefix(f.Name.Name, "start") ||
		f.Type.Params.NumFields() != 2 || f.Type.Results.NumFields() != 2 {
		return false
	}
	param, result := f.Type.Params.List[1].Type, f.Type.Results.List[0].Type
	return isProcess(param, "Node") && isProcess(result, "Component")
}

// isSubcommand reports whether a declaration is the function that makes a subcommand. cmd/stagebench has one file per
// subcommand, and these files do not count.
func isSubcommand(declaration ast.Decl) bool {
	f, ok := declaration.(*ast.FuncDecl)
	return ok && strings.HasSuffix(f.Name.Name, "Command") && f.Recv == nil && f.Type.Params.NumFields() == 1
}

// isProcess reports whether an expression is this name in package process.
func isProcess(e ast.Expr, name string) bool {
	selected, ok := e.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	x, ok := selected.X.(*ast.Ident)
	return ok && x.Name == "process" && selected.Sel.Name == name
}

// linesOf counts the lines of code of a function.
func (t *tree) linesOf(function *ast.FuncDecl, code map[int]bool) int {
	count := 0
	for line := t.set.Position(function.Pos()).Line; line <= t.set.Position(function.End()).Line; line++ {
		if code[line] {
			count++
		}
	}
	return count
}

// codeLines returns the numbers of the lines of code. Every line of a raw string counts.
func codeLines(source string) map[int]bool {
	set := token.NewFileSet()
	f := set.AddFile("", set.Base(), len(source))
	var s scanner.Scanner
	s.Init(f, []byte(source), nil, 0)
	lines := map[int]bool{}
	for {
		pos, kind, text := s.Scan()
		if kind == token.EOF {
			return lines
		}
		if kind == token.SEMICOLON && text == "\n" {
			continue // inserted by the scanner
		}
		first := f.Line(pos)
		for i := range strings.Count(text, "\n") + 1 {
			lines[first+i] = true
		}
	}
}

// functionName returns "Name" or "Type.Name".
func functionName(function *ast.FuncDecl) string {
	if function.Recv == nil || len(function.Recv.List) == 0 {
		return function.Name.Name
	}
	receiver := function.Recv.List[0].Type
	for {
		switch r := receiver.(type) {
		case *ast.StarExpr:
			receiver = r.X
		case *ast.IndexExpr:
			receiver = r.X
		case *ast.IndexListExpr:
			receiver = r.X
		case *ast.Ident:
			return r.Name + "." + function.Name.Name
		default:
			return function.Name.Name
		}
	}
}
