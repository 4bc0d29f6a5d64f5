package compare

import (
	"math"
	"slices"

	"golang.org/x/perf/benchmath"
)

// Series are the samples of one figure of a benchmark.
type Series struct {
	Package, Name, Unit string
	Better              int // 1 = higher is better, -1 = lower is better, 0 = unknown
	Values              []float64
	Invalid             bool // a sample is marked as not valid
}

// SeriesRow is one figure in every file.
type SeriesRow struct {
	Package, Name, Unit string
	Better              int
	Samples             []Sample // by file
}

// Sample is a figure in one file. Its median is 0 if the file does not have it.
type Sample struct {
	Count  int
	Median float64
	// Low and High are the 95 % interval of the median. They are infinite if there are too few samples.
	Low, High float64
	Ratio     float64 // of the medians, to the base; 0 = none
	P         float64 // of the U test against the base
	Verdict   Verdict
	Why       string
}

// alpha is the level of the U test, which is that of benchstat.
const alpha = 0.05

// CompareSeries compares the benchmarks of all files with those of the first one. The samples of two files are not
// paired, so it uses the statistics of benchstat: medians and the Mann-Whitney U test. One of 20 equal figures differs
// by chance.
func CompareSeries(files [][]Series) (rows []SeriesRow) {
	type key struct{ pkg, name, unit string }
	places := map[key]int{}
	found := map[key][]*Series{}
	for i, file := range files {
		for j := range file {
			s := &file[j]
			k := key{s.Package, s.Name, s.Unit}
			if _, known := places[k]; !known {
				places[k] = len(rows)
				rows = append(rows, SeriesRow{Package: s.Package, Name: s.Name, Unit: s.Unit, Better: s.Better})
				found[k] = make([]*Series, len(files))
			}
			found[k][i] = s
		}
	}
	for k, place := range places {
		base := found[k][0]
		for i, s := range found[k] {
			rows[place].Samples = append(rows[place].Samples, judged(base, s, i == 0))
		}
	}
	return rows
}

// judged returns a sample with its verdict.
func judged(base, s *Series, isBase bool) Sample {
	if s == nil {
		return Sample{Verdict: NotCompared, Why: "the file has no such figure"}
	}
	thresholds := benchmath.Thresholds{CompareAlpha: alpha}
	sample := benchmath.NewSample(slices.Clone(s.Values), &thresholds) // it sorts them
	summary := benchmath.AssumeNothing.Summary(sample, 0.95)
	result := Sample{Count: len(s.Values), Median: summary.Center, Low: summary.Lo, High: summary.Hi, Verdict: Base}
	switch {
	case isBase:
		if result.Median != 0 {
			result.Ratio = 1
		}
		return result
	case base == nil:
		result.Verdict, result.Why = NotCompared, "the base has no such figure"
		return result
	}
	from := benchmath.NewSample(slices.Clone(base.Values), &thresholds)
	center := benchmath.AssumeNothing.Summary(from, 0.95).Center
	if center != 0 {
		result.Ratio = result.Median / center
	}
	test := benchmath.AssumeNothing.Compare(from, sample)
	result.P = test.P
	for _, w := range test.Warnings {
		result.Why = joined(result.Why, w.Error())
	}
	switch {
	case base.Invalid || s.Invalid:
		result.Verdict, result.Why = NotJudged, joined(result.Why, "a sample is not valid")
	case smallestP(len(base.Values), len(s.Values)) > alpha && !constant(from.Values, sample.Values):
		result.Verdict, result.Why = NotJudged, "too few samples: even the largest difference would not be shown"
	case test.P > alpha || math.IsNaN(test.P):
		result.Verdict = NoDifference
	case result.Median > center:
		result.Verdict = Higher
	case result.Median < center:
		result.Verdict = Lower
	default: // the distributions differ, but not their medians
		result.Verdict = NoDifference
	}
	return result
}

// smallestP returns the lowest p that the U test can give for samples of these sizes: two of all their orders are as
// extreme as that in which all of one sample are below all of the other.
func smallestP(n, m int) float64 {
	orders := 1.0
	for i := 1; i <= n; i++ {
		orders *= float64(m+i) / float64(i)
	}
	return min(1, 2/orders)
}

// constant reports whether all samples have one value. The lists are sorted.
func constant(a, b []float64) bool { return min(a[0], b[0]) == max(a[len(a)-1], b[len(b)-1]) }
