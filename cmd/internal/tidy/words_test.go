package tidy

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// emptyNames say nothing about what is in a package, so everything ends up there.
func emptyNames() []string {
	return []string{"util", "utils", "common", "helper", "helpers", "base", "misc", "types", "models", "lib"}
}

// bannedText is text that no file of the repository may hold. The expressions
// are written so that they do not find themselves.
type bannedText struct {
	pattern *regexp.Regexp
	why     string
}

func bannedTexts() []bannedText {
	return []bannedText{
		{regexp.MustCompile("(^|[\\s\"'=(:,`])/(work|root|home|Users)/"), "a path of one machine means nothing on another"},
		{regexp.MustCompile(`(proxy|sum)\.golang\.org|registry\.npmjs\.org|(deb|security)\.debian\.org|\bGOPROXY=`), "where packages come from is the business of the machine"},
		{regexp.MustCompile(`(?i)\b(issue|ticket|session) #?\d+\b`), "the repository speaks of the product alone; write the reason itself"},
		{regexp.MustCompile(`(^|[^.\w])(TO[D]O|FIX[M]E)\b`), "do it, or say in a sentence why not"},
	}
}

func TestPackageNames(t *testing.T) { report(t, repository(t).checkPackageNames()) }

func TestText(t *testing.T) { report(t, repository(t).checkText()) }

func TestPackageComments(t *testing.T) { report(t, repository(t).checkPackageComments()) }

func (t *tree) checkPackageNames() []string {
	var problems []string
	for _, p := range t.packages {
		for _, name := range append(strings.Split(p.path, "/"), p.name) {
			if slices.Contains(emptyNames(), name) {
				problems = append(problems, fmt.Sprintf("names: package %s: %q says nothing; name it for what it is about", p.path, name))
				break
			}
		}
		if p.name != "main" && p.path != "." && p.name != path.Base(p.path) {
			problems = append(problems, fmt.Sprintf("names: package %s is called %s: one thing, one name", p.path, p.name))
		}
	}
	return problems
}

func (t *tree) checkText() []string {
	var problems []string
	patterns := bannedTexts()
	for _, name := range slices.Sorted(maps.Keys(t.texts)) {
		for number, line := range strings.Split(t.texts[name], "\n") {
			for _, banned := range patterns {
				if found := banned.pattern.FindString(line); found != "" {
					problems = append(problems, fmt.Sprintf("text: %s:%d: %q: %s", name, number+1, strings.TrimSpace(found), banned.why))
				}
			}
		}
	}
	return problems
}

// checkPackageComments wants one comment per package, in one of its files.
func (t *tree) checkPackageComments() []string {
	var problems []string
	for _, p := range t.packages {
		commented := 0
		for _, f := range p.files {
			if f.syntax.Doc == nil {
				continue
			}
			commented++
			if want := "Package " + p.name + " "; p.name != "main" && !strings.HasPrefix(f.syntax.Doc.Text(), want) {
				problems = append(problems, fmt.Sprintf("comments: %s: the package comment begins with %q", f.path, want+"..."))
			}
		}
		if commented != 1 {
			problems = append(problems, fmt.Sprintf("comments: package %s has %d package comments, want 1: what it is, what it never does, units, who may call concurrently, order of calls", p.path, commented))
		}
	}
	return problems
}
