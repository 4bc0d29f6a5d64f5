// Package keys holds the distributions of keys: which of n things an op is
// about.
//
// A key is a whole number in 0..n-1, computed from 64 random bits that the
// caller draws (workloads.Draw): no distribution has a state, so the key of the
// n-th op is a pure function of seed and n, and all are safe for concurrent
// use. The package neither draws nor stores anything itself.
//
// Each distribution is what its formula says, not an approximation of it, so
// that a measured hit ratio can be compared with a computed one.
package keys

import (
	"fmt"

	"github.com/stagebench/stagebench/workloads"
)

// maxKeys bounds n, so that a float64 holds every key with bits to spare.
const maxKeys = 1 << 40

func checkCount(n int) error {
	if n < 1 || int64(n) > maxKeys {
		return fmt.Errorf("%d keys: want 1 to %d", n, int64(maxKeys))
	}
	return nil
}

// Uniform asks for all keys equally often.
type Uniform struct{ n int }

// NewUniform returns the uniform distribution of n keys.
func NewUniform(n int) (Uniform, error) { return Uniform{n}, checkCount(n) }

// Key returns the key that random bits stand for.
func (d Uniform) Key(random uint64) int { return workloads.Below(random, d.n) }
