package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/results/history"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
	"github.com/stagebench/stagebench/workloads/driver"
)

// shardUnit is the size of a unit in cores. Three shards with a replica each fit the machine with it.
const shardUnit = 0.13

// bucketsMoved is what scale says about shards.
const bucketsMoved = `: (\d+) buckets of users moved, (\d\.\d\d) times the fewest possible, with [1-9][\d,]* rows\n` +
	`writes of a bucket waited for its move: median \S+, longest \S+\n`

// bringUpShards brings stage shards up without the tiers that shards do not need, and connects a workload with many
// writes.
func bringUpShards(t *testing.T, engines, own sut.Knobs) *rig {
	t.Helper()
	lean := sut.Knobs{"cdn.edges": "0", "cache.hosts": "0", "web.hosts": "2", "session.store": "sql", "lb.cpu": "1"}
	r := bringUpSized(t, sut.Sharded, with(with(engines, lean), own), shardUnit)
	r.connect(t, shipped(t, "write-heavy"), driver.ClientConfig{Connections: 16})
	r.stepper.History = history.New()
	return r
}

// A shard is added to four under load. No request fails, no acknowledged write is lost, and little
// more than a fifth of the buckets moves. Denormalised feeds have all photos afterwards.
func TestShardIsAddedUnderLoad(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUpShards(t, knobs, sut.Knobs{
				"shard.count": "4", "shard.replicas": "0", "feed.denormalised": "true", "feed.push_below": "40",
			})
			out := r.scaleUnderLoad(t, "shard", 5, `^the database has 5 shards after \S+`+bucketsMoved)
			if part := regexp.MustCompile(bucketsMoved).FindStringSubmatch(out); part != nil {
				if times, err := strconv.ParseFloat(part[2], 64); err != nil || times > 1.1 {
					t.Errorf("%s times the fewest possible moved, want at most 1.1", part[2])
				}
			}
			r.noWriteIsLost(t)
			r.followsAreCounted(t)
			r.feedsAreComplete(t, 40)
		})
	}
}

// While buckets move to a new shard, its primary, the primary of an old one, a web host and the worker are killed. The
// move goes on, and with replicas that have each write nothing that was acknowledged is lost.
func TestShardIsAddedWhileHostsDie(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUpShards(t, knobs, sut.Knobs{"db.sync": "sync"})
			var killer sync.WaitGroup
			step := r.loadWhile(t, 20, 300*time.Millisecond, time.Second, func() {
				ctx, stop := context.WithCancel(t.Context())
				killer.Go(func() {
					for _, victim := range []string{"primary-3", "web-1", "primary-1", "worker-1", "primary-3", "primary-2"} {
						select {
						case <-time.After(4 * time.Second):
						case <-ctx.Done():
							return
						}
						if err := r.Kill(victim); err != nil {
							t.Logf("%s: %v", victim, err) // it is dead already, or not there yet
						}
					}
				})
				scaled, err := r.Scale(t.Context(), "shard", 3)
				stop()
				killer.Wait()
				if err != nil {
					t.Error(err)
				} else {
					t.Logf("%+v", *scaled.Resharded)
				}
			})
			t.Logf("%+v, causes %v", step.Ledger, step.Causes)
			for _, f := range r.Failovers() {
				t.Logf("%s instead of %s", f.To, f.From)
			}
			eventually(t, "all nodes serve", r.recovered)
			r.noWriteIsLost(t)
			r.followsAreCounted(t)
		})
	}
}

// A shard whose database is full refuses its writes with 507. It still serves reads, and so do the other shards writes.
func TestAShardIsFull(t *testing.T) {
	t.Parallel()
	r := bringUpShards(t, nil, sut.Knobs{"shard.replicas": "0", "db.capacity_mb": "2"})
	client := newUploads(t, r.Endpoints()[0]).client
	var paths [2]string // of a photo of each shard
	for shard, node := range []string{"db-1", "db-2"} {
		if err := r.reading(t, node).Rows(t.Context(), "photos", func(row store.Row) error {
			paths[shard] = "/api/photos/" + row.Key
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	comment := func(path string) (status int, answer string) {
		body := fmt.Sprintf(`{"text":%q}`, strings.Repeat("x", 2000))
		response, err := client.Post(r.Endpoints()[0]+path+"/comments", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }() // read only
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(text)
	}
	status, text, acknowledged := 0, "", -1
	for ; status == 0 || status == http.StatusCreated; acknowledged++ {
		if acknowledged > 1000 {
			t.Fatalf("%d comments of 2 kB fit into 2 MB", acknowledged)
		}
		status, text = comment(paths[0])
	}
	t.Logf("after %d comments: %s", acknowledged, text)
	if status != http.StatusInsufficientStorage || !strings.Contains(text, "the tier db is full") {
		t.Errorf("a comment for a full shard: %d %s", status, text)
	}
	if photo := r.photo(t, paths[0]); photo.Comments < int64(acknowledged) {
		t.Errorf("the photo has %d comments, %d were acknowledged", photo.Comments, acknowledged)
	}
	if status, text := comment(paths[1]); status != http.StatusCreated {
		t.Errorf("a comment for the other shard: %d %s", status, text)
	}
}

// noWriteIsLost reads all acknowledged writes back.
func (r *rig) noWriteIsLost(t *testing.T) {
	t.Helper()
	writes, err := cell.CheckWrites(t.Context(), r.stepper.History, r.stepper.Clients, driver.ReadBack{
		Timeout: 10 * time.Second, MaxWait: 10 * time.Second, Pause: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	if writes.Lost > 0 || writes.Acknowledged == 0 {
		t.Errorf("%+v, want that none is lost", writes)
	}
}

// followsAreCounted compares, at all shards, the counters of users with the rows of follows.
func (r *rig) followsAreCounted(t *testing.T) {
	t.Helper()
	var wrong int
	eventually(t, "the counters of users are the numbers of follows", func() bool {
		followers, following, users := map[photos.ID]int64{}, map[photos.ID]int64{}, map[photos.ID][2]int64{}
		for _, n := range r.Status() {
			if n.Role != sut.DB || string(n.ReplicationRole) == "replica" {
				continue
			}
			s := r.reading(t, n.Node)
			here := map[photos.ID]bool{}
			id := func(row store.Row, column string) photos.ID { return photos.ID(row.Values[column].(int64)) }
			if err := s.Rows(t.Context(), "users", func(row store.Row) error {
				here[id(row, "id")] = true
				users[id(row, "id")] = [2]int64{row.Values["followers"].(int64), row.Values["following"].(int64)}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if err := s.Rows(t.Context(), "follows", func(row store.Row) error {
				if here[id(row, "followee")] {
					followers[id(row, "followee")]++
				}
				if here[id(row, "follower")] {
					following[id(row, "follower")]++
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		wrong = 0
		for user, counted := range users {
			if counted != [2]int64{followers[user], following[user]} {
				wrong++
			}
		}
		return len(users) > 0 && wrong == 0
	})
	if wrong > 0 {
		t.Errorf("the counters of %d users are wrong", wrong)
	}
}

// feedsAreComplete compares denormalised feeds with those that are read from all shards.
func (r *rig) feedsAreComplete(t *testing.T, pushBelow int) {
	t.Helper()
	c := store.Config{Password: r.secret(), MaxConns: 2}
	for _, n := range r.Status() {
		if n.Role == sut.DB && string(n.ReplicationRole) != "replica" {
			c.Databases = append(c.Databases, sut.Peer{Node: n.Node, Address: n.Address, Shard: n.Shard})
		}
	}
	open := func(pushBelow int) *store.Store {
		c.PushBelow = pushBelow
		s, err := store.Open(c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	plain, pushed := open(0), open(pushBelow)
	eventually(t, "feeds have all photos", func() bool {
		for user := photos.ID(1); user <= 200; user++ {
			got, err := pushed.Feed(t.Context(), user, 20)
			want, further := plain.Feed(t.Context(), user, 20)
			if err != nil || further != nil || !slices.Equal(got, want) {
				return false
			}
		}
		return true
	})
}
