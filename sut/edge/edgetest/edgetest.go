// Package edgetest is the test kit that every engine of an edge must pass.
//
// The kit is a list of cases. A case is a value: requests of a client, the answers of the origin, and what client and
// origin must see. The kit sees an edge from outside only: it is the client and the origin. Most rules come from RFC
// 9111 and its neighbours. Where the public suite http-tests/cache-tests has a test for the rule, the case has the id
// of that test, so that results can be compared.
//
// An engine lists the cases that it does not pass, with the reason. Each other case must pass, and a listed case must
// fail: the list may only shrink.
//
// Engines have real clocks. A response is stale from the start where that is possible. Where a case needs a lifetime
// of a second, it waits, while other cases run. No case depends on the speed of the machine.
package edgetest

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stagebench/stagebench/sut"
)

// System is a running edge.
type System struct {
	URL string // of its clients, without a trailing slash
	sut.EdgeServer
}

// Engine is an engine under test.
type Engine struct {
	// Start starts an edge that ends with the test.
	Start func(t testing.TB, cfg sut.EdgeConfig) System
	// Differences are the cases that fail, with their reasons.
	Differences []sut.Difference
}

// memory is the memory budget of the edges of the kit, unless a case needs another one.
const memory = 64 << 20

// atOnce bounds the requests that the kit sends at the same time, except where a case is about that.
const atOnce = 8

// outcome is the result of a case.
type outcome struct {
	Case
	err error
}

// Run runs all cases against an engine.
func Run(t *testing.T, e Engine) {
	t.Helper()
	var all []outcome
	for _, s := range suites() {
		if !t.Run(s.name, func(t *testing.T) {
			begin := s.begin(t, e)
			all = append(all, begin.exchanges(s.cases)...)
			for _, p := range s.probes {
				all = append(all, outcome{Case: p.Case, err: p.run(begin)})
			}
		}) {
			return // the engine did not start
		}
	}
	judge(t, e, all)
}

// suite is cases that share an edge.
type suite struct {
	name   string
	adjust func(*sut.EdgeConfig) // nil = the kit's own configuration
	cases  []Case
	probes []probe
}

// probe is a case that a table cannot express.
type probe struct {
	Case
	run func(b *bench) error
}

// bench is an edge with its origin, and a client.
type bench struct {
	t      testing.TB
	ctx    context.Context
	engine Engine
	edge   System
	config sut.EdgeConfig
	origin *origin
	client client
}

// suites returns everything that the kit asks.
func suites() []suite {
	return append([]suite{{
		name:   "rules",
		cases:  slices.Concat(freshnessCases(), staleCases(), fieldCases(), cdnCases()),
		probes: slices.Concat(collapseProbes(), purgeProbes()),
	}}, settingSuites()...)
}

// begin starts the edge of a suite.
func (s suite) begin(t testing.TB, e Engine) *bench {
	o := newOrigin(t)
	cfg := sut.EdgeConfig{Node: nodeName, Origins: []sut.Peer{o.peer("web-1")}, MaxBytes: memory}
	if s.adjust != nil {
		s.adjust(&cfg)
	}
	cfg = cfg.Complete()
	edge := e.Start(t, cfg)
	return &bench{
		t: t, ctx: t.Context(), engine: e, edge: edge, config: cfg, origin: o, client: newClient(edge.URL),
	}
}

// exchanges plays cases at the same time.
func (b *bench) exchanges(list []Case) []outcome {
	all := make([]outcome, len(list))
	slots := make(chan struct{}, atOnce)
	var running sync.WaitGroup
	for i, c := range list {
		running.Go(func() { all[i] = outcome{Case: c, err: exchange(b.ctx, b.client, b.origin, c, slots)} })
	}
	running.Wait()
	return all
}

// judge compares outcomes with what is expected, and prints a summary.
func judge(t *testing.T, e Engine, all []outcome) {
	reasons := map[string]string{} // of the differences, by case
	for _, d := range e.Differences {
		for _, id := range d.Cases {
			if reasons[id] != "" {
				t.Errorf("case %s is listed twice", id)
			}
			reasons[id] = d.Reason
		}
	}
	failed := map[string]bool{}
	for _, o := range all {
		failed[o.ID] = o.err != nil
	}
	passed, judged := map[Severity]int{}, map[Severity]int{}
	for _, o := range all {
		judged[o.Severity]++
		if o.err == nil && !failed[o.Needs] {
			passed[o.Severity]++
		}
		t.Run(o.Group+"/"+o.ID, func(t *testing.T) {
			if problem := verdict(o, reasons[o.ID], failed[o.Needs]); problem != "" {
				t.Error(problem)
			} else if o.err != nil {
				t.Logf("%s: %v", o.Severity, o.err)
			}
		})
	}
	known := ids() // also those that a filter of the command line left out
	for id := range reasons {
		if !known[id] {
			t.Errorf("the differences name case %s, which does not exist", id)
		}
	}
	var parts []string
	for _, s := range []Severity{Required, Optimal, Check} {
		parts = append(parts, fmt.Sprintf("%s %d of %d", s, passed[s], judged[s]))
	}
	t.Logf("passed %s; %d differences", strings.Join(parts, ", "), len(reasons))
}

// ids returns the ids of all cases.
func ids() map[string]bool {
	known := map[string]bool{}
	for _, s := range suites() {
		for _, c := range s.cases {
			known[c.ID] = true
		}
		for _, p := range s.probes {
			known[p.ID] = true
		}
	}
	return known
}

// verdict returns what is wrong with an outcome; "" = it is as expected. reason is that of a listed difference, without
// is true if the case that this one needs has failed.
func verdict(o outcome, reason string, without bool) string {
	switch {
	case o.Severity == Check && reason != "":
		return "a check has no verdict: remove it from the differences"
	case o.Severity == Check:
		return ""
	case without && reason != "":
		return fmt.Sprintf("not judged, because %s failed: remove it from the differences", o.Needs)
	case without:
		return ""
	case o.err == nil && reason != "":
		return fmt.Sprintf("passes: remove it from the differences (%s)", reason)
	case o.err != nil && reason == "":
		return fmt.Sprintf("%s, %s: %v", o.Severity, o.Section, o.err)
	}
	return ""
}

// ok returns an error if a response is not a 200.
func ok(res response, err error) error {
	if err != nil {
		return err
	}
	if res.status != http.StatusOK {
		return fmt.Errorf("status %d, want 200", res.status)
	}
	return nil
}
