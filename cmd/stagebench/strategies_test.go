package main

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/history"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/metrics"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// comments is a workload with the comments of another workload only.
type comments struct{ workloads.Workload }

// LoginOp implements workloads.Login.
func (c comments) LoginOp(user int) workloads.Op { return c.Workload.(workloads.Login).LoginOp(user) }

// Op returns the n-th comment: the first one among the ops from n*stride on.
func (c comments) Op(n uint64) workloads.Op {
	const stride = 256 // many of these ops are comments
	for k := n * stride; ; k++ {
		if op := c.Workload.Op(k); op.Class == "comment" {
			op.Index = n
			return op
		}
	}
}

// held returns the sums of the figures that the cache hosts report.
func (r *rig) held(t *testing.T) (sum results.CacheNode) {
	t.Helper()
	hosts, err := cell.CacheNodes(t.Context(), r.Status())
	if err != nil {
		t.Fatal(err)
	}
	sum.WriteBack = &results.WriteBack{}
	for _, h := range hosts {
		sum.Expired += h.Expired
		if back := h.WriteBack; back != nil {
			sum.WriteBack.Unflushed += back.Unflushed
			sum.WriteBack.Flushed += back.Flushed
			sum.WriteBack.Refused += back.Refused
		}
	}
	return sum
}

// A write-back cache host is killed with unflushed writes. The result of the run and the rows in the database
// agree on the number of lost writes. All flushed writes are in the database.
func TestWriteBackLosesWhatIsNotFlushed(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"resp", "redis"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			r := bringUp(t, sut.Caches, sut.Knobs{
				"cache.engine": engine, "cache.read": "read_through", "cache.write": "write_back",
				"cache.flush_interval": "60s", "db.replicas": "0", "web.hosts": "1",
			}, "write-heavy")
			r.connect(t, comments{shipped(t, "write-heavy")}, driver.ClientConfig{Connections: 16})
			r.stepper.History = history.New()
			seeded := len(r.comments(t, "db-1"))
			step := r.load(t, 120, 2*time.Second, 0, nil)
			if failed(step) > 0 {
				t.Fatalf("ledger %+v causes %v", step.Ledger, step.Causes)
			}
			back := *r.held(t).WriteBack
			flushed := len(r.comments(t, "db-1")) - seeded
			missing := step.Ledger.OK - int64(flushed)
			if int64(flushed) != back.Flushed || back.Unflushed != missing || missing == 0 {
				t.Errorf("of %d comments %d are in the database; the cache reports %+v", step.Ledger.OK, flushed, back)
			}
			if err := r.Kill("cache-1"); err != nil {
				t.Fatal(err)
			}
			r.awaitCache(t)
			// Only the memory of the dead host had the ids. The report must say that.
			recovery, err := r.Recover(t.Context(), false)
			if err != nil || len(recovery.Lost) != 1 || recovery.Lost[0].Node != "cache-1" || !recovery.Lost[0].Unknown ||
				!strings.Contains(recovery.Lost[0].Partial, "memory") {
				t.Errorf("the report has %+v, %v, want a loss of unknown size of cache-1", recovery.Lost, err)
			}
			writes, err := cell.CheckWrites(t.Context(), r.stepper.History, r.stepper.Clients, driver.ReadBack{
				Timeout: 10 * time.Second, MaxWait: time.Second, Pause: 50 * time.Millisecond,
			})
			if err != nil {
				t.Fatal(err)
			}
			if again := len(r.comments(t, "db-1")) - seeded; again != flushed {
				t.Errorf("%d comments are in the database, and were %d when the cache died", again, flushed)
			}
			t.Logf("%d acknowledged, %d flushed; lost: %d by the result, %d by the rows",
				step.Ledger.OK, flushed, writes.Lost, missing)
			if writes.Acknowledged != step.Ledger.OK || writes.Lost != missing {
				t.Errorf("the result says %+v, but %d of %d acknowledged comments are not in the database",
					writes, missing, step.Ledger.OK)
			}
		})
	}
}

// awaitCache waits until a cache host that died serves again.
func (r *rig) awaitCache(t *testing.T) {
	t.Helper()
	eventually(t, "a cache host serves again", func() bool {
		return slices.ContainsFunc(r.Status(), func(n targets.NodeStatus) bool {
			return n.Role == sut.Cache && n.Restarts > 0 && n.State == targets.Serving
		})
	})
}

// A write-back cache host that is stopped by SIGTERM flushes first.
func TestWriteBackFlushesOnSIGTERM(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"resp", "redis"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			r := bringUp(t, sut.Caches, sut.Knobs{
				"cache.engine": engine, "cache.write": "write_back", "cache.flush_interval": "60s",
				"db.replicas": "0", "web.hosts": "1",
			}, "write-heavy")
			r.connect(t, comments{shipped(t, "write-heavy")}, driver.ClientConfig{Connections: 16})
			seeded := len(r.comments(t, "db-1"))
			step := r.load(t, 60, 2*time.Second, 0, nil)
			if step.Ledger.OK == 0 || r.held(t).WriteBack.Unflushed == 0 {
				t.Fatalf("ledger %+v causes %v; the cache holds %+v", step.Ledger, step.Causes, *r.held(t).WriteBack)
			}
			for _, n := range r.Status() {
				if n.Node == "cache-1" {
					if err := syscall.Kill(n.PID, syscall.SIGTERM); err != nil {
						t.Fatal(err)
					}
				}
			}
			r.awaitCache(t)
			if lost := r.Losses(); len(lost) > 0 {
				t.Errorf("losses %+v of a host that flushed", lost)
			}
			if flushed := len(r.comments(t, "db-1")) - seeded; int64(flushed) != step.Ledger.OK {
				t.Errorf("of %d acknowledged comments %d are in the database", step.Ledger.OK, flushed)
			}
		})
	}
}

// The primary dies while a cache host has unflushed writes. The cache host flushes them to the new primary.
// With sync no acknowledged write is lost.
func TestPrimaryDiesBehindAWriteBackCache(t *testing.T) {
	t.Parallel()
	r := bringUpSized(t, sut.Caches, sut.Knobs{
		"cache.read": "read_through", "cache.write": "write_back", "db.sync": "sync", "blob.hosts": "1", "web.hosts": "1",
	}, roomy)
	c := comment(t, r.Endpoints()[0], 8, 300)
	c.awaitCount(t, 200)
	r.losePrimary(t, c)
	c.end()
	back := r.awaitFlushed(t)
	primary, _ := r.databaseRoles()
	t.Logf("%d acknowledged, the cache reports %+v; failures %v", c.count(), back, c.failures())
	if lost := c.missing(r.comments(t, primary)); len(lost) > 0 || back.Refused > 0 || primary == "db-1" {
		t.Errorf("%d of %d acknowledged comments are not in %s", len(lost), c.count(), primary)
	}
}

// awaitFlushed waits until the cache hosts have no unflushed writes. It returns their figures.
func (r *rig) awaitFlushed(t *testing.T) (back results.WriteBack) {
	t.Helper()
	eventually(t, "the cache hosts have flushed all writes", func() bool {
		back = *r.held(t).WriteBack
		return back.Unflushed == 0
	})
	return back
}

// The primary dies while its only replica is cut off. The writes that the cache flushed after the cut are
// lost with the primary. The new primary refuses later writes of the cache that build on lost ones. Each
// acknowledged comment that is missing is in the report of the failover or is counted as refused.
func TestAsyncPrimaryDiesBehindAWriteBackCache(t *testing.T) {
	t.Parallel()
	r := bringUpSized(t, sut.Caches, sut.Knobs{
		"cache.read": "read_through", "cache.write": "write_back", "cache.flush_interval": "200ms",
		"db.sync": "async", "db.replicas": "1", "blob.hosts": "1", "web.hosts": "1",
	}, roomy)
	link := r.partitioned(t, "db-2", "db-1")
	c := comment(t, r.Endpoints()[0], 8, 100)
	c.awaitCount(t, 200)
	link.cut()
	r.awaitConnected(t, "db-2", false)
	flushed := r.held(t).WriteBack.Flushed
	eventually(t, "50 more writes are flushed", func() bool { return r.held(t).WriteBack.Flushed >= flushed+50 })
	r.killForGood(t, "db-1")
	r.awaitEvent(t, "is the primary of epoch 2")
	if err := r.Resume("db-1"); err != nil {
		t.Fatal(err)
	}
	c.awaitCount(t, c.count()+50)
	c.end()
	back := r.awaitFlushed(t)
	r.awaitBack(t, "db-1") // its old copy shows which writes are lost
	r.awaitCopies(t)
	primary, _ := r.databaseRoles()
	lost := c.missing(r.comments(t, primary))
	reported := r.lostComments(t)
	unreported := slices.DeleteFunc(slices.Clone(lost), func(id string) bool { return reported[id] })
	t.Logf("%d acknowledged, %d lost: %d with commits of the old primary, "+
		"%d refused by the new one; the cache reports %+v; failures %v", c.count(), len(lost), len(lost)-len(unreported),
		len(unreported), back, c.failures())
	if len(lost)-len(unreported) < 50 {
		t.Errorf("%d reported comments are missing, want the 50 or more that were flushed after the cut",
			len(lost)-len(unreported))
	}
	if int64(len(unreported)) > back.Refused {
		t.Errorf("%d acknowledged comments are missing and in no report", int64(len(unreported))-back.Refused)
	}
}

// A write-back cache host hangs. Only it has the unflushed writes, so writes to its keys fail meanwhile, and
// reads go to the database. When it continues, it flushes all that it had acknowledged.
func TestWriteBackCacheIsPaused(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"resp", "redis"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			r := bringUpSized(t, sut.Caches, sut.Knobs{
				"cache.engine": engine, "cache.read": "read_through", "cache.write": "write_back",
				"db.replicas": "0", "web.hosts": "1",
			}, roomy)
			c := comment(t, r.Endpoints()[0], 8, 100)
			c.awaitCount(t, 100)
			if err := r.Pause("cache-1"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "a write fails", func() bool { return len(c.failures()) > 0 })
			during := c.count()
			eventually(t, "a read is answered from the database", func() bool { return r.reads(t, photoPath(1)) })
			if err := r.Resume("cache-1"); err != nil {
				t.Fatal(err)
			}
			c.awaitCount(t, during+100)
			c.end()
			back := r.awaitFlushed(t)
			lost := c.missing(r.comments(t, "db-1"))
			t.Logf("%d acknowledged, the cache reports %+v; failures %v", c.count(), back, c.failures())
			if len(lost) > 0 || back.Refused > 0 {
				t.Errorf("%d of %d acknowledged comments are not in the database", len(lost), c.count())
			}
		})
	}
}

// reads reports whether a request without a session is answered with a record.
func (r *rig) reads(t *testing.T, path string) bool {
	t.Helper()
	response, err := http.Get(r.Endpoints()[0] + path)
	if err != nil {
		t.Error(err)
		return false
	}
	return response.Body.Close() == nil && response.StatusCode == http.StatusOK
}

// photosInTurn is a workload that reads 1,000 photos in turn.
type photosInTurn struct{}

func (photosInTurn) Name() string { return "photos in turn" }
func (photosInTurn) Users() int   { return 0 }
func (photosInTurn) Op(n uint64) workloads.Op {
	return workloads.Op{Index: n, Class: "photo", Method: "GET", Path: photoPath(int(1 + n%1000)), User: -1}
}

// One of three cache hosts dies. About a third of the keys is lost, and no request fails: look-aside goes to
// the database, read-through to another cache host.
func TestOneOfThreeCacheHostsIsKilled(t *testing.T) {
	t.Parallel()
	for _, read := range []string{"look_aside", "read_through"} {
		t.Run(read, func(t *testing.T) {
			t.Parallel()
			r := bringUp(t, sut.Caches, sut.Knobs{
				"cache.hosts": "3", "cache.feed_ttl": "0s", "cache.ttl": "1h", "cache.read": read,
				"db.replicas": "0", "web.hosts": "2",
			}, "read-heavy")
			r.connect(t, photosInTurn{}, driver.ClientConfig{Connections: 32})
			warm := r.load(t, 300, 4*time.Second, 0, nil)
			hosts, err := cell.CacheNodes(t.Context(), r.Status())
			if err != nil || len(hosts) != 3 {
				t.Fatal(hosts, err)
			}
			all := hosts[0].Entries + hosts[1].Entries + hosts[2].Entries
			lost := float64(hosts[1].Entries) / float64(all)
			if warm.Cache == nil {
				t.Fatal("the web hosts report no figures of the cache")
			}
			step := r.load(t, 80, 3*time.Second, time.Second, func() {
				if err := r.Kill("cache-2"); err != nil {
					t.Error(err)
				}
			})
			if step.Cache == nil || step.Cache.Hits == 0 {
				t.Fatalf("no read was answered by the other cache hosts: %+v", step.Cache)
			}
			t.Logf("%.1f %% of %d keys lost; hit ratio %.2f before, %.2f with the kill; ledger %+v causes %v",
				100*lost, all, warm.Cache.HitRatio(), step.Cache.HitRatio(), step.Ledger, step.Causes)
			if failed(step) > 0 {
				t.Errorf("%d requests failed, want none", failed(step))
			}
			if all < 500 || lost < 0.25 || lost > 0.40 {
				t.Errorf("%.1f %% of %d keys were on the killed host, want 25 %% to 40 %% of 500 keys or more", 100*lost, all)
			}
		})
	}
}

// A feed expires again and again, and each time 32 requests on two web hosts miss it before the database
// answers one of them. With single flight its cache host loads it once each time. Without, each request
// loads it.
func TestStampede(t *testing.T) {
	t.Parallel()
	const requests, rounds = 32, 10
	for _, single := range []string{"true", "false"} {
		t.Run("single flight "+single, func(t *testing.T) {
			t.Parallel()
			r := bringUpSized(t, sut.Caches, sut.Knobs{
				"cache.hosts": "2", "cache.read": "read_through", "cache.feed_ttl": "200ms", "cache.single_flight": single,
				"db.replicas": "0", "web.hosts": "2",
			}, roomy)
			r.stampede(t, 1) // the feed is in the cache
			before := r.cacheSum(t, "loads_total")
			for range rounds {
				eventually(t, "the feed expires", func() bool { return r.cacheSum(t, "entries") == 0 })
				r.stampede(t, requests)
			}
			loads := r.cacheSum(t, "loads_total") - before
			t.Logf("expired %d times, %d requests each time: %d loads", rounds, requests, loads)
			if single == "true" && loads > rounds*12/10 {
				t.Errorf("%d loads of a feed that expired %d times, want one each time", loads, rounds)
			}
			if single == "false" && loads < rounds*requests {
				t.Errorf("%d loads, want one for each of %d requests", loads, rounds*requests)
			}
		})
	}
}

// stampede sends so many requests for one feed that is not in the cache. The database is paused until all
// of them have missed the feed.
func (r *rig) stampede(t *testing.T, requests int) {
	t.Helper()
	if err := r.Pause("db-1"); err != nil {
		t.Fatal(err)
	}
	missed := r.cacheSum(t, "misses_total") + int64(requests)
	var all sync.WaitGroup
	for range requests {
		all.Go(func() {
			if !r.reads(t, "/api/feed?user=7&limit=100") {
				t.Error("a request failed")
			}
		})
	}
	eventually(t, "all requests have missed the feed", func() bool { return r.cacheSum(t, "misses_total") >= missed })
	if err := r.Resume("db-1"); err != nil {
		t.Fatal(err)
	}
	all.Wait()
}

// cacheSum returns the sum of a metric of all cache hosts.
func (r *rig) cacheSum(t *testing.T, name string) (sum int64) {
	t.Helper()
	for _, n := range r.Status() {
		if n.Role != sut.Cache {
			continue
		}
		series, err := metrics.Read(t.Context(), http.DefaultClient, n.Admin, n.Secret)
		if metric := "stagebench_cache_node_" + name; err != nil || !series.Has(metric) {
			t.Fatalf("%s does not report %s: %v", n.Node, metric, err)
		}
		sum += series.Sum("stagebench_cache_node_" + name)
	}
	return sum
}
