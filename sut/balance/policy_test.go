package balance

import (
	"math/rand/v2"
	"testing"
)

// randomCandidates returns up to twelve candidates. Some of them are not available.
func randomCandidates(random *rand.Rand) (candidates []candidate, available int) {
	candidates = make([]candidate, 1+random.IntN(12))
	for i := range candidates {
		candidates[i] = candidate{
			available: random.IntN(3) > 0, inFlight: random.IntN(5), weight: float64(1 + random.IntN(5)),
			name: random.Uint64(), latency: random.Float64() * float64(random.IntN(2)),
		}
		if candidates[i].available {
			available++
		}
	}
	return candidates, available
}

// forRandomCandidates checks a property with random candidates. It prints the seed on
// failure.
func forRandomCandidates(
	t *testing.T, property func(t *testing.T, random *rand.Rand, candidates []candidate, available int),
) {
	t.Helper()
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 0))
		candidates, available := randomCandidates(random)
		property(t, random, candidates, available)
		if t.Failed() {
			t.Fatalf("seed %d: %+v", seed, candidates)
		}
	}
}

func TestPoliciesPickAvailableHosts(t *testing.T) {
	t.Parallel()
	for name, pick := range policies() {
		forRandomCandidates(t, func(t *testing.T, random *rand.Rand, candidates []candidate, available int) {
			got := pick(candidates, turn{last: random.IntN(len(candidates)+1) - 1, client: random.Uint64()})
			switch {
			case available == 0 && got != -1:
				t.Errorf("%s picked %d, and no host is available", name, got)
			case available > 0 && (got < 0 || !candidates[got].available):
				t.Errorf("%s picked %d, which is not available", name, got)
			}
		})
	}
}

// TestRoundRobinIsExact: after k rounds each available host was picked k times.
func TestRoundRobinIsExact(t *testing.T) {
	t.Parallel()
	forRandomCandidates(t, func(t *testing.T, random *rand.Rand, candidates []candidate, available int) {
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
	forRandomCandidates(t, func(t *testing.T, random *rand.Rand, candidates []candidate, _ int) {
		got := leastConn(candidates, turn{last: random.IntN(len(candidates)+1) - 1})
		for i, c := range candidates {
			if c.available && c.inFlight < candidates[got].inFlight {
				t.Errorf("picked %d, but %d has fewer requests in flight", got, i)
			}
		}
	})
}

// TestLeastConnBreaksTiesFairly: the hosts with the fewest requests are picked in
// turn, and the other hosts are not picked.
func TestLeastConnBreaksTiesFairly(t *testing.T) {
	t.Parallel()
	forRandomCandidates(t, func(t *testing.T, random *rand.Rand, candidates []candidate, available int) {
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
				t.Errorf("picks in five rounds: %v", counts)
				return
			}
		}
	})
}

// TestLeastConnEvensOut: when requests never end, the counts of any two hosts differ by
// at most one.
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
