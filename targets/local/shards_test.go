package local

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
)

// sharded prepares a system with two shards, a primary and a replica each, and one host of
// each other tier.
func sharded(t *testing.T) *fixture {
	t.Helper()
	s := newFixture(t, sut.Sharded, sut.Knobs{
		"web.hosts": "1", "cdn.edges": "0", "cache.hosts": "0", "session.store": "sql", "db.probe_interval": shortInterval,
	})
	s.options.restartDelay = time.Second // longer than the detection of a dead primary
	return s
}

// databasesOf lists the databases in the wiring of a node, in order, as "NAME:SHARD".
func databasesOf(t *testing.T, system *System, node string) string {
	t.Helper()
	var all []string
	for _, peer := range configOf(t, status(t, system, node).Address).Wiring.Uses[sut.DB] {
		all = append(all, peer.Node+":"+strconv.Itoa(peer.Shard))
	}
	return strings.Join(all, " ")
}

// Each shard starts with its own rows. Callers know the databases of all shards, a database
// only those of its own.
func TestShardsComeUp(t *testing.T) {
	t.Parallel()
	s := sharded(t)
	system := s.up(t)
	const all = "db-1:1 db-2:1 db-3:2 db-4:2"
	for _, caller := range []string{"web-1", "worker-1"} {
		if got := databasesOf(t, system, caller); got != all {
			t.Errorf("%s uses %s, want %s", caller, got, all)
		}
	}
	for name, want := range map[string]struct {
		shard           int
		other, follows  string
		replicationRole targets.ReplicationRole
	}{
		"db-1": {1, "db-2", "", targets.Primary}, "db-2": {1, "db-1", "db-1", targets.Replica},
		"db-3": {2, "db-4", "", targets.Primary}, "db-4": {2, "db-3", "db-3", targets.Replica},
	} {
		now := status(t, system, name)
		config := configOf(t, now.Address)
		follows := ""
		if config.Replication.Primary != nil {
			follows = config.Replication.Primary.Node
		}
		if config.Shard != want.shard || now.Shard != want.shard || now.ReplicationRole != want.replicationRole ||
			!slices.Equal(config.Wiring.Members, []string{want.other}) || follows != want.follows {
			t.Errorf("%s: %+v, follows %q, members %v", name, now, follows, config.Wiring.Members)
		}
		rows, err := os.ReadFile(filepath.Join(system.dir, name, "rows"))
		if err != nil || string(rows) != "seeded "+strconv.Itoa(want.shard) {
			t.Errorf("%s has the rows %q, %v", name, rows, err)
		}
	}
	thaw, err := system.Freeze(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := thaw(); err != nil {
		t.Error(err)
	}
	if _, err := system.Scale(t.Context(), "replica", 2); err == nil || !strings.Contains(err.Error(), "scale shard N") {
		t.Errorf("replicas of shards were scaled: %v", err)
	}
}

// The template has a database for each shard, and one without rows for a further shard. The
// photos are there once.
func TestTemplateOfShards(t *testing.T) {
	t.Parallel()
	s := sharded(t)
	system := s.up(t)
	if got := s.seeds(t); got != 3 {
		t.Errorf("the seed node ran %d times, want 3", got)
	}
	template := filepath.Join(s.options.TemplateDir, "small-1-sqlite-v1-shards-2-consistent")
	entries, err := os.ReadDir(template)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	want := []string{templateBlob, shardDir(1), shardDir(2), templateNewDB, templateMark}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("the template (-want +got)\n%s", diff)
	}
	// A shard that is added later has no rows, whatever its number.
	for shard, dir := range []string{templateDB, shardDir(1), shardDir(2)} {
		n := &node{Node: sut.Node{Shard: shard}}
		added := &node{Node: sut.Node{Shard: max(shard, 1)}, joining: true}
		if got := system.templateOf(n); got != filepath.Join(template, dir) {
			t.Errorf("shard %d starts with %s", shard, got)
		}
		if got := system.templateOf(added); got != filepath.Join(template, templateNewDB) {
			t.Errorf("shard %d, when it is added, starts with %s", added.Shard, got)
		}
	}
	if _, err := os.Stat(filepath.Join(template, templateBlob, "ab", "photo.jpg")); err != nil {
		t.Error(err)
	}
}

// A failover in one shard changes nothing in the other. The loss of the old primary belongs
// to its shard, and is replayed there.
func TestFailoverOfAShard(t *testing.T) {
	t.Parallel()
	s := sharded(t)
	system := s.up(t)
	if err := system.Kill("primary-2"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "db-4 is the primary of shard 2, and db-3 its replica", func() bool {
		return databasesOf(t, system, "web-1") == "db-1:1 db-2:1 db-4:2 db-3:2"
	})
	failovers := system.Failovers()
	if len(failovers) != 1 || failovers[0].From != "db-3" || failovers[0].To != "db-4" || failovers[0].Epoch != 2 {
		t.Errorf("failovers %+v", failovers)
	}
	for name, want := range map[string]sut.Replication{
		"db-1": {Epoch: 1}, "db-2": {Epoch: 1, Primary: &sut.Peer{Node: "db-1"}},
		"db-4": {Epoch: 2}, "db-3": {Epoch: 2, Primary: &sut.Peer{Node: "db-4"}},
	} {
		got := configOf(t, status(t, system, name).Address).Replication
		if got.Epoch != want.Epoch || (got.Primary == nil) != (want.Primary == nil) ||
			got.Primary != nil && got.Primary.Node != want.Primary.Node {
			t.Errorf("%s has %+v", name, got)
		}
	}
	s.behave("db-3", "keeps a copy")
	eventually(t, "the loss of db-3 is collected", func() bool { return len(system.Losses()) == 1 })
	recovery, err := system.Recover(t.Context(), true)
	if err != nil || len(recovery.Lost) != 1 || recovery.Lost[0].Shard != 2 || len(recovery.Replayed) != 1 {
		t.Errorf("report %+v, %v", recovery, err)
	}
	if trace := s.trace(t); !slices.Contains(trace, "db-4 replays over 4") {
		t.Errorf("the loss was not replayed at db-4: %q", trace[len(trace)-1])
	}
}

// A replication role means the first database with this role that serves, of all shards or of one.
func TestNamesOfPrimaries(t *testing.T) {
	t.Parallel()
	s := sharded(t)
	s.options.neverRestart, s.options.FailoverSilence = true, timeout
	s.options.Topology.Knobs["db.probe_failures"] = "100" // no failover during the test
	s.options.Topology.Knobs["db.probe_interval"] = "60"
	system := s.up(t)
	means := func(name string) string {
		nodes, _, err := system.find(name)
		if err != nil {
			return err.Error()
		}
		return nodes[0].Name
	}
	for name, want := range map[string]string{
		"primary": "db-1", "primary-1": "db-1", "primary-2": "db-3", "replica": "db-2", "replica-2": "db-4",
	} {
		if got := means(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if got := means("primary-3"); !strings.Contains(got, "there is no host or node") {
		t.Errorf("primary-3 is %s", got)
	}
	if err := system.Kill("primary"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"primary": "db-3", "primary-1": "db-1"} {
		if got := means(name); got != want {
			t.Errorf("with db-1 dead, %s is %s, want %s", name, got, want)
		}
	}
}

// A shard can join a system that serves, and leave it. Callers use it as soon as the topology
// with it is adopted.
func TestAShardJoinsAndLeaves(t *testing.T) {
	t.Parallel()
	s := sharded(t)
	system := s.up(t)
	before := system.Topology()
	next, _, err := ladder.Scale(before, ladder.ScaleShards, 3)
	if err != nil {
		t.Fatal(err)
	}
	ctx, end, err := system.beginChange(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	added, err := system.place(next)
	if err == nil {
		err = system.startAll(ctx, added)
	}
	if err == nil {
		err = system.superviseDatabases(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	const old = "db-1:1 db-2:1 db-3:2 db-4:2"
	if err := system.updateCallers(ctx, sut.DB); err != nil || databasesOf(t, system, "web-1") != old {
		t.Errorf("before the change web-1 uses %s, %v", databasesOf(t, system, "web-1"), err)
	}
	system.change(func() { system.adopt(next) })
	if err := system.updateCallers(ctx, sut.DB); err != nil {
		t.Fatal(err)
	}
	eventually(t, "web-1 uses shard 3", func() bool {
		return databasesOf(t, system, "web-1") == old+" db-5:3 db-6:3"
	})
	if rows, err := os.ReadFile(filepath.Join(system.dir, "db-5", "rows")); err != nil || string(rows) != "seeded 3" {
		t.Errorf("the new shard has the rows %q, %v", rows, err)
	}
	if err := system.Kill("primary-3"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "db-6 is the primary of shard 3", func() bool {
		return databasesOf(t, system, "web-1") == old+" db-6:3 db-5:3"
	})
	system.change(func() { system.adopt(before) })
	if err := system.updateCallers(ctx, sut.DB); err != nil || databasesOf(t, system, "web-1") != old {
		t.Errorf("after the change web-1 uses %s, %v", databasesOf(t, system, "web-1"), err)
	}
	if err := system.removeOthers(ctx, before); err != nil {
		t.Error(err)
	}
	if sets := system.sets(); len(sets) != 2 || system.node("db-5") != nil {
		t.Errorf("%d sets and the nodes %+v are left", len(sets), system.Status())
	}
}
