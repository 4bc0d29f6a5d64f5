//go:build long

package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/workloads/driver"
)

// Each way to place buckets on shards: four shards become five under load, and four again. No
// request fails, and no acknowledged write is lost.
func TestShardsOfEachWayUnderLoad(t *testing.T) {
	for name, knobs := range engines() {
		for _, by := range []string{"consistent", "modulo", "range"} {
			t.Run(name+"/"+by, func(t *testing.T) {
				r := bringUpShards(t, knobs, sut.Knobs{"shard.count": "4", "shard.replicas": "0", "shard.by": by})
				r.scaleUnderLoad(t, "shard", 5, `^the database has 5 shards after \S+`+bucketsMoved)
				r.scaleUnderLoad(t, "shard", 4, `^the database has 4 shards after \S+`+bucketsMoved)
				r.noWriteIsLost(t)
				r.followsAreCounted(t)
				if topology := r.Topology(); topology.Digest() != r.topology.Digest() {
					t.Errorf("hosts %+v, want those of the start", topology.Hosts)
				}
			})
		}
	}
}

// Four users with most of the load are on one of four shards. With modulo, it has more than twice the mean load of the
// shards. A directory spreads their buckets.
func TestCelebritiesAreSpread(t *testing.T) {
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			busiest := func(r *rig) int64 {
				t.Helper()
				step := r.load(t, 60, 20*time.Second, 0, nil)
				f := step.Figure("shard_busiest_percent")
				if f == nil || f.Value == nil {
					t.Fatal("the figure of the busiest shard is missing")
				}
				return *f.Value
			}
			four := sut.Knobs{"shard.count": "4", "shard.replicas": "0", "shard.by": "modulo"}
			r := bringUpShards(t, knobs, four)
			r.connect(t, shipped(t, "celebrity"), driver.ClientConfig{Connections: 16})
			modulo := busiest(r)
			if err := r.Down(t.Context()); err != nil {
				t.Fatal(err)
			}
			r = bringUpShards(t, knobs, with(four, sut.Knobs{"shard.by": "directory"}))
			r.connect(t, shipped(t, "celebrity"), driver.ClientConfig{Connections: 16})
			before := busiest(r)
			out := r.scaleUnderLoad(t, "shard", 4, `^the database has 4 shards after \S+: \d+ buckets of users moved`)
			after := busiest(r)
			t.Logf("busiest shard: %d %% of the mean by modulo, %d and %d %% by directory before and after\n%s",
				modulo, before, after, out)
			if modulo <= 200 || after > 130 {
				t.Errorf("%d %% by modulo and %d %% by directory, want more than 200 and at most 130", modulo, after)
			}
		})
	}
}

// Four shards take more comments than one within the objective. At saturation the gain is smaller: a saturated database
// commits many writes at once, so that each costs less. It takes about three minutes with each set of engines.
func TestShardsRaiseTheWriteRate(t *testing.T) {
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			most, met := map[string]float64{}, map[string]float64{}
			for _, shards := range []string{"1", "4"} {
				r := bringUpSized(t, sut.Sharded, with(knobs, sut.Knobs{
					"cdn.edges": "0", "cache.hosts": "0", "session.store": "sql", "queue.cpu": "0.5", "worker.cpu": "0.5",
					"lb.cpu": "4", "web.hosts": "2", "web.cpu": "3", "shard.replicas": "0", "shard.count": shards,
				}), 0.1)
				r.connect(t, comments{shipped(t, "write-heavy")}, driver.ClientConfig{Connections: 256})
				for offered := 60.0; ; offered *= 1.15 {
					r.load(t, offered, time.Second, 0, nil)
					step := r.load(t, offered, 6*time.Second, 0, nil)
					rate := float64(step.Ledger.OK) / 6
					most[shards] = max(most[shards], rate)
					if step.SLOMet {
						met[shards] = max(met[shards], rate)
					}
					var shares string
					for _, h := range step.Hosts {
						shares += fmt.Sprintf(" %s %.0f%%", h.Host, 100*h.CPUShare)
					}
					t.Logf("%s shards, %.0f/s offered: %.0f/s, objective met: %t;%s", shards, offered, rate, step.SLOMet, shares)
					if rate < 0.85*offered {
						break
					}
				}
				r.takeDown(t)
			}
			ratio := met["4"] / met["1"]
			t.Logf("within the objective %.0f/s with one shard, %.0f/s with four: %.2f times as many; at most %.0f and %.0f/s",
				met["1"], met["4"], ratio, most["1"], most["4"])
			if ratio < 2.5 {
				t.Errorf("%.2f times as many, want at least 2.5", ratio)
			}
		})
	}
}
