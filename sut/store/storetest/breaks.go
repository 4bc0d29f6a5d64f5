package storetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/store"
)

// leaseEnds lets the lease of a fence end while the release waits for a transaction that has begun. The transaction
// then writes the bucket, because the fence does not hold any more.
func leaseEnds(t *testing.T, k kit) {
	ctx := within(t)
	p, b, from := k.placedPhoto(t, 13)
	conn, texts := k.dial(t, from)
	written := make(chan error, 1)
	const held = 4 * pause
	_, err := k.MoveBucket(ctx, store.BucketMove{
		Bucket: b, From: from, To: 3, Epoch: k.ids.last.Add(2), Lease: held, OnStep: func(step string) {
			if step != "release" {
				return
			}
			tx, err := conn.Begin(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			other := (int64(b) + 2) % photos.Buckets // of the same shard
			if _, err := tx.Exec(ctx, texts["guard write"], other, time.Now().UnixMicro()); err != nil {
				t.Error(err)
			}
			go func() {
				time.Sleep(held + pause)
				_, refused := tx.Exec(ctx, texts["guard write"], int64(b), time.Now().UnixMicro())
				if refused != nil {
					written <- errors.Join(refused, tx.Rollback(ctx))
					return
				}
				_, err := tx.Exec(ctx, texts["like"], p.ID)
				written <- errors.Join(err, tx.Commit(ctx))
			}()
		},
	})
	if refused := <-written; refused == nil {
		p.Likes++
		p.Version++
	}
	same(t, fmt.Sprintf("the photo after a move that ended with %v", err), k.photo(t, p.ID), p)
	k.goHome(t, b)
}

// deadReplica reads a bucket that has moved with a store that does not know it yet, and that knows that a replica of
// the old shard is dead.
func deadReplica(t *testing.T, k kit) {
	ctx := within(t)
	p, b, from := k.placedPhoto(t, 13)
	var peers []sut.Peer
	for _, peer := range k.peers() {
		peers = append(peers, peer, sut.Peer{Node: "dead-" + peer.Node, Address: "127.0.0.1:1", Shard: peer.Shard})
	}
	s := k.open(t, peers)
	if _, err := s.Photo(ctx, p.ID); err != nil { // the replica is tried last from now on
		t.Fatal(err)
	}
	if err := k.move(ctx, b, from, 3, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Photo(ctx, p.ID); err != nil {
		t.Errorf("a dead replica of the old shard: %v", err)
	}
	k.goHome(t, b)
}

// nobodyFollows makes a user who does not exist follow one of each shard.
func nobodyFollows(t *testing.T, k kit) {
	ctx := within(t)
	const nobody = 1_000_000
	for _, followee := range []photos.ID{101, 102, 103, 104} {
		before := k.user(t, followee)
		err := k.Follow(ctx, photos.Follow{Follower: nobody, Followee: followee, CreatedUS: 1})
		wants(t, "a follow by nobody", err, photos.ErrNotFound)
		k.relay(t)
		same(t, "the followee", k.user(t, followee), before)
	}
}

// longTexts moves a bucket with many comments of the greatest length.
func longTexts(t *testing.T, k kit) {
	ctx := within(t)
	p, b, from := k.placedPhoto(t, 13)
	for range 60 {
		if _, err := k.Comment(ctx, photos.Comment{
			ID: k.ids.photo(p.UserID), PhotoID: p.ID, UserID: 1, Text: strings.Repeat("ü", 2000), CreatedUS: 1,
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.move(ctx, b, from, 3, nil); err != nil {
		t.Error(err)
	} else if got := len(k.comments(t, p.ID)); got != 120 {
		t.Errorf("%d comments at both shards, want 120", got)
	}
	if err := k.DeletePhoto(ctx, p.ID, p.UserID); err != nil {
		t.Error(err)
	}
	k.goHome(t, b)
}

// relayedAfterMove moves the bucket of a user whose follow waits. What the old shard still has is not relayed for ever.
func relayedAfterMove(t *testing.T, k kit) {
	ctx := within(t)
	k.relay(t)
	const follower = 105
	b := photos.BucketOf(follower)
	from := k.shardOf(t, b)
	followee := photos.ID(106)
	for k.shardOf(t, photos.BucketOf(followee)) == from {
		followee++
	}
	before := k.user(t, followee)
	if err := k.Follow(ctx, photos.Follow{Follower: follower, Followee: followee, CreatedUS: 1}); err != nil {
		t.Fatal(err)
	}
	if err := k.move(ctx, b, from, 3, nil); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{1, 0} {
		relayed, err := k.RelayFollows(ctx, 10)
		if err != nil {
			t.Fatal(err)
		}
		if relayed != want {
			t.Errorf("relay %d: %d follows, want %d", i, relayed, want)
		}
	}
	before.Followers++
	before.Version++
	same(t, "the followee", k.user(t, followee), before)
	if err := k.clean(ctx, b, from, 3); err != nil {
		t.Fatal(err)
	}
	k.goHome(t, b)
}

// onlyCopy moves a bucket again although the target has forgotten that it owns it, and the source has deleted its rows.
func onlyCopy(t *testing.T, k kit) {
	ctx := within(t)
	p, b, from := k.placedPhoto(t, 13)
	if err := errors.Join(k.move(ctx, b, from, 3, nil), k.clean(ctx, b, from, 3)); err != nil {
		t.Fatal(err)
	}
	epoch := k.ids.last.Load() + 1
	if err := k.forget(t, 3, b, "copied", epoch); err != nil {
		t.Fatal(err)
	}
	if err := k.move(ctx, b, from, 3, nil); err == nil && k.shardOf(t, b) == 0 {
		t.Error("a bucket without an owner was moved")
	}
	if k.has(t, 3, "photos", fmt.Sprint(int64(p.ID))) != 1 {
		t.Error("the only copy of the bucket was deleted")
	}
	if k.shardOf(t, b) == 0 {
		if err := k.forget(t, 3, b, "owned", epoch); err != nil {
			t.Fatal(err)
		}
	}
	k.goHome(t, b)
}

// mixedOwners lists photos with a store that learns of a move from one of its two shards only: it asks the source
// before the move, and the target after it. The store has the answer of the source already, from its first attempt.
func mixedOwners(t *testing.T, k kit) {
	ctx := within(t)
	user := photos.ID(1)
	for k.shardOf(t, photos.BucketOf(user)) != 1 {
		user++
	}
	p := k.newPhoto(t, user)
	b, another := p.ID.Bucket(), photos.Bucket(1)
	for k.shardOf(t, another) != 2 {
		another += 2
	}
	if err := errors.Join(k.move(ctx, another, 2, 3, nil), k.clean(ctx, another, 2, 3)); err != nil {
		t.Fatal(err)
	}
	peers := k.peers()
	slow := newTap(t, peers[1].Address)
	peers[1].Address = slow.address
	s := openWith(t, store.Config{Databases: peers, MaxConns: 1, QueryTimeout: patience})
	if _, err := s.Newest(ctx, 1000); err != nil { // all statements are prepared from now on
		t.Fatal(err)
	}
	if err := k.move(ctx, another, 3, 2, nil); err != nil { // shards 2 and 3 refuse the first attempt
		t.Fatal(err)
	}
	held := slow.hold(1)
	type result struct {
		list []photos.Photo
		err  error
	}
	done := make(chan result, 1)
	go func() {
		list, err := s.Newest(ctx, 1000)
		done <- result{list, err}
	}()
	<-held
	time.Sleep(pause) // shard 1 says what it owns
	if err := k.move(ctx, b, 1, 2, nil); err != nil {
		t.Fatal(err)
	}
	slow.letGo()
	got := <-done
	if got.err != nil {
		t.Fatal(got.err)
	}
	if times := len(slices.DeleteFunc(got.list, func(f photos.Photo) bool { return f.ID != p.ID })); times != 1 {
		t.Errorf("the photo is in the list %d times", times)
	}
	if err := errors.Join(k.clean(ctx, another, 3, 2), k.clean(ctx, b, 1, 2)); err != nil {
		t.Fatal(err)
	}
	k.goHome(t, b)
}

// tap forwards connections to a database. It can hold back what a client sends.
type tap struct {
	address string

	mu      sync.Mutex
	passing int           // messages that pass before one is held back; -1 = all
	held    chan struct{} // closed when a message is held back
	release chan struct{}
}

func newTap(t *testing.T, database string) *tap {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	p := &tap{address: listener.Addr().String(), passing: -1}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", database)
			if err != nil {
				_ = client.Close()
				continue
			}
			go forward(client, server, func() {})
			go forward(server, client, p.wait)
		}
	}()
	return p
}

// hold lets some messages of the client pass, and holds the next one back until letGo. held is closed then.
func (p *tap) hold(passing int) (held <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.passing, p.held, p.release = passing, make(chan struct{}), make(chan struct{})
	return p.held
}

// letGo lets all messages pass.
func (p *tap) letGo() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.passing = -1
	close(p.release)
}

func (p *tap) wait() {
	p.mu.Lock()
	hold, release := p.passing == 0, p.release
	if p.passing >= 0 {
		p.passing--
	}
	if hold {
		close(p.held)
	}
	p.mu.Unlock()
	if hold {
		<-release
	}
}

// forward copies until one of both connections ends. It calls before for each message.
func forward(to, from net.Conn, before func()) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 1<<16)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		before()
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// dial opens a connection to a shard, and returns the texts of all statements.
func (k kit) dial(t *testing.T, shard int) (conn *pgx.Conn, texts map[string]string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", store.User,
		k.peers()[shard-1].Address, store.Database))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	texts = map[string]string{}
	for _, s := range store.Statements() {
		texts[s.Name] = s.SQL
	}
	return conn, texts
}
