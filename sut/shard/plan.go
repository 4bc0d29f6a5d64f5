package shard

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// Least returns how many buckets have to move at least when one number of shards becomes another one, and all shards
// are to have the same number of buckets before and afterwards.
func Least(from, to int) int { return photos.Buckets * (max(from, to) - min(from, to)) / max(from, to) }

// Balance returns the map in which no shard has more than 1.1 times the mean load, if that is possible, with few moves
// from what shards own now. load is by bucket. If the number of shards changes, it starts from their directory.
func Balance(known map[int][]sut.ShardBucket, load []int64, from, to int) (Map, error) {
	m, err := Fill(Directory, to)
	if err != nil {
		return m, err
	}
	if from == to {
		for number, buckets := range known {
			for _, b := range buckets {
				if b.Owned() {
					m.Owners[b.Bucket] = uint8(number)
				}
			}
		}
	}
	var loads [photos.Buckets]float64
	for b, n := range load[:min(len(load), photos.Buckets)] {
		loads[b] = float64(n)
	}
	return Spread(m, loads, mostLoad), nil
}

// mostLoad is the highest load of a shard that Balance accepts, as a multiple of the mean.
const mostLoad = 1.1

// Plan is the moves that lead to a map, in order.
type Plan struct {
	// Moves are without epochs and databases. A move from a shard to itself takes back a bucket that it has released.
	Moves []sut.BucketMove
	Clean []sut.BucketMove // after all moves: rows that are still at other shards than the owner
	// Missing are buckets of which no shard knows anything that could be continued.
	Missing []int
	Epoch   int64 // the highest epoch so far
}

// NewPlan compares what shards know of buckets, by shard, with the map that is wanted. A bucket without an owner was in
// the middle of a move, which is continued or undone. If two shards own a bucket, because a failover has forgotten a
// move, the older owner gives it up.
func NewPlan(known map[int][]sut.ShardBucket, want Map) (p Plan) {
	at := make([]map[int]sut.ShardBucket, photos.Buckets) // by bucket and shard
	for number, buckets := range known {
		for _, b := range buckets {
			if at[b.Bucket] == nil {
				at[b.Bucket] = map[int]sut.ShardBucket{}
			}
			at[b.Bucket][number] = b
			p.Epoch = max(p.Epoch, b.Epoch)
		}
	}
	for b, states := range at {
		p.add(b, states, want.Owner(photos.Bucket(b)))
	}
	return p
}

// add adds what leads a bucket to its owner. states is by shard.
func (p *Plan) add(bucket int, states map[int]sut.ShardBucket, final int) {
	move := func(from, to int) { p.Moves = append(p.Moves, sut.BucketMove{Bucket: bucket, From: from, To: to}) }
	owner := newest(states, sut.ShardBucket.Owned)
	if owner == 0 {
		from := newest(states, func(b sut.ShardBucket) bool {
			return b.State == sut.BucketReleased || b.State == sut.BucketGone
		})
		if from == 0 {
			p.Missing = append(p.Missing, bucket)
			return
		}
		owner = newest(states, func(b sut.ShardBucket) bool {
			return b.State == sut.BucketCopied && b.Epoch == states[from].Epoch
		})
		if owner == 0 { // there is no copy: the move starts again, or is undone
			owner = final
		}
		move(from, owner)
	}
	for _, number := range numbers(states) {
		if number != owner && states[number].Owned() {
			move(number, owner)
		}
	}
	if owner != final {
		move(owner, final)
	}
	for _, number := range numbers(states) {
		if number != final && states[number].State != sut.BucketGone {
			p.Clean = append(p.Clean, sut.BucketMove{Bucket: bucket, From: number, To: final})
		}
	}
}

// newest returns the shard with the highest epoch of those whose state is eligible, 0 if there is none.
func newest(states map[int]sut.ShardBucket, eligible func(sut.ShardBucket) bool) (found int) {
	for _, number := range numbers(states) {
		if s := states[number]; eligible(s) && (found == 0 || s.Epoch > states[found].Epoch) {
			found = number
		}
	}
	return found
}

// numbers returns the numbers of shards in order.
func numbers(states map[int]sut.ShardBucket) []int {
	return slices.Sorted(maps.Keys(states))
}

// WithoutMoves leaves out the changes by which buckets moved between shards. The next reshard repeats or undoes a move
// that was lost. A row belongs to a move if a commit has changed both the row and the state of its bucket. all is all
// changes of the loss.
func WithoutMoves(changes, all []sut.LostChange) (others []sut.LostChange) {
	type move struct {
		commit string
		bucket photos.Bucket
	}
	moves := map[move]bool{}
	for _, c := range all {
		if bucket, err := strconv.Atoi(c.Key); c.Table == tableOwned && err == nil {
			moves[move{c.Commit, photos.Bucket(bucket)}] = true
		}
	}
	for _, c := range changes {
		if c.Table != tableOwned && !slices.ContainsFunc(bucketsOf(c), func(b photos.Bucket) bool {
			return moves[move{c.Commit, b}]
		}) {
			others = append(others, c)
		}
	}
	return others
}

// tableOwned is the table of a shard that has the states of buckets.
const tableOwned = "owned"

// bucketsOf returns the buckets of a row: a follow is in those of both users.
func bucketsOf(c sut.LostChange) (buckets []photos.Bucket) {
	if c.Table == "names" {
		return []photos.Bucket{photos.BucketOfLogin(c.Key)}
	}
	for text := range strings.SplitSeq(c.Key, "/") {
		id, err := strconv.ParseInt(text, 10, 64)
		switch {
		case err != nil: // a session, which is in no bucket
		case c.Table == "photos" || c.Table == "comments":
			buckets = append(buckets, photos.ID(id).Bucket())
		default:
			buckets = append(buckets, photos.BucketOf(photos.ID(id)))
		}
	}
	return buckets
}
