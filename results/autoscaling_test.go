package results_test

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
)

const second = int64(1e9)

// supply returns a supply of hosts that all serve: times in seconds and numbers in turn.
func supply(all ...int64) (changes []results.Supply) {
	for i := 0; i < len(all); i += 2 {
		changes = append(changes, results.Supply{AtNS: all[i] * second, Serving: int(all[i+1]), Hosts: int(all[i+1])})
	}
	return changes
}

func demand(all ...int64) (changes []results.HostDemand) {
	for i := 0; i < len(all); i += 2 {
		changes = append(changes, results.HostDemand{AtNS: all[i] * second, Hosts: int(all[i+1])})
	}
	return changes
}

// changes returns decisions: time in seconds, from and to, in turn.
func changes(all ...int64) (decisions []results.ScalingDecision) {
	for i := 0; i < len(all); i += 3 {
		decisions = append(decisions, results.ScalingDecision{
			AtNS: all[i] * second, From: int(all[i+1]), To: int(all[i+2]),
		})
	}
	return decisions
}

func TestNewAutoscaling(t *testing.T) {
	states := []results.Supply{
		{AtNS: -9 * second, Serving: 1, Hosts: 1},
		{AtNS: -second, Serving: 2, Hosts: 2},
		{AtNS: 4 * second, Serving: 2, Hosts: 3}, // a host starts
		{AtNS: 5 * second, Serving: 3, Hosts: 3},
		{AtNS: 6 * second, Serving: 3, Hosts: 3}, // an event that changes nothing
		{AtNS: 8 * second, Serving: 1, Hosts: 3}, // two hosts drain
		{AtNS: 9 * second, Serving: 1, Hosts: 1},
		{AtNS: 11 * second, Serving: 2, Hosts: 2}, // after the end
	}
	decided := changes(-5, 1, 2, 4, 2, 3, 6, 3, 3, 8, 3, 1, 12, 1, 2)
	got := results.NewAutoscaling(decided, states, 10*second)
	want := &results.Autoscaling{
		Decisions: decided[1:4],
		Supply: []results.Supply{
			{Serving: 2, Hosts: 2},
			{AtNS: 4 * second, Serving: 2, Hosts: 3},
			{AtNS: 5 * second, Serving: 3, Hosts: 3},
			{AtNS: 8 * second, Serving: 1, Hosts: 3},
			{AtNS: 9 * second, Serving: 1, Hosts: 1},
		},
		HostSeconds: 4*2 + 5*3 + 1, Reversals: 1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if a := results.NewAutoscaling(decided, states[2:], 10*second); a != nil {
		t.Errorf("the supply at the start is unknown: %+v, want nil", a)
	}
}

func TestReversals(t *testing.T) {
	for _, test := range []struct {
		decisions []results.ScalingDecision
		want      int
	}{
		{nil, 0},
		{changes(1, 1, 2, 2, 2, 4, 3, 4, 4), 0},
		{changes(1, 1, 2, 2, 2, 4, 3, 4, 4, 4, 4, 1), 1},
		{changes(1, 3, 2, 2, 2, 3, 3, 3, 1, 4, 1, 1, 5, 1, 2), 3},
	} {
		if got := results.NewAutoscaling(test.decisions, supply(0, 1), 10*second).Reversals; got != test.want {
			t.Errorf("%v: %d reversals, want %d", test.decisions, got, test.want)
		}
	}
}

// By hand from the definitions of SPEC RG-2016-01.
func TestElasticity(t *testing.T) {
	for _, test := range []struct {
		what   string
		demand []results.HostDemand
		supply []results.Supply
		want   results.Elasticity
	}{
		{"always right", demand(0, 2), supply(0, 2), results.Elasticity{}},
		{"half of the hosts are missing for 4 of 10 s", demand(0, 4), supply(0, 2, 4, 4), results.Elasticity{
			Under: 0.4 * 0.5, UnderShare: 0.4,
		}},
		{"twice too many hosts for 5 of 10 s", demand(0, 1), supply(0, 3, 5, 1), results.Elasticity{
			Over: 0.5 * 2, OverShare: 0.5,
		}},
		{"late in both directions", demand(0, 1, 2, 2, 6, 1), supply(0, 1, 3, 2, 9, 1), results.Elasticity{
			Under: 0.1 * 0.5, UnderShare: 0.1, Over: 0.3 * 1, OverShare: 0.3,
		}},
		{"supply changes before the demand begins", demand(5, 2), supply(0, 1, 2, 2, 4, 3), results.Elasticity{
			Over: 0.5, OverShare: 1,
		}},
		{"no demand", nil, supply(0, 1), results.Elasticity{}},
	} {
		got := results.Autoscaling{Supply: test.supply}.Elasticity(test.demand, 10*second)
		near := func(a, b float64) bool { return math.Abs(a-b) < 1e-9 }
		if !near(got.Under, test.want.Under) || !near(got.Over, test.want.Over) ||
			!near(got.UnderShare, test.want.UnderShare) || !near(got.OverShare, test.want.OverShare) {
			t.Errorf("%s: %+v, want %+v", test.what, got, test.want)
		}
	}
}

func TestReaction(t *testing.T) {
	a := results.Autoscaling{
		Decisions: changes(3, 1, 1, 12, 1, 2, 17, 2, 4, 40, 4, 1),
		Supply:    supply(0, 1, 14, 2, 20, 4, 43, 1),
	}
	for _, test := range []struct {
		what           string
		from, to       results.HostDemand
		until          int64
		decided, ready *int64
	}{
		{"up", demand(0, 1)[0], demand(10, 3)[0], 30, new(2 * second), new(10 * second)},
		{"down", demand(10, 3)[0], demand(30, 1)[0], 60, new(10 * second), new(13 * second)},
		{"up, and the load falls before hosts are ready", demand(0, 1)[0], demand(10, 3)[0], 16, new(2 * second), nil},
		{"there are enough already", demand(0, 1)[0], demand(21, 4)[0], 30, nil, new(int64)},
		{"too few until the end", demand(0, 1)[0], demand(50, 9)[0], 60, nil, nil},
	} {
		want := results.Reaction{DecidedNS: test.decided, ReadyNS: test.ready}
		if diff := cmp.Diff(want, a.Reaction(test.from, test.to, test.until*second)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", test.what, diff)
		}
	}
}
