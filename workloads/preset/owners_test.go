package preset

import (
	"math"
	"testing"
)

// TestOwnersRenameByPopularity checks that an owner renames popular photos more often,
// in proportion to their popularity.
func TestOwnersRenameByPopularity(t *testing.T) {
	var o owner
	weights := map[uint64]float64{31: 0.5, 7: 0.3, 12: 0.2}
	for _, photo := range []uint64{31, 7, 12} {
		o.add(photo, 4*weights[photo]) // the weights need not sum to 1
	}
	const turns = 100_000
	counts := map[uint64]int{}
	for n := range uint64(turns) {
		counts[o.photo(turn{seed: 1, n: n})]++
	}
	for photo, p := range weights {
		if share := float64(counts[photo]) / turns; math.Abs(share-p) > 3.3*math.Sqrt(p*(1-p)/turns) {
			t.Errorf("photo %d: share %.4f, want %v", photo, share, p)
		}
	}
}
