package main

import (
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
)

// The cache serves repeated reads. While its host is dead, every read goes to the database
// and no request fails. The host comes back empty and serves again.
func TestACacheHostIsKilled(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"resp", "redis", "memcached"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			knobs := sut.Knobs{"cache.engine": engine, "db.replicas": "0", "web.hosts": "1"}
			r := bringUp(t, sut.Caches, knobs, "read-heavy")
			before := r.load(t, 80, 2*time.Second, 0, nil)
			if before.Cache == nil || before.Cache.Hits == 0 || before.Cache.Misses == 0 {
				t.Fatalf("cache figures %+v, want hits and misses", before.Cache)
			}
			killed := r.load(t, 80, 3*time.Second, time.Second, func() {
				if err := r.Kill("cache-1"); err != nil {
					t.Error(err)
				}
			})
			if killed.Cache == nil || before.Database == nil || killed.Database == nil {
				t.Fatalf("the web hosts report no figures of the cache or the database: %+v, %+v, %+v",
					killed.Cache, before.Database, killed.Database)
			}
			reads := func(s results.Step) float64 { return float64(s.Database.Reads) / float64(s.Ledger.Sent) }
			t.Logf("database reads per request: %.3f with the cache, %.3f with the kill", reads(before), reads(killed))
			t.Logf("hit ratio: %.2f with the cache, %.2f with the kill; ledger %+v causes %v",
				before.Cache.HitRatio(), killed.Cache.HitRatio(), killed.Ledger, killed.Causes)
			if failed(killed) > 0 {
				t.Errorf("%d of %d requests failed, want none", failed(killed), killed.Ledger.Scheduled)
			}
			r.awaitCache(t)
			var again results.Step
			for range 5 { // a web host retries a dead cache host only after a while
				if again = r.load(t, 80, time.Second, 0, nil); again.Cache != nil && again.Cache.Hits > 0 {
					return
				}
			}
			t.Errorf("cache figures %+v after the restart, want hits", again.Cache)
		})
	}
}

// --engines native selects the first native engine of a tier, unless --set names one.
func TestNativeCache(t *testing.T) {
	for want, settings := range map[string][]string{"redis": nil, "memcached": {"cache.engine=memcached"}} {
		knobs, err := knobsOf("native", settings)
		if err != nil || knobs["cache.engine"] != want || knobs["db.engine"] != "postgres" {
			t.Errorf("--set %v: knobs %v, error %v, want cache.engine=%s and db.engine=postgres", settings, knobs, err, want)
		}
	}
}
