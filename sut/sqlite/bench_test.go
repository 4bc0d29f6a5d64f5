package sqlite_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/sqlite"
	"github.com/stagebench/stagebench/sut/store/storetest"
)

// dataSet is a set of data for the store, by its numbers of records. Each user follows 20 others, without a power law.
type dataSet struct{ users, photos int }

// benchData returns a data set of the size of the preset "small".
func benchData() dataSet { return dataSet{users: 1_000, photos: 3_000} }

// Users returns the users.
func (d dataSet) Users() iter.Seq[photos.User] {
	return count(d.users, func(i int) photos.User {
		return photos.User{
			ID: photos.ID(i), Login: fmt.Sprintf("user-%d", i), Name: fmt.Sprintf("User %d", i),
			Password: "salt$0123456789abcdef0123456789abcdef", Version: 1,
		}
	})
}

// Photos returns the photos.
func (d dataSet) Photos() iter.Seq[photos.Photo] {
	return count(d.photos, func(i int) photos.Photo {
		return photos.Photo{
			ID: photos.ID(i), UserID: photos.ID(i%d.users + 1), Title: fmt.Sprintf("photo number %d", i),
			State: photos.StateReady, Width: 160, Height: 120, Bytes: 5000, Version: 1,
			CreatedUS: int64(1_700_000_000_000_000 + i*7919%d.photos),
		}
	})
}

// Comments returns two comments per photo.
func (d dataSet) Comments() iter.Seq[photos.Comment] {
	return count(2*d.photos, func(i int) photos.Comment {
		return photos.Comment{
			ID: photos.ID(i), PhotoID: photos.ID(i%d.photos + 1), UserID: photos.ID(i%d.users + 1),
			Text: "what a nice photo this is", CreatedUS: int64(i),
		}
	})
}

// Follows returns 20 follows per user.
func (d dataSet) Follows() iter.Seq[photos.Follow] {
	return count(20*d.users, func(i int) photos.Follow {
		follower, k := (i-1)/20, (i-1)%20
		followee := (follower+37*k+1)%d.users + 1
		return photos.Follow{Follower: photos.ID(follower + 1), Followee: photos.ID(followee), CreatedUS: int64(i - 1)}
	})
}

// count returns record(1) to record(n).
func count[T any](n int, record func(i int) T) iter.Seq[T] {
	return func(yield func(T) bool) {
		for i := 1; i <= n; i++ {
			if !yield(record(i)) {
				return
			}
		}
	}
}

// BenchmarkStore measures the operations of the store through pgx and loopback. The node runs in its own process, as in
// a system under test. node-us/op is the CPU time of the node per operation; unlike the rate, it does not depend on
// other load of the machine.
func BenchmarkStore(b *testing.B) {
	for _, durability := range []string{"full", "normal"} {
		b.Run(durability, func(b *testing.B) {
			node := &process{dir: b.TempDir(), address: porttest.Free(b).String(), durability: durability}
			node.Restart(b)
			b.Cleanup(func() { node.Kill(b) })
			s := storetest.Open(b, node.address)
			if err := errors.Join(s.CreateSchema(b.Context()), s.Load(b.Context(), benchData())); err != nil {
				b.Fatal(err)
			}
			benchOps(b, s, node)
		})
	}
}

func benchOps(b *testing.B, s *storetest.Store, node *process) {
	ctx := context.Background()
	var ids atomic.Int64
	photo := func(r *rand.Rand) photos.ID { return photos.ID(r.IntN(benchData().photos) + 1) }
	user := func(r *rand.Rand) photos.ID { return photos.ID(r.IntN(benchData().users) + 1) }
	for _, op := range []struct {
		name string
		do   func(r *rand.Rand) error
	}{
		{"photo", func(r *rand.Rand) error { _, err := s.Photo(ctx, photo(r)); return err }},
		{"feed", func(r *rand.Rand) error { _, err := s.Feed(ctx, user(r), 20); return err }},
		{"like", func(r *rand.Rand) error { _, err := s.Like(ctx, photo(r), 1); return err }},
		{"comment", func(r *rand.Rand) error {
			_, err := s.Comment(ctx, photos.Comment{
				ID: photos.ID(1<<40 + ids.Add(1)), PhotoID: photo(r), UserID: user(r), Text: "what a nice photo this is",
			})
			return err
		}},
		{"follow", func(r *rand.Rand) error {
			return s.Follow(ctx, photos.Follow{Follower: user(r), Followee: user(r), CreatedUS: 1})
		}},
	} {
		b.Run(op.name, func(b *testing.B) {
			b.SetParallelism(8)
			var seed atomic.Uint64
			before := node.cpu(b)
			b.RunParallel(func(pb *testing.PB) {
				r := rand.New(rand.NewPCG(1, seed.Add(1)))
				for pb.Next() {
					if err := op.do(r); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
			b.ReportMetric(float64((node.cpu(b)-before).Microseconds())/float64(b.N), "node-us/op")
		})
	}
}

func BenchmarkWriteBack(b *testing.B) {
	for _, durability := range []string{"full", "normal"} {
		b.Run(durability, func(b *testing.B) {
			node := &process{dir: b.TempDir(), address: porttest.Free(b).String(), durability: durability}
			node.Restart(b)
			b.Cleanup(func() { node.Kill(b) })
			storetest.WriteBack(b, storetest.Open(b, node.address))
		})
	}
}

// BenchmarkReplication measures the cost of replication for a write: without a log, with a log, with one replica, and
// with one synchronous replica.
func BenchmarkReplication(b *testing.B) {
	for _, durability := range []string{"full", "normal"} {
		base := b.TempDir()
		seed := &process{dir: base, address: porttest.Free(b).String(), durability: durability}
		seed.Restart(b)
		s := storetest.Open(b, seed.address)
		if err := errors.Join(s.CreateSchema(b.Context()), s.Load(b.Context(), benchData())); err != nil {
			b.Fatal(err)
		}
		seed.Kill(b)
		start := func(b *testing.B, r *sqlite.Replication) *process {
			p := &process{dir: b.TempDir(), address: porttest.Free(b).String(), durability: durability, replication: r}
			if err := os.CopyFS(p.dir, os.DirFS(base)); err != nil {
				b.Fatal(err)
			}
			p.Restart(b)
			b.Cleanup(func() { p.Kill(b) })
			return p
		}
		for _, copies := range []string{"none", "log", "replica", "sync"} {
			b.Run(durability+"/"+copies, func(b *testing.B) {
				var log *sqlite.Replication
				if copies != "none" {
					log = &sqlite.Replication{Node: "db-1", State: sut.Replication{Epoch: 1}}
				}
				if copies == "sync" {
					log.SyncCopies = 1
				}
				primary := start(b, log)
				if copies == "replica" || copies == "sync" {
					state := sut.Replication{Epoch: 1, Primary: &sut.Peer{Node: "db-1", Address: primary.address}}
					start(b, &sqlite.Replication{Node: "db-2", State: state})
				}
				s := storetest.Open(b, primary.address)
				var err error
				for range 100 { // until the replica is connected
					if _, err = s.Like(b.Context(), 1, 1); err == nil {
						break
					}
				}
				if err != nil {
					b.Fatal(err)
				}
				benchLikes(b, s, primary)
			})
		}
	}
}

func benchLikes(b *testing.B, s *storetest.Store, node *process) {
	b.SetParallelism(8)
	var seed atomic.Uint64
	before := node.cpu(b)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		r := rand.New(rand.NewPCG(1, seed.Add(1)))
		for pb.Next() {
			if _, err := s.Like(context.Background(), photos.ID(r.IntN(benchData().photos)+1), 1); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
	b.ReportMetric(float64((node.cpu(b)-before).Microseconds())/float64(b.N), "node-us/op")
}

// cpu returns the CPU time of the node's process, in steps of 10 ms.
func (p *process) cpu(b *testing.B) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		b.Skip("node-us/op needs Linux's /proc: " + err.Error())
	}
	// The name, in parentheses, may contain spaces. utime and stime are the 12th and 13th fields after it.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// BenchmarkMultiPrimary measures updates of one client at one of three primaries. "alone" is a primary with a log and
// no replicas, "disconnected" a multi-primary node without connections to others.
func BenchmarkMultiPrimary(b *testing.B) {
	update := func(b *testing.B, n *testNode) {
		conn := connect(b, n.Server)
		for i := 0; b.Loop(); i++ {
			run(b, conn, setText, "text", i%10)
			run(b, conn, grow, 1, i%10)
		}
	}
	b.Run("alone", func(b *testing.B) {
		update(b, startNode(b, newTemplate(b), "db-1", nil, func(cfg *sqlite.Config) { cfg.Statements = notesAndUsers() }))
	})
	b.Run("disconnected", func(b *testing.B) {
		c := startPrimaries(b, func(int, int) []int { return nil }, nil)
		update(b, c.nodes[0])
	})
	for name, by := range topologies() {
		b.Run(name, func(b *testing.B) {
			c := startPrimaries(b, by, nil)
			update(b, c.nodes[0])
			c.awaitEqual(b)
		})
	}
}
