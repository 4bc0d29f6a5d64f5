package ladder_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
)

// shardsOf returns the databases of a topology, in order, as "NAME:SHARD", with the
// databases that they use.
func shardsOf(t sut.Topology) (all []string) {
	for _, n := range t.Nodes {
		if n.Role == sut.DB {
			all = append(all, strings.TrimSpace(n.Name+":"+string(rune('0'+n.Shard))+" "+strings.Join(n.Uses, " ")))
		}
	}
	return all
}

// Each shard has its hosts one after the other: its primary, then its replicas, which use
// it. Callers use the databases of all shards in this order.
func TestShards(t *testing.T) {
	for _, test := range []struct {
		stage sut.Stage
		knobs sut.Knobs
		want  []string
		units float64
	}{
		{sut.Sharded, nil, []string{"db-1:1", "db-2:1 db-1", "db-3:2", "db-4:2 db-3"}, ladder.TableUnits},
		{sut.Sharded, sut.Knobs{"shard.count": "3", "shard.replicas": "0"}, []string{"db-1:1", "db-2:2", "db-3:3"}, 14},
		{
			sut.Sharded,
			sut.Knobs{"shard.count": "2", "shard.replicas": "2", "db.cpu": "0.5"},
			[]string{"db-1:1", "db-2:1 db-1", "db-3:1 db-1", "db-4:2", "db-5:2 db-4", "db-6:2 db-4"},
			14,
		},
		// The number of replicas of earlier stages does not count.
		{sut.Sharded, sut.Knobs{"db.replicas": "5", "shard.count": "1"}, []string{"db-1:1", "db-2:1 db-1"}, 13},
		{
			sut.Queued,
			sut.Knobs{"shard.count": "5", "shard.replicas": "5"},
			[]string{"db-1:0", "db-2:0 db-1", "db-3:0 db-1"},
			14,
		},
	} {
		topology, err := ladder.Build(test.stage, test.knobs, 0.1)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, shardsOf(topology)); diff != "" || topology.Units() != test.units {
			t.Errorf("%s %v: %v units, want %v (-want +got)\n%s", test.stage, test.knobs, topology.Units(), test.units, diff)
		}
		if topology.MultiPrimary() {
			t.Errorf("%s %v: shards are no multi-primary database", test.stage, test.knobs)
		}
		for _, n := range topology.Nodes {
			used := slices.DeleteFunc(slices.Clone(n.Uses), func(name string) bool { return !strings.HasPrefix(name, "db-") })
			if n.Role == sut.Web && len(used) != len(test.want) {
				t.Errorf("%s %v: %s uses %v", test.stage, test.knobs, n.Name, used)
			}
			if alone := ladder.ShardOf(topology.Knobs).Count == len(test.want); n.Role == sut.DB && n.Replicated == alone {
				t.Errorf("%s %v: %s has Replicated=%v", test.stage, test.knobs, n.Name, n.Replicated)
			}
		}
	}
}

// The settings of shards say what is in effect, also before the stage that has them.
func TestShardSettings(t *testing.T) {
	for stage, want := range map[sut.Stage]ladder.Shard{
		sut.Queued:  {Count: 1, By: ladder.ShardRange, Replicas: 2, PushBelow: 50},
		sut.Sharded: {Count: 4, By: ladder.ShardRange, Replicas: 2, Denormalised: true, PushBelow: 50},
	} {
		topology, err := ladder.Build(stage, sut.Knobs{
			"shard.count": "4", "shard.by": "range", "shard.replicas": "2", "db.replicas": "3",
			"feed.denormalised": "true", "feed.push_below": "50",
		}, 0.1)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, ladder.ShardOf(topology.Knobs)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", stage, diff)
		}
		if got, want := ladder.ShardOf(topology.Knobs).Pushing(), map[sut.Stage]int{sut.Sharded: 50}[stage]; got != want {
			t.Errorf("%s: photos of users with fewer than %d followers are pushed, want %d", stage, got, want)
		}
		replicas := map[sut.Stage]int{sut.Queued: 3, sut.Sharded: 2}[stage]
		if got := ladder.DBOf(topology.Knobs).Replicas; got != replicas {
			t.Errorf("%s: db.replicas is %d, want %d", stage, got, replicas)
		}
	}
}

// Each shard has one primary, and as many replicas as a write waits for.
func TestShardConflicts(t *testing.T) {
	for _, test := range []struct {
		knobs sut.Knobs
		wrong string
	}{
		{sut.Knobs{"db.topology": "ring"}, "each shard has one primary\nwant db.topology=primary-replica"},
		{sut.Knobs{"db.sync": "sync", "db.sync_copies": "2"}, "needs shard.replicas of at least 2, not 1"},
		{sut.Knobs{"shard.count": "17"}, "from 1 to 16"},
		{sut.Knobs{"shard.by": "name"}, "consistent, modulo, range, directory"},
		{sut.Knobs{"feed.denormalised": "yes"}, "true, false"},
		{sut.Knobs{"feed.push_below": "0"}, "from 1 to 1000000"},
	} {
		_, err := ladder.Build(sut.Sharded, test.knobs, 0.1)
		if err == nil || !strings.Contains(err.Error(), test.wrong) {
			t.Errorf("%v: error %v, want %q", test.knobs, err, test.wrong)
		}
	}
	sync := sut.Knobs{"db.sync": "sync", "db.sync_copies": "2", "shard.replicas": "2"}
	if _, err := ladder.Build(sut.Sharded, sync, 0.1); err != nil {
		t.Errorf("%v: %v", sync, err)
	}
}
