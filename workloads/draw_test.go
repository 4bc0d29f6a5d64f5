package workloads

import (
	"math/bits"
	"testing"
)

// The reference implementation of SplitMix64 publishes these outputs for seed 1234567.
func TestMixIsSplitMix64(t *testing.T) {
	want := []uint64{
		6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
	}
	for i, w := range want {
		if got := mix(1234567 + uint64(i+1)*golden); got != w {
			t.Errorf("output %d = %d, want %d", i, got, w)
		}
	}
}

// A run stores only the seed of its workload, so these numbers must never change.
func TestDrawIsFixed(t *testing.T) {
	got := [...]uint64{Draw(0, 0, 0), Draw(1, 0, 0), Draw(0, 1, 0), Draw(0, 0, 1), Draw(7, 1_000_000_000_000, 3)}
	want := [...]uint64{0x238275bc38fcbe91, 0xb18a02f46d8d86c3, 0xf89a2566b5822c54, 0x2f101fe21496ea20, 0x653c8ffdff4e5f9}
	if got != want {
		t.Errorf("draws = %#v, want %#v", got, want)
	}
}

// Draws of neighbouring seeds, positions and streams differ in half of their bits.
// So seeds and streams may be numbered 0, 1, 2 and still give unrelated draws.
func TestDrawNeighboursAreUnrelated(t *testing.T) {
	const draws = 20_000
	for name, next := range map[string]func(n uint64) uint64{
		"seed":     func(n uint64) uint64 { return Draw(n+1, 5, 2) ^ Draw(n, 5, 2) },
		"position": func(n uint64) uint64 { return Draw(5, n+1, 2) ^ Draw(5, n, 2) },
		"stream":   func(n uint64) uint64 { return Draw(5, 2, n+1) ^ Draw(5, 2, n) },
		"seed and stream": func(n uint64) uint64 {
			return Draw(n+1, 5, 1) ^ Draw(n, 5, 2)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var differing int
			for n := range uint64(draws) {
				differing += bits.OnesCount64(next(n))
			}
			// Each draw has 64 bits: mean 32, standard deviation 4.
			if mean := float64(differing) / draws; mean < 31.85 || mean > 32.15 {
				t.Errorf("%.3f bits differ on average, want 32", mean)
			}
		})
	}
}

func TestUnitAndBelowStayInside(t *testing.T) {
	const all = ^uint64(0)
	if u := Unit(all); u >= 1 || u < 1-1e-15 {
		t.Errorf("Unit(all bits set) = %v, want just below 1", u)
	}
	if u := Unit(0); u != 0 {
		t.Errorf("Unit(0) = %v", u)
	}
	for _, n := range []int{1, 2, 3, 1000, 1 << 40} {
		if low, high := Below(0, n), Below(all, n); low != 0 || high != n-1 {
			t.Errorf("Below(_, %d) reaches from %d to %d", n, low, high)
		}
	}
}
