package results_test

import (
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
)

func counted(n int64) *int64 { return &n }

// slice returns a slice of a measurement with every kind of figure.
func slice(requests int64) results.Step {
	return results.Step{
		Purpose: "reference", OfferedRPS: 100, Seconds: 2, OpsHash: strconv.FormatInt(requests, 10),
		CompletedRPS: float64(requests) / 2, SentRPS: float64(requests) / 2,
		Ledger: results.Ledger{Scheduled: requests, Sent: requests, OK: requests - 1, HTTPError: 1},
		Ops:    map[string]results.OpStats{"feed": {Count: requests, Errors: 1, OverSLO: 2}},
		Causes: map[string]int64{"503": 1}, Statuses: map[int]int64{200: requests - 1, 503: 1},
		Outages: []results.Outage{{FromNS: 1e9, ToNS: 1e9, Failed: 1}}, Events: []results.Event{{AtNS: 5e8, Text: "killed"}},
		Hosts: []results.HostUsage{{Host: "web-1", CPU: 0.1, Isolated: true, CPUSeconds: 0.1, CPUShare: 0.5}},
		Nodes: []results.NodeUsage{{
			Node: "web-1", Host: "web-1", Role: "web", CPUSeconds: 0.1, ThrottledSeconds: 1, RSSBytes: requests,
		}},
		Cache: &results.CacheReads{Hits: 3, Misses: 4}, ServerCount: counted(requests),
		CacheNodes: []results.CacheNode{{Node: "cache-1", Hits: 3, Entries: requests}},
		Figures: []results.Figure{
			{Name: "evictions", Kind: "counter", Value: counted(5)}, {Name: "depth", Kind: "gauge", Value: counted(requests)},
		},
		Autoscaling: &results.Autoscaling{
			Decisions:   []results.ScalingDecision{{AtNS: 5e8, From: 1, To: 3}, {AtNS: 15e8, From: 3, To: 2}},
			Supply:      []results.Supply{{Serving: 1, Hosts: 1}, {AtNS: 1e9, Serving: 3, Hosts: 3}},
			HostSeconds: 4, Reversals: 1,
		},
		Notes: []string{"web-1 died"}, Invalid: []string{"late"}, Warnings: []string{"web-1 died", "late"},
	}
}

func TestJoin(t *testing.T) {
	one, two := slice(100), slice(300)
	two.Stale = &results.Stale{Reads: 10, Stale: 1}
	got := results.Join([]results.Step{one, two})
	want := slice(400)
	want.Seconds, want.CompletedRPS, want.SentRPS = 4, 100, 100
	want.Ledger = results.Ledger{Scheduled: 400, Sent: 400, OK: 398, HTTPError: 2}
	want.Ops = map[string]results.OpStats{"feed": {Count: 400, Errors: 2, OverSLO: 4}}
	want.Causes, want.Statuses = map[string]int64{"503": 2}, map[int]int64{200: 398, 503: 2}
	want.Outages = append(want.Outages, results.Outage{FromNS: 3e9, ToNS: 3e9, Failed: 1})
	want.Events = append(want.Events, results.Event{AtNS: 25e8, Text: "killed"})
	want.Hosts[0].CPUSeconds, want.Nodes[0].CPUSeconds, want.Nodes[0].ThrottledSeconds = 0.2, 0.2, 2
	want.Nodes[0].RSSBytes = 300
	want.Cache, want.Stale = &results.CacheReads{Hits: 6, Misses: 8}, &results.Stale{Reads: 10, Stale: 1}
	want.CacheNodes[0].Hits, want.CacheNodes[0].Entries = 6, 300
	want.Figures[0].Value, want.Figures[1].Value = counted(10), counted(300)
	a := want.Autoscaling
	a.Decisions = append(a.Decisions, results.ScalingDecision{AtNS: 25e8, From: 1, To: 3},
		results.ScalingDecision{AtNS: 35e8, From: 3, To: 2})
	a.Supply = append(a.Supply, results.Supply{AtNS: 2e9, Serving: 1, Hosts: 1},
		results.Supply{AtNS: 3e9, Serving: 3, Hosts: 3})
	a.HostSeconds, a.Reversals = 8, 3
	want.Invalid, want.Warnings = nil, nil
	want.OpsHash = "18d2450cf8b1a4ff454e351ee3d2eaba" // SHA-256 of both hashes, a line each
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("(-want +got)\n" + diff)
	}
	if diff := cmp.Diff(slice(100), one); diff != "" {
		t.Error("the first slice has changed (-want +got)\n" + diff)
	}
}

// What is unknown in one slice is unknown in the sum, never too small.
func TestJoinWithUnknownCounts(t *testing.T) {
	silent := slice(100)
	silent.Cache, silent.ServerCount, silent.CacheNodes, silent.Figures = nil, nil, nil, nil
	silent.Autoscaling = nil
	for _, parts := range [][]results.Step{{slice(100), silent}, {silent, slice(100)}} {
		got := results.Join(parts)
		if got.Autoscaling != nil {
			t.Errorf("autoscaling %+v, want an unknown one", got.Autoscaling)
		}
		if got.Cache != nil || got.ServerCount != nil || len(got.CacheNodes) > 0 {
			t.Errorf("cache %v, server count %v, cache nodes %v, want unknown ones", got.Cache, got.ServerCount, got.CacheNodes)
		}
		for _, f := range got.Figures {
			if f.Value != nil {
				t.Errorf("%s is %d, want an unknown value", f.Name, *f.Value)
			}
		}
	}
}
