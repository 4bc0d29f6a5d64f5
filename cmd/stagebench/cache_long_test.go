//go:build long

package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDatabaseLoadFallsByTheHitRatio offers the same requests without a cache and with
// one: the database is asked less, by as much as the cache answers. It takes about
// three minutes.
func TestDatabaseLoadFallsByTheHitRatio(t *testing.T) {
	for _, engine := range []string{"resp", "redis", "memcached"} {
		for _, read := range []string{"look_aside", "read_through"} {
			t.Run(engine+"/"+read, func(t *testing.T) {
				args := []string{
					"--stages", "cache", "--workloads", "read-heavy", "--rate", "150", "--duration", "20s",
					"--set", "db.cpu=3", "--set", "db.replicas=0", "--set", "cache.ttl=1h", "--set", "cache.feed_ttl=1h", "--set", "cache.single_flight=false",
					"--set", "cache.engine=" + engine, "--set", "cache.read=" + read,
				}
				without := measured(t, append(args, "--set", "cache.hosts=0")...).Reference
				with := measured(t, args...).Reference
				if without.Database == nil || with.Database == nil || with.Cache == nil {
					t.Fatalf("without %+v, with %+v and %+v", without.Database, with.Database, with.Cache)
				}
				fall := 1 - float64(with.Database.Reads)/float64(without.Database.Reads)
				t.Logf("%d reads of the database, then %d: they fall by %.1f %%; hit ratio %.1f %%",
					without.Database.Reads, with.Database.Reads, 100*fall, 100*with.Cache.HitRatio())
				if math.Abs(fall-with.Cache.HitRatio()) > 0.02 {
					t.Errorf("reads fall by %.3f, the hit ratio is %.3f: want them within 2 points", fall, with.Cache.HitRatio())
				}
			})
		}
	}
}

// TestCacheStrategyTable prints what each strategy and policy gives and costs: what it
// can do, how old its answers are, and what is lost when the cache host dies. It takes
// about 15 minutes.
func TestCacheStrategyTable(t *testing.T) {
	const rate = "100"
	kill := filepath.Join(t.TempDir(), "faults.yaml")
	if err := os.WriteFile(kill, []byte("- {at: 12s, do: kill, who: cache}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	table.WriteString("| cache.read | cache.write | cache.evict | capacity rps | hit ratio | evictions | p99 ms | stale hits | oldest ms | acknowledged | lost with the cache host |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, read := range []string{"look_aside", "read_through"} {
		for _, write := range []string{"write_around", "write_through", "write_back"} {
			for _, evict := range []string{"lru", "lfu", "fifo"} {
				args := []string{
					"--stages", "cache", "--workloads", "write-heavy", "--set", "db.replicas=0", "--set", "cache.memory_mb=0.2", "--set", "cache.ttl=20s", "--set", "cache.feed_ttl=60s",
					"--set", "cache.read=" + read, "--set", "cache.write=" + write, "--set", "cache.evict=" + evict,
				}
				capacity := measured(t, append(args, "--quick")...).CapacityRPS
				c := measured(t, append(args, "--rate", rate, "--duration", "18s", "--faults", kill)...)
				s := c.Reference
				if s.Cache == nil || s.Stale == nil || c.Writes == nil || s.ResponseNS.P99 == nil {
					t.Fatalf("%s, %s: %+v", read, write, c)
				}
				oldest := "-"
				if s.Stale.HitAgeNS.Max != nil && s.Stale.StaleHits > 0 {
					oldest = fmt.Sprintf("%.0f", float64(*s.Stale.HitAgeNS.Max)/1e6)
				}
				var evictions int64
				for _, n := range s.CacheNodes {
					evictions += n.Evictions
				}
				fmt.Fprintf(&table, "| %s | %s | %s | %.0f | %.1f %% | %d | %.0f | %d of %d | %s | %d | %d |\n", read, write, evict, capacity,
					100*s.Cache.HitRatio(), evictions, float64(*s.ResponseNS.P99)/1e6, s.Stale.StaleHits, s.Stale.Hits, oldest, c.Writes.Acknowledged, c.Writes.Lost)
			}
		}
		t.Logf("\n%s", table.String())
	}
}
