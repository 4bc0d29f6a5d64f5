package preset_test

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/preset"
)

// TestPopularity checks that photos are zipfian: the share of the most popular photo is
// 1/zeta, and it is the same photo for reads, likes and comments. Users are uniform.
func TestPopularity(t *testing.T) {
	each(t, func(t *testing.T, w workloads.Workload) {
		counts := map[workloads.Class]map[int]int{} // class -> id in the path -> ops
		for n := range uint64(300_000) {
			op := w.Op(n)
			if key, found := firstNumber(op.Path); found {
				if counts[op.Class] == nil {
					counts[op.Class] = map[int]int{}
				}
				counts[op.Class][key]++
			}
		}
		var zeta float64
		for rank := 1; rank <= photos; rank++ {
			zeta += math.Pow(float64(rank), -0.99)
		}
		hottest, _, _ := top(counts[preset.Photo])
		for _, class := range []workloads.Class{preset.Photo, preset.Image, preset.Like, preset.Comment} {
			photo, count, total := top(counts[class])
			if !slices.ContainsFunc(shares(w), func(s workloads.Share) bool { return s.Class == class }) {
				continue
			}
			p := 1 / zeta
			off := math.Abs(float64(count)/float64(total)-p) / math.Sqrt(p*(1-p)/float64(total))
			if photo != hottest || off > 3.3 {
				t.Errorf("%s: %d of %d ops are for photo %d; want photo %d with a share of %.4f",
					class, count, total, photo, hottest, p)
			}
		}
		if _, count, total := top(counts[preset.Feed]); float64(count) > 2*float64(total)/users {
			t.Errorf("feed: %d of %d ops are for the same user, which is not uniform", count, total)
		}
	})
}

// firstNumber returns the first number in a path, which is the id of its photo or user.
// It is faster than a pattern.
func firstNumber(path string) (int, bool) {
	from := strings.IndexAny(path, "0123456789")
	if from < 0 {
		return 0, false
	}
	n := 0
	for _, c := range path[from:] {
		if c < '0' || c > '9' {
			break
		}
		n = 10*n + int(c-'0')
	}
	return n, true
}

// top returns the key with the highest count, that count, and the sum of all counts.
func top(counts map[int]int) (key, count, total int) {
	for k, c := range counts {
		total += c
		if c > count {
			key, count = k, c
		}
	}
	return key, count, total
}
