//go:build long

package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
)

// TestDatabaseLoadFallsByTheHitRatio sends the same requests to a system without a cache and to one with a
// cache. The reads of the database must fall by the hit ratio. It takes about three minutes.
func TestDatabaseLoadFallsByTheHitRatio(t *testing.T) {
	for _, engine := range []string{"resp", "redis", "memcached"} {
		for _, read := range []string{"look_aside", "read_through"} {
			t.Run(engine+"/"+read, func(t *testing.T) {
				skipWithoutEngines(t, sut.Knobs{"cache.engine": engine})
				args := []string{
					"--stages", "cache", "--workloads", "read-heavy", "--rate", "150", "--duration", "20s",
					"--set", "db.cpu=3", "--set", "db.replicas=0", "--set", "cache.ttl=1h",
					"--set", "cache.feed_ttl=1h", "--set", "cache.single_flight=false",
					"--set", "cache.engine=" + engine, "--set", "cache.read=" + read,
				}
				without := measured(t, append(args, "--set", "cache.hosts=0")...).Reference
				with := measured(t, args...).Reference
				if without.Database == nil || with.Database == nil || with.Cache == nil {
					t.Fatalf("without %+v, with %+v and %+v", without.Database, with.Database, with.Cache)
				}
				fall, ratio := 1-float64(with.Database.Reads)/float64(without.Database.Reads), with.Cache.HitRatio()
				t.Logf("%d reads of the database without a cache, %d with it: a fall of %.1f %%; hit ratio %.1f %%",
					without.Database.Reads, with.Database.Reads, 100*fall, 100*ratio)
				if ratio < 0.2 || math.Abs(fall-ratio) > 0.02 {
					t.Errorf("reads fall by %.3f, the hit ratio is %.3f: want 0.2 or more, within 0.02", fall, ratio)
				}
			})
		}
	}
}

// strategy is one row of the table of cache strategies.
type strategy struct {
	read, write, evict string
	capacity           float64 // requests per second
	reference          results.Step
	writes             results.Writes
}

// TestCacheStrategyTable measures each strategy and each eviction policy: capacity, hits, stale hits, and
// writes lost when the cache host dies. It prints them as a table and checks what docs/results.md concludes from
// the table. It takes about 15 minutes.
func TestCacheStrategyTable(t *testing.T) {
	kill := filepath.Join(t.TempDir(), "faults.yaml")
	if err := os.WriteFile(kill, []byte("- {at: 12s, do: kill, who: cache}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var all []strategy
	for _, read := range []string{"look_aside", "read_through"} {
		for _, write := range []string{"write_around", "write_through", "write_back"} {
			for _, evict := range []string{"lru", "lfu", "fifo"} {
				args := []string{
					"--stages", "cache", "--workloads", "write-heavy", "--set", "db.replicas=0",
					"--set", "cache.memory_mb=0.2", "--set", "cache.ttl=20s", "--set", "cache.feed_ttl=60s",
					"--set", "cache.read=" + read, "--set", "cache.write=" + write, "--set", "cache.evict=" + evict,
				}
				capacity := measured(t, append(args, "--quick")...).CapacityRPS
				c := measured(t, append(args, "--rate", "100", "--duration", "18s", "--faults", kill)...)
				if s := c.Reference; s.Cache == nil || s.Stale == nil || c.Writes == nil || s.ResponseNS.P99 == nil {
					t.Fatalf("%s, %s: %+v", read, write, c)
				}
				all = append(all, strategy{read, write, evict, capacity, *c.Reference, *c.Writes})
			}
		}
		t.Logf("\n%s", strategyTable(all))
	}
	checkStrategies(t, all)
}

// strategyTable formats strategies as the table in docs/results.md.
func strategyTable(all []strategy) string {
	var table strings.Builder
	table.WriteString("| `cache.read` | `cache.write` | `cache.evict` | capacity rps | hit ratio | evictions " +
		"| p99 ms | stale hits | oldest ms | acknowledged | lost |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, s := range all {
		stale, oldest := s.reference.Stale, "-"
		if stale.HitAgeNS.Max != nil && stale.StaleHits > 0 {
			oldest = fmt.Sprintf("%.0f", float64(*stale.HitAgeNS.Max)/1e6)
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %.0f | %.1f %% | %d | %.0f | %d of %d | %s | %d | %d |\n",
			s.read, s.write, s.evict, s.capacity, 100*s.reference.Cache.HitRatio(), s.evictions(),
			float64(*s.reference.ResponseNS.P99)/1e6, stale.StaleHits, stale.Hits, oldest,
			s.writes.Acknowledged, s.writes.Lost)
	}
	return table.String()
}

func (s strategy) evictions() (sum int64) {
	for _, n := range s.reference.CacheNodes {
		sum += n.Evictions
	}
	return sum
}

// checkStrategies checks the sentences below the table in docs/results.md. Capacities of single rows move by a
// factor of two between runs, so only means over six rows are compared.
func checkStrategies(t *testing.T, all []strategy) {
	t.Helper()
	var lost, hits, staleHits int64
	capacity, ratio := map[string]float64{}, map[string]float64{} // sums by write strategy and by policy
	for _, s := range all {
		capacity[s.write] += s.capacity
		ratio[s.write] += s.reference.Cache.HitRatio()
		ratio[s.evict] += s.reference.Cache.HitRatio()
		hits, staleHits = hits+s.reference.Stale.Hits, staleHits+s.reference.Stale.StaleHits
		row := s.read + ", " + s.write + ", " + s.evict
		if s.write == "write_back" {
			lost += s.writes.Lost
		} else if s.writes.Lost > 0 {
			t.Errorf("%s: %d acknowledged writes lost, want none without write-back", row, s.writes.Lost)
		}
		if s.writes.Acknowledged < 500 || s.writes.Lost > s.writes.Acknowledged/20 {
			t.Errorf("%s: writes %+v, want 500 acknowledged or more, and at most 5%% of them lost", row, s.writes)
		}
		if s.evictions() == 0 {
			t.Errorf("%s: nothing was evicted, so the policy had no effect", row)
		}
	}
	if lost == 0 {
		t.Error("write-back lost nothing in six kills of its host: the table shows no price of write-back")
	}
	if staleHits*20 > hits {
		t.Errorf("%d of %d hits were stale, want at most 5%%", staleHits, hits)
	}
	for _, order := range []struct {
		what       string
		sum        map[string]float64
		more, less string
	}{
		{"capacity", capacity, "write_back", "write_through"},
		{"capacity", capacity, "write_back", "write_around"},
		{"hit ratio", ratio, "write_back", "write_through"},
		{"hit ratio", ratio, "write_through", "write_around"},
		{"hit ratio", ratio, "lfu", "lru"},
		{"hit ratio", ratio, "lru", "fifo"},
	} {
		more, less := order.sum[order.more]/6, order.sum[order.less]/6
		t.Logf("mean %s of %s is %.2f times that of %s", order.what, order.more, more/less, order.less)
		if more <= less {
			t.Errorf("mean %s: %s %.3f, %s %.3f, want it higher with %s",
				order.what, order.more, more, order.less, less, order.more)
		}
	}
}
