package ladder_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
)

// The store decides about the session host, about stickiness, and whom upload hosts ask.
func TestSessionStores(t *testing.T) {
	for _, test := range []struct {
		stage                sut.Stage
		knobs                string
		store, sticky, wrong string
		hosts                int
		units                float64
	}{
		{stage: sut.CDN, knobs: "session.store=sql", store: "memory", sticky: "true", units: 11},
		{stage: sut.Stateless, store: "resp", sticky: "false", hosts: 1, units: 12},
		{stage: sut.Stateless, knobs: "lb.sticky=true", store: "resp", sticky: "true", hosts: 1, units: 12},
		{stage: sut.Stateless, knobs: "session.store=sql", store: "sql", sticky: "false", units: 11},
		{stage: sut.Stateless, knobs: "session.store=memory", store: "memory", sticky: "true", units: 11},
		{stage: sut.Stateless, knobs: "session.store=sql db.topology=ring", wrong: "needs db.topology=primary-replica"},
		{stage: sut.Stateless, knobs: "session.engine=redis session.memory_mb=1", wrong: "needs 2 or more"},
	} {
		knobs, err := ladder.ParseKnobs(strings.Fields(test.knobs + " web.split=true"))
		if err != nil {
			t.Fatal(err)
		}
		topology, err := ladder.Build(test.stage, knobs, 0.1)
		if test.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), test.wrong) {
				t.Errorf("%s: error %v, want %q", test.knobs, err, test.wrong)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		hosts := 0
		for _, n := range topology.Nodes {
			if n.Role == sut.Session {
				hosts++
			}
			asks := slices.ContainsFunc(n.Uses, func(name string) bool { return strings.HasPrefix(name, "web-") })
			if n.Service == sut.Uploads && asks != (test.store == "memory") {
				t.Errorf("%s: the upload host uses %v", test.knobs, n.Uses)
			}
		}
		k := topology.Knobs
		if k["session.store"] != test.store || k["lb.sticky"] != test.sticky || hosts != test.hosts ||
			topology.Units() != test.units {
			t.Errorf("%s %s: store %s, sticky %s, %d session hosts, %v units", test.stage, test.knobs, k["session.store"],
				k["lb.sticky"], hosts, topology.Units())
		}
	}
}

// Only a knob that says so changes while a system serves, and only in the direction that is possible.
func TestSet(t *testing.T) {
	for _, test := range []struct {
		stage              sut.Stage
		store, name, value string
		wrong              string
	}{
		{sut.Stateless, "memory", "session.store", "resp", ""},
		{sut.Stateless, "memory", "session.store", "sql", ""},
		{sut.Stateless, "memory", "session.store", "memory", "is memory already"},
		{sut.Stateless, "resp", "session.store", "sql", "only from memory"},
		{sut.Stateless, "resp", "session.store", "memory", "only from memory"},
		{sut.Stateless, "memory", "session.store", "disk", "memory"},
		{sut.Stateless, "memory", "lb.policy", "least_conn", "serves\nwant one of: session.store"},
		{sut.Stateless, "memory", "lb.polic", "least_conn", "unknown knob"},
		{sut.CDN, "memory", "session.store", "resp", "always in the memory"},
	} {
		now, err := ladder.Build(test.stage, sut.Knobs{"session.store": test.store}, 0.1)
		if err != nil {
			t.Fatal(err)
		}
		next, err := ladder.Set(now, test.name, test.value)
		if test.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), test.wrong) {
				t.Errorf("%s=%s from %s: error %v, want %q", test.name, test.value, test.store, err, test.wrong)
			}
			continue
		}
		if err != nil || next.Knobs["session.store"] != test.value || next.Knobs["lb.sticky"] != "false" {
			t.Errorf("%s=%s: %v, knobs %v", test.name, test.value, err, next.Knobs)
		}
	}
}
