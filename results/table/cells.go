package table

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Text is a cell of words.
func Text(s string) Cell { return Cell{Text: s, Value: s} }

// Count is a cell with a whole number.
func Count(n int64) Cell {
	return Cell{Text: thousands(strconv.FormatInt(n, 10)), Value: n}
}

// Number is a cell with a number of no particular kind: cores, units, seconds.
func Number(x float64) Cell { return Cell{Text: trimmed(x, 3), Value: x} }

// Rate is a cell with requests per second.
func Rate(rps float64) Cell { return Cell{Text: trimmed(rps, 3), Value: rps} }

// Share is a cell with a part of a whole, given as 0..1 and shown in per cent.
func Share(x float64) Cell { return Cell{Text: percent(x), Value: x} }

// Nanoseconds is a cell with a duration, shown in milliseconds.
func Nanoseconds(ns int64) Cell { return Cell{Text: Milliseconds(ns), Value: ns} }

// YesNo is a cell with a truth.
func YesNo(b bool) Cell {
	if b {
		return Cell{Text: "yes", Value: true}
	}
	return Cell{Text: "NO", Value: false}
}

// Blank is the cell of a figure that does not exist, and why.
func Blank(why ...string) Cell { return Cell{Text: "-", Notes: why} }

// textOrNothing leaves the cell empty where there is no text.
func textOrNothing(s string) Cell {
	if s == "" {
		return Cell{}
	}
	return Text(s)
}

func megabytes(n int64) Cell { return Cell{Text: trimmed(float64(n)/1e6, 3), Value: n} }

// seconds shows nanoseconds to people as seconds.
func seconds(ns int64) Cell { return Cell{Text: significant(float64(ns)/1e9, 4), Value: ns} }

// instant is a point in time of a step. Points are compared with each other,
// so they keep every millisecond, unlike durations.
func instant(ns int64) Cell { return Cell{Text: Count((ns + 500_000) / 1_000_000).Text, Value: ns} }

// fewBeyond is how many samples have to lie beyond a percentile for it to be
// given.
const fewBeyond = 10

// percentile shows a percentile, or says why there is none.
func percentile(ns *int64, count int64, q float64) Cell {
	switch {
	case ns != nil:
		return Nanoseconds(*ns)
	case float64(count)*(1-q) < fewBeyond-1e-9: // 1000 * (1 - 0.99) is a little less than 10
		return Blank(fmt.Sprintf("fewer than %d samples lie beyond this percentile", fewBeyond))
	}
	return amongFailures()
}

func p50(l results.Latency) Cell { return percentile(l.P50, l.Count, 0.50) }
func p99(l results.Latency) Cell { return percentile(l.P99, l.Count, 0.99) }

// longest is the greatest of some durations.
func longest(l results.Latency) Cell {
	if l.Count == 0 || l.Max == nil {
		return Blank()
	}
	return Nanoseconds(*l.Max)
}

func amongFailures() Cell { return Blank("lies among the failures, which count as infinitely slow") }

// Milliseconds is the one way in which tables write a duration: in
// milliseconds, with three significant digits, without the unit.
func Milliseconds(ns int64) string { return significant(float64(ns)/1e6, 3) }

// percent has two significant digits below ten per cent and none of the
// decimals above.
func percent(x float64) string {
	if math.Abs(x) >= 0.0995 {
		return thousands(strconv.FormatFloat(x*100, 'f', 0, 64)) + "%"
	}
	return trimmed(x*100, 2) + "%"
}

// trimmed has at least that many significant digits where they are not zeros
// after the point, and every digit before it.
func trimmed(x float64, digits int) string {
	if math.Abs(x) >= math.Pow10(digits) {
		return thousands(strconv.FormatFloat(x, 'f', 0, 64))
	}
	text := significant(x, digits)
	if strings.Contains(text, ".") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text
}

// significant rounds to a number of significant digits and writes no exponent:
// 0.0123, 1.20, 12.3, 123, 1,230.
func significant(x float64, digits int) string {
	if x == 0 || math.IsNaN(x) || math.IsInf(x, 0) {
		return strconv.FormatFloat(x, 'f', -1, 64)
	}
	// The exponent is taken after rounding: 9.996 has to become 10.0, not 10.00.
	text := strconv.FormatFloat(x, 'e', digits-1, 64)
	_, tail, _ := strings.Cut(text, "e")
	exponent, _ := strconv.Atoi(tail)
	rounded, _ := strconv.ParseFloat(text, 64)
	return thousands(strconv.FormatFloat(rounded, 'f', max(0, digits-1-exponent), 64))
}

// thousands puts commas into the whole part of a decimal number.
func thousands(number string) string {
	whole, fraction, _ := strings.Cut(number, ".")
	sign := ""
	if strings.HasPrefix(whole, "-") {
		sign, whole = "-", whole[1:]
	}
	var b strings.Builder
	for i, digit := range whole {
		if i > 0 && (len(whole)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(digit)
	}
	if fraction != "" {
		b.WriteByte('.')
		b.WriteString(fraction)
	}
	return sign + b.String()
}
