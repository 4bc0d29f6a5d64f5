package hdr_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/hdr"
)

// queue is a system with servers that take ops in the order of their arrival.
type queue struct {
	seed    uint64
	servers int
	rate    float64 // arrivals/s, Poisson
	service time.Duration
	ops     int
	// The client sends and reads nothing from stall on, for length.
	stall, length time.Duration
}

// over returns the number of ops that missed the bound of 100 ms, and how many of them only
// because of the client.
func (q queue) over() (missed, byClient int64) {
	random := rand.New(rand.NewPCG(q.seed, 1))
	free := make([]int64, q.servers) // when each server is free
	var outcomes []results.Outcome
	var at int64
	awake := func(ns int64) int64 {
		if from, to := int64(q.stall), int64(q.stall+q.length); ns >= from && ns < to {
			return to
		}
		return ns
	}
	for range q.ops {
		at += int64(random.ExpFloat64() / q.rate * 1e9)
		sent := awake(at)
		slices.Sort(free)
		free[0] = max(free[0], sent) + int64(random.ExpFloat64()*float64(q.service))
		outcomes = append(outcomes, results.Outcome{
			Class: "get", Intended: at, Dispatched: sent, Sent: sent, Done: awake(free[0]),
		})
	}
	slices.SortFunc(outcomes, func(a, b results.Outcome) int { return int(a.Done - b.Done) })
	r := hdr.New(time.Now(), bound, nil)
	for _, o := range outcomes {
		r.Record(o)
	}
	get := r.Finish(int64(q.ops)).Ops["get"]
	return get.OverSLO, get.OverSLOByClient
}

// A client that stalls makes ops slow, also some that it sends in time. Hardly any of these is
// blamed on the target. Without a stall, every slow op is.
func TestDelaysThatTheClientCauses(t *testing.T) {
	blamed, slow := int64(0), int64(0)
	for seed := range uint64(60) {
		q := queue{
			seed: seed, servers: 1 + int(seed%4), rate: 200, service: 3 * time.Millisecond, ops: 1000,
			stall: 2 * time.Second,
		}
		if seed%3 == 0 {
			q.service = 4250 * time.Microsecond // 85 % of the capacity
		}
		q.service *= time.Duration(q.servers)
		truth, byClient := q.over()
		if byClient != 0 {
			t.Fatalf("seed %d: without a stall, %d of %d slow ops are the client's", seed, byClient, truth)
		}
		q.length = 200 * time.Millisecond
		missed, byClient := q.over()
		slow += missed
		blamed += max(0, missed-byClient-truth)
	}
	if slow < 60*15 {
		t.Errorf("a stall of 200 ms made %d ops of 60 steps slow, want at least 15 each: the test shows nothing", slow)
	}
	if blamed > slow/100 {
		t.Errorf("%d of %d slow ops are blamed on the target, but only the stall made them slow", blamed, slow)
	}
}

// A stall does not excuse a target that is too slow without it.
func TestStallOfAnOverloadedTarget(t *testing.T) {
	for seed := range uint64(20) {
		q := queue{
			seed: seed, servers: 2, rate: 300, service: 8 * time.Millisecond, ops: 3000,
			stall: 2 * time.Second, length: 50 * time.Millisecond,
		}
		if missed, byClient := q.over(); missed-byClient < int64(q.ops)/2 {
			t.Errorf("seed %d: %d ops are slow, %d of them because of the client: the target is overloaded",
				seed, missed, byClient)
		}
	}
}

// Of two slow phases, only the one after the stall is the client's.
func TestOnlyTheWakeOfAStallIsExcused(t *testing.T) {
	r := hdr.New(time.Now(), bound, nil)
	ms := int64(time.Millisecond)
	op := func(intended, dispatched, done int64) {
		r.Record(results.Outcome{
			Class: "get", Intended: intended, Dispatched: dispatched, Sent: dispatched, Done: done,
		})
	}
	for at := int64(0); at < 4000*ms; at += 10 * ms {
		switch {
		case at >= 1000*ms && at < 1200*ms: // the client stalls
			op(at, 1200*ms, 1205*ms)
		case at >= 3000*ms && at < 3200*ms: // the target stalls
			op(at, at, 3200*ms)
		default:
			op(at, at, at+5*ms)
		}
	}
	get := r.Finish(400).Ops["get"]
	if get.OverSLO != 21 || get.OverSLOByClient != 11 {
		t.Errorf("%d slow ops, %d of them by the client; want 21, 11", get.OverSLO, get.OverSLOByClient)
	}
}

// A client that stalls while nothing is due only reads late. The watch of the driver sees it.
func TestStallWithoutLag(t *testing.T) {
	slow := results.Outcome{Class: "get", Intended: 1e9, Dispatched: 1e9, Sent: 1e9, Done: 1.2e9}
	for _, stall := range []int64{0, 50e6, 150e6} {
		r := hdr.New(time.Now(), bound, nil)
		r.Record(slow)
		if stall > 0 {
			r.Stall(results.Stall{AtNS: 1.04e9, LengthNS: stall})
		}
		if by := r.Finish(1).Ops["get"].OverSLOByClient; by != stall/150e6 {
			t.Errorf("stall of %v: %d ops by the client", time.Duration(stall), by)
		}
	}
}

// Failures are never excused. Unsent ops are, if the client was late for as long as they waited.
func TestFailuresAndUnsentOps(t *testing.T) {
	r := hdr.New(time.Now(), bound, nil)
	r.Stall(results.Stall{AtNS: 1e9, LengthNS: 200e6})
	for _, fate := range []results.Fate{results.HTTPError, results.TransportError, results.Timeout} {
		r.Record(results.Outcome{Class: "get", Intended: 1e9, Dispatched: 1e9, Sent: 1e9, Done: 1.15e9, Fate: fate})
	}
	for _, overdue := range []int64{150e6, 250e6} {
		r.Record(results.Outcome{
			Class: "get", Intended: 1.3e9 - overdue, Dispatched: -1, Sent: -1, Done: 1.3e9, Fate: results.Unsent,
		})
	}
	if get := r.Finish(5).Ops["get"]; get.Errors != 5 || get.OverSLOByClient != 0 || get.UnsentByClient != 1 {
		t.Errorf("%d errors, by the client: %d slow and %d unsent; want 5, 0, 1",
			get.Errors, get.OverSLOByClient, get.UnsentByClient)
	}
}
