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

func TestDocuments(t *testing.T) { report(t, repository(t).checkDocuments()) }

// checkDocuments finds commands in documents that name a test, benchmark or fuzz target
// that does not exist. Such a command runs nothing and succeeds.
func (t *tree) checkDocuments() []string {
	command := regexp.MustCompile(`-(run|bench|fuzz) ([A-Za-z]+)`)
	kinds := map[string]string{"run": "Test", "bench": "Benchmark", "fuzz": ""}
	var code strings.Builder
	for name, text := range t.texts {
		if strings.HasSuffix(name, "_test.go") {
			code.WriteString(text)
		}
	}
	var problems []string
	for _, name := range slices.Sorted(maps.Keys(t.texts)) {
		if path.Ext(name) != ".md" {
			continue
		}
		for _, found := range command.FindAllStringSubmatch(t.texts[name], -1) {
			target := regexp.MustCompile(`(?m)^func ` + kinds[found[1]] + `\w*` + found[2])
			if !target.MatchString(code.String()) {
				problems = append(problems, fmt.Sprintf("documents: %s: no test has the name of %q", name, found[0]))
			}
		}
	}
	return problems
}
