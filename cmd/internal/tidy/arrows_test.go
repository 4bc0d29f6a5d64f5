package tidy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// arrow says what packages may import from this module. The longest pattern
// that fits a package is the one that counts, a plain path before an open one.
type arrow struct {
	from string
	to   []string
	why  string
}

// arrows are the arrows of ARCHITECTURE.md. Besides them, the tests of a
// package may import itself and any conformance kit, and a kit may import the
// package that it lies in.
func arrows() []arrow {
	return []arrow{
		{"sut", nil, "the vocabulary of the system under test is pure data"},
		{"sut/ladder", []string{"sut"}, "what a configuration consists of is pure data, whoever starts it"},
		{"sut/photos", []string{"sut"}, "the records are a leaf that everything of the system shares"},
		{"sut/swap", nil, "a value that is replaced in use may be any"},
		{"sut/...", []string{"sut", "sut/photos", "sut/swap"}, "tiers meet over their wire protocols, so that any of them can be another server"},
		{"sut/sqlite", []string{"sut", "sut/photos", "sut/sqlite/..."}, "the door of a database node puts its parts together"},
		{"sut/sqlite/wire", nil, "speaks the protocol of PostgreSQL, whatever database is behind it"},
		{"sut/sqlite/engine", []string{"sut/sqlite/wire"}, "runs what clients ask for; what becomes of its changes elsewhere is up to who logs them"},
		{"sut/sqlite/replog", []string{"sut"}, "the log of changes and its messages can be read without a node"},
		{"sut/sqlite/replication", []string{"sut", "sut/sqlite/wire", "sut/sqlite/engine", "sut/sqlite/replog"}, "the copies of one primary know nothing of several"},
		{"sut/sqlite/multiprimary", []string{"sut", "sut/sqlite/wire", "sut/sqlite/engine", "sut/sqlite/replog"}, "several primaries know nothing of replicas"},
		{"sut/cache/cacheproxy", []string{"sut", "sut/photos", "sut/cache"}, "a cache host answers in the words in which its client asks"},
		{"sut/node/...", []string{"sut/..."}, "turns a configuration into a running node: somebody has to know all tiers, and only this does"},

		{"targets", []string{"sut"}, "what a target is made of is said in the words of the system under test"},
		{"targets/proc", nil, "supervises any child; what the child is does not matter"},
		{"targets/budget", []string{"targets/proc"}, "holds any child to a budget; what the child is does not matter"},
		{"targets/failover", []string{"sut", "targets"}, "decides who is the primary; how a node is asked or ended is somebody else's"},
		{"targets/metrics", nil, "reads what any node has counted"},
		{"targets/...", []string{"sut", "sut/ladder", "targets", "targets/proc", "targets/budget", "targets/failover", "targets/metrics"}, "targets know the declared system, never the code of its nodes: the system does not know that it is measured"},

		{"workloads", nil, "the vocabulary of load is pure"},
		{"workloads/keys", []string{"workloads"}, "distributions are pure functions of numbers"},
		{"workloads/pace", []string{"workloads"}, "schedules are pure functions of numbers"},
		{"workloads/preset", []string{"workloads", "workloads/keys", "workloads/trace"}, "a trace of any site can be replayed as a workload of ours"},
		{"workloads/...", []string{"workloads", "workloads/keys", "workloads/pace"}, "what is asked does not depend on who answers"},
		{"workloads/driver/...", []string{"workloads", "workloads/pace", "workloads/driver", "results", "results/hdr"}, "the driver gets addresses and gives outcomes: it does not know how its target was started"},

		{"workloads/driver/freezer", nil, "the server whose true percentiles are known is any server"},
		{"workloads/driver/drivertest", []string{"workloads", "workloads/pace", "workloads/driver", "workloads/driver/freezer", "results", "results/hdr"}, "the kit that every driver must pass, with the server that tells them apart"},

		{"results", nil, "the vocabulary of results is pure"},
		{"results/...", []string{"results"}, "each consumer of results stands alone: statistics do not render and renderers do no statistics"},

		{"cmd/stagebench", []string{"..."}, "the program sees the whole line"},
		{"cmd/internal/cell", []string{"..."}, "measures one cell for the program: brings up, drives, collects"},
		{"cmd/internal/load", []string{"sut", "sut/photos", "sut/imaging", "workloads/...", "workloads", "results"}, "turns what people write into what is sent: files, traces, the data set's users and photos"},
		{"cmd/internal/exit", nil, "how the program ends does not depend on what it did"},
		{"cmd/internal/tidy", nil, "parses the others and runs none of them"},
	}
}

// pure lists the packages that do no I/O and read no clock.
func pure() []string {
	return []string{
		"sut", "sut/ladder", "sut/photos", "workloads", "workloads/keys", "workloads/pace", "workloads/preset",
		"results", "results/capacity", "results/table",
	}
}

// outside lists the imports that reach the world.
func outside() []string {
	return []string{"os", "os/...", "net", "net/http/...", "syscall", "golang.org/x/sys/...", "log", "log/slog"}
}

// words reports whether a name of net/http is mere vocabulary.
func words(name string) bool {
	return strings.HasPrefix(name, "Method") || strings.HasPrefix(name, "Status") || name == "Header" || name == "CanonicalHeaderKey"
}

// clock lists what reads or follows a clock in package time.
func clock() []string {
	return []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}
}

func TestArrows(t *testing.T) { report(t, repository(t).checkArrows(arrows())) }

func TestPurePackages(t *testing.T) { report(t, repository(t).checkPure(pure())) }

func (t *tree) checkArrows(rules []arrow) []string {
	var problems []string
	for _, rule := range rules {
		if !slices.ContainsFunc(t.packages, func(p *pkg) bool { return match(rule.from, p.path) }) {
			problems = append(problems, fmt.Sprintf("arrows: the rule for %s fits no package: remove it", rule.from))
		}
	}
	for _, p := range t.packages {
		rule, found := ruleFor(rules, p.path)
		if !found {
			problems = append(problems, fmt.Sprintf("arrows: no rule fits %s: add one with its reason", p.path))
			continue
		}
		for _, f := range p.files {
			for _, imported := range f.imports() {
				to, ours := strings.CutPrefix(imported, t.module+"/")
				if ours && !allowed(rule, p.path, to, f.test) {
					problems = append(problems, fmt.Sprintf("arrows: %s imports %s, but %s may import only %v: %s", f.path, to, p.path, rule.to, rule.why))
				}
			}
		}
	}
	return problems
}

func allowed(rule arrow, from, to string, test bool) bool {
	switch {
	case matchAny(rule.to, to):
		return true
	case test && (to == from || kit(to)):
		return true
	}
	return kit(from) && strings.HasPrefix(from, to+"/") && !strings.Contains(from[len(to)+1:], "/")
}

func ruleFor(rules []arrow, path string) (best arrow, found bool) {
	length := -1
	for _, rule := range rules {
		if !match(rule.from, path) {
			continue
		}
		n := len(strings.TrimSuffix(rule.from, "..."))
		if rule.from == path {
			n = len(path) + 2 // a plain path is more to the point than "path/..."
		}
		if n > length {
			best, found, length = rule, true, n
		}
	}
	return best, found
}

func (t *tree) checkPure(paths []string) []string {
	var problems []string
	for _, p := range t.packages {
		if !slices.Contains(paths, p.path) {
			continue
		}
		for _, f := range p.files {
			if f.test {
				continue
			}
			for _, imported := range f.imports() {
				onlyWords := imported == "net/http" && !slices.ContainsFunc(f.uses(imported), func(u use) bool { return !words(u.name) })
				if matchAny(outside(), imported) && !onlyWords {
					problems = append(problems, fmt.Sprintf("pure: %s imports %s, but %s does no I/O", f.path, imported, p.path))
				}
			}
			for _, u := range f.uses("time") {
				if slices.Contains(clock(), u.name) {
					problems = append(problems, fmt.Sprintf("pure: %s: time.%s, but %s reads no clock: take the time as an argument", t.at(u.pos), u.name, p.path))
				}
			}
		}
	}
	return append(problems, t.unknown("pure", paths)...)
}

// unknown finds exceptions and lists that name packages that are gone.
func (t *tree) unknown(what string, paths []string) []string {
	var problems []string
	for _, path := range paths {
		if !slices.ContainsFunc(t.packages, func(p *pkg) bool { return p.path == path }) {
			problems = append(problems, fmt.Sprintf("%s: there is no package %s: remove it from the list", what, path))
		}
	}
	return problems
}
