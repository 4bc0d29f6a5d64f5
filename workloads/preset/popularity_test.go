package preset_test

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/preset"
)

// countIDs counts the ids in the paths of the first ops, by class.
func countIDs(w workloads.Workload, ops uint64) map[workloads.Class]map[int]int {
	counts := map[workloads.Class]map[int]int{}
	for n := range ops {
		op := w.Op(n)
		if key, found := firstNumber(op.Path); found {
			if counts[op.Class] == nil {
				counts[op.Class] = map[int]int{}
			}
			counts[op.Class][key]++
		}
	}
	return counts
}

// TestPopularity checks that photos are zipfian: the share of the most popular photo is
// 1/zeta, and it is the same photo for reads, likes and comments. Users are uniform.
// TestCelebrities checks the photos of the other workload.
func TestPopularity(t *testing.T) {
	each(t, func(t *testing.T, w workloads.Workload) {
		counts := countIDs(w, 300_000)
		var zeta float64
		for rank := 1; rank <= photos; rank++ {
			zeta += math.Pow(float64(rank), -0.99)
		}
		hottest, _, _ := top(counts[preset.Photo])
		for _, class := range []workloads.Class{preset.Photo, preset.Image, preset.Like, preset.Comment} {
			photo, count, total := top(counts[class])
			if w.Name() == "celebrity" ||
				!slices.ContainsFunc(shares(w), func(s workloads.Share) bool { return s.Class == class }) {
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

// TestCelebrities checks that the photos of celebrities get 70 % of the ops of each class that names a photo. Within
// both groups, all photos are equally likely.
func TestCelebrities(t *testing.T) {
	t.Parallel()
	counts := countIDs(load(t, "celebrity", params()), 600_000)
	var hot []int
	for photo := 1; photo <= photos; photo++ {
		if slices.Contains(celebrities(), ownerOf(photo)) {
			hot = append(hot, photo)
		}
	}
	percent := map[string]float64{}
	for photo := 1; photo <= photos; photo++ {
		if slices.Contains(hot, photo) {
			percent[strconv.Itoa(photo)] = 70 / float64(len(hot))
		} else {
			percent["others "+strconv.Itoa(photo%100)] += 30 / float64(photos-len(hot))
		}
	}
	for _, class := range []workloads.Class{preset.Photo, preset.Image, preset.Like, preset.Comment} {
		got, total := map[string]int{}, 0
		for photo, count := range counts[class] {
			total += count
			if slices.Contains(hot, photo) {
				got[strconv.Itoa(photo)] += count
			} else {
				got["others "+strconv.Itoa(photo%100)] += count
			}
		}
		if total < 80_000 {
			t.Fatalf("%s: only %d ops", class, total)
		}
		checkChiSquare(t, got, percent)
	}
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

func TestWriteShares(t *testing.T) {
	t.Parallel()
	for name, percent := range map[string]float64{
		"read-heavy": 5, "write-heavy": 50, "slow-upload": 20, "upload-heavy": 25, "static-heavy": 0, "session-heavy": 19,
		"celebrity": 50, "ycsb-a": 50, "ycsb-b": 5, "ycsb-c": 0, "ycsb-d": 5, "ycsb-e": 5, "ycsb-f": 50,
	} {
		const ops = 200_000
		w := load(t, name, params())
		var writes float64
		for n := range uint64(ops) {
			if w.Op(n).Write {
				writes++
			}
		}
		p := percent / 100
		if off := math.Abs(writes/ops - p); off > 3.3*math.Sqrt(p*(1-p)/ops) {
			t.Errorf("%s: %.2f %% writes, want %v %%", name, writes/ops*100, percent)
		}
	}
}
