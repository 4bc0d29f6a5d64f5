package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

// pushed is the number of followers from which on the photos of a user are not pushed.
const pushed = 3

// runFeeds runs the checks of denormalised feeds. Each compares feeds with those that are read from all shards.
func runFeeds(t *testing.T, k kit) {
	f := k.feeds(t)
	for _, check := range []struct {
		name string
		run  func(*testing.T, feeds)
	}{
		{"all feeds are complete", allFeeds},
		{"a photo is pushed to a feed that was built", photoIsPushed},
		{"a photo of a user with many followers is pulled", photoIsPulled},
		{"photos that were deleted are in no feed", photoIsDeleted},
		{"an upload that ends at any moment is pushed", uploadEnds},
		{"a lost state, an old one and a dead build", stateIsLost},
		{"photos that are added at any moment of a build", photosMeanwhile},
		{"a follow at any moment of a build", followMeanwhile},
		{"the reader moves at any moment of a build", moveMeanwhile},
		{"a photo waits while its owner moves", ownerMoves},
		{"a push finds a reader who has moved", readerMoves},
		{"a push that fails is repeated", pushFails},
	} {
		t.Run(check.name, func(t *testing.T) { check.run(t, f) })
	}
}

// feeds is a kit with denormalised feeds, and a store over the same shards that reads feeds from all of them.
type feeds struct {
	kit
	plain *Store
}

func (k kit) feeds(t *testing.T) feeds {
	plain := k
	plain.pushBelow = 0
	return feeds{k, plain.open(t, k.peers())}
}

// same compares the feeds of a reader when everything was relayed.
func (f feeds) same(t *testing.T, what string, reader photos.ID) {
	t.Helper()
	f.relay(t)
	for _, limit := range []int{7, 60, 1000, 1} { // also more than an earlier build was asked for
		got, err := f.Feed(t.Context(), reader, limit)
		want, further := f.plain.Feed(t.Context(), reader, limit)
		if err := errors.Join(err, further); err != nil {
			t.Fatal(err)
		}
		same(t, fmt.Sprintf("%s: feed of %d, at most %d", what, reader, limit), got, want)
	}
}

// state returns the token and the state of a feed at a shard; empty = there is none.
func (f feeds) state(t *testing.T, shard int, reader photos.ID) (token, state string) {
	t.Helper()
	conn, texts := f.dial(t, shard)
	rows, err := conn.Query(t.Context(), texts["stored feed"], reader, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			t.Fatal(err)
		}
		token, state = values[0].(string), values[2].(string)
	}
	return token, state
}

// exec runs a statement of the catalogue at the shard of a reader.
func (f feeds) exec(t *testing.T, reader photos.ID, name string, args ...any) {
	t.Helper()
	conn, texts := f.dial(t, f.shardOf(t, photos.BucketOf(reader)))
	if _, err := conn.Exec(t.Context(), texts[name], args...); err != nil {
		t.Fatal(err)
	}
}

// follow makes a user follow another one.
func (f feeds) follow(t *testing.T, follower, followee photos.ID) {
	t.Helper()
	if err := f.Follow(t.Context(), photos.Follow{Follower: follower, Followee: followee, CreatedUS: 1}); err != nil {
		t.Fatal(err)
	}
}

// near returns n users at the shard of a reader and n at another one, whom few follow.
func (f feeds) near(t *testing.T, reader photos.ID, n int) (all []photos.ID) {
	t.Helper()
	counts := map[bool]int{}
	for id := photos.ID(61); id <= testUsers; id++ {
		here := home(photos.BucketOf(id)) == home(photos.BucketOf(reader))
		if counts[here] < n && id != reader && f.user(t, id).Followers < pushed-1 {
			all = append(all, id)
			counts[here]++
		}
	}
	if len(all) != 2*n {
		t.Fatalf("%d users whom few follow, want %d", len(all), 2*n)
	}
	return all
}

func allFeeds(t *testing.T, f feeds) {
	for _, when := range []string{"built", "stored", "after uploads"} {
		for reader := photos.ID(1); reader <= testUsers; reader += 10 {
			f.same(t, when, reader)
		}
		if when == "stored" {
			for owner := photos.ID(1); owner <= testUsers; owner += 2 {
				f.newPhoto(t, owner)
				f.newPhotoAt(t, owner, 1_900_000_000_000_000+int64(owner))
			}
		}
	}
}

// photoIsPushed uploads photos of a user of the same shard and of another one. The feed is not built again.
func photoIsPushed(t *testing.T, f feeds) {
	const reader = 115
	followed := f.near(t, reader, 1)
	for _, id := range followed {
		f.follow(t, reader, id)
	}
	f.same(t, "after the follows", reader)
	at := f.shardOf(t, photos.BucketOf(reader))
	token, state := f.state(t, at, reader)
	if state != "built" {
		t.Fatalf("the state of the feed is %q", state)
	}
	for _, id := range followed {
		f.newPhotoAt(t, id, 1_910_000_000_000_000)
	}
	f.same(t, "after uploads", reader)
	if now, _ := f.state(t, at, reader); now != token {
		t.Error("the feed was built again")
	}
}

// photoIsPulled gives a user more and more followers, until the photos are not pushed any more. All of these followers
// are at the shard of the user, or all are at others.
func photoIsPulled(t *testing.T, f feeds) {
	for i, owner := range f.near(t, 116, 2) {
		var fans []photos.ID
		for fan := photos.ID(testUsers); len(fans) < pushed+1; fan-- {
			here := home(photos.BucketOf(fan)) == home(photos.BucketOf(owner))
			if fan == owner || here != (i%2 == 0) {
				continue
			}
			fans = append(fans, fan)
			f.follow(t, fan, owner)
			f.relay(t)
			f.newPhotoAt(t, owner, 1_920_000_000_000_000+int64(len(fans)))
			for _, fan := range fans {
				f.same(t, fmt.Sprintf("user %d has %d followers more", owner, len(fans)), fan)
			}
		}
		if err := f.DeletePhoto(t.Context(), f.newPhoto(t, owner).ID, owner); err != nil {
			t.Fatal(err)
		}
		f.same(t, "after a deletion", fans[0])
	}
}

// photoIsDeleted deletes the newest photos of a feed.
func photoIsDeleted(t *testing.T, f feeds) {
	const reader = 9
	f.same(t, "before the deletion", reader)
	list, err := f.Feed(t.Context(), reader, 20)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list[:10] {
		if err := f.DeletePhoto(t.Context(), p.ID, p.UserID); err != nil {
			t.Fatal(err)
		}
		got, err := f.Feed(t.Context(), reader, 3)
		want, further := f.plain.Feed(t.Context(), reader, 3)
		if err := errors.Join(err, further); err != nil {
			t.Fatal(err)
		}
		same(t, "the feed after a deletion", got, want)
	}
	f.same(t, "after the deletions", reader)
}

// uploadEnds cuts an upload between any two messages, as the death of a host does. If the photo is there, it is pushed.
func uploadEnds(t *testing.T, f feeds) {
	const reader = 117
	owner := f.near(t, reader, 1)[0]
	f.follow(t, reader, owner)
	f.same(t, "before", reader)
	for passing, ended := 0, false; !ended; passing++ {
		slow, s := f.slow(t, home(photos.BucketOf(owner)))
		held := slow.hold(passing)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- s.AddPhoto(ctx, photos.Photo{
				ID: f.ids.photo(owner), UserID: owner, State: photos.StateReady, CreatedUS: 1_930_000_000_000_000, Version: 1,
			})
		}()
		select {
		case <-held:
			cancel()
			<-done
		case err := <-done:
			ended = true
			if err != nil {
				t.Error(err)
			}
		}
		f.same(t, fmt.Sprintf("an upload ended after %d messages", passing), reader)
		cancel()
		slow.letGo()
	}
}

// stateIsLost loses the state of a feed, and finds states that are too old.
func stateIsLost(t *testing.T, f feeds) {
	const reader = 5
	bucket := photos.BucketOf(reader)
	age := func(d time.Duration) int64 { return time.Now().Add(-d).UnixMicro() }
	f.same(t, "before", reader)
	f.exec(t, reader, "forget feed", reader)
	f.newPhotoAt(t, f.data.follows[10].Followee, 1_940_000_000_000_000)
	f.same(t, "without a state", reader)
	for _, c := range []struct {
		what  string
		age   time.Duration
		built bool // the feed was built, and its rows were lost
		stays bool // the state is left alone
	}{
		{"a build that is under way", 0, false, true},
		{"a dead build", time.Minute, false, false},
		{"an old feed", 11 * time.Minute, true, false},
	} {
		token, _ := f.state(t, f.shardOf(t, bucket), reader)
		f.exec(t, reader, "claim feed", c.what, age(c.age), reader, token)
		f.exec(t, reader, "empty feed", reader, c.what)
		if c.built {
			f.exec(t, reader, "feed is built", 0, 0, "", reader, c.what)
		}
		f.same(t, c.what, reader)
		if now, _ := f.state(t, f.shardOf(t, bucket), reader); (now == c.what) != c.stays {
			t.Errorf("%s: the token is %q afterwards", c.what, now)
		}
	}
	if _, state := f.state(t, f.shardOf(t, bucket), reader); state != "built" {
		t.Errorf("the state is %q in the end", state)
	}
}

// slow returns a store that uses one connection to each shard, and what holds its messages to one of them back. All of
// its statements are prepared.
func (f feeds) slow(t *testing.T, shard int) (*tap, *Store) {
	t.Helper()
	peers := f.peers()
	slow := newTap(t, peers[shard-1].Address)
	peers[shard-1].Address = slow.address
	s := openWith(t, store.Config{Databases: peers, MaxConns: 1, QueryTimeout: patience, PushBelow: f.pushBelow})
	if err := s.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Feed(t.Context(), nobody, 1); err != nil { // it knows the owners
		t.Fatal(err)
	}
	return slow, s
}

// meanwhile builds the feed of a reader, and does something between any two messages of the build to a shard.
func (f feeds) meanwhile(t *testing.T, reader photos.ID, do func(what string)) {
	t.Helper()
	moments := 0
	for shard := 1; shard <= 2; shard++ {
		slow, s := f.slow(t, shard)
		for passing, ended := 0, false; !ended; passing++ {
			f.exec(t, reader, "forget feed", reader)
			held := slow.hold(passing)
			done := make(chan error, 1)
			go func() {
				_, err := s.Feed(t.Context(), reader, 1000)
				done <- err
			}()
			what := fmt.Sprintf("after message %d to shard %d", passing, shard)
			select {
			case err := <-done:
				ended = true
				done <- err
			case <-held:
				moments++
				do(what)
			}
			slow.letGo()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			f.same(t, what, reader)
		}
	}
	t.Logf("%d moments", moments)
	if moments < 4 {
		t.Errorf("a build has %d messages, want 4 or more", moments)
	}
}

// photosMeanwhile adds and pushes photos of users of all shards while a feed is built.
func photosMeanwhile(t *testing.T, f feeds) {
	const reader = 9
	f.meanwhile(t, reader, func(string) {
		for _, follow := range f.data.follows {
			if follow.Follower == reader {
				f.newPhotoAt(t, follow.Followee, 1_950_000_000_000_000)
			}
		}
		f.relay(t)
	})
}

// followMeanwhile makes the reader follow further users while the feed is built. In every second case, another build
// begins after that and dies.
func followMeanwhile(t *testing.T, f feeds) {
	const reader = 118
	n := 0
	for range 2 {
		f.meanwhile(t, reader, func(what string) {
			n++
			f.follow(t, reader, photos.ID(60+n))
			f.relay(t)
			if n%2 == 0 {
				f.exec(t, reader, "claim feed", fmt.Sprint(n), time.Now().UnixMicro(), reader, "")
			}
		})
		n++ // the other half of the cases
	}
}

// moveMeanwhile moves the bucket of the reader while the feed is built, and adds photos before and after that.
func moveMeanwhile(t *testing.T, f feeds) {
	const reader = 27
	b := photos.BucketOf(reader)
	var followed []photos.ID
	for _, follow := range f.data.follows {
		if follow.Follower == reader {
			followed = append(followed, follow.Followee)
		}
	}
	upload := func() {
		for _, id := range followed {
			f.newPhotoAt(t, id, 1_960_000_000_000_000)
		}
		f.relay(t)
	}
	f.meanwhile(t, reader, func(what string) {
		from := f.shardOf(t, b)
		to := 1 + from%3
		upload()
		if err := f.move(t.Context(), b, from, to, nil); err != nil {
			t.Fatal(err)
		}
		upload()
		if err := f.clean(t.Context(), b, from, to); err != nil {
			t.Fatal(err)
		}
		if _, state := f.state(t, from, reader); state != "" {
			t.Errorf("%s: the old shard has the state %q after it was cleaned", what, state)
		}
	})
	f.goHome(t, b)
	f.same(t, "at home", reader)
	// What an earlier move has left is not used.
	from := f.shardOf(t, b)
	if err := f.move(t.Context(), b, from, 3, nil); err != nil {
		t.Fatal(err)
	}
	upload()
	f.goHome(t, b)
	f.same(t, "at home again, without cleaning", reader)
}

// ownerMoves moves the bucket of a user whose photo was not pushed yet. A store that does not know of the move finds
// the photo, too.
func ownerMoves(t *testing.T, f feeds) {
	const reader = 119
	owner := f.near(t, reader, 1)[0]
	b := photos.BucketOf(owner)
	f.follow(t, reader, owner)
	f.same(t, "before", reader)
	from := f.shardOf(t, b)
	f.newPhotoAt(t, owner, 1_970_000_000_000_000)
	stale := f.open(t, f.peers())
	if _, err := stale.User(t.Context(), reader); err != nil {
		t.Fatal(err)
	}
	if err := f.move(t.Context(), b, from, 3, nil); err != nil {
		t.Fatal(err)
	}
	f.same(t, "after the move", reader)
	if err := f.clean(t.Context(), b, from, 3); err != nil {
		t.Fatal(err)
	}
	got, err := stale.Feed(t.Context(), reader, 1000)
	want, further := f.plain.Feed(t.Context(), reader, 1000)
	if err := errors.Join(err, further); err != nil {
		t.Fatal(err)
	}
	same(t, "the feed in a store with an old map", got, want)
	f.goHome(t, b)
	f.same(t, "at home", reader)
}

// pushFails pushes a photo while the bucket of its reader must not be written.
func pushFails(t *testing.T, f feeds) {
	const reader = 120
	owner, b := f.near(t, reader, 1)[0], photos.BucketOf(reader)
	f.follow(t, reader, owner)
	f.same(t, "before", reader)
	f.newPhotoAt(t, owner, 1_990_000_000_000_000)
	f.exec(t, reader, "fence bucket", time.Now().Add(time.Hour).UnixMicro(), int64(b))
	hasty := openWith(t, store.Config{Databases: f.peers(), QueryTimeout: pause, PushBelow: f.pushBelow})
	if _, err := hasty.RelayPhotos(t.Context(), 10); err == nil {
		t.Error("a photo was pushed to a bucket that must not be written")
	}
	f.exec(t, reader, "unfence bucket", int64(b))
	f.same(t, "after the fence", reader)
}

// readerMoves pushes a photo with a store that does not know yet that a reader has moved.
func readerMoves(t *testing.T, f feeds) {
	const reader = 119
	b := photos.BucketOf(reader)
	from := f.shardOf(t, b)
	f.same(t, "before", reader)
	stale := f.open(t, f.peers())
	if _, err := stale.User(t.Context(), reader); err != nil {
		t.Fatal(err)
	}
	owner := f.near(t, reader, 1)[0]
	if err := f.move(t.Context(), b, from, 3, nil); err != nil {
		t.Fatal(err)
	}
	f.same(t, "after the move", reader)
	f.follow(t, reader, owner)
	f.same(t, "after a follow", reader)
	f.newPhotoAt(t, owner, 1_980_000_000_000_000)
	if _, err := stale.RelayPhotos(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	f.same(t, "after a push", reader)
	f.goHome(t, b)
}

// lateReplica builds a feed while a replica lacks a photo that was pushed before. It uses shards of its own.
func lateReplica(t *testing.T, start func(t *testing.T) string) {
	k := newShards(t, []string{start(t), start(t)}, pushed)
	late := sut.Peer{Node: "late", Address: start(t), Shard: 1}
	k.fill(t, late)
	const reader = 61
	f := k.feeds(t)
	followed := f.near(t, reader, 1)
	owner := followed[slices.IndexFunc(followed, func(id photos.ID) bool {
		return home(photos.BucketOf(id)) == late.Shard
	})]
	f.follow(t, reader, owner)
	f.relay(t)
	f.newPhoto(t, owner)
	f.relay(t)
	s := k.open(t, slices.Insert(k.peers(), 1, late))
	if _, err := s.Feed(t.Context(), reader, 7); err != nil {
		t.Fatal(err)
	}
	f.same(t, "after a build", reader)
}
