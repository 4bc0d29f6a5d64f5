package local

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
)

// autoscaled brings up one web host that is scaled by the requests in flight, with a target of 4 per host.
func autoscaled(t *testing.T, knobs sut.Knobs) (*fixture, *System) {
	all := sut.Knobs{
		"web.hosts": "1", "web.autoscale": "in_flight", "web.autoscale_target": "4",
		"web.autoscale_interval": "0.2", "web.autoscale_window": "1",
	}
	for name, value := range knobs {
		all[name] = value
	}
	s := newFixture(t, sut.LB, all)
	return s, s.up(t)
}

// inFlight sets the number of requests in flight that a web node reports.
func (s *fixture) inFlight(node string, n int) { s.behave(node, fmt.Sprintf(inFlightBehaviour, n)) }

// awaitEvent waits for an event after the first n, and returns it with the number of events up to it.
func awaitEvent(
	t *testing.T, system *System, n int, what string, matches func(targets.Event) bool,
) (targets.Event, int) {
	t.Helper()
	index := 0
	eventually(t, what, func() bool {
		index = slices.IndexFunc(system.Events()[n:], matches)
		return index >= 0
	})
	return system.Events()[n+index], n + index + 1
}

// changesTo matches a decision for a number of hosts.
func changesTo(hosts int) func(targets.Event) bool {
	return func(e targets.Event) bool {
		return e.Scaling != nil && e.Scaling.From != hosts && e.Scaling.To == hosts
	}
}

// decisions lists the decisions that change something: "1 -> 3".
func decisions(system *System) (all []string) {
	for _, e := range system.Events() {
		if e.Scaling != nil && e.Scaling.From != e.Scaling.To {
			all = append(all, fmt.Sprintf("%d -> %d", e.Scaling.From, e.Scaling.To))
		}
	}
	return all
}

// The number of web hosts follows the load. Each change has a reason, and events tell the supply.
func TestAutoscalerFollowsTheLoad(t *testing.T) {
	t.Parallel()
	s, system := autoscaled(t, nil)
	awaitEvent(t, system, 0, "the autoscaler says what it does", func(e targets.Event) bool {
		return e.Text == "1 host: autoscaling is on: 1 to 16 hosts, a decision every 200ms"
	})
	s.inFlight("web-1", 12)
	up, n := awaitEvent(t, system, 0, "a decision for 3 hosts", changesTo(3))
	if want := "1 -> 3 hosts: 12.0 requests in flight per host, target 4.0"; up.Text != want || up.Node != "autoscaler" ||
		*up.Supply != (targets.Supply{Serving: 1, Hosts: 1}) {
		t.Errorf("%+v, want %q and one host", up, want)
	}
	_, n = awaitEvent(t, system, n, "3 hosts that serve", func(e targets.Event) bool {
		return e.Supply != nil && *e.Supply == targets.Supply{Serving: 3, Hosts: 3}
	})
	// The mean is 4 per host now.
	_, n = awaitEvent(t, system, n, "a decision that nothing changes", func(e targets.Event) bool {
		return e.Scaling != nil && e.Scaling.Limit == "tolerance" && e.Scaling.From == 3 && e.Scaling.Advice == 3
	})
	s.inFlight("web-1", 0)
	window, n := awaitEvent(t, system, n, "a decision to wait", func(e targets.Event) bool {
		return e.Scaling != nil && e.Scaling.Limit == "window"
	})
	_, n = awaitEvent(t, system, n, "a decision for 1 host", changesTo(1))
	_, n = awaitEvent(t, system, n, "hosts that drain", func(e targets.Event) bool {
		return strings.HasPrefix(e.Text, "drains") && *e.Supply == targets.Supply{Serving: 1, Hosts: 3}
	})
	awaitEvent(t, system, n, "one host", func(e targets.Event) bool {
		return e.Supply != nil && *e.Supply == targets.Supply{Serving: 1, Hosts: 1}
	})
	if got := decisions(system); !slices.Equal(got, []string{"1 -> 3", "3 -> 1"}) {
		t.Errorf("decisions %v, waiting since %q; want one change in each direction", got, window.Text)
	}
}

// An operator scales within the bounds. The change holds for a window, and then the rule decides again.
func TestAutoscaleAndOperators(t *testing.T) {
	t.Parallel()
	_, system := autoscaled(t, sut.Knobs{"web.autoscale_max": "3"})
	if _, err := system.Scale(t.Context(), "web", 4); err == nil ||
		!strings.Contains(err.Error(), "web.autoscale keeps web.hosts from 1 to 3, not 4") {
		t.Errorf("scale to 4: error %v", err)
	}
	n := len(system.Events())
	scale(t, system, "web", 3)
	awaitEvent(t, system, n, "the rule removes the idle hosts", changesTo(1))
	awaitEvent(t, system, n, "a decision to keep the operator's number for a window", func(e targets.Event) bool {
		return e.Scaling != nil && e.Scaling.From == 3 && e.Scaling.Limit == "window"
	})
	eventually(t, "one host is left", func() bool { return len(webNodes(system)) == 1 })
}

// Nothing changes while a web host is dead or paused, or while the system is frozen.
func TestAutoscaleHolds(t *testing.T) {
	t.Parallel()
	s, system := autoscaled(t, nil)
	n := len(system.Events())
	holds := func(why string) func(targets.Event) bool {
		return func(e targets.Event) bool { return e.Scaling != nil && e.Scaling.Reason == "no change while "+why }
	}
	if err := system.Pause("web-1"); err != nil {
		t.Fatal(err)
	}
	_, n = awaitEvent(t, system, n, "the autoscaler waits for the paused host", holds("web-1 is paused"))
	s.inFlight("web-1", 8)
	if err := system.Resume("web-1"); err != nil {
		t.Fatal(err)
	}
	_, n = awaitEvent(t, system, n, "a decision for 2 hosts", changesTo(2))
	eventually(t, "2 hosts serve", func() bool { return system.Events()[len(system.Events())-1].Supply.Serving == 2 })

	thaw, err := system.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	_, n = awaitEvent(t, system, n, "the autoscaler waits for the thaw", holds("the system is frozen"))
	if _, err := system.Scale(t.Context(), "web", 3); err == nil || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("scale a frozen system: error %v", err)
	}
	s.inFlight("web-1", 24)
	end := time.Now()
	if err := thaw(); err != nil {
		t.Fatal(err)
	}
	change, _ := awaitEvent(t, system, n, "a decision for 5 hosts: at most 4 more than 15 s before", changesTo(5))
	if at := time.Unix(0, change.UnixNS); at.After(begin) && at.Before(end) {
		t.Errorf("a decision at %v, while the system was frozen from %v to %v", at, begin, end)
	}
	if got := decisions(system); !slices.Equal(got, []string{"1 -> 2", "2 -> 5"}) {
		t.Errorf("decisions %v", got)
	}
}

// A host that the machine has no room for is not started.
func TestAutoscaleFitsTheMachine(t *testing.T) {
	t.Parallel()
	s := newFixture(t, sut.LB, sut.Knobs{
		"web.hosts": "1", "web.autoscale": "in_flight", "web.autoscale_interval": "0.2", "web.autoscale_window": "1",
	})
	s.options.Admit = func(t sut.Topology) error {
		if len(t.Hosts) > 4 {
			return fmt.Errorf("%d hosts", len(t.Hosts))
		}
		return nil
	}
	s.inFlight("web-1", 100)
	system := s.up(t)
	first, n := awaitEvent(t, system, 0, "the autoscaler is on", func(e targets.Event) bool { return e.Scaling != nil })
	if !strings.HasSuffix(first.Text, "1 to 2 hosts, a decision every 200ms; this machine has no room for 16") {
		t.Errorf("%q", first.Text)
	}
	change, _ := awaitEvent(t, system, n, "a decision for 2 hosts", changesTo(2))
	if change.Scaling.Limit != "max" || change.Scaling.Advice != 25 {
		t.Errorf("%+v, want an advice of 25 and the maximum", change.Scaling)
	}
}
