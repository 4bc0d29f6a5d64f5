package tidy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// dependency is a module that go.mod may require directly.
type dependency struct {
	module string
	why    string   // the comment of its line in go.mod, word for word
	users  []string // packages that may import it outside their tests; nil = tests alone
}

func dependencies() []dependency {
	return []dependency{
		{"github.com/HdrHistogram/hdrhistogram-go", "latency histograms that merge exactly, and their log format", []string{"results/hdr"}},
		{"github.com/bradfitz/gomemcache", "client of memcached", []string{"sut/cache"}},
		{"github.com/goccy/go-yaml", "matrix, workload and fault files; errors name line and column", []string{"workloads/file", "targets/faults"}},
		{"github.com/google/go-cmp", "tests: differences that can be read", nil},
		{"github.com/jackc/pgx/v5", "PostgreSQL client and wire types", []string{"sut/store/...", "sut/sqlite/...", "sut/postgres/..."}},
		{"github.com/klauspost/compress", "compression of texts that knows what is not worth it", []string{"sut/node"}},
		{"github.com/olekukonko/tablewriter", "text and Markdown tables", []string{"results/table"}},
		{"github.com/prometheus/client_golang", "metrics of nodes and runs", []string{"sut/...", "targets/...", "results/live", "cmd/..."}},
		{"github.com/redis/go-redis/v9", "client of the caches", []string{"sut/cache", "sut/redis"}},
		{"github.com/rogpeppe/go-internal", "tests: command line behaviour as scripts", nil},
		{"github.com/spf13/cobra", "commands, flags, completion", []string{"cmd/..."}},
		{"github.com/tsenart/vegeta/v12", "the default load engine", []string{"workloads/driver/vegeta"}},
		{"github.com/vbauerster/mpb/v8", "the progress bar", []string{"results/live"}},
		{"go.uber.org/goleak", "tests: no goroutine outlives its test", nil},
		{"golang.org/x/image", "scaling of photos", []string{"sut/imaging"}},
		{"golang.org/x/net", "what a header may contain", []string{"workloads/file", "cmd/..."}},
		{"golang.org/x/sync", "groups of goroutines that fail together", []string{"..."}},
		{"golang.org/x/sys", "kernel interfaces that package syscall lacks", []string{"..."}},
		{"golang.org/x/term", "is standard error a terminal", []string{"cmd/..."}},
		{"zombiezen.com/go/sqlite", "SQLite without cgo, with sessions", []string{"sut/sqlite/..."}},
	}
}

func TestDependencies(t *testing.T) { report(t, repository(t).checkDependencies(dependencies())) }

func (t *tree) checkDependencies(allowed []dependency) []string {
	var problems []string
	byModule := map[string]dependency{}
	for _, d := range allowed {
		byModule[d.module] = d
	}
	required := directRequirements(t.texts["go.mod"])
	for _, module := range slices.Sorted(maps.Keys(required)) {
		d, known := byModule[module]
		switch r := required[module]; {
		case !known:
			problems = append(problems, fmt.Sprintf("dependencies: go.mod requires %s, which is not on the list: add it with its reason and users, or do without", module))
		case r.comment != d.why:
			problems = append(problems, fmt.Sprintf("dependencies: go.mod has to give the reason; write\n\t%s %s // %s", module, r.version, d.why))
		}
	}
	for _, d := range allowed {
		if _, found := required[d.module]; !found {
			problems = append(problems, fmt.Sprintf("dependencies: go.mod does not require %s directly: remove it from the list", d.module))
		}
	}
	return append(problems, t.checkImporters(byModule, required)...)
}

// checkImporters compares who imports a module with who may.
func (t *tree) checkImporters(allowed map[string]dependency, required map[string]requirement) []string {
	var problems []string
	used := map[string]bool{}
	for _, p := range t.packages {
		for _, f := range p.files {
			for _, imported := range f.imports() {
				module := moduleOf(required, imported)
				used[module] = true
				d := allowed[module]
				switch {
				case !strings.Contains(strings.Split(imported, "/")[0], "."), imported == t.module, strings.HasPrefix(imported, t.module+"/"):
				case module == "":
					problems = append(problems, fmt.Sprintf("dependencies: %s imports %s, but no direct requirement of go.mod has it", f.path, imported))
				case d.module == "", f.test, kit(p.path), matchAny(d.users, p.path):
				case d.users == nil:
					problems = append(problems, fmt.Sprintf("dependencies: %s imports %s, which is for tests", f.path, imported))
				default:
					problems = append(problems, fmt.Sprintf("dependencies: %s imports %s, which is for %v", f.path, imported, d.users))
				}
			}
		}
	}
	for _, module := range slices.Sorted(maps.Keys(required)) {
		if !used[module] {
			problems = append(problems, fmt.Sprintf("dependencies: go.mod requires %s, which nothing imports", module))
		}
	}
	return problems
}

// moduleOf finds the required module that a package belongs to.
func moduleOf(required map[string]requirement, imported string) string {
	longest := ""
	for module := range required {
		if match(module+"/...", imported) && len(module) > len(longest) {
			longest = module
		}
	}
	return longest
}

// requirement is one line of go.mod.
type requirement struct {
	version string
	comment string
}

// directRequirements reads go.mod, which is simple enough: one requirement per
// line, in a block or after the word, and a comment after two slashes.
func directRequirements(gomod string) map[string]requirement {
	direct := map[string]requirement{}
	block := false
	for line := range strings.Lines(gomod) {
		code, comment, _ := strings.Cut(line, "//")
		comment = strings.TrimSpace(comment)
		words := strings.Fields(code)
		switch {
		case len(words) == 2 && words[0] == "require" && words[1] == "(":
			block = true
			continue
		case len(words) == 1 && words[0] == ")":
			block = false
		case len(words) == 3 && words[0] == "require":
			words = words[1:]
		case !block:
			continue
		}
		if len(words) == 2 && comment != "indirect" && !strings.HasPrefix(comment, "indirect;") {
			direct[words[0]] = requirement{words[1], comment}
		}
	}
	return direct
}
