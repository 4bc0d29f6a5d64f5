package table

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Text is a cell of words.
func Text(s string) Cell { return Cell{Text: s, Value: s} }

// Count is a cell with an integer.
func Count(n int64) Cell {
	return Cell{Text: thousands(strconv.FormatInt(n, 10)), Value: n}
}

// ID is a cell with a number that identifies something. It is written without separators, so that it can be pasted.
func ID(n int64) Cell { return Cell{Text: strconv.FormatInt(n, 10), Value: n} }

// Number is a cell with any other number: cores, units, seconds.
func Number(x float64) Cell { return Cell{Text: trimmed(x, 3), Value: x} }

// Rate is a cell with requests per second.
func Rate(rps float64) Cell { return Cell{Text: trimmed(rps, 3), Value: rps} }

// Share is a cell with a share, given as 0..1 and shown in per cent.
func Share(x float64) Cell { return Cell{Text: percent(x), Value: x} }

// Nanoseconds is a cell with a duration, shown in milliseconds.
func Nanoseconds(ns int64) Cell { return Cell{Text: Milliseconds(ns), Value: ns} }

// YesNo is a cell with a truth value.
func YesNo(b bool) Cell {
	if b {
		return Cell{Text: "yes", Value: true}
	}
	return Cell{Text: "NO", Value: false, Bad: true}
}

// doubts returns the warnings about a result as notes: first the reasons why it is not valid, and then the others.
func doubts(invalid, warnings []string) (notes []string) {
	for _, reason := range invalid {
		notes = append(notes, "not valid: "+reason)
	}
	for _, w := range warnings {
		if !slices.Contains(invalid, w) {
			notes = append(notes, w)
		}
	}
	return notes
}

// Blank is the cell of a figure that does not exist, with the reasons.
func Blank(why ...string) Cell { return Cell{Text: "-", Notes: why} }

// textOrNothing is Text, but an empty cell for an empty text.
func textOrNothing(s string) Cell {
	if s == "" {
		return Cell{}
	}
	return Text(s)
}

func megabytes(n int64) Cell { return Cell{Text: trimmed(float64(n)/1e6, 3), Value: n} }

// seconds is a cell with a duration, shown in seconds.
func seconds(ns int64) Cell { return Cell{Text: significant(float64(ns)/1e9, 4), Value: ns} }

// instant is a cell with a time since the start of a step, shown in full milliseconds. It is not rounded to
// significant digits like durations, because readers compare instants.
func instant(ns int64) Cell { return Cell{Text: Count((ns + 500_000) / 1_000_000).Text, Value: ns} }

// minBeyond is the least number of samples beyond a percentile that is shown.
const minBeyond = 10

// percentile is a cell with a percentile, or with the reason why it is missing.
func percentile(ns *int64, count int64, q float64) Cell {
	switch {
	case ns != nil:
		return Nanoseconds(*ns)
	case count == 0:
		return Blank()
	case float64(count)*(1-q) < minBeyond-1e-9: // 1000 * (1 - 0.99) is slightly less than 10
		return Blank(fmt.Sprintf("fewer than %d samples lie beyond this percentile", minBeyond))
	}
	return amongFailures()
}

func p50(l results.Latency) Cell { return percentile(l.P50, l.Count, 0.50) }
func p99(l results.Latency) Cell { return percentile(l.P99, l.Count, 0.99) }

// longest is a cell with the maximum of a distribution.
func longest(l results.Latency) Cell {
	if l.Count == 0 || l.Max == nil {
		return Blank()
	}
	return Nanoseconds(*l.Max)
}

func amongFailures() Cell {
	return Blank("the value is that of a failed request, which counts as infinitely slow")
}

// Milliseconds formats a duration for a table: in milliseconds, with three
// significant digits, without the unit.
func Milliseconds(ns int64) string { return significant(float64(ns)/1e6, 3) }

// percent formats a share with two significant digits below ten per cent, and
// without decimals from there on.
func percent(x float64) string {
	if math.Abs(x) >= 0.0995 {
		return thousands(strconv.FormatFloat(x*100, 'f', 0, 64)) + "%"
	}
	return trimmed(x*100, 2) + "%"
}

// trimmed formats a number with this many significant digits, but never rounds
// the integer part. It drops trailing zeros after the point.
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

// significant rounds to this many significant digits and uses no exponent: for
// three digits 0.0123, 1.20, 12.3, 123, 1,230.
func significant(x float64, digits int) string {
	if x == 0 || math.IsNaN(x) || math.IsInf(x, 0) {
		return strconv.FormatFloat(x, 'f', -1, 64)
	}
	// Take the exponent after rounding: 9.996 must become 10.0, not 10.00.
	text := strconv.FormatFloat(x, 'e', digits-1, 64)
	_, tail, _ := strings.Cut(text, "e")
	exponent, _ := strconv.Atoi(tail)
	rounded, _ := strconv.ParseFloat(text, 64)
	return thousands(strconv.FormatFloat(rounded, 'f', max(0, digits-1-exponent), 64))
}

// thousands adds thousands separators to a decimal number.
func thousands(number string) string {
	integer, fraction, _ := strings.Cut(number, ".")
	sign := ""
	if strings.HasPrefix(integer, "-") {
		sign, integer = "-", integer[1:]
	}
	var b strings.Builder
	for i, digit := range integer {
		if i > 0 && (len(integer)-i)%3 == 0 {
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
