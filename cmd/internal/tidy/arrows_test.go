package tidy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// arrow says which packages of this module a package may import. If several patterns match
// a package, the longest one applies, and a plain path wins over a pattern with "...".
type arrow struct {
	from string
	to   []string
	why  string
}

// arrows are the arrows of ARCHITECTURE.md. In addition, the tests of a package may import
// the package itself and every conformance kit, and a kit may import its parent package.
func arrows() []arrow {
	return slices.Concat(sutArrows(), databaseArrows(), targetArrows(), workloadArrows(), []arrow{
		{"results", nil, "the vocabulary of results is pure data"},
		{"results/...", []string{"results"}, "statistics do not render, and renderers compute no statistics"},
		{
			"results/foreign",
			[]string{"results", "results/hdr", "results/compare"},
			"turns files of other tools into runs and series, with histograms of the latencies of vegeta",
		},
		{
			"results/scorecard",
			[]string{"results", "results/capacity", "internal/nesting"},
			"computes from cells, with ratios of capacities, and from a file of prices",
		},
		{
			"results/table",
			[]string{"results", "results/scorecard"},
			"renders cells, and the scorecards that were computed from them",
		},
		{"results/trend/lines", []string{"results/trend"}, "keeps the records of runs in a file"},

		{"cmd/stagebench", []string{"..."}, "the program connects all packages"},
		{"cmd/internal/cell", []string{"..."}, "measures one cell: it starts a system and sends load to it"},
		{
			"cmd/internal/load",
			[]string{"sut", "sut/photos", "sut/imaging", "workloads/...", "workloads", "results"},
			"turns the arguments of users into requests: files, traces, users and photos of the data set",
		},
		{
			"cmd/internal/matrix",
			[]string{"sut", "sut/ladder", "workloads/pace", "results", "results/pivot", "internal/nesting"},
			"checks the names of stages, knobs, rates and figures in a file, and starts nothing",
		},
		{"cmd/internal/machine", []string{"results"}, "observes the machine and knows no target"},
		{"internal/polltest", nil, "polls for any condition of any test"},
		{"internal/porttest", nil, "finds addresses for the servers of any test"},
		{"internal/servertest", []string{"internal/polltest"}, "runs a native server for the tests of any package"},
		{"internal/nesting", nil, "looks at the text of any file before its parser does"},
		{"cmd/internal/exit", nil, "the exit status does not depend on the command"},
		{"cmd/internal/tidy", nil, "parses the other packages and runs none of them"},
	})
}

func sutArrows() []arrow {
	return []arrow{
		{"sut", nil, "the vocabulary of the system under test is pure data"},
		{"sut/ladder", []string{"sut"}, "a configuration is pure data and does not depend on how it is started"},
		{"sut/photos", []string{"sut"}, "all tiers share the records, so the records depend on no tier"},
		{"sut/swap", nil, "replaces values of any type while they are in use"},
		{"sut/program", nil, "finds the program of any server, and has what the descriptions of servers share"},
		{"sut/attempt", nil, "watches how any proxy sends a request"},
		{
			"sut/...",
			[]string{"sut", "sut/photos", "sut/swap", "sut/program"},
			"tiers communicate by wire protocols only, so another server can replace each of them",
		},
		{"sut/balance", []string{"sut", "sut/swap", "sut/attempt"}, "a balancer sends requests on, as a proxy does"},
		{
			"sut/balance/balancetest",
			[]string{"sut", "internal/..."},
			"both balancers must pass this kit, which uses the helpers of tests",
		},
		{
			"sut/edge",
			[]string{"sut", "sut/swap", "sut/attempt", "sut/edge/rules", "sut/edge/store"},
			"assembles an edge from its rules and its store",
		},
		{"sut/store", []string{"sut", "sut/photos", "sut/store/socket"}, "the client of databases, and of nothing else"},
		{"sut/store/socket", nil, "looks at any connection"},
		{"sut/shard", []string{"sut", "sut/photos"}, "maps and plans of shards are pure functions"},
		{"sut/edge/rules", nil, "the rules of HTTP caches are pure functions of messages and times"},
		{"sut/edge/store", []string{"sut/edge/rules"}, "keeps responses with what the rules say about them"},
		{
			"sut/edge/edgetest",
			[]string{"sut", "internal/..."},
			"all edges must pass this kit, which sees them from outside only",
		},
		{
			"sut/store/storetest",
			[]string{"sut", "sut/photos", "internal/polltest"},
			"both databases must pass this kit, which polls for what no event announces",
		},
		{
			"sut/queue/queuetest",
			[]string{"sut", "sut/photos", "sut/queue", "internal/..."},
			"both brokers must pass this kit, which uses the client of the queue",
		},
		{"sut/queue/broker", []string{"sut"}, "a broker does not know the jobs that it keeps"},
		{"sut/jobs", []string{"sut/photos"}, "does the jobs of workers, wherever they come from"},
		{
			"sut/cache/cacheproxy",
			[]string{"sut", "sut/photos", "sut/cache"},
			"a cache host uses the keys and the encoding of the cache client",
		},
		{
			"sut/memcached/memcachedtest",
			[]string{"sut", "sut/memcached", "internal/porttest"},
			"starts a memcached for the tests of its users",
		},
		{"sut/node/...", []string{"sut/..."}, "turns a configuration into a running node; only this package knows all tiers"},
	}
}

func databaseArrows() []arrow {
	return []arrow{
		{"sut/sqlite", []string{"sut", "sut/photos", "sut/sqlite/..."}, "assembles a database node from its packages"},
		{"sut/sqlite/wire", nil, "speaks the PostgreSQL protocol for any database"},
		{
			"sut/sqlite/engine",
			[]string{"sut/sqlite/wire"},
			"runs statements and does not know how their changes are replicated",
		},
		{"sut/sqlite/replog", []string{"sut"}, "the replication log and its messages can be read without a node"},
		{
			"sut/sqlite/replication",
			[]string{"sut", "sut/sqlite/wire", "sut/sqlite/engine", "sut/sqlite/replog"},
			"replicas of one primary do not depend on multi-primary replication",
		},
		{
			"sut/sqlite/multiprimary",
			[]string{"sut", "sut/sqlite/wire", "sut/sqlite/engine", "sut/sqlite/replog"},
			"multi-primary replication does not depend on replicas of one primary",
		},
	}
}

func targetArrows() []arrow {
	return []arrow{
		{"targets", []string{"sut"}, "describes a target in the vocabulary of the system under test"},
		{"targets/proc", nil, "supervises any child process"},
		{"targets/budget", []string{"targets/proc"}, "limits the CPU and memory of any child process"},
		{
			"targets/failover",
			[]string{"sut", "targets"},
			"decides which node is the primary; its caller probes and stops nodes",
		},
		{
			"targets/autoscale",
			[]string{"sut", "sut/ladder"},
			"decides from samples and times that its caller gives it; only tests need sut",
		},
		{"targets/topology", []string{"sut", "sut/ladder"}, "a topology is checked before anything of it is started"},
		{"targets/metrics", []string{"sut"}, "reads the metrics of any node, with the secret of its system"},
		{
			"targets/...",
			[]string{
				"sut", "sut/ladder", "sut/shard", "targets", "targets/proc", "targets/budget", "targets/failover",
				"targets/metrics", "targets/autoscale", "targets/topology", "internal/nesting",
			},
			"targets use the declared system, with its maps of shards, and never the code of its nodes",
		},
	}
}

func workloadArrows() []arrow {
	return []arrow{
		{"workloads", nil, "the vocabulary of load is pure data"},
		{"workloads/keys", []string{"workloads"}, "key distributions are pure functions"},
		{"workloads/pace", []string{"workloads"}, "schedules are pure functions"},
		{
			"workloads/preset",
			[]string{"workloads", "workloads/keys", "workloads/trace"},
			"a preset workload can replay the trace of any site",
		},
		{
			"workloads/...",
			[]string{"workloads", "workloads/keys", "workloads/pace", "internal/nesting"},
			"requests do not depend on the server that answers them",
		},
		{
			"workloads/driver/...",
			[]string{"workloads", "workloads/pace", "workloads/driver", "results", "results/hdr"},
			"a driver gets addresses and returns outcomes; it does not know how its target was started",
		},
		{"workloads/driver/freezer", nil, "a server with known percentiles, for any load generator"},
		{
			"workloads/driver/drivertest",
			[]string{
				"workloads", "workloads/pace", "workloads/driver", "workloads/driver/freezer", "results", "results/hdr",
			},
			"every driver must pass this kit, which uses the server with known percentiles",
		},
	}
}

// pure lists the packages that do no I/O and read no clock.
func pure() []string {
	return []string{
		"sut", "sut/ladder", "sut/photos", "sut/edge/rules",
		"sut", "sut/ladder", "sut/photos",
		"targets/autoscale",
		"workloads", "workloads/keys", "workloads/pace", "workloads/preset",
		"results", "results/capacity", "results/gate", "results/table", "results/export", "results/trend", "results/pivot",
		"cmd/internal/matrix",
	}
}

// outside lists the imports that do I/O.
func outside() []string {
	return []string{"os", "os/...", "net", "net/http/...", "syscall", "golang.org/x/sys/...", "log", "log/slog"}
}

// vocabulary reports whether a name of net/http does no I/O.
func vocabulary(name string) bool {
	return strings.HasPrefix(name, "Method") || strings.HasPrefix(name, "Status") ||
		name == "Header" || name == "CanonicalHeaderKey"
}

// clock lists the functions of package time that depend on the clock.
func clock() []string {
	return []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}
}

func TestArrows(t *testing.T) { report(t, repository(t).checkArrows(arrows())) }

func TestPurePackages(t *testing.T) { report(t, repository(t).checkPure(pure())) }

func (t *tree) checkArrows(rules []arrow) []string {
	var problems []string
	for _, rule := range rules {
		if !slices.ContainsFunc(t.packages, func(p *pkg) bool { return match(rule.from, p.path) }) {
			problems = append(problems, fmt.Sprintf("arrows: the rule for %s matches no package: remove it", rule.from))
		}
	}
	for _, p := range t.packages {
		rule, found := ruleFor(rules, p.path)
		if !found {
			problems = append(problems, fmt.Sprintf("arrows: no rule matches %s: add one with its reason", p.path))
			continue
		}
		for _, f := range p.files {
			for _, imported := range f.imports() {
				to, ours := strings.CutPrefix(imported, t.module+"/")
				if ours && !allowed(rule, p.path, to, f.test) {
					problems = append(problems, fmt.Sprintf("arrows: %s imports %s, but %s may import only %v: %s",
						f.path, to, p.path, rule.to, rule.why))
				}
			}
		}
	}
	return problems
}

// allowed reports whether a file of package from may import package to.
func allowed(rule arrow, from, to string, test bool) bool {
	switch {
	case matchAny(rule.to, to):
		return true
	case test && (to == from || kit(to)):
		return true
	}
	return kit(from) && strings.HasPrefix(from, to+"/") && !strings.Contains(from[len(to)+1:], "/")
}

// ruleFor returns the rule for a package.
func ruleFor(rules []arrow, path string) (best arrow, found bool) {
	length := -1
	for _, rule := range rules {
		if !match(rule.from, path) {
			continue
		}
		n := len(strings.TrimSuffix(rule.from, "..."))
		if rule.from == path {
			n = len(path) + 2 // a plain path wins over "path/..."
		}
		if n > length {
			best, found, length = rule, true, n
		}
	}
	return best, found
}

// checkPure finds imports and calls that the listed packages must not have.
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
				onlyVocabulary := imported == "net/http" &&
					!slices.ContainsFunc(f.uses(imported), func(u use) bool { return !vocabulary(u.name) })
				if matchAny(outside(), imported) && !onlyVocabulary {
					problems = append(problems, fmt.Sprintf("pure: %s imports %s, but %s must do no I/O", f.path, imported, p.path))
				}
			}
			for _, u := range f.uses("time") {
				if slices.Contains(clock(), u.name) {
					problems = append(problems, fmt.Sprintf("pure: %s: time.%s, but %s must read no clock: "+
						"take the time as an argument", t.at(u.pos), u.name, p.path))
				}
			}
		}
	}
	return append(problems, t.unknown("pure", paths)...)
}

// unknown finds listed packages that do not exist.
func (t *tree) unknown(what string, paths []string) []string {
	var problems []string
	for _, path := range paths {
		if !slices.ContainsFunc(t.packages, func(p *pkg) bool { return p.path == path }) {
			problems = append(problems, fmt.Sprintf("%s: there is no package %s: remove it from the list", what, path))
		}
	}
	return problems
}
