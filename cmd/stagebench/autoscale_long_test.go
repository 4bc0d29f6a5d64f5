//go:build long

package main

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/workloads/driver"
)

// staircase is a schedule with steps of equal length, each at a rate of its own.
type staircase struct {
	rates  []float64 // requests per second
	length time.Duration
}

func (s staircase) String() string { return "staircase" }

// Count returns the number of ops before a time.
func (s staircase) Count(d time.Duration) (n uint64) {
	for i := range s.rates {
		part := min(max(d-time.Duration(i)*s.length, 0), s.length)
		n += uint64(math.Round(s.rates[i] * part.Seconds()))
	}
	return n
}

// At returns the time of an op.
func (s staircase) At(n uint64) time.Duration {
	for i, rate := range s.rates {
		ops := uint64(math.Round(rate * s.length.Seconds()))
		if n < ops {
			return time.Duration(i)*s.length + time.Duration(float64(n)/rate*float64(time.Second))
		}
		n -= ops
	}
	return math.MaxInt64
}

// TestAutoscalingRamp offers a minute of load that climbs from 20 % to 150 % of what one web host can do, and falls
// back. It prints demand and supply, the reaction times, host-seconds, failures and lost sessions.
func TestAutoscalingRamp(t *testing.T) {
	for name, knobs := range engines() {
		for _, metric := range []string{"cpu", "in_flight"} {
			t.Run(name+"/"+metric, func(t *testing.T) { ramp(t, knobs, metric) })
		}
	}
}

func ramp(t *testing.T, knobs sut.Knobs, metric string) {
	skipWithoutEngines(t, knobs)
	one := oneHost(t, knobs)
	r := bringUpSized(t, sut.LB, with(knobs, sut.Knobs{
		"web.hosts": "1", "web.autoscale": metric, "web.autoscale_interval": "1", "web.autoscale_window": "6",
	}), smallUnit)
	r.connect(t, shipped(t, "read-heavy"), driver.ClientConfig{Connections: 64, ConnectionLife: time.Second})
	load := staircase{length: 7500 * time.Millisecond}
	var demand []results.HostDemand
	for i, share := range []float64{0.2, 0.6, 1, 1.5, 1.5, 1, 0.6, 0.2} {
		load.rates = append(load.rates, share*one)
		demand = append(demand, results.HostDemand{AtNS: int64(i) * int64(load.length), Hosts: int(math.Ceil(share))})
	}
	end := int64(len(load.rates)) * int64(load.length)
	step, err := r.stepper.Step(t.Context(), "attack", slices.Max(load.rates), load, time.Duration(end))
	if err != nil {
		t.Fatal(err)
	}
	a := step.Autoscaling
	for _, d := range demand {
		t.Logf("demand from %v: %d hosts", time.Duration(d.AtNS), d.Hosts)
	}
	for _, s := range a.Supply {
		t.Logf("supply from %v: %d serve, %d exist", time.Duration(s.AtNS).Round(time.Millisecond), s.Serving, s.Hosts)
	}
	for _, d := range a.Decisions {
		t.Logf("decision at %v: %d -> %d: %s", time.Duration(d.AtNS).Round(time.Millisecond), d.From, d.To, d.Reason)
	}
	shown := func(ns *int64) string {
		if ns == nil {
			return "never"
		}
		return time.Duration(*ns).Round(time.Millisecond).String()
	}
	for i, d := range demand[1:] {
		if d.Hosts == demand[i].Hosts {
			continue
		}
		next := slices.IndexFunc(demand[i+2:], func(later results.HostDemand) bool { return later.Hosts != d.Hosts })
		until := end
		if next >= 0 {
			until = demand[i+2+next].AtNS
		}
		reaction := a.Reaction(demand[i], d, until)
		t.Logf("demand %d -> %d hosts: decided after %s, ready after %s",
			demand[i].Hosts, d.Hosts, shown(reaction.DecidedNS), shown(reaction.ReadyNS))
	}
	e := a.Elasticity(demand, end)
	t.Logf("capacity of one host %.0f/s; too few hosts %.0f %% of the time (%.2f of the demand), too many %.0f %% (%.2f)",
		one, 100*e.UnderShare, e.Under, 100*e.OverShare, e.Over)
	t.Logf("%.1f host-seconds, one fixed host %.1f; %d reversals; %d requests: %d failed, %d sessions lost, p99 %s, %v",
		a.HostSeconds, float64(end)/1e9, a.Reversals, step.Ledger.Scheduled, failed(step), step.Ledger.SessionLost,
		shown(step.ResponseNS.P99), step.Causes)
	if failed(step) > 0 || a.Reversals > 1 {
		t.Errorf("%d requests failed and %d reversals, want none and at most one", failed(step), a.Reversals)
	}
	if !slices.ContainsFunc(a.Supply, func(s results.Supply) bool { return s.Serving > 1 }) {
		t.Error("there was never more than one host")
	}
}

// oneHost returns the capacity of one web host: three quarters of what it completes under overload.
func oneHost(t *testing.T, knobs sut.Knobs) float64 {
	r := bringUpSized(t, sut.LB, with(knobs, sut.Knobs{"web.hosts": "1"}), smallUnit)
	r.connect(t, shipped(t, "read-heavy"), driver.ClientConfig{Connections: 64})
	r.load(t, 40, 3*time.Second, 0, nil) // warms the caches up
	peak := r.load(t, 400, 5*time.Second, 0, nil).CompletedRPS
	if err := r.Down(t.Context()); err != nil { // before the next system starts
		t.Fatal(err)
	}
	return 0.75 * peak
}
