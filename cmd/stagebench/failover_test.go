package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/history"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/store"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// reading returns a store that uses one database only.
func (r *rig) reading(t *testing.T, node string) *store.Store {
	t.Helper()
	s, err := store.Open(store.Config{
		Databases: []sut.Peer{{Node: node, Address: r.address(t, node)}}, Password: r.secret(), MaxConns: 2,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// address returns where a node serves its clients.
func (r *rig) address(t *testing.T, node string) string {
	t.Helper()
	for _, n := range r.Status() {
		if n.Node == node {
			return n.Address
		}
	}
	t.Fatalf("there is no node %s", node)
	return ""
}

// comments returns the ids of the comments that a database holds.
func (r *rig) comments(t *testing.T, node string) map[string]bool {
	t.Helper()
	held := map[string]bool{}
	if err := r.reading(t, node).Rows(t.Context(), "comments", func(row store.Row) error {
		held[row.Key] = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return held
}

// databaseRoles returns the present primary and its replicas.
func (r *rig) databaseRoles() (primary string, replicas []string) {
	for _, n := range r.Status() {
		switch n.ReplicationRole {
		case targets.Primary:
			primary = n.Node
		case targets.Replica:
			replicas = append(replicas, n.Node)
		}
	}
	return primary, replicas
}

// awaitCopies waits until all replicas hold the same data as the primary. No client may write meanwhile.
func (r *rig) awaitCopies(t *testing.T) {
	t.Helper()
	primary, replicas := r.databaseRoles()
	r.awaitEqual(t, append([]string{primary}, replicas...))
}

// awaitEqual waits until all named databases hold the same data.
func (r *rig) awaitEqual(t *testing.T, names []string) {
	t.Helper()
	var all []*store.Store
	for _, name := range names {
		all = append(all, r.reading(t, name))
	}
	eventually(t, fmt.Sprintf("%v hold the same data", names), func() bool {
		digests := map[string]bool{}
		var errs []error
		for _, s := range all {
			digest, err := s.Digest(t.Context())
			digests[digest], errs = true, append(errs, err)
		}
		return errors.Join(errs...) == nil && len(digests) == 1
	})
}

// failovers returns the modes in which tests let a primary fail, by name.
func failovers() map[string]sut.Knobs {
	return map[string]sut.Knobs{
		"embedded/async": {"db.engine": "sqlite", "db.sync": "async"},
		"embedded/sync":  {"db.engine": "sqlite", "db.sync": "sync"},
		"native/async":   {"db.engine": "postgres", "db.sync": "async"},
		"native/sync":    {"db.engine": "postgres", "db.sync": "sync"},
	}
}

// losePrimary kills the primary while comments are written. It waits until 50 writes are acknowledged after
// the failover, and returns the time from the kill to the first of them.
func (r *rig) losePrimary(t *testing.T, c *commenters) (resumed time.Duration) {
	t.Helper()
	old, _ := r.databaseRoles()
	at := time.Now()
	if err := r.Kill(old); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a write is acknowledged after the failover", func() bool {
		primary, _ := r.databaseRoles()
		if primary == old {
			// Acknowledgements that arrive before the failover are of writes that were in flight.
			c.mark.Store(time.Now().UnixNano())
			c.first.Store(0)
			return false
		}
		return c.first.Load() != 0
	})
	resumed = time.Unix(0, c.first.Load()).Sub(at)
	c.awaitCount(t, c.count()+50)
	return resumed
}

// The primary dies under writes. A replica takes its place, the report names every lost write, and the old
// primary returns as a replica. With sync no acknowledged write is lost.
func TestPrimaryIsKilled(t *testing.T) {
	t.Parallel()
	for name, knobs := range failovers() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUpSized(t, sut.Replicas, with(knobs, sut.Knobs{"blob.hosts": "1"}), roomy)
			c := comment(t, r.Endpoints()[0], 8, 3000)
			c.awaitCount(t, 300)
			resumed := r.losePrimary(t, c)
			c.end()
			r.awaitCopies(t)
			primary, _ := r.databaseRoles()
			lost := c.missing(r.comments(t, primary))
			t.Logf("writes resumed after %v; %d acknowledged, %d of them lost; failures %v",
				resumed.Round(time.Millisecond), c.count(), len(lost), c.failures())
			for _, f := range r.Failovers() {
				t.Logf("failover %+v", f)
			}
			if knobs["db.sync"] == "sync" && len(lost) > 0 {
				t.Errorf("sync lost %d acknowledged writes", len(lost))
			}
			r.lossIsReported(t, primary, lost)
			r.oldPrimaryIsFenced(t)
		})
	}
}

// lossIsReported checks that the report of the failovers names every lost comment and none that the primary
// holds. It may name comments that were never acknowledged.
func (r *rig) lossIsReported(t *testing.T, primary string, lost []string) {
	t.Helper()
	held, reported := r.comments(t, primary), r.lostComments(t)
	for id := range reported {
		if held[id] {
			t.Errorf("comment %s is reported lost, but the primary holds it", id)
		}
	}
	for _, id := range lost {
		if !reported[id] {
			t.Errorf("comment %s was acknowledged and is lost, but not reported", id)
		}
	}
}

// readOnly is the SQLSTATE with which a replica refuses a write: read_only_sql_transaction.
// Source: PostgreSQL, Appendix A.
const readOnly = "25006"

// oldPrimaryIsFenced checks that the old primary refuses a write that is sent to it
// directly, because it is a replica now. Any other error shows nothing.
func (r *rig) oldPrimaryIsFenced(t *testing.T) {
	t.Helper()
	all := r.Failovers()
	old := all[len(all)-1].From
	if primary, _ := r.databaseRoles(); primary == old {
		t.Fatalf("%s is still the primary", old)
	}
	version, err := r.reading(t, old).Like(t.Context(), 1, 1)
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != readOnly {
		t.Errorf("a write to the old primary gave version %d, error %v, want SQLSTATE %s", version, err, readOnly)
	}
}

// A primary that hangs is replaced. When it continues, it becomes a replica. No write that was acknowledged
// after the pause is lost: that would need two primaries at the same time.
func TestPrimaryIsPaused(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUpSized(t, sut.Replicas, with(knobs, sut.Knobs{"blob.hosts": "1"}), roomy)
			c := comment(t, r.Endpoints()[0], 8, 3000)
			c.awaitCount(t, 200)
			if err := r.Pause("db-1"); err != nil {
				t.Fatal(err)
			}
			c.mark.Store(time.Now().UnixNano())
			r.awaitEvent(t, "is the primary of epoch 2")
			c.awaitCount(t, c.count()+50)
			if err := r.Resume("db-1"); err != nil {
				t.Fatal(err)
			}
			r.awaitBack(t, "db-1")
			c.end()
			r.awaitCopies(t)
			primary, _ := r.databaseRoles()
			held := r.comments(t, primary)
			lost := c.missing(held)
			t.Logf("%d acknowledged, %d lost; failures %v", c.count(), len(lost), c.failures())
			for _, id := range lost {
				c.mu.Lock()
				at := c.acked[id]
				c.mu.Unlock()
				// The acknowledgement of an earlier write may arrive up to a second after the pause.
				if at.UnixNano() > c.mark.Load()+time.Second.Nanoseconds() {
					t.Errorf("comment %s was acknowledged after the pause and is lost: two primaries accepted writes", id)
				}
			}
			r.lossIsReported(t, primary, lost)
			if all := r.Failovers(); len(all) != 1 || all[0].DetectNS < int64(silence) {
				t.Errorf("failovers %+v, want one, after a silence of %v", all, silence)
			}
			r.oldPrimaryIsFenced(t)
		})
	}
}

// awaitBack waits until a database that died serves reads again.
func (r *rig) awaitBack(t *testing.T, node string) {
	t.Helper()
	eventually(t, node+" serves again", func() bool {
		return slices.ContainsFunc(r.Status(), func(n targets.NodeStatus) bool {
			return n.Node == node && n.Restarts > 0 && n.State == targets.Serving && r.replication(t, node).Serves
		})
	})
}

// awaitEvent waits for an event whose text contains text, and returns the first one.
func (r *rig) awaitEvent(t *testing.T, text string) (found targets.Event) {
	t.Helper()
	eventually(t, fmt.Sprintf("an event %q", text), func() bool {
		all := r.Events()
		i := slices.IndexFunc(all, func(e targets.Event) bool { return strings.Contains(e.Text, text) })
		if i >= 0 {
			found = all[i]
		}
		return i >= 0
	})
	return found
}

// A replica dies, the only one or one of two. No read fails, and no write is lost. The replica restarts and
// catches up.
func TestReplicaIsKilled(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		for _, replicas := range []string{"1", "2"} {
			if name == "native" && replicas == "1" {
				continue // the store decides where reads go, not the engine
			}
			t.Run(name+"/"+replicas, func(t *testing.T) {
				t.Parallel()
				r := bringUpSized(t, sut.Replicas, with(knobs, sut.Knobs{
					"db.replicas": replicas, "blob.hosts": "1",
				}), roomy)
				c := comment(t, r.Endpoints()[0], 4, 3000)
				c.awaitCount(t, 100)
				if err := r.Kill("db-2"); err != nil {
					t.Fatal(err)
				}
				failed := 0
				for range 300 {
					response, err := http.Get(r.Endpoints()[0] + photoPath(1))
					if err == nil {
						_ = response.Body.Close()
					}
					if err != nil || response.StatusCode != http.StatusOK {
						failed++
					}
				}
				if failed > 0 {
					t.Errorf("%d of 300 reads failed without the replica", failed)
				}
				r.awaitBack(t, "db-2")
				c.end()
				r.awaitCopies(t)
				if n := len(r.Failovers()); n != 0 {
					t.Errorf("failovers %+v", r.Failovers())
				}
				if lost := c.missing(r.comments(t, "db-1")); len(lost) > 0 {
					t.Errorf("%d acknowledged writes are lost", len(lost))
				}
			})
		}
	}
}

// Three primaries accept writes, and one of them dies and restarts. In the end all hold the same data and
// every acknowledged comment. Concurrent writes to one photo at two primaries are counted as conflicts, and the report
// has what they cost the counters of the photos.
func TestMultiPrimary(t *testing.T) {
	t.Parallel()
	for _, topology := range []string{"multi-primary", "ring"} {
		t.Run(topology, func(t *testing.T) {
			t.Parallel()
			r := bringUpSized(t, sut.Replicas, sut.Knobs{"db.topology": topology, "blob.hosts": "1"}, roomy)
			c := comment(t, r.Endpoints()[0], 8, 5)
			c.awaitCount(t, 300)
			if err := r.Kill("db-2"); err != nil {
				t.Fatal(err)
			}
			c.awaitCount(t, c.count()+200)
			r.awaitBack(t, "db-2")
			c.awaitCount(t, c.count()+200)
			c.end()
			r.awaitEqual(t, []string{"db-1", "db-2", "db-3"})
			if lost := c.missing(r.comments(t, "db-3")); len(lost) > 0 {
				t.Errorf("%d of %d acknowledged writes are lost", len(lost), c.count())
			}
			missing := r.uncountedComments(t, "db-3")
			recovery, err := r.Recover(t.Context(), false)
			if err != nil || len(recovery.Discarded) != 3 {
				t.Fatalf("the report has %+v, %v, want the counts of three primaries", recovery, err)
			}
			for _, d := range recovery.Discarded {
				t.Logf("%d comments, %d of them not counted; %+v; failures %v", c.count(), missing, d, c.failures())
				if d.Conflicts == 0 || missing == 0 || d.Differences["photos.comments"] != missing {
					t.Errorf("%s reports %+v, but the counters of five photos miss %d comments", d.Node, d, missing)
				}
			}
			if n := len(r.Failovers()); n > 0 {
				t.Errorf("failovers %+v", r.Failovers())
			}
		})
	}
}

// uncountedComments returns the number of comments less the sum of the photos' counters of comments. It is 0 as long as
// no update of a photo is lost.
func (r *rig) uncountedComments(t *testing.T, node string) (missing int64) {
	t.Helper()
	db := r.reading(t, node)
	if err := db.Rows(t.Context(), "photos", func(row store.Row) error {
		counted, _ := row.Values["comments"].(int64)
		missing -= counted
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return missing + int64(len(r.comments(t, node)))
}

// fewPhotos is a workload of alternate reads and likes of five photos. A photo changes so often that the age
// of a stale read is nearly the lag of the replica.
type fewPhotos struct{ workloads.Workload }

// LoginOp implements workloads.Login.
func (f fewPhotos) LoginOp(user int) workloads.Op {
	return f.Workload.(workloads.Login).LoginOp(user)
}

// Op returns the n-th op.
func (f fewPhotos) Op(n uint64) workloads.Op {
	photo := photoPath(int(1 + n/2%5))
	if n%2 == 0 {
		return workloads.Op{Index: n, Class: "photo", Method: "GET", Path: photo, Record: photo, User: -1}
	}
	return workloads.Op{
		Index: n, Class: "like", Write: true, Method: "POST", Path: photo + "/like", Record: photo,
		User: int(n % uint64(f.Users())),
	}
}

// The replicas have a known lag. Stale reads are no older than this lag and a small margin, and the heartbeat
// reports the same lag. Reads from the primary are never stale.
func TestStaleReads(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes replicas late; `make test` runs this test without it")
	}
	const behind, margin = 200 * time.Millisecond, 50 * time.Millisecond
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			lagging := with(knobs, sut.Knobs{"db.replica_lag": behind.String(), "blob.hosts": "1"})
			r := bringUpSized(t, sut.Replicas, lagging, roomy)
			// Other programs on the machine may delay a replica in some of the attempts. If they do in
			// each one, only the median age is checked.
			for attempt := 1; ; attempt++ {
				stale := r.stale(t)
				if stale.Stale == 0 {
					t.Fatalf("no read was stale, although the replicas are behind by %v", behind)
				}
				if stale.AgeNS.P50 == nil {
					t.Fatalf("too few reads were stale: %+v", stale)
				}
				half, oldest := time.Duration(*stale.AgeNS.P50), time.Duration(*stale.AgeNS.Max)
				t.Logf("%d of %d reads stale, %d of them after the user's own write; median age %v, oldest %v",
					stale.Stale, stale.Reads, stale.RYWViolations, half, oldest)
				if oldest <= behind+margin {
					break
				}
				if attempt == 4 {
					if half > behind+margin {
						t.Errorf("the median age of the stale reads is %v, want at most %v", half, behind+margin)
					}
					break
				}
			}
			for _, replica := range []string{"db-2", "db-3"} {
				lag := r.lag(t, replica)
				for tries := 1; tries < 10 && (lag < behind*8/10 || lag > behind*12/10); tries++ {
					lag = r.lag(t, replica)
				}
				if lag < behind*8/10 || lag > behind*12/10 {
					t.Errorf("the heartbeat of %s reports %v, want %v within 20%%", replica, lag, behind)
				}
			}
			if name == "native" {
				return // the store decides where reads go, not the engine
			}
			r = bringUpSized(t, sut.Replicas, with(lagging, sut.Knobs{"db.read_preference": "primary"}), roomy)
			if stale := r.stale(t); stale.Stale != 0 || stale.Reads == 0 {
				t.Errorf("%d of %d reads from the primary were stale", stale.Stale, stale.Reads)
			}
		})
	}
}

// stale counts stale reads while other users write.
func (r *rig) stale(t *testing.T) results.Stale {
	t.Helper()
	r.connect(t, fewPhotos{shipped(t, "write-heavy")}, driver.ClientConfig{Connections: 32})
	r.stepper.History = history.New()
	step := r.load(t, 150, 2500*time.Millisecond, 0, nil)
	if step.Stale == nil {
		t.Fatal("no read could be judged")
	}
	return *step.Stale
}

// replication returns the replication status that a database reports.
func (r *rig) replication(t *testing.T, node string) (status sut.ReplicationStatus) {
	t.Helper()
	response := r.admin(t, http.MethodGet, node, sut.ReplicationPath, nil)
	defer func() { _ = response.Body.Close() }() // read only
	if err := json.NewDecoder(response.Body).Decode(&status); err != nil {
		t.Fatal(err)
	}
	return status
}

// lag returns the median of the lags that a replica's heartbeat reports within a second.
func (r *rig) lag(t *testing.T, node string) time.Duration {
	t.Helper()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	var seen []int64
	for range 21 {
		seen = append(seen, r.replication(t, node).LagNS)
		<-ticker.C
	}
	slices.Sort(seen)
	return time.Duration(seen[len(seen)/2])
}
