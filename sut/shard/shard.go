// Package shard decides on which shard of the database the rows of a bucket are.
//
// There are photos.Buckets buckets, and one map from buckets to shards. The four ways to place rows are four ways to
// fill the map. A bucket is a hash of a user's id, so ids that follow each other are in different buckets, whatever the
// way. A map has an epoch: it grows with each change of the map, and a shard refuses who has an older one.
//
// All functions are pure, and may be called concurrently. Shards are counted from 1.
package shard

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/stagebench/stagebench/sut/photos"
)

// By is a way to fill the map.
type By string

// With Modulo, the shard of a bucket is its number modulo the number of shards. When a shard is added, most buckets
// move. With Consistent, each bucket belongs to the shard with the highest score for it, so that only the buckets of
// a new shard move. With Range, each shard has buckets that follow each other. With Directory, the map is filled like
// Consistent, and then changed bucket by bucket, for example to spread users whom many others read.
const (
	Modulo     By = "modulo"
	Consistent By = "consistent"
	Range      By = "range"
	Directory  By = "directory"
)

// Ways lists all ways to fill the map.
func Ways() []By { return []By{Modulo, Consistent, Range, Directory} }

// MaxShards is the largest number of shards.
const MaxShards = 16

// Map says which shard has the rows of each bucket. It is a value.
type Map struct {
	Epoch  int64                 `json:"epoch"` // 0 = there are no shards
	Shards int                   `json:"shards"`
	Owners [photos.Buckets]uint8 `json:"owners"` // shard by bucket
}

// Fill returns the map of that many shards, with epoch 1.
func Fill(by By, shards int) (Map, error) {
	if shards < 1 || shards > MaxShards {
		return Map{}, fmt.Errorf("%d shards: want 1 to %d", shards, MaxShards)
	}
	m := Map{Epoch: 1, Shards: shards}
	for b := range photos.Bucket(photos.Buckets) {
		var owner int
		switch by {
		case Modulo:
			owner = int(b) % shards
		case Range:
			owner = int(b) * shards / photos.Buckets
		case Consistent, Directory:
			owner = highest(b, shards)
		default:
			return Map{}, fmt.Errorf("unknown way %q to place buckets: want one of %v", by, Ways())
		}
		m.Owners[b] = uint8(owner + 1)
	}
	return m, nil
}

// highest returns the index of the shard with the highest score for a bucket: rendezvous hashing (Thaler and
// Ravishankar, Using Name-Based Mappings to Increase Hit Rates, IEEE/ACM Transactions on Networking 6(1), 1998).
func highest(b photos.Bucket, shards int) (owner int) {
	var best uint64
	for s := range shards {
		if score := photos.Mix(uint64(b)<<8 | uint64(s) | 1<<32); s == 0 || score > best {
			owner, best = s, score
		}
	}
	return owner
}

// Owner returns the shard of a bucket.
func (m Map) Owner(b photos.Bucket) int { return int(m.Owners[b]) }

// Owned returns the buckets of a shard, in order.
func (m Map) Owned(shard int) (buckets []photos.Bucket) {
	for b, owner := range m.Owners {
		if int(owner) == shard {
			buckets = append(buckets, photos.Bucket(b))
		}
	}
	return buckets
}

// Move is a bucket that changes its shard.
type Move struct {
	Bucket   photos.Bucket
	From, To int
}

// Moves returns the buckets that differ between two maps, in order.
func Moves(from, to Map) (moves []Move) {
	for b := range from.Owners {
		if from.Owners[b] != to.Owners[b] {
			moves = append(moves, Move{photos.Bucket(b), int(from.Owners[b]), int(to.Owners[b])})
		}
	}
	return moves
}

// After returns the map after a move, with the next epoch.
func (m Map) After(move Move) Map {
	m.Owners[move.Bucket] = uint8(move.To)
	m.Epoch++
	m.Shards = max(m.Shards, move.To)
	return m
}

// Imbalance returns the load of the shard with the highest load as a multiple of the mean; 1 if there is no load.
func (m Map) Imbalance(load [photos.Buckets]float64) float64 {
	sums, total := m.sums(load)
	if total == 0 {
		return 1
	}
	return slices.Max(sums) * float64(m.Shards) / total
}

func (m Map) sums(load [photos.Buckets]float64) (sums []float64, total float64) {
	sums = make([]float64, m.Shards)
	for b, l := range load {
		sums[m.Owners[b]-1] += l
		total += l
	}
	return sums, total
}

// Spread returns a map in which no shard has more than most times the mean load, if that is possible. It moves the
// buckets with the highest load first, each to the shard with the lowest one, and no more than it has to.
func Spread(m Map, load [photos.Buckets]float64, most float64) Map {
	order := make([]photos.Bucket, photos.Buckets)
	for b := range order {
		order[b] = photos.Bucket(b)
	}
	slices.SortStableFunc(order, func(a, b photos.Bucket) int { return cmp.Compare(load[b], load[a]) })
	sums, total := m.sums(load)
	limit := most * total / float64(m.Shards)
	for _, b := range order {
		from := m.Owners[b] - 1
		to := uint8(slices.Index(sums, slices.Min(sums)))
		// A bucket with more load than a shard may have moves, too, if it leaves others behind.
		if load[b] == 0 || sums[from] <= limit || from == to || sums[to]+load[b] >= sums[from] {
			continue
		}
		sums[from], sums[to] = sums[from]-load[b], sums[to]+load[b]
		m.Owners[b] = to + 1
	}
	return m
}
