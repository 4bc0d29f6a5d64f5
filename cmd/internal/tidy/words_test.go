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

// emptyNames are package names that do not say what a package contains.
func emptyNames() []string {
	return []string{"util", "utils", "common", "helper", "helpers", "base", "misc", "types", "models", "lib"}
}

// bannedText is text that no file of the repository may contain. The patterns are written so
// that they do not match themselves.
type bannedText struct {
	pattern *regexp.Regexp
	why     string
}

func bannedTexts() []bannedText {
	return []bannedText{
		{
			regexp.MustCompile("(^|[\\s\"'=(:,`])/(work|root|home|Users)/"),
			"this path exists on one machine only: use a relative path",
		},
		{
			regexp.MustCompile(`(proxy|sum)\.golang\.org|registry\.npmjs\.org|` +
				`(deb|security)\.debian\.org|\bGOPROXY=`),
			"every machine has its own package sources: remove it",
		},
		{regexp.MustCompile(`(?i)\b(issue|ticket|session) #?\d+\b`), "readers cannot see it: write the reason itself"},
		{regexp.MustCompile(`(^|[^.\w])(TO[D]O|FIX[M]E)\b`), "do it now, or explain in a sentence why it is not done"},
	}
}

func TestPackageNames(t *testing.T) { report(t, repository(t).checkPackageNames()) }

func TestText(t *testing.T) { report(t, repository(t).checkText()) }

func TestPackageComments(t *testing.T) { report(t, repository(t).checkPackageComments()) }

// checkPackageNames finds names that are empty words or differ from the folder.
func (t *tree) checkPackageNames() []string {
	var problems []string
	for _, p := range t.packages {
		for _, name := range append(strings.Split(p.path, "/"), p.name) {
			if slices.Contains(emptyNames(), name) {
				problems = append(problems, fmt.Sprintf(
					"names: package %s: %q does not say what the package contains: choose a domain noun", p.path, name))
				break
			}
		}
		if p.name != "main" && p.path != "." && p.name != path.Base(p.path) {
			problems = append(problems, fmt.Sprintf(
				"names: package %s has the name %s: use the name of its folder", p.path, p.name))
		}
	}
	return problems
}

// checkText finds banned text.
func (t *tree) checkText() []string {
	var problems []string
	patterns := bannedTexts()
	for _, name := range slices.Sorted(maps.Keys(t.texts)) {
		for number, line := range strings.Split(t.texts[name], "\n") {
			for _, banned := range patterns {
				if found := banned.pattern.FindString(line); found != "" {
					problems = append(problems, fmt.Sprintf("text: %s:%d: %q: %s",
						name, number+1, strings.TrimSpace(found), banned.why))
				}
			}
		}
	}
	return problems
}

// checkPackageComments finds packages without exactly one package comment of the standard
// form.
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
				problems = append(problems, fmt.Sprintf(
					"comments: %s: the package comment must begin with %q", f.path, want+"..."))
			}
		}
		if commented != 1 {
			problems = append(problems, fmt.Sprintf("comments: package %s has %d package comments, want 1: what it is, "+
				"what it never does, units, what may be called concurrently, order of calls", p.path, commented))
		}
	}
	return problems
}
