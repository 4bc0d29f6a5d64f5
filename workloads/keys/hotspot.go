package keys

import (
	"fmt"

	"github.com/stagebench/stagebench/workloads"
)

// Hotspot returns one of the first keys, the hot ones, for a given share of the ops, and one of the other keys for the
// rest. All hot keys are equally likely, and so are all others. It is the hotspot distribution of YCSB (Cooper et al.,
// SoCC 2010).
type Hotspot struct {
	n, hot int
	share  float64
}

// NewHotspot returns the hotspot distribution of n keys. The keys 0..hot-1 are hot and get a share of the ops, from 0
// to 1. With hot = n all keys are hot, whatever the share, so the distribution is uniform.
func NewHotspot(n, hot int, share float64) (Hotspot, error) {
	if err := checkCount(n); err != nil {
		return Hotspot{}, err
	}
	if hot < 1 || hot > n {
		return Hotspot{}, fmt.Errorf("%d hot keys of %d: want 1 to %d", hot, n, n)
	}
	if !(share >= 0 && share <= 1) { // the negated form refuses NaN
		return Hotspot{}, fmt.Errorf("share %v of the ops for hot keys: want 0 to 1, for example 0.8", share)
	}
	return Hotspot{n, hot, share}, nil
}

// Key converts random bits to a key.
func (h Hotspot) Key(random uint64) int {
	// The key needs new random bits. With the bits of the choice, the last hot keys and the first others would never be
	// drawn.
	again := workloads.Draw(random, 0, 0)
	if h.hot == h.n || workloads.Unit(random) < h.share {
		return workloads.Below(again, h.hot)
	}
	return h.hot + workloads.Below(again, h.n-h.hot)
}
