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

// A client that stalls makes ops slow, also some that it sends in time. None of these is
// blamed on the target. Without a stall, every slow op is.
func TestDelaysThatTheClientCauses(t *testing.T) {
	blamed, slow := int64(0), int64(0)
	for seed := range uint64(200) {
		q := queue{
			seed: seed, servers: 1 + int(seed%4), rate: 200, service: 3 * time.Millisecond, ops: 1000,
			stall: 2 * time.Second,
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
	if slow < 200*15 {
		t.Errorf("a stall of 200 ms made %d ops of 200 steps slow, want at least 15 each: the test shows nothing", slow)
	}
	if blamed > 0 {
		t.Errorf("%d of %d slow ops are blamed on the target, but only the stall made them slow", blamed, slow)
	}
}

// A stall does not excuse a target that is too slow without it.
func TestStallOfAnOverloadedTarget(t *testing.T) {
	for seed := range uint64(50) {
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
