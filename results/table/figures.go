package table

import (
	"math"
	"strconv"
	"strings"
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
