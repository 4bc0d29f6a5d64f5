package sqlite_test

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/sqlite"
	"github.com/stagebench/stagebench/sut/store/storetest"
)

// benchData has the size of the small data set, without its power law.
type benchData struct{}

const (
	benchUsers  = 1_000
	benchPhotos = 3_000
)

func (benchData) Users() iter.Seq[photos.User] {
	return count(benchUsers, func(i int) photos.User {
		return photos.User{ID: photos.ID(i), Login: fmt.Sprintf("user-%d", i), Name: fmt.Sprintf("User %d", i), Password: "salt$0123456789abcdef0123456789abcdef", Version: 1}
	})
}

func (benchData) Photos() iter.Seq[photos.Photo] {
	return count(benchPhotos, func(i int) photos.Photo {
		return photos.Photo{ID: photos.ID(i), UserID: photos.ID(i%benchUsers + 1), Title: fmt.Sprintf("photo number %d", i), State: photos.StateReady, Width: 160, Height: 120, Bytes: 5000, CreatedUS: int64(1_700_000_000_000_000 + i*7919%benchPhotos), Version: 1}
	})
}

func (benchData) Comments() iter.Seq[photos.Comment] {
	return count(6_000, func(i int) photos.Comment {
		return photos.Comment{ID: photos.ID(i), PhotoID: photos.ID(i%benchPhotos + 1), UserID: photos.ID(i%benchUsers + 1), Text: "what a nice photo this is", CreatedUS: int64(i)}
	})
}

func (benchData) Follows() iter.Seq[photos.Follow] {
	return count(20_000, func(i int) photos.Follow {
		i--
		return photos.Follow{Follower: photos.ID(i/20 + 1), Followee: photos.ID((i/20+37*(i%20)+1)%benchUsers + 1), CreatedUS: int64(i)}
	})
}

func count[T any](n int, record func(i int) T) iter.Seq[T] {
	return func(yield func(T) bool) {
		for i := 1; i <= n; i++ {
			if !yield(record(i)) {
				return
			}
		}
	}
}

// BenchmarkStore measures the store's operations through pgx and loopback,
// client and node in one process. With -cpu 1 both share one core.
func BenchmarkStore(b *testing.B) {
	for _, durability := range []sqlite.Durability{sqlite.Full, sqlite.Normal} {
		b.Run(string(durability), func(b *testing.B) {
			node := serve(b, sqlite.Config{Durability: durability})
			s := storetest.Open(b, node.Addr().String())
			ctx := context.Background()
			b.Run("load", func(b *testing.B) {
				if err := s.CreateSchema(ctx); err != nil {
					b.Fatal(err)
				}
				if b.N == 1 {
					if err := s.Load(ctx, benchData{}); err != nil {
						b.Fatal(err)
					}
				}
			})
			var ids atomic.Int64
			ids.Store(1 << 40)
			photo := func(r *rand.Rand) photos.ID { return photos.ID(r.IntN(benchPhotos) + 1) }
			user := func(r *rand.Rand) photos.ID { return photos.ID(r.IntN(benchUsers) + 1) }
			for _, op := range []struct {
				name string
				do   func(r *rand.Rand) error
			}{
				{"photo", func(r *rand.Rand) error { _, err := s.Photo(ctx, photo(r)); return err }},
				{"feed20", func(r *rand.Rand) error { _, err := s.Feed(ctx, user(r), 20); return err }},
				{"like", func(r *rand.Rand) error { _, err := s.Like(ctx, photo(r), 1); return err }},
				{"comment", func(r *rand.Rand) error {
					_, err := s.Comment(ctx, photos.Comment{ID: photos.ID(ids.Add(1)), PhotoID: photo(r), UserID: user(r), Text: "what a nice photo this is"})
					return err
				}},
				{"follow", func(r *rand.Rand) error {
					return s.Follow(ctx, photos.Follow{Follower: user(r), Followee: user(r), CreatedUS: 1})
				}},
			} {
				b.Run(op.name, func(b *testing.B) {
					before := node.Stats()
					b.SetParallelism(8)
					b.ReportAllocs()
					var seed atomic.Uint64
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
					if after := node.Stats(); after.Commits > before.Commits {
						b.ReportMetric(float64(after.Transactions-before.Transactions)/float64(after.Commits-before.Commits), "tx/commit")
					}
				})
			}
		})
	}
}
