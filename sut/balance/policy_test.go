package balance

import (
	"math/rand/v2"
	"testing"
)

// someHosts draws up to twelve candidates, some of them not available.
func someHosts(random *rand.Rand) (candidates []candidate, available int) {
	candidates = make([]candidate, 1+random.IntN(12))
	for i := range candidates {
		candidates[i] = candidate{
			available: random.IntN(3) > 0, inFlight: random.IntN(5), weight: float64(1 + random.IntN(5)), name: random.Uint64(),
			latency: random.Float64() * float64(random.IntN(2)),
		}
		if candidates[i].available {
			available++
		}
	}
	return candidates, available
}

// forMany runs a property on drawn candidates; its seed is printed on failure.
func forMany(t *testing.T, property func(t *testing.T, random *rand.Rand, candidates []candidate, available int)) {
	t.Helper()
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 0))
		candidates, available := someHosts(random)
		property(t, random, candidates, available)
		if t.Failed() {
			t.Fatalf("seed %d: %+v", seed, candidates)
		}
	}
}

func TestPoliciesPickWhatIsAvailable(t *testing.T) {
	t.Parallel()
	for name, pick := range policies() {
		forMany(t, func(t *testing.T, random *rand.Rand, candidates []candidate, available int) {
			got := pick(candidates, turn{last: random.IntN(len(candidates)+1) - 1, client: random.Uint64()})
			switch {
			case available == 0 && got != -1:
				t.Errorf("%s picked %d of none", name, got)
			case available > 0 && (got < 0 || !candidates[got].available):
				t.Errorf("%s picked %d", name, got)
			}
		})
	}
}

// TestRoundRobinIsExact: after k rounds each available host has been picked k
// times, whichever is left out, and no host twice within a round.
func TestRoundRobinIsExact(t *testing.T) {
	t.Parallel()
	forMany(t, func(t *testing.T, random *rand.Rand, candidates []candidate, available int) {
		last := random.IntN(len(candidates)+1) - 1
		counts := make([]int, len(candidates))
		for round := range 5 {
			for range available {
				last = roundRobin(candidates, turn{last: last})
				counts[last]++
			}
			for i, n := range counts {
				if candidates[i].available && n != round+1 {
					t.Errorf("after %d rounds: %v", round+1, counts)
					return
				}
			}
		}
	})
}

func TestLeastConnPicksTheLeastBusy(t *testing.T) {
	t.Parallel()
	forMany(t, func(t *testing.T, random *rand.Rand, candidates []candidate, _ int) {
		got := leastConn(candidates, turn{last: random.IntN(len(candidates)+1) - 1})
		for i, c := range candidates {
			if c.available && c.inFlight < candidates[got].inFlight {
				t.Errorf("picked %d, and %d is less busy", got, i)
			}
		}
	})
}

// TestLeastConnBreaksTiesFairly: equally busy hosts are picked in turn, others
// not at all.
func TestLeastConnBreaksTiesFairly(t *testing.T) {
	t.Parallel()
	forMany(t, func(t *testing.T, random *rand.Rand, candidates []candidate, available int) {
		if available == 0 {
			return
		}
		last := random.IntN(len(candidates)+1) - 1
		least := candidates[leastConn(candidates, turn{last: last})].inFlight
		counts, ties := make([]int, len(candidates)), 0
		for _, c := range candidates {
			if c.available && c.inFlight == least {
				ties++
			}
		}
		for range 5 * ties {
			last = leastConn(candidates, turn{last: last})
			counts[last]++
		}
		for i, n := range counts {
			if c := candidates[i]; n != 0 && n != 5 || (n == 5) != (c.available && c.inFlight == least) {
				t.Errorf("in five rounds: %v", counts)
				return
			}
		}
	})
}

// TestLeastConnEvensOut: with requests that never end, no two hosts differ by
// more than one.
func TestLeastConnEvensOut(t *testing.T) {
	t.Parallel()
	candidates := make([]candidate, 7)
	for i := range candidates {
		candidates[i].available = i != 3
	}
	last := -1
	for n := 1; n <= 600; n++ {
		last = leastConn(candidates, turn{last: last})
		candidates[last].inFlight++
		for i, c := range candidates {
			if want := n / 6; c.available && c.inFlight != want && c.inFlight != want+1 {
				t.Fatalf("after %d requests host %d has %d", n, i, c.inFlight)
			}
		}
	}
}
