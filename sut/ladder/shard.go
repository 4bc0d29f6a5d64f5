package ladder

import (
	"errors"
	"fmt"

	"github.com/stagebench/stagebench/sut"
)

// Shard is the settings of a partitioned database. Its hosts are those of the tier db.
type Shard struct {
	Count    int // shards; 1 before stage shards
	By       ShardBy
	Replicas int // replicas of each shard

	// Denormalised says that photos are pushed to the feeds of their owners' followers.
	Denormalised bool
	PushBelow    int // with Denormalised: photos of users with so many followers are not pushed
}

// Pushing is PushBelow, or 0 if feeds are not denormalised.
func (s Shard) Pushing() int {
	if !s.Denormalised {
		return 0
	}
	return s.PushBelow
}

// ShardBy selects the shard that has the rows of a user.
type ShardBy string

// All four ways give each bucket of users to one shard, see package shard. ShardModulo takes the number of the bucket
// modulo the number of shards. With ShardConsistent, a new shard takes only what it will have. ShardRange gives each
// shard a range of buckets. ShardDirectory starts like ShardConsistent, and then spreads the buckets by their load.
const (
	ShardModulo     ShardBy = "modulo"
	ShardConsistent ShardBy = "consistent"
	ShardRange      ShardBy = "range"
	ShardDirectory  ShardBy = "directory"
)

// ShardOf returns the settings of a partitioned database.
func ShardOf(k sut.Knobs) Shard { return settings[Shard](k) }

func (s *Shard) knobs() []Knob {
	return []Knob{
		integer("shard.count", &s.Count, 2, 1, 16, "shards of the database, from stage shards on; each has a primary "+
			"with the rows of a part of the users"),
		choice("shard.by", &s.By, ShardConsistent, "how users are assigned to shards, in 1,024 buckets: modulo = by the "+
			"remainder of the bucket, so that most rows move when a shard is added; consistent = by consistent hashing; "+
			"range = a range of buckets for each shard; directory = by a table, in which stagebench scale shard N, also with "+
			"the present N, spreads the buckets by their load",
			ShardModulo, ShardRange, ShardDirectory),
		integer("shard.replicas", &s.Replicas, 1, 0, 8, "replicas of each shard, from stage shards on"),
		truth("feed.denormalised", &s.Denormalised, false, "from stage shards on: workers push new photos to the feeds of "+
			"followers, at the shard of each; otherwise a feed is read from all shards"),
		integer("feed.push_below", &s.PushBelow, 1000, 1, 1_000_000, "with feed.denormalised: photos of users with this "+
			"number of followers or more are not pushed; a feed then reads the newest ones from the shards of these users"),
	}
}

// ScaleShards is the Scaling.Name that changes the number of shards.
const ScaleShards = "shard"

// shardScaling adds and removes shards.
func shardScaling() Scaling {
	return Scaling{Name: ScaleShards, Knob: "shard.count", refuse: unsharded}
}

// unsharded refuses to add shards to a database that is not partitioned.
func unsharded(t sut.Topology) error {
	if before(t.Stage, sut.Sharded) {
		return fmt.Errorf("stage %s has no shards\nbring up a later stage: stagebench up --stage %s", t.Stage, sut.Sharded)
	}
	return nil
}

// feedFigures are those of denormalised feeds.
func feedFigures() []Figure {
	const pushed = "stagebench_feed_pushed_photos_total"
	from := []sut.Role{sut.Worker}
	return []Figure{
		{
			Name: "feed_builds", Metric: "stagebench_feed_builds_total", From: []sut.Role{sut.Web, sut.Cache}, Kind: Counter,
			Title: "feed\nbuilds", Doc: "feed builds: feeds that were read from all shards and stored",
		},
		{Name: "feed_pushed", Metric: pushed, From: from, Kind: Counter, Doc: "photos that were pushed to all feeds"},
		{
			Name: "feed_rows", Metric: "stagebench_feed_pushed_rows_total", Per: pushed, From: from, Kind: Mean,
			Title: "feed\nrows", Doc: "feed rows: rows that were added to feeds for each photo that was pushed",
		},
		{
			Name: "feed_lag_ms", Metric: "stagebench_feed_lag_milliseconds_total", Per: pushed, From: from, Kind: Mean,
			Title: "feed lag\nms", Doc: "feed lag: mean time from an upload until it was pushed to all feeds",
		},
	}
}

// perShard refuses to scale the replicas of a partitioned database: db-3 may be a replica of
// one shard, or the primary of another.
func perShard(t sut.Topology) error {
	if before(t.Stage, sut.Sharded) {
		return nil
	}
	return errors.New("the number of replicas of a shard cannot change while the system serves\n" +
		"add a shard instead: stagebench scale shard N, or bring the system up with another shard.replicas")
}

// checkShard refuses database topologies in which a shard would have several primaries. It
// makes db.replicas the number of replicas of each primary at every stage. Before stage shards there is one database.
func checkShard(stage sut.Stage, k sut.Knobs) error {
	if before(stage, sut.Sharded) {
		k["shard.count"], k["feed.denormalised"] = "1", "false"
		return nil
	}
	k["db.replicas"] = k["shard.replicas"]
	if topology := DBOf(k).Topology; topology != PrimaryReplica {
		return fmt.Errorf("db.topology=%s is not possible at stage %s, where each shard has one primary\n"+
			"want db.topology=%s, or an earlier stage", topology, stage, PrimaryReplica)
	}
	return nil
}

// placeShards places the primary of each shard and its replicas: of two shards with one
// replica each, db-1 and db-2 are the first shard, db-3 and db-4 the second. So a new shard
// gets the next numbers, and no other host changes.
func placeShards(p *plan) {
	db, s := DBOf(p.knobs), ShardOf(p.knobs)
	for shard := range s.Count {
		first := shard * (1 + s.Replicas)
		for i := range 1 + s.Replicas {
			name := numbered(p.role, first+i)
			n := sut.Node{
				Name: name, Host: p.host(name, db.CPU), Engine: db.Engine, Replicated: s.Replicas > 0, Shard: shard + 1,
			}
			if i > 0 {
				n.Uses = []string{numbered(p.role, first)}
			}
			p.node(n)
		}
	}
}
