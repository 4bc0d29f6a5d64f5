package main

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Primaries die under writes: alone, in quick succession, and without their replicas, on both engines. The final report
// names every acknowledged comment that is lost, once. With sync none is lost.
func TestEveryLossIsReported(t *testing.T) {
	t.Parallel()
	for name, knobs := range failovers() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			async, rounds := knobs["db.sync"] == "async", 3
			if knobs["db.engine"] == "postgres" {
				rounds = 1 // a full copy takes seconds
			}
			k := newKiller(t, knobs)
			for round := range rounds {
				k.awaitComments(50 + k.random.IntN(100))
				if async && round == 0 {
					k.killAlone()
				} else {
					k.kill()
				}
				k.awaitComments(50 + k.random.IntN(100))
				k.killTwo()
			}
			if lost := k.judge(knobs["db.sync"]); async && lost == 0 {
				t.Error("no comment is lost, although a primary acknowledged some without its replicas")
			}
		})
	}
}

// killer kills primaries while comments are written.
type killer struct {
	*rig
	t      *testing.T
	c      *commenters
	random *rand.Rand
	kills  int
}

// newKiller brings a system up and starts to write.
func newKiller(t *testing.T, knobs sut.Knobs) *killer {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := bringUpSized(t, sut.Replicas, with(knobs, sut.Knobs{"blob.hosts": "1", "web.hosts": "1"}), roomy)
	return &killer{
		rig: r, t: t, c: comment(t, r.Endpoints()[0], 8, 3000), random: rand.New(rand.NewPCG(seed, 0)),
	}
}

// awaitComments waits until more comments were acknowledged.
func (k *killer) awaitComments(more int) {
	k.t.Helper()
	k.c.awaitCount(k.t, k.c.count()+more)
}

// kill kills the primary as soon as a replica can replace it.
func (k *killer) kill() {
	k.t.Helper()
	eventually(k.t, "a primary with a replica dies", func() bool {
		primary, replicas := k.databaseRoles()
		return slices.ContainsFunc(replicas, k.caughtUp) && k.Kill(primary) == nil
	})
	k.kills++
}

// killTwo kills the primary, and its successor after a few more comments.
func (k *killer) killTwo() {
	k.t.Helper()
	before := len(k.Failovers())
	k.kill()
	eventually(k.t, "a failover", func() bool { return len(k.Failovers()) > before })
	k.awaitComments(k.random.IntN(10))
	primary, _ := k.databaseRoles()
	if err := k.Kill(primary); err != nil {
		k.t.Fatal(err)
	}
	k.kills++
}

// killAlone kills the primary after it has acknowledged comments without its replicas. They are lost.
func (k *killer) killAlone() {
	k.t.Helper()
	var primary string
	var replicas []string
	eventually(k.t, "all replicas have caught up", func() bool {
		primary, replicas = k.databaseRoles()
		return !slices.ContainsFunc(replicas, func(node string) bool { return !k.caughtUp(node) })
	})
	var links []*partition
	for _, replica := range replicas {
		links = append(links, k.partitioned(k.t, replica, primary))
	}
	for i, replica := range replicas {
		links[i].cut()
		k.awaitConnected(k.t, replica, false)
	}
	k.awaitComments(30)
	if err := k.Kill(primary); err != nil {
		k.t.Fatal(err)
	}
	k.kills++
}

// caughtUp reports whether a replica receives changes and serves.
func (k *killer) caughtUp(node string) bool {
	response, err := k.ask(k.t.Context(), http.MethodGet, node, sut.ReplicationPath, nil)
	if err != nil {
		return false
	}
	defer func() { _ = response.Body.Close() }() // read only
	var status sut.ReplicationStatus
	return json.NewDecoder(response.Body).Decode(&status) == nil && status.Serves && status.Connected
}

// judge ends the writes and compares the report with the primary, then replays what is lost, twice. It returns the
// number of lost comments.
func (k *killer) judge(mode string) (lost int) {
	t := k.t
	t.Helper()
	k.awaitComments(20)
	k.c.end()
	k.awaitCopies(t)
	var unread []sut.Lost
	t.Cleanup(func() {
		if len(unread) > 0 {
			t.Errorf("these losses were not collected: %+v", unread)
		}
	})
	eventually(t, "all losses are collected", func() bool {
		recovery, err := k.Recover(t.Context(), false)
		unread = slices.DeleteFunc(recovery.Lost, func(l sut.Lost) bool { return !l.Unread })
		return err == nil && len(unread) == 0
	})
	primary, _ := k.databaseRoles()
	missing := k.c.missing(k.comments(t, primary))
	t.Logf("%d kills, %d failovers; %d comments acknowledged, %d of them lost; failures %v",
		k.kills, len(k.Failovers()), k.c.count(), len(missing), k.c.failures())
	if mode == "sync" && len(missing) > 0 {
		t.Errorf("sync lost %d acknowledged writes: %v", len(missing), missing)
	}
	k.lossIsReported(t, primary, missing)
	if recovery, err := k.Recover(t.Context(), true); err != nil {
		t.Fatal(err)
	} else if left := k.c.missing(k.comments(t, primary)); len(left) > 0 {
		t.Errorf("after the replay %v are missing: %+v", left, recovery.Replayed)
	}
	before, err := k.reading(t, primary).Digest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	recovery, err := k.Recover(t.Context(), true)
	if err != nil || len(recovery.Replayed) != 0 {
		t.Errorf("the second replay did %+v, %v, want nothing", recovery.Replayed, err)
	}
	if after, err := k.reading(t, primary).Digest(t.Context()); err != nil || after != before {
		t.Errorf("the second replay changed the data: %v", err)
	}
	return len(missing)
}
