package replicatest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

func follows(t *testing.T, k *kit) {
	primary, replica := k.pair(nil)
	third := k.start("db-3", nil, sut.Replication{Epoch: 1, Primary: primary.at()})
	third.awaitServing("db-1")
	var version int64
	for range 50 {
		version = primary.like(7)
	}
	for _, c := range []*member{replica, third} {
		c.awaitVersion(7, version)
		c.sameAs(primary)
		if s := c.status(); s.Rebuilds != 0 || s.Primary || s.Epoch != 1 || s.Problem != "" {
			t.Errorf("%s: %+v", c.name, s)
		}
	}
	s := primary.status()
	if _, known := s.Followers["db-2"]; !s.Primary || !s.Serves || !known || len(s.Followers) != 2 {
		t.Errorf("the primary: %+v", s)
	}
}

func refusesWrites(t *testing.T, k *kit) {
	primary, replica := k.pair(nil)
	if _, err := replica.store.Like(t.Context(), k.photo(1), 1); !errors.Is(err, photos.ErrUnavailable) ||
		!strings.Contains(err.Error(), "25006") {
		t.Errorf("a write on a replica: %v", err)
	}
	if p, err := replica.store.Photo(t.Context(), k.photo(1)); err != nil || p.Version != primary.like(1)-1 {
		t.Errorf("photo %+v, %v", p, err)
	}
}

func largeRows(t *testing.T, k *kit) {
	primary, replica := k.pair(nil)
	for i, size := range []int{1, 1000, 30_000, 60_000} {
		c := photos.Comment{ID: k.id(), PhotoID: k.photo(i + 1), UserID: 1, Text: strings.Repeat("ü", size/2), CreatedUS: 1}
		if _, err := primary.store.Comment(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	replica.awaitVersion(4, primary.like(4))
	replica.sameAs(primary)
}

func catchesUp(t *testing.T, k *kit) {
	primary, replica := k.pair(nil)
	for range 3 {
		replica.Kill(t)
		var version int64
		for range 30 {
			version = primary.like(3)
		}
		replica = k.start("db-2", nil, sut.Replication{Epoch: 1, Primary: primary.at()})
		replica.awaitServing("db-1")
		// A replica that serves holds all writes from before its restart.
		if p, err := replica.store.Photo(t.Context(), k.photo(3)); err != nil || p.Version < version {
			t.Errorf("version %d, %v, want %d: it serves before it has caught up", p.Version, err, version)
		}
		if s := replica.status(); s.Rebuilds != 0 {
			t.Errorf("the replica was rebuilt: %+v", s)
		}
	}
	replica.sameAs(primary)
}

func promotes(t *testing.T, k *kit) {
	primary, replica := k.pair(nil)
	third := k.start("db-3", nil, sut.Replication{Epoch: 1, Primary: primary.at()})
	third.awaitServing("db-1")
	version := primary.like(5)
	replica.awaitVersion(5, version)
	third.awaitVersion(5, version)
	primary.Kill(t)
	replica.setRole(sut.Replication{Epoch: 2})
	if s := replica.status(); !s.Primary || s.Epoch != 2 || !s.Serves {
		t.Errorf("promoted: %+v", s)
	}
	if got := replica.like(5); got != version+1 {
		t.Errorf("version %d after the promotion, want %d", got, version+1)
	}
	third.setRole(sut.Replication{Epoch: 2, Primary: replica.at()})
	third.awaitServing("db-2")
	third.awaitVersion(5, replica.like(5))
	third.sameAs(replica)
	if s := third.status(); s.Epoch != 2 || s.Rebuilds != 0 {
		t.Errorf("a replica of the new primary: %+v", s)
	}
}

// An old primary that returns as a replica has lost the writes that only it had. It lists
// them, and they can be replayed.
func oldPrimary(t *testing.T, k *kit) {
	primary, replica := k.pair(nil)
	replica.awaitVersion(5, primary.like(5))
	before, err := primary.store.Photo(t.Context(), k.photo(5))
	if err != nil {
		t.Fatal(err)
	}
	replica.Kill(t)
	upload := photos.Photo{
		ID: k.id(), UserID: 1, Title: "lost", State: photos.StateReady,
		Width: 1, Height: 2, Bytes: 3, CreatedUS: 4, Version: 1,
	}
	comment := photos.Comment{ID: k.id(), PhotoID: k.photo(5), UserID: 2, Text: "lost, too", CreatedUS: 6}
	_, err = primary.store.Comment(t.Context(), comment)
	if err = errors.Join(err, primary.store.AddPhoto(t.Context(), upload)); err != nil {
		t.Fatal(err)
	}
	primary.like(5)
	primary.Kill(t)
	replica = k.start("db-2", nil, sut.Replication{Epoch: 1, Primary: primary.at()})
	replica.setRole(sut.Replication{Epoch: 2})
	replica.like(6)
	back := k.start("db-1", nil, sut.Replication{Epoch: 2, Primary: replica.at()})
	back.awaitServing("db-2")
	back.awaitVersion(6, replica.like(6))
	back.sameAs(replica)
	if _, err := back.store.Photo(t.Context(), upload.ID); !errors.Is(err, photos.ErrNotFound) {
		t.Errorf("the lost photo: %v", err)
	}
	if _, err := back.store.Like(t.Context(), k.photo(1), 1); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("a write on the old primary: %v", err)
	}
	losses := back.losses()
	if len(losses) != 1 || losses[0].Epoch != 1 || losses[0].Commits != 3 {
		t.Fatalf("lost changes: %+v", losses)
	}
	lost := losses[0]
	found := map[string]sut.Change{}
	for _, c := range lost.Changes {
		found[c.Table+"/"+c.Key] = c.Op
	}
	if found[fmt.Sprintf("photos/%d", upload.ID)] != sut.Inserted ||
		found[fmt.Sprintf("comments/%d", comment.ID)] != sut.Inserted ||
		found[fmt.Sprintf("photos/%d", k.photo(5))] != sut.Updated {
		t.Errorf("lost changes: %v", found)
	}
	back.replays(replica, lost)
	if p, err := replica.store.Photo(t.Context(), k.photo(5)); err != nil || p.Comments != before.Comments+1 {
		t.Errorf("photo %+v, %v, want %d comments", p, err, before.Comments+1)
	}
	// The old primary can be promoted again.
	back.sameAs(replica)
	replica.Kill(t)
	back.setRole(sut.Replication{Epoch: 3})
	back.like(6)
}

// replays replays a loss of an upload and a comment at the primary, and then removes the old copy.
func (c *member) replays(primary *member, lost sut.Lost) {
	t := c.kit.t
	t.Helper()
	replay := sut.Replay{Databases: []sut.Peer{primary.peer()}, Changes: lost.Changes}
	var done sut.Replayed
	if code, text := c.ask(http.MethodPost, sut.LostPath, replay, &done); code != http.StatusOK ||
		done.Done["comment"] != 1 || done.Done["upload"] != 1 {
		t.Errorf("replay: %d %s", code, text)
	}
	t.Logf("replayed: %+v", done)
	for range 2 { // the second time, there is no such copy
		path := sut.LostPath + "?copy=" + lost.Copy
		if code, text := c.ask(http.MethodDelete, path, nil, nil); code != http.StatusNoContent {
			t.Fatalf("removing the old copy: %d %s", code, text)
		}
	}
	if left := c.losses(); len(left) > 0 {
		t.Errorf("after the old copy was removed: %+v", left)
	}
}

func oldEpoch(t *testing.T, k *kit) {
	primary, replica := k.pair(nil)
	stepDown := sut.Replication{Epoch: 2, Primary: replica.at()}
	if code, _, text := primary.admin(http.MethodPut, stepDown); code != http.StatusConflict {
		t.Errorf("a primary steps down: %d %s", code, text)
	}
	primary.like(1)
	primary.Kill(t)
	replica.setRole(sut.Replication{Epoch: 5})
	for _, role := range []sut.Replication{{Epoch: 4}, {Epoch: 5}, {Epoch: 4, Primary: primary.at()}} {
		if code, _, text := replica.admin(http.MethodPut, role); code != http.StatusConflict {
			t.Errorf("%+v: %d %s", role, code, text)
		}
	}
	for _, document := range []any{map[string]any{"epoch": 0}, map[string]any{"colour": "red"}, []int{1}} {
		if code, _, text := replica.admin(http.MethodPut, document); code != http.StatusBadRequest ||
			!strings.Contains(text, "hint") {
			t.Errorf("%v: %d %s", document, code, text)
		}
	}
	replica.like(1)
}

func synchronous(t *testing.T, k *kit) {
	knobs := sut.Knobs{"db.sync": "sync", "db.sync_copies": "1", "db.sync_timeout": "0.5"}
	primary, replica := k.pair(knobs)
	for range 20 {
		version := primary.like(2)
		// The replica holds an acknowledged write, but may apply it a moment later.
		replica.awaitVersion(2, version)
	}
	replica.Pause(t)
	if _, err := primary.store.Like(t.Context(), k.photo(2), 1); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("a write that no replica holds: %v", err)
	}
	replica.Resume(t)
	replica.eventually("it is connected again", func(s sut.ReplicationStatus) bool { return s.Connected })
	var version int64
	replica.eventually("writes are acknowledged again", func(sut.ReplicationStatus) bool {
		var err error
		version, err = primary.store.Like(t.Context(), k.photo(2), 1)
		return err == nil
	})
	// The promoted replica has every acknowledged write.
	primary.Kill(t)
	replica.setRole(sut.Replication{Epoch: 2})
	if p, err := replica.store.Photo(t.Context(), k.photo(2)); err != nil || p.Version < version {
		t.Errorf("version %d was acknowledged; after the promotion it is %d, %v", version, p.Version, err)
	}
}

func lag(t *testing.T, k *kit) {
	const want = 200 * time.Millisecond
	primary, replica := k.pair(sut.Knobs{"db.replica_lag": want.String()})
	seen := 0
	for range 5 {
		begin := time.Now()
		version := primary.like(9)
		replica.awaitVersion(9, version)
		if took := time.Since(begin); took < want {
			t.Errorf("the replica shows a write after %v, before the lag of %v", took, want)
		}
	}
	replica.eventually("the heartbeat's lag is within 20 %", func(s sut.ReplicationStatus) bool {
		if d := time.Duration(s.LagNS); d > want*8/10 && d < want*12/10 {
			seen++
		}
		return seen >= 5
	})
	// A promotion does not wait for the lag, and keeps the changes that were held back.
	version := primary.like(9)
	replica.eventually("it has received the write", func(sut.ReplicationStatus) bool {
		return primary.status().Followers["db-2"] >= 0
	})
	primary.Kill(t)
	replica.setRole(sut.Replication{Epoch: 2})
	if got := replica.like(9); got != version && got != version+1 {
		t.Errorf("version %d after the promotion, want %d, or %d if the write was not sent", got, version+1, version)
	}
}

// After concurrent random changes, during which a replica restarts, all copies are equal.
func random(t *testing.T, k *kit) {
	const clients, each = 8, 1250
	primary, replica := k.pair(nil)
	third := k.start("db-3", nil, sut.Replication{Epoch: 1, Primary: primary.at()})
	third.awaitServing("db-1")
	counts := k.engine.Counts()
	const seed = 42
	t.Logf("seed %d", seed)
	var ids, done atomic.Int64
	ids.Store(1 << 41)
	var all sync.WaitGroup
	for c := range clients {
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(c)))
			for range each {
				if err := change(primary, r, counts, &ids); err != nil &&
					!errors.Is(err, photos.ErrNotFound) && !errors.Is(err, photos.ErrForbidden) {
					t.Errorf("client %d: %v", c, err)
					return
				}
				done.Add(1)
			}
		})
	}
	for restarts := int64(1); restarts <= 2; restarts++ {
		primary.eventually("the clients have made progress", func(sut.ReplicationStatus) bool {
			return t.Failed() || done.Load() > restarts*clients*each/4
		})
		third.Kill(t)
		third = k.start("db-3", nil, sut.Replication{Epoch: 1, Primary: primary.at()})
	}
	all.Wait()
	for _, c := range []*member{replica, third} {
		c.awaitServing("db-1")
		c.sameAs(primary)
	}
	if p, err := replica.store.Digest(t.Context()); err == nil {
		t.Logf("%d transactions, digest %s on all copies", done.Load(), p)
	}
}

// change runs one random transaction.
func change(c *member, r *rand.Rand, counts sut.DataCounts, ids *atomic.Int64) error {
	ctx := context.Background()
	user, photo := photos.ID(r.IntN(counts.Users)+1), photos.PhotoID(r.IntN(counts.Photos)+1, counts)
	var err error
	switch r.IntN(6) {
	case 0:
		_, err = c.store.Like(ctx, photo, user)
	case 1:
		_, err = c.store.Comment(ctx, photos.Comment{
			ID: photos.ID(ids.Add(1)), PhotoID: photo, UserID: user,
			Text: strings.Repeat("x", r.IntN(300)+1), CreatedUS: int64(r.IntN(1000)),
		})
	case 2:
		err = c.store.AddPhoto(ctx, photos.Photo{
			ID: photos.ID(ids.Add(1)), UserID: user, Title: "new", State: photos.StateReady,
			Width: 1, Height: 1, Bytes: 1, CreatedUS: int64(r.IntN(1000)), Version: 1,
		})
	case 3:
		followee := photos.ID(r.IntN(counts.Users) + 1)
		err = c.store.Follow(ctx, photos.Follow{Follower: user, Followee: followee, CreatedUS: 1})
	case 4:
		_, err = c.store.RenamePhoto(ctx, photo, user, "renamed")
	case 5:
		// Only the owner may delete the photo, so the owner is read first.
		if p, found := c.store.Photo(ctx, photo); found == nil {
			err = c.store.DeletePhoto(ctx, photo, p.UserID)
		}
	}
	return err
}
