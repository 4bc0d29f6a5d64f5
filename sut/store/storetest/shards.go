package storetest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

// lease is that of the moves of the kit.
const lease = 10 * time.Second

// Shards checks a store whose records are spread over shards: its operations, and the move of buckets while it is in
// use. It does so with feeds that are read from all shards, and with denormalised ones. start starts an empty database
// and returns its address.
func Shards(t *testing.T, start func(t *testing.T) string) {
	for name, pushBelow := range map[string]int{"feeds from all shards": 0, "denormalised feeds": pushed} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newShards(t, []string{start(t), start(t), start(t)}, pushBelow)
			if err := k.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			k.run(t)
			runShards(t, k)
			if pushBelow > 0 {
				t.Run("a build asks no replica", func(t *testing.T) { lateReplica(t, start) })
				runFeeds(t, k)
			}
		})
	}
}

// runShards runs the checks of shards.
func runShards(t *testing.T, k kit) {
	for _, check := range []struct {
		name string
		run  func(*testing.T, kit)
	}{
		{"each row is at the shard of its bucket", placed},
		{"follows are counted once, whoever relays them", relayedOnce},
		{"a move waits for the writes that have begun", drained},
		{"a move that is interrupted at any step is continued", interrupted},
		{"a lost copy or a lost release is repaired", repaired},
		{"a fence holds writes back, as long as its lease", heldBack},
		{"lists wait for the owners of all buckets", ownerless},
		{"rows at the old shard are in no list", leftovers},
		{"a follow of a user who has moved is counted", followedElsewhere},
		{"a list is complete if a bucket moves between two statements", changedMeanwhile},
		{"a lease that ends while the release waits", leaseEnds},
		{"a dead replica of the old shard fails no read", deadReplica},
		{"nobody follows nobody", nobodyFollows},
		{"a bucket with long texts moves", longTexts},
		{"a follow is not relayed for ever after a move", relayedAfterMove},
		{"the only copy of a bucket stays", onlyCopy},
		{"a list has no photo twice if shards are asked before and after a move", mixedOwners},
		{"buckets move while the store is in use", movedInUse},
	} {
		t.Run(check.name, func(t *testing.T) { check.run(t, k) })
	}
}

// newShards fills shards at these addresses. The third one owns no bucket.
func newShards(t *testing.T, addresses []string, pushBelow int) kit {
	t.Helper()
	k := kit{data: newData(), ids: &ids{}, pushBelow: pushBelow}
	var peers []sut.Peer
	for i, address := range addresses {
		peer := sut.Peer{Node: fmt.Sprintf("db-%d", i+1), Address: address, Shard: i + 1}
		k.shards, peers = append(k.shards, k.fill(t, peer)), append(peers, peer)
	}
	k.Store = k.open(t, peers)
	return k
}

// fill creates the records of a shard, and returns a store of it alone.
func (k kit) fill(t *testing.T, peer sut.Peer) *Store {
	t.Helper()
	part := openWith(t, store.Config{Databases: []sut.Peer{peer}, QueryTimeout: patience})
	owns := func(b photos.Bucket) bool { return home(b) == peer.Shard }
	var owned []photos.Bucket
	for b := range photos.Bucket(photos.Buckets) {
		if owns(b) {
			owned = append(owned, b)
		}
	}
	if err := errors.Join(part.CreateShard(t.Context(), owned), part.LoadShard(t.Context(), k.data, owns)); err != nil {
		t.Fatal(err)
	}
	return part
}

func (k kit) open(t *testing.T, peers []sut.Peer) *Store {
	return openWith(t, store.Config{Databases: peers, MaxConns: 8, QueryTimeout: patience, PushBelow: k.pushBelow})
}

// peers returns the databases of the shards.
func (k kit) peers() (all []sut.Peer) {
	for _, part := range k.shards {
		all = append(all, part.Databases()...)
	}
	return all
}

// move moves a bucket with the next epoch.
func (k kit) move(ctx context.Context, b photos.Bucket, from, to int, onStep func(string)) error {
	_, err := k.MoveBucket(ctx, store.BucketMove{
		Bucket: b, From: from, To: to, Epoch: k.ids.last.Add(2), Lease: lease, OnStep: onStep,
	})
	return err
}

// clean deletes the rows of a bucket that was moved.
func (k kit) clean(ctx context.Context, b photos.Bucket, from, to int) error {
	return k.CleanBucket(ctx, store.BucketMove{Bucket: b, From: from, To: to, Lease: lease})
}

// placedPhoto adds a photo of a user, and returns it with its bucket and the shard that owns it.
func (k kit) placedPhoto(t *testing.T, user photos.ID) (p photos.Photo, b photos.Bucket, shard int) {
	t.Helper()
	p = k.newPhoto(t, user)
	return p, p.ID.Bucket(), k.shardOf(t, p.ID.Bucket())
}

// shardOf returns the number of the shard that owns a bucket.
func (k kit) shardOf(t *testing.T, b photos.Bucket) (shard int) {
	t.Helper()
	for i, part := range k.shards {
		known, err := part.Buckets(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(known, func(o sut.ShardBucket) bool { return o.Owned() && o.Bucket == int(b) }) {
			if shard != 0 {
				t.Fatalf("shards %d and %d own bucket %d", shard, i+1, b)
			}
			shard = i + 1
		}
	}
	return shard
}

// placed finds each loaded user and photo at one shard: that of its bucket.
func placed(t *testing.T, k kit) {
	for table, bucket := range map[string]func(photos.ID) photos.Bucket{
		"users": photos.BucketOf, "photos": photos.ID.Bucket, "comments": nil,
	} {
		at := map[string]int{}
		for i, part := range k.shards {
			if err := part.Rows(t.Context(), table, func(r store.Row) error {
				if at[r.Key] != 0 {
					return fmt.Errorf("row %s of %s is at shards %d and %d", r.Key, table, at[r.Key], i+1)
				}
				at[r.Key] = i + 1
				if bucket == nil {
					return nil
				}
				if b := bucket(photos.ID(r.Values["id"].(int64))); int(b)%2 != i {
					return fmt.Errorf("row %s of %s, bucket %d, is at shard %d", r.Key, table, b, i+1)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		}
		if len(at) == 0 {
			t.Errorf("there are no rows of %s", table)
		}
	}
}

// relayedOnce follows users of other shards, while several callers relay at once.
func relayedOnce(t *testing.T, k kit) {
	ctx := within(t)
	before := k.user(t, 3)
	var fans []photos.User
	for id := photos.ID(70); id < 100; id++ {
		fans = append(fans, k.user(t, id))
	}
	concurrently(t, 2*len(fans), func(i int) error {
		err := k.Follow(ctx, photos.Follow{Follower: fans[i/2].ID, Followee: 3, CreatedUS: 9})
		_, relayed := k.RelayFollows(ctx, 5)
		return errors.Join(err, relayed)
	})
	k.relay(t)
	before.Followers += int64(len(fans))
	before.Version += int64(len(fans))
	same(t, "the user whom all follow", k.user(t, 3), before)
	for _, fan := range fans {
		fan.Following++
		fan.Version++
		same(t, "a follower", k.user(t, fan.ID), fan)
	}
}

// drained moves a bucket while a transaction has written one of its rows and has not committed yet.
func drained(t *testing.T, k kit) {
	ctx := within(t)
	p, b, from := k.placedPhoto(t, 5)
	conn, texts := k.dial(t, from)
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, texts["guard write"], int64(b), time.Now().UnixMicro()); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, texts["like"], p.ID); err != nil {
		t.Fatal(err)
	}
	fenced, moved := make(chan struct{}), make(chan error, 1)
	go func() {
		moved <- k.move(ctx, b, from, 3, func(step string) {
			if step == "compare" {
				close(fenced)
			}
		})
	}()
	select {
	case <-fenced:
		t.Error("the fence did not wait for a write of the bucket that had begun")
	case <-time.After(300 * time.Millisecond):
	}
	if err := errors.Join(tx.Commit(ctx), <-moved); err != nil {
		t.Fatal(err)
	}
	p.Likes++
	p.Version++
	same(t, "the photo at its new shard", k.photo(t, p.ID), p)
	if err := errors.Join(k.clean(ctx, b, from, 3), k.move(ctx, b, 3, from, nil), k.clean(ctx, b, 3, from)); err != nil {
		t.Fatal(err)
	}
	same(t, "the photo at its old shard", k.photo(t, p.ID), p)
}

// interrupted ends the mover before each step, as if its process had died. Meanwhile reads of the bucket are answered,
// unless it has no owner, and the next call moves it.
func interrupted(t *testing.T, k kit) {
	for _, died := range []string{"copy", "fence", "compare", "release", "take"} {
		ctx := within(t)
		p, b, from := k.placedPhoto(t, 7)
		to := 1 + from%3
		var mover sync.WaitGroup
		mover.Go(func() {
			err := k.move(ctx, b, from, to, func(step string) {
				if step == died {
					runtime.Goexit()
				}
			})
			t.Errorf("%s: the move went on: %v", died, err)
		})
		mover.Wait()
		if died != "take" {
			same(t, died+": the photo meanwhile", k.photo(t, p.ID), p)
		}
		if err := k.move(ctx, b, from, to, nil); err != nil {
			t.Fatalf("%s: %v", died, err)
		}
		same(t, died+": the shard", k.shardOf(t, b), to)
		same(t, died+": the photo", k.photo(t, p.ID), p)
		if err := k.move(ctx, b, from, to, nil); err != nil {
			t.Errorf("%s: a move that was done: %v", died, err)
		}
		if err := k.clean(ctx, b, from, to); err != nil {
			t.Errorf("%s: %v", died, err)
		}
		if _, err := k.Like(ctx, p.ID, 1); err != nil {
			t.Errorf("%s: %v", died, err)
		}
	}
}

// repaired makes one shard forget the last thing that it did for a move, as a failover may.
func repaired(t *testing.T, k kit) {
	ctx := within(t)
	p, b, from := k.placedPhoto(t, 11)
	to := 1 + from%3
	if err := k.move(ctx, b, from, to, nil); err != nil {
		t.Fatal(err)
	}
	same(t, "the photo after the move", k.photo(t, p.ID), p)
	// The source forgets that it has released the bucket. What the target has is newer.
	if err := k.forget(t, from, b, "owned", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Like(ctx, p.ID, 1); err != nil {
		t.Fatal(err)
	}
	p.Likes++
	p.Version++
	if err := k.move(ctx, b, from, to, nil); err != nil {
		t.Fatal(err)
	}
	same(t, "the shard", k.shardOf(t, b), to)
	same(t, "the photo", k.photo(t, p.ID), p)
	// A copy that was not taken gets lost, and the source has released the bucket.
	var mover sync.WaitGroup
	mover.Go(func() {
		_ = k.move(ctx, b, to, from, func(step string) {
			if step == "take" {
				runtime.Goexit()
			}
		})
	})
	mover.Wait()
	if err := k.forget(t, from, b, "copied", 2); err != nil {
		t.Fatal(err)
	}
	if err := k.clean(ctx, b, to, from); err == nil {
		t.Error("the only rows of the bucket were deleted")
	}
	if err := k.move(ctx, b, to, from, nil); err == nil {
		t.Error("a bucket without a copy was moved")
	}
	same(t, "the photo after that", k.photo(t, p.ID), p)
	if err := errors.Join(k.move(ctx, b, to, from, nil), k.clean(ctx, b, to, from)); err != nil {
		t.Fatal(err)
	}
	same(t, "the photo at the first shard", k.photo(t, p.ID), p)
}

// forget sets the state of a bucket at a shard: copied, or owned.
func (k kit) forget(t *testing.T, shard int, b photos.Bucket, state string, epoch int64) error {
	t.Helper()
	conn, texts := k.dial(t, shard)
	_, err := conn.Exec(t.Context(), texts["bucket is copied"], int64(b), epoch)
	if err == nil && state == "owned" {
		_, err = conn.Exec(t.Context(), texts["take bucket"], epoch, int64(b), epoch)
	}
	return err
}

// movedInUse moves some of the buckets to the third shard and back while readers and writers use the store. Each list
// is complete and has no row twice; no operation fails; each acknowledged write is there.
func movedInUse(t *testing.T, k kit) {
	ctx := t.Context()
	stale := k.open(t, k.peers())
	if _, err := stale.User(ctx, 1); err != nil { // it knows the owners before the moves
		t.Fatal(err)
	}
	u := newUsage(t, k)
	stop := make(chan struct{})
	var users sync.WaitGroup
	for i := range 4 {
		users.Go(func() { u.use(ctx, uint64(i), stop) })
	}
	var moved []photos.Bucket // few enough for the race detector
	for b := photos.Bucket(0); b < photos.Buckets; b += 41 {
		moved = append(moved, b)
	}
	for _, id := range slices.Concat(readers(), uploaders()) {
		if b := photos.BucketOf(id); !slices.Contains(moved, b) {
			moved = append(moved, b)
		}
	}
	each := func(do func(b photos.Bucket) error) {
		for _, b := range moved {
			if err := do(b); err != nil {
				t.Errorf("bucket %d: %v", b, err)
				return
			}
		}
	}
	each(func(b photos.Bucket) error { return k.move(ctx, b, home(b), 3, nil) })
	each(func(b photos.Bucket) error { return k.clean(ctx, b, home(b), 3) }) // no operation lasts as long as all moves
	if _, err := stale.Like(ctx, u.photos[0].ID, 1); err != nil {
		t.Errorf("a store with an old map: %v", err)
	}
	u.likes[u.photos[0].ID].Add(1)
	each(func(b photos.Bucket) error { return k.move(ctx, b, 3, home(b), nil) })
	close(stop)
	users.Wait()
	each(func(b photos.Bucket) error { return k.clean(ctx, b, 3, home(b)) })
	t.Logf("%d buckets moved and moved back; %d lists, %d writes", len(moved), u.lists.Load(), u.writes.Load())
	if u.lists.Load() == 0 || u.writes.Load() == 0 {
		t.Error("nobody used the store meanwhile")
	}
	u.check(t)
}
