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
	why    string   // the exact comment of its line in go.mod
	users  []string // packages that may import it; nil = only tests
}

// dependencies are the direct requirements of go.mod. Tests may import all of them.
func dependencies() []dependency {
	return []dependency{
		{
			"github.com/HdrHistogram/hdrhistogram-go", "latency histograms that merge exactly, and their log format",
			[]string{"results/hdr"},
		},
		{"github.com/bradfitz/gomemcache", "client of memcached", []string{"sut/cache"}},
		{
			"github.com/dunglas/httpsfv", "header fields of caches that are Structured Fields (RFC 9651)",
			[]string{"sut/edge/..."},
		},
		{
			"github.com/goccy/go-yaml", "workload, fault, price and matrix files; errors name line and column",
			[]string{"workloads/file", "targets/faults", "internal/nesting", "results/scorecard", "cmd/internal/matrix"},
		},
		{"github.com/google/go-cmp", "tests: readable differences", nil},
		{
			"github.com/jackc/pgx/v5", "PostgreSQL client and wire types",
			[]string{"sut/store/...", "sut/sqlite/...", "sut/postgres/..."},
		},
		{"github.com/joshdk/go-junit", "tests: reads our JUnit files", nil},
		{
			"github.com/klauspost/compress", "gzip of text responses, skips small bodies; Zstandard traces",
			[]string{"sut/node", "workloads/trace"},
		},
		{
			"github.com/nats-io/nats-server/v2", "the embedded broker of the queue: JetStream as a library",
			[]string{"sut/queue/broker"},
		},
		{"github.com/nats-io/nats.go", "client of the brokers", []string{"sut/queue", "sut/queue/queuetest"}},
		{"github.com/olekukonko/tablewriter", "text and Markdown tables", []string{"results/table"}},
		{
			"github.com/prometheus/client_golang", "metrics of nodes and runs",
			[]string{"sut/...", "targets/...", "results/live", "results/export", "cmd/..."},
		},
		{"github.com/prometheus/common", "writes OpenMetrics text", []string{"results/export"}},
		{"github.com/prometheus/prometheus", "tests: parses our OpenMetrics text", nil},
		{
			"github.com/redis/go-redis/v9", "client of the caches and of the session host",
			[]string{"sut/cache", "sut/redis", "sut/session"},
		},
		{"github.com/rogpeppe/go-internal", "tests: command line behaviour as scripts", nil},
		{"github.com/santhosh-tekuri/jsonschema/v6", "tests: the schema of matrix files", nil},
		{"github.com/spf13/cobra", "commands, flags, completion", []string{"cmd/..."}},
		{"github.com/spf13/pflag", "the flags of commands", []string{"cmd/..."}},
		{"github.com/tsenart/vegeta/v12", "the default load engine", []string{"workloads/driver/vegeta", "results/foreign"}},
		{"github.com/vbauerster/mpb/v8", "the progress bar", []string{"results/live"}},
		{"go.uber.org/goleak", "tests: find goroutines that outlive their test", nil},
		{"golang.org/x/image", "scaling of photos", []string{"sut/imaging"}},
		{
			"golang.org/x/net", "rules for header names, and for the domains of cookies",
			[]string{"workloads/file", "workloads/driver", "cmd/..."},
		},
		{
			"golang.org/x/perf", "Go benchmark text, and the statistics of benchstat",
			[]string{"results/export", "results/foreign", "results/compare"},
		},
		{"golang.org/x/sync", "groups of goroutines; the first error cancels the others", []string{"..."}},
		{"golang.org/x/sys", "kernel interfaces that package syscall lacks", []string{"..."}},
		{"golang.org/x/term", "detects whether standard error is a terminal", []string{"cmd/..."}},
		{
			"gonum.org/v1/gonum", "Student's t distribution, for intervals and tests",
			[]string{"results/capacity", "results/gate"},
		},
		{"pgregory.net/changepoint", "candidates of change points: ED-PELT", []string{"results/trend"}},
		{"zombiezen.com/go/sqlite", "SQLite without cgo, with sessions", []string{"sut/sqlite/..."}},
	}
}

func TestDependencies(t *testing.T) { report(t, repository(t).checkDependencies(dependencies())) }

// checkDependencies compares go.mod and all imports with the list.
func (t *tree) checkDependencies(allowed []dependency) []string {
	var problems []string
	add := func(format string, args ...any) {
		problems = append(problems, "dependencies: "+fmt.Sprintf(format, args...))
	}
	byModule := map[string]dependency{}
	for _, d := range allowed {
		byModule[d.module] = d
	}
	required := directRequirements(t.texts["go.mod"])
	for _, module := range slices.Sorted(maps.Keys(required)) {
		d, known := byModule[module]
		switch r := required[module]; {
		case !known:
			add("go.mod requires %s, which is not on the list: add it with its reason and users, or remove it", module)
		case r.comment != d.why:
			add("the comment in go.mod differs from the list; write\n\t%s %s // %s", module, r.version, d.why)
		}
	}
	for _, d := range allowed {
		if _, found := required[d.module]; !found {
			add("go.mod does not require %s directly: remove it from the list", d.module)
		}
	}
	return append(problems, t.checkImporters(byModule, required)...)
}

// checkImporters finds imports that the list does not allow, and modules without an import.
func (t *tree) checkImporters(allowed map[string]dependency, required map[string]requirement) []string {
	var problems []string
	add := func(format string, args ...any) {
		problems = append(problems, "dependencies: "+fmt.Sprintf(format, args...))
	}
	used := map[string]bool{}
	for _, p := range t.packages {
		for _, f := range p.files {
			for _, imported := range f.imports() {
				module := moduleOf(required, imported)
				used[module] = true
				d := allowed[module]
				switch {
				case !strings.Contains(strings.Split(imported, "/")[0], "."): // the standard library
				case match(t.module+"/...", imported):
				case module == "":
					add("%s imports %s, but no direct requirement of go.mod provides it", f.path, imported)
				case d.module == "", f.test, kit(p.path), matchAny(d.users, p.path):
				case d.users == nil:
					add("%s imports %s, but only tests may", f.path, imported)
				default:
					add("%s imports %s, but only %v may", f.path, imported, d.users)
				}
			}
		}
	}
	for _, module := range slices.Sorted(maps.Keys(required)) {
		if !used[module] {
			add("go.mod requires %s, which no package imports", module)
		}
	}
	return problems
}

// moduleOf returns the required module of a package, or "".
func moduleOf(required map[string]requirement, imported string) string {
	longest := ""
	for module := range required {
		if match(module+"/...", imported) && len(module) > len(longest) {
			longest = module
		}
	}
	return longest
}

// requirement is one requirement of go.mod.
type requirement struct {
	version string
	comment string
}

// directRequirements returns the direct requirements of a go.mod file, by module.
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
