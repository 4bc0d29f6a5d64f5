// Package keys implements key distributions. A key selects one of n items for an op.
//
// A key is an integer in 0..n-1. The caller passes 64 random bits (workloads.Draw), and
// the distribution computes the key from them. Distributions have no mutable state: the
// key of an op is a pure function of seed and position, and all are safe for concurrent
// use.
//
// Each distribution follows its formula exactly, without approximation. So a measured
// cache hit ratio can be compared with a computed one.
package keys

import (
	"fmt"

	"github.com/stagebench/stagebench/workloads"
)

// maxKeys is the largest n. A float64 represents every key exactly, with bits to spare.
const maxKeys = 1 << 40

func checkCount(n int) error {
	if n < 1 || int64(n) > maxKeys {
		return fmt.Errorf("%d keys: want 1 to %d", n, int64(maxKeys))
	}
	return nil
}

// Uniform is the distribution in which all keys are equally likely.
type Uniform struct{ n int }

// NewUniform returns the uniform distribution of n keys.
func NewUniform(n int) (Uniform, error) { return Uniform{n}, checkCount(n) }

// Key converts random bits to a key.
func (d Uniform) Key(random uint64) int { return workloads.Below(random, d.n) }
