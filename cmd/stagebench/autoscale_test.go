package main

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/workloads/driver"
)

// scalings lists the decisions that changed the number of web hosts: "1 -> 3".
func (r *rig) scalings() (all []string) {
	for _, e := range r.Events() {
		if e.Scaling != nil && e.Scaling.From != e.Scaling.To {
			all = append(all, fmt.Sprintf("%d -> %d", e.Scaling.From, e.Scaling.To))
		}
	}
	return all
}

// The load rises and falls, and the number of web hosts follows it: from one to more, and back to one. No request
// fails, and the direction changes once.
func TestAutoscaling(t *testing.T) {
	t.Parallel()
	for name, own := range map[string]sut.Knobs{
		"embedded": {"web.autoscale": "in_flight", "web.autoscale_target": "0.2"},
		"native":   {"web.autoscale": "cpu", "web.autoscale_target": "30"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			knobs := with(engines()[name], sut.Knobs{
				"web.hosts": "1", "web.autoscale_max": "3", "web.autoscale_interval": "1", "web.autoscale_window": "4",
			})
			r := bringUpSized(t, sut.LB, with(knobs, own), smallUnit)
			r.connect(t, shipped(t, "read-heavy"), driver.ClientConfig{Connections: 32})
			var requests, failures, lost int64
			offer := func(rate float64, until func() bool) {
				for begin := time.Now(); ; {
					step := r.load(t, rate, 3*time.Second, 0, nil)
					requests, failures, lost = requests+step.Ledger.Sent, failures+failed(step), lost+step.Ledger.SessionLost
					if step.Autoscaling == nil || len(step.Autoscaling.Supply) == 0 || step.Autoscaling.HostSeconds <= 0 {
						t.Errorf("autoscaling of a step of %v s: %+v", step.Seconds, step.Autoscaling)
					}
					switch {
					case until():
						return
					case time.Since(begin) > testTimeout:
						t.Fatalf("not within %v: web hosts %v", testTimeout, r.webNodes())
					}
				}
			}
			offer(100, func() bool { return len(r.webNodes()) > 1 })
			offer(1, func() bool { return slices.Equal(r.webNodes(), []string{"web-1"}) })
			t.Logf("%v; %d requests, %d sessions lost", r.scalings(), requests, lost)
			if failures > 0 {
				t.Errorf("%d of %d requests failed, want none", failures, requests)
			}
			reversals, changes := 0, r.scalings()
			for i, change := range changes[:max(len(changes)-1, 0)] {
				if (change[0] < change[len(change)-1]) != (changes[i+1][0] < changes[i+1][len(changes[i+1])-1]) {
					reversals++
				}
			}
			if reversals != 1 {
				t.Errorf("the direction changed %d times: %v, want once", reversals, changes)
			}
		})
	}
}
