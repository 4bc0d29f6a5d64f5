package keys_test

import (
	"fmt"
	"math"
	"testing"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/keys"
)

// distribution is implemented by every distribution of the package.
type distribution interface {
	Key(random uint64) int
}

func uniform(t testing.TB, n int) keys.Uniform {
	t.Helper()
	d, err := keys.NewUniform(n)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func zipfian(t testing.TB, n int, theta float64) keys.Zipfian {
	t.Helper()
	d, err := keys.NewZipfian(n, theta)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func hotspot(t testing.TB, n, hot int, share float64) keys.Hotspot {
	t.Helper()
	d, err := keys.NewHotspot(n, hot, share)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// tally counts the keys of the first draws of a seed.
func tally(d distribution, n, draws int, seed uint64) []int {
	counts := make([]int, n)
	for i := range uint64(draws) {
		counts[d.Key(workloads.Draw(seed, i, 0))]++
	}
	return counts
}

// exact returns the zipfian probabilities computed from the definition, hottest key first.
func exact(n int, theta float64) []float64 {
	p := make([]float64, n)
	var sum float64
	for k := range p {
		p[k] = math.Pow(float64(k+1), -theta)
		sum += p[k]
	}
	for k := range p {
		p[k] /= sum
	}
	return p
}

// checkChiSquare compares counts with probabilities. It merges neighbouring keys until
// a cell is expected at least 20 times. Seeds are fixed, so the result is the same in
// every run. The significance level is 0.001 (Wilson and Hilferty's formula).
func checkChiSquare(t *testing.T, counts []int, p []float64) {
	t.Helper()
	var draws int
	for _, c := range counts {
		draws += c
	}
	var chi, got, want float64
	cells := 0
	for k := range counts {
		got += float64(counts[k])
		want += p[k] * float64(draws)
		if want >= 20 || k == len(counts)-1 && want > 0 {
			chi += (got - want) * (got - want) / want
			got, want = 0, 0
			cells++
		}
	}
	df := float64(max(cells-1, 1))
	bound := df * math.Pow(1-2/(9*df)+3.09*math.Sqrt(2/(9*df)), 3)
	if chi > bound {
		t.Errorf("chi-square %.1f over %d cells, want at most %.1f", chi, cells, bound)
	}
}

func TestUniformIsUniform(t *testing.T) {
	for _, n := range []int{1, 2, 7, 1000} {
		p := make([]float64, n)
		for k := range p {
			p[k] = 1 / float64(n)
		}
		checkChiSquare(t, tally(uniform(t, n), n, 300_000, 3), p)
	}
}

func TestZipfianIsZipfian(t *testing.T) {
	for _, theta := range []float64{0.01, 0.5, 0.99, 1, 1.000001, 1.2, 3, 10} {
		for _, n := range []int{1, 2, 3, 10, 1000, 30_000} {
			t.Run(fmt.Sprintf("theta %v n %d", theta, n), func(t *testing.T) {
				t.Parallel()
				checkChiSquare(t, tally(zipfian(t, n, theta), n, 300_000, 4), exact(n, theta))
			})
		}
	}
}

// Hot keys get their share of the draws. All hot keys are equally likely, and so are all others.
func TestHotspotHasItsShares(t *testing.T) {
	for _, test := range []struct {
		n, hot int
		share  float64
	}{
		{1000, 200, 0.8},
		{3000, 12, 0.7},
		{5, 1, 0.01},
		{10, 9, 0.1},
		{2, 1, 0.5},
		{7, 3, 0},
		{7, 3, 1},
		{7, 7, 0.8},
		{1, 1, 0},
	} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			t.Parallel()
			p := make([]float64, test.n)
			for k := range p {
				switch {
				case test.hot == test.n:
					p[k] = 1 / float64(test.n)
				case k < test.hot:
					p[k] = test.share / float64(test.hot)
				default:
					p[k] = (1 - test.share) / float64(test.n-test.hot)
				}
			}
			const draws = 300_000
			counts := tally(hotspot(t, test.n, test.hot, test.share), test.n, draws, 10)
			checkChiSquare(t, counts, p)
			for k, c := range counts {
				if p[k] == 0 && c > 0 {
					t.Errorf("key %d was drawn %d times, want never", k, c)
				}
			}
			hot := 0
			for _, c := range counts[:test.hot] {
				hot += c
			}
			share := test.share
			if test.hot == test.n {
				share = 1
			}
			if got := float64(hot) / draws; math.Abs(got-share) > 3.3*math.Sqrt(share*(1-share)/draws) {
				t.Errorf("%.4f of the draws are hot keys, want %v", got, share)
			}
		})
	}
}

// The newest key is the hottest, and the ages of the keys are zipfian.
func TestLatestIsZipfianByAge(t *testing.T) {
	for _, n := range []int{1, 2, 3000} {
		l := keys.NewLatest(zipfian(t, n, 0.99))
		counts, byAge := tally(l, n, 300_000, 11), make([]int, n)
		for age := range byAge {
			if key := l.KeyOfRank(age); key != n-1-age {
				t.Fatalf("%d keys: rank %d has key %d, want %d", n, age, key, n-1-age)
			}
			byAge[age] = counts[n-1-age]
		}
		checkChiSquare(t, byAge, exact(n, 0.99))
	}
}

// The maximum-likelihood estimate of theta equals the given theta. The estimate is the
// theta for which the mean of ln(rank) over the draws equals its expectation.
func TestZipfianExponent(t *testing.T) {
	const n, draws = 3000, 1_000_000
	for _, theta := range []float64{0.5, 0.99, 1.2} {
		var got float64
		for k, c := range tally(zipfian(t, n, theta), n, draws, 5) {
			got += float64(c) / draws * math.Log(float64(k+1))
		}
		low, high := 0.0, 3.0
		for range 40 {
			middle := (low + high) / 2
			var mean float64
			for k, p := range exact(n, middle) {
				mean += p * math.Log(float64(k+1))
			}
			if mean > got { // too flat
				low = middle
			} else {
				high = middle
			}
		}
		if math.Abs(low-theta) > 0.01 {
			t.Errorf("fitted exponent %.4f, want %v", low, theta)
		}
	}
}

// Scrambling permutes the keys and keeps the probabilities of the ranks.
func TestScrambledIsZipfianUnderOtherNames(t *testing.T) {
	const n, theta = 3000, 0.99
	s := keys.NewScrambled(zipfian(t, n, theta), 6)
	counts := tally(s, n, 1_000_000, 7)
	byRank := make([]int, n)
	for rank := range byRank {
		byRank[rank] = counts[s.KeyOfRank(rank)]
	}
	checkChiSquare(t, byRank, exact(n, theta))
}

func TestScrambledIsOneToOne(t *testing.T) {
	sizes := []int{1000, 1024, 1025, 65_537}
	for n := 1; n <= 130; n++ {
		sizes = append(sizes, n)
	}
	for _, n := range sizes {
		for seed := range uint64(5) {
			s := keys.NewScrambled(zipfian(t, n, 0.99), seed)
			seen := make([]bool, n)
			for rank := range n {
				key := s.KeyOfRank(rank)
				if key < 0 || key >= n || seen[key] {
					t.Fatalf("n %d seed %d: rank %d has key %d, which is out of range or used twice", n, seed, rank, key)
				}
				seen[key] = true
			}
		}
	}
}

// The hot keys are spread. Over many seeds, each hot rank falls into each tenth of the
// key range equally often. The distances between successive ranks are uniform, too.
func TestScrambledSpreadsHotKeys(t *testing.T) {
	const n, seeds, tenths = 3000, 5000, 10
	z := zipfian(t, n, 0.99)
	p := make([]float64, tenths)
	for i := range p {
		p[i] = 1.0 / tenths
	}
	for rank := range 6 {
		places, distances := make([]int, tenths), make([]int, tenths)
		for seed := range uint64(seeds) {
			s := keys.NewScrambled(z, seed)
			at, next := s.KeyOfRank(rank), s.KeyOfRank(rank+1)
			places[at*tenths/n]++
			distances[(next-at+n)%n*tenths/n]++
		}
		checkChiSquare(t, places, p)
		checkChiSquare(t, distances, p)
	}
	// The hottest 400 ranks of one seed are spread as well.
	places := make([]int, tenths)
	s := keys.NewScrambled(z, 1)
	for rank := range 400 {
		places[s.KeyOfRank(rank)*tenths/n]++
	}
	checkChiSquare(t, places, p)
}

func TestKeysStayInside(t *testing.T) {
	randoms := []uint64{0, 1, 1 << 11, 1<<53 - 1, 1 << 63, ^uint64(0) - 1, ^uint64(0)}
	for i := range uint64(2000) {
		randoms = append(randoms, workloads.Draw(8, i, 0))
	}
	for _, n := range []int{1, 2, 3, 1000, 1_000_000_007, 1 << 40} {
		all := []distribution{uniform(t, n)}
		for _, share := range []float64{0, 1e-9, 0.8, 1} {
			all = append(all, hotspot(t, n, 1, share), hotspot(t, n, (n+1)/2, share), hotspot(t, n, n, share))
		}
		for _, theta := range []float64{1e-9, 0.01, 0.99, 1, 1 + 1e-12, 2, 10} {
			z := zipfian(t, n, theta)
			all = append(all, z, keys.NewScrambled(z, 9), keys.NewLatest(z))
		}
		for _, d := range all {
			for _, random := range randoms {
				if key := d.Key(random); key < 0 || key >= n {
					t.Errorf("%+v: key %d", d, key)
				}
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, n := range []int{0, -1, 1<<40 + 1} {
		if _, err := keys.NewUniform(n); err == nil {
			t.Errorf("uniform over %d was accepted", n)
		}
		if _, err := keys.NewZipfian(n, 0.99); err == nil {
			t.Errorf("zipfian over %d was accepted", n)
		}
		if _, err := keys.NewHotspot(n, 1, 0.8); err == nil {
			t.Errorf("hotspot over %d was accepted", n)
		}
	}
	for _, theta := range []float64{0, -0.99, 10.1, math.NaN(), math.Inf(1)} {
		if _, err := keys.NewZipfian(10, theta); err == nil {
			t.Errorf("theta %v was accepted", theta)
		}
	}
	for _, hot := range []int{0, -1, 11} {
		if _, err := keys.NewHotspot(10, hot, 0.8); err == nil {
			t.Errorf("%d hot keys of 10 were accepted", hot)
		}
	}
	for _, share := range []float64{-0.1, 1.1, math.NaN(), math.Inf(1)} {
		if _, err := keys.NewHotspot(10, 2, share); err == nil {
			t.Errorf("share %v for hot keys was accepted", share)
		}
	}
}

// A run stores only the seed of its workload, so these keys must never change.
func TestKeysAreFixed(t *testing.T) {
	z := zipfian(t, 3000, 0.99)
	for _, test := range []struct {
		d    distribution
		want string
	}{
		{uniform(t, 3000), "[2080 2915 1279 2418 1077 2536 2481 861]"},
		{z, "[7 0 83 2 148 1 2 272]"},
		{keys.NewScrambled(z, 1), "[1702 2454 1534 510 1522 9 510 772]"},
		{hotspot(t, 3000, 600, 0.8), "[590 1361 96 2779 288 2807 1022 324]"},
		{keys.NewLatest(z), "[2992 2999 2916 2997 2851 2998 2997 2727]"},
	} {
		var got []int
		for i := range uint64(8) {
			got = append(got, test.d.Key(workloads.Draw(1, i, 0)))
		}
		if text := fmt.Sprint(got); text != test.want {
			t.Errorf("%+v: keys %v, want %v", test.d, text, test.want)
		}
	}
}

func BenchmarkKey(b *testing.B) {
	z := zipfian(b, 30_000, 0.99)
	for _, d := range []distribution{
		uniform(b, 30_000), z, keys.NewScrambled(z, 1), hotspot(b, 30_000, 6_000, 0.8), keys.NewLatest(z),
	} {
		b.Run(fmt.Sprintf("%T", d), func(b *testing.B) {
			b.ReportAllocs()
			var n uint64
			for b.Loop() {
				d.Key(workloads.Draw(1, n, 0))
				n++
			}
		})
	}
}
