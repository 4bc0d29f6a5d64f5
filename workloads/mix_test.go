package workloads_test

import (
	"math"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/workloads"
)

func TestMixValidate(t *testing.T) {
	for _, test := range []struct {
		name string
		mix  workloads.Mix
		want string // part of the error, "" = valid
	}{
		{"one", workloads.Mix{{"get", 100}}, ""},
		{"fractions", workloads.Mix{{"a", 98.4}, {"b", 1.4}, {"c", 0.1}, {"d", 0.1}}, ""},
		{"empty", nil, "no classes"},
		{"too little", workloads.Mix{{"a", 50}, {"b", 49.9}}, "sum to 99.9: want 100"},
		{"too much", workloads.Mix{{"a", 50}, {"b", 51}}, "sum to 101: want 100"},
		{"twice", workloads.Mix{{"a", 50}, {"a", 50}}, "class a is listed twice"},
		{"zero share", workloads.Mix{{"a", 100}, {"b", 0}}, "share 0 of b"},
		{"negative", workloads.Mix{{"a", 101}, {"b", -1}}, "share -1 of b"},
		{"not a number", workloads.Mix{{"a", math.NaN()}}, "share NaN of a"},
		{"no name", workloads.Mix{{"", 100}}, `class ""`},
		{"bad name", workloads.Mix{{"a b", 100}}, `class "a b"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.mix.Validate()
			switch {
			case test.want == "" && err != nil:
				t.Errorf("unexpected error: %v", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

func TestMixPickCoversEveryShare(t *testing.T) {
	mix := workloads.Mix{{"a", 50}, {"b", 49.9}, {"c", 0.1}}
	if first, last := mix.Pick(0), mix.Pick(^uint64(0)); first != 0 || last != 2 {
		t.Errorf("the lowest and highest random bits pick %d and %d, want 0 and 2", first, last)
	}
	const n = 1_000_000
	counts := make([]int, len(mix))
	for i := range uint64(n) {
		counts[mix.Pick(i*(math.MaxUint64/n))]++ // evenly spaced over all 64-bit numbers
	}
	for i, share := range mix {
		if want := share.Percent / 100 * n; math.Abs(float64(counts[i])-want) > 2 {
			t.Errorf("%s was picked %d times, want %.0f", share.Class, counts[i], want)
		}
	}
}

func TestMixString(t *testing.T) {
	mix := workloads.Mix{{"feed", 98.6}, {"comment", 1.4}}
	if got, want := mix.String(), "feed 98.6, comment 1.4"; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
}
