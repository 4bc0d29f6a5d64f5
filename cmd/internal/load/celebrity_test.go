package load_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// The celebrities are on one of four shards by modulo, and on one of two: this shard gets 72 % or 82 % of the writes.
// With a shard for each celebrity, the load would be even.
func TestCelebritiesOverloadOneShard(t *testing.T) {
	const ops = 40_000
	for _, size := range sut.DataSizes() {
		m := maker(true)
		m.Data.Size = size
		l, err := m.Make("celebrity")
		if err != nil {
			t.Fatal(err)
		}
		var load [photos.Buckets]float64
		elsewhere := 0.0 // uploads and follows go to the shard of their sender, and the senders are on all shards
		for n := range uint64(ops) {
			op := l.Workload.Op(n)
			if id, named := strings.CutPrefix(op.Record, "/api/photos/"); op.Write && named {
				photo, err := strconv.ParseInt(id, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				load[photos.ID(photo).Bucket()]++
			} else if op.Write {
				elsewhere++
			}
		}
		for shards, want := range map[int]float64{2: 1.6, 4: 2.8} {
			sums, total := make([]float64, shards), elsewhere
			for b := range load {
				sums[b%shards] += load[b]
				total += load[b]
			}
			most := slices.Max(sums) + elsewhere/float64(shards)
			if times := most * float64(shards) / total; times < want || times > want+0.2 {
				t.Errorf("%s: one of %d shards has %.2f times the mean load, want %v to %v", size, shards, times, want, want+0.2)
			}
		}
		// The hottest buckets are those of the celebrities, with nearly the same load.
		slices.Sort(load[:])
		if hot := load[photos.Buckets-4:]; hot[0] < 0.9*hot[3] || hot[0] < 20*load[photos.Buckets-5] {
			t.Errorf("%s: the hottest buckets have %v writes: want four times about the same, and little elsewhere", size,
				load[photos.Buckets-5:])
		}
	}
}
