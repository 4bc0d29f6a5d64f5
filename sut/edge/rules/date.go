package rules

import (
	"strings"
	"time"
)

// ParseDate reads an HTTP date in one of its three formats (RFC 9110, 5.6.7), case-insensitively. It accepts nothing
// else. http.ParseTime also accepts repeated spaces and hours of one digit, and it fails for years after 2068 in the
// second format. now decides the century of a year of two digits: a date that seems to be more than 50 years in the
// future is in the past.
func ParseDate(text string, now time.Time) (time.Time, bool) {
	if len(text) < len("Sun Nov  6 08:49:37 1994") || len(text) > len("Wednesday, 06-Nov-94 08:49:37 GMT") {
		return time.Time{}, false
	}
	switch comma := strings.IndexByte(text, ','); {
	case comma == 3:
		return parseStrictly("Mon, 02 Jan 2006 15:04:05 GMT", text)
	case comma > 3:
		t, ok := parseStrictly("Monday, 02-Jan-06 15:04:05 GMT", text)
		if !ok {
			return t, false
		}
		century := now.UTC().Year() / 100 * 100
		t = atYear(t, century+t.Year()%100)
		if t.After(now.AddDate(50, 0, 0)) {
			t = atYear(t, t.Year()-100)
		}
		return t, true
	}
	return parseStrictly("Mon Jan _2 15:04:05 2006", text)
}

// parseStrictly parses a date that formats to the same text again, except for upper and lower case. So it has no
// repeated spaces, no missing zeros, and the right day of the week.
func parseStrictly(layout, text string) (time.Time, bool) {
	const zone = "GMT"
	if start := len(text) - len(zone); strings.HasSuffix(layout, zone) && strings.EqualFold(text[start:], zone) {
		text = text[:start] + zone // time.Parse compares the zone exactly
	}
	t, err := time.Parse(layout, text)
	if err != nil || !strings.EqualFold(t.Format(layout), text) {
		return time.Time{}, false
	}
	return t, true
}

func atYear(t time.Time, year int) time.Time {
	return time.Date(year, t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
}
