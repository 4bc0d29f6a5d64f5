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

// Limits. A reader holds one function in mind and finds a file or a package at
// a glance.
const (
	functionLines = 70  // lines with code on them, blank lines and comments not counted
	fileLines     = 500 // all lines
	packageFiles  = 12  // without tests, and without those that start one engine each

	lineCharacters = 120 // a tab is one character
)

// tooLarge lists what is allowed to be larger than the limits, with its size:
// functions as "path/file.go Name" or "path/file.go Type.Name", files as
// "path/file.go", packages as "path". Sizes may only shrink.
func tooLarge() map[string]int {
	return map[string]int{
		"sut/balance/dispatch_test.go TestDispatch": 96, // rows of a table
	}
}

func TestSizes(t *testing.T) { report(t, repository(t).checkSizes(tooLarge())) }

// wideFolders lists the folders that have lines over the limit, with how many. The numbers
// may only shrink.
func wideFolders() map[string]int {
	return map[string]int{
		".":                           185,
		"cmd/internal/cell":           49,
		"cmd/internal/load":           5,
		"cmd/internal/tidy":           63,
		"cmd/stagebench":              60,
		"sut/balance/balancetest":     17,
		"sut/cache":                   18,
		"sut/cache/cacheproxy":        27,
		"sut/haproxy":                 32,
		"sut/node":                    44,
		"sut/node/dbadmin":            1,
		"sut/node/process":            4,
		"targets/budget":              7,
		"targets/local":               31,
		"workloads/driver/drivertest": 40,
		"workloads/pace":              1,
		"workloads/preset":            12,
		"workloads/trace":             10,
	}
}

func TestWidth(t *testing.T) { report(t, repository(t).checkWidth(wideFolders())) }

// checkWidth finds lines of Go files, the Makefile and documents that are too wide. Tables
// and code blocks of documents are exempt, because they quote what is as wide.
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
			problems = append(problems, fmt.Sprintf("width: %s has %d wide lines: lower its exception from %d", folder, got, exceptions[folder]))
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

func (t *tree) checkSizes(exceptions map[string]int) []string {
	sizes, limits := map[string]int{}, map[string]int{}
	measure := func(name string, size, limit int) { sizes[name], limits[name] = size, limit }
	for _, p := range t.packages {
		files := 0
		for _, f := range p.files {
			if !f.test && !slices.ContainsFunc(f.syntax.Decls, startsEngine) {
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
	for _, name := range slices.Sorted(maps.Keys(sizes)) {
		size, limit := sizes[name], limits[name]
		exception, excepted := exceptions[name]
		switch {
		case excepted && size <= limit:
			problems = append(problems, fmt.Sprintf("sizes: %s is within the limit of %d: remove its exception", name, limit))
		case excepted && size < exception:
			problems = append(problems, fmt.Sprintf("sizes: %s has shrunk to %d: lower its exception from %d", name, size, exception))
		case excepted && size > exception:
			problems = append(problems, fmt.Sprintf("sizes: %s has grown to %d, its exception is %d", name, size, exception))
		case !excepted && size > limit:
			problems = append(problems, fmt.Sprintf("sizes: %s is %d, the limit is %d: split it where its parts have names", name, size, limit))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(exceptions)) {
		if _, exists := sizes[name]; !exists {
			problems = append(problems, fmt.Sprintf("sizes: there is no %s: remove its exception", name))
		}
	}
	return problems
}

// startsEngine reports whether a declaration is the function that makes a node of an
// engine. sut/node has a file for each, and their number is no measure of its size.
func startsEngine(declaration ast.Decl) bool {
	f, ok := declaration.(*ast.FuncDecl)
	if !ok || !strings.HasPrefix(f.Name.Name, "start") || f.Type.Params.NumFields() != 2 || f.Type.Results.NumFields() != 2 {
		return false
	}
	takes, makes := f.Type.Params.List[1].Type, f.Type.Results.List[0].Type
	return isProcess(takes, "Node") && isProcess(makes, "Component")
}

// isProcess reports whether an expression is that name of package process.
func isProcess(e ast.Expr, name string) bool {
	selected, ok := e.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	of, ok := selected.X.(*ast.Ident)
	return ok && of.Name == "process" && selected.Sel.Name == name
}

// linesOf counts the lines of a function that hold code.
func (t *tree) linesOf(function *ast.FuncDecl, code map[int]bool) int {
	count := 0
	for line := t.set.Position(function.Pos()).Line; line <= t.set.Position(function.End()).Line; line++ {
		if code[line] {
			count++
		}
	}
	return count
}

// codeLines returns the numbers of the lines that hold something else than
// comments. Every line of a raw string counts.
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

// functionName is "Name" or "Type.Name".
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
