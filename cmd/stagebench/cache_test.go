package main

import (
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
)

// The cache answers what has been asked before. When its host is killed every
// request goes to the database and none fails; the host comes back empty, and is
// asked again.
func TestACacheHostIsKilled(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"resp", "redis", "memcached"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			r := bringUp(t, sut.Caches, sut.Knobs{"cache.engine": engine, "db.replicas": "0", "web.hosts": "1"}, "read-heavy")
			whole := r.load(t, 80, 2*time.Second, 0, nil)
			if whole.Cache == nil || whole.Cache.Hits == 0 || whole.Cache.Misses == 0 {
				t.Fatalf("what the cache had: %+v", whole.Cache)
			}
			killed := r.load(t, 80, 3*time.Second, time.Second, func() {
				if err := r.Kill("cache-1"); err != nil {
					t.Error(err)
				}
			})
			if killed.Cache == nil || whole.Database == nil || killed.Database == nil {
				t.Fatalf("the web hosts say nothing of cache or database: %+v, %+v, %+v", killed.Cache, whole.Database, killed.Database)
			}
			each := func(s results.Step) float64 { return float64(s.Database.Reads) / float64(s.Ledger.Sent) }
			t.Logf("reads of the database per request: %.3f, and %.3f while it was away", each(whole), each(killed))
			t.Logf("hit ratio %.2f, and %.2f while it was away; ledger %+v causes %v", whole.Cache.HitRatio(), killed.Cache.HitRatio(), killed.Ledger, killed.Causes)
			if failed(killed) > 0 {
				t.Errorf("%d of %d requests failed, want none", failed(killed), killed.Ledger.Scheduled)
			}
			r.awaitCache(t)
			var again results.Step
			for range 5 { // a web host takes its time to try a host that was dead
				if again = r.load(t, 80, time.Second, 0, nil); again.Cache != nil && again.Cache.Hits > 0 {
					return
				}
			}
			t.Errorf("it is not asked again: %+v", again.Cache)
		})
	}
}

// Of several native engines --engines native takes the first, unless one is named.
func TestNativeCache(t *testing.T) {
	for want, settings := range map[string][]string{"redis": nil, "memcached": {"cache.engine=memcached"}} {
		knobs, err := knobsOf("native", settings)
		if err != nil || knobs["cache.engine"] != want || knobs["db.engine"] != "postgres" {
			t.Errorf("%v: %v, %v", settings, knobs, err)
		}
	}
}
