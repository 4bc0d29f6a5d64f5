package rules

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Range is a range of bytes of a body: from Start up to, but without, End.
type Range struct{ Start, End int64 }

// RangeResult says how a request with Range is answered from a complete response.
type RangeResult int

// The results.
const (
	Whole         RangeResult = iota // the field is absent, not applicable or ignored: send the whole body
	Part                             // send one part, with 206
	Unsatisfiable                    // send 416
)

// SelectRange reads Range and If-Range of a request for a complete stored response with a body of that size. Several
// ranges in one request are ignored, which a server may always do (RFC 9110, 14.2).
func SelectRange(request, stored http.Header, size int64, now time.Time) (Range, RangeResult) {
	lines := request[headerRange]
	if len(lines) != 1 || !ifRange(request, stored, now) {
		return Range{}, Whole
	}
	return ParseRange(lines[0], size)
}

// ParseRange reads a Range field with one range of bytes (RFC 9110, 14.1.2).
func ParseRange(text string, size int64) (Range, RangeResult) {
	unit, set, found := strings.Cut(text, "=")
	if !found || !strings.EqualFold(trim(unit), "bytes") {
		return Range{}, Whole
	}
	first, last, found := strings.Cut(trim(set), "-")
	if !found || strings.Contains(set, ",") {
		return Range{}, Whole
	}
	start, hasStart := position(first)
	end, hasEnd := position(last)
	switch {
	case first == "" && hasEnd: // the last bytes
		if end == 0 || size == 0 {
			return Range{}, Unsatisfiable
		}
		return Range{max(0, size-end), size}, Part
	case !hasStart, last != "" && (!hasEnd || end < start):
		return Range{}, Whole
	case start >= size:
		return Range{}, Unsatisfiable
	case last == "" || end >= size:
		return Range{start, size}, Part
	}
	return Range{start, end + 1}, Part
}

// position reads a number of bytes. A number that does not fit counts as the largest one.
func position(text string) (int64, bool) {
	if text == "" || strings.Trim(text, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 63)
	if err != nil {
		return 1<<62 - 1, true
	}
	return n, true
}

// ifRange reports whether the condition of If-Range holds: the same strong entity tag, or exactly the same date
// (RFC 9110, 13.1.5).
func ifRange(request, stored http.Header, now time.Time) bool {
	lines := request[headerIfRange]
	if len(lines) == 0 {
		return true
	}
	if len(lines) > 1 {
		return false
	}
	if strings.HasPrefix(lines[0], `"`) {
		return lines[0] == first(stored, headerETag)
	}
	wanted, valid := ParseDate(lines[0], now)
	modified, known := ParseDate(first(stored, headerLastModified), now)
	// A date is a strong validator only when it was at least one second old at the time of the response.
	date, dated := ParseDate(first(stored, headerDate), now)
	return valid && known && dated && wanted.Equal(modified) && date.Sub(modified) >= time.Second
}

// first returns the first line of a field. The name must be canonical.
func first(header http.Header, name string) string {
	if lines := header[name]; len(lines) > 0 {
		return lines[0]
	}
	return ""
}
