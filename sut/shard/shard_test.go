package shard_test

import (
	"math"
	"testing"

	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/shard"
)

func fill(t *testing.T, by shard.By, shards int) shard.Map {
	t.Helper()
	m, err := shard.Fill(by, shards)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Each way gives each shard its part of the buckets. When a shard is added, Consistent moves little more than the ideal
// part of the buckets, and all of them to the new shard. Modulo moves nearly all.
func TestFill(t *testing.T) {
	for _, by := range shard.Ways() {
		for n := 1; n <= shard.MaxShards; n++ {
			m := fill(t, by, n)
			most := 0
			for s := 1; s <= n; s++ {
				most = max(most, len(m.Owned(s)))
			}
			if even := float64(most*n) / photos.Buckets; even > 1.35 {
				t.Errorf("%s, %d shards: one has %.2f times the mean", by, n, even)
			}
			if n == shard.MaxShards {
				continue
			}
			next := fill(t, by, n+1)
			moves := shard.Moves(m, next)
			ideal := photos.Buckets / float64(n+1)
			moved := float64(len(moves)) / ideal
			t.Logf("%s, %d to %d shards: %d buckets move, %.2f times the ideal", by, n, n+1, len(moves), moved)
			switch by {
			case shard.Modulo:
				if want := float64(n); math.Abs(moved-want) > 0.02*want {
					t.Errorf("%s, %d to %d shards: %.2f times the ideal move, want %.0f", by, n, n+1, moved, want)
				}
			case shard.Consistent, shard.Directory:
				for _, move := range moves {
					if move.To != n+1 {
						t.Fatalf("%s, %d to %d shards: %+v, want only moves to the new shard", by, n, n+1, move)
					}
				}
				if n == 4 && moved > 1.1 {
					t.Errorf("%s, 4 to 5 shards: %.2f times the ideal move, want at most 1.1", by, moved)
				}
			}
			for _, move := range moves {
				m = m.After(move)
			}
			if next.Epoch = m.Epoch; m != next || m.Epoch != int64(1+len(moves)) {
				t.Errorf("%s, %d to %d shards: the moves do not lead to the next map", by, n, n+1)
			}
		}
	}
	for _, n := range []int{0, shard.MaxShards + 1} {
		if _, err := shard.Fill(shard.Range, n); err == nil {
			t.Errorf("%d shards are accepted", n)
		}
	}
	if _, err := shard.Fill("alphabet", 2); err == nil {
		t.Error("an unknown way is accepted")
	}
}

// Four users whom many others read, all on one shard: Spread moves three of them, and little else.
func TestSpread(t *testing.T) {
	m := fill(t, shard.Modulo, 4)
	var load [photos.Buckets]float64
	for b := range load {
		load[b] = 1
	}
	for _, b := range []int{0, 4, 8, 12} {
		load[b] = 400
	}
	if before := m.Imbalance(load); before < 2 {
		t.Fatalf("the load of one shard is only %.2f times the mean", before)
	}
	spread := shard.Spread(m, load, 1.1)
	moves := shard.Moves(m, spread)
	if after := spread.Imbalance(load); after > 1.1 || len(moves) > 6 {
		t.Errorf("%d moves, then %.2f times the mean, want few and at most 1.1", len(moves), after)
	}
	if again := shard.Moves(spread, shard.Spread(spread, load, 1.1)); len(again) > 0 {
		t.Errorf("%d buckets move although the load is spread", len(again))
	}
	one := fill(t, shard.Modulo, 4)
	if moves := shard.Moves(one, shard.Spread(one, [photos.Buckets]float64{5: 1000}, 1.1)); len(moves) > 0 {
		t.Errorf("%d moves of the only bucket with load: they gain nothing", len(moves))
	}
	if even := one.Imbalance([photos.Buckets]float64{}); even != 1 {
		t.Errorf("without load, %.2f times the mean", even)
	}
}
