package rules

import (
	"strings"
	"time"

	"github.com/dunglas/httpsfv"
)

// maxSeconds is the largest number of seconds in a header field. Larger ones count as this (RFC 9111, 1.2.2).
const maxSeconds = 1 << 31

// MaxDelta is the largest duration that a header field can give.
const MaxDelta = maxSeconds * time.Second

// control is the directives of Cache-Control or CDN-Cache-Control in a response.
type control struct {
	noStore, noCache, private, public bool
	mustRevalidate, proxyRevalidate   bool
	mustUnderstand                    bool
	maxAge, sharedMaxAge              seconds
	whileRevalidate, ifError          seconds
}

// seconds is the value of a directive.
type seconds struct {
	value time.Duration // 0 when the value is malformed
	set   bool
}

// restrict adds one more value of the same directive. The smaller one counts.
func (s *seconds) restrict(value time.Duration) {
	if !s.set || value < s.value {
		*s = seconds{value, true}
	}
}

// extend adds one more value of the same directive. The larger one counts.
func (s *seconds) extend(value time.Duration) { *s = seconds{max(s.value, value), true} }

// parseControl reads Cache-Control of a response. A directive that occurs several times has its most restrictive value.
// A quoted string that does not end could hide any directive, so it counts as no-store.
func parseControl(lines []string) control {
	var c control
	for _, line := range lines {
		complete := eachDirective(line, func(name, value string, has bool) { c.apply(name, value, has) })
		c.noStore = c.noStore || !complete
	}
	return c
}

func (c *control) apply(name, value string, has bool) {
	switch name {
	case "no-store":
		c.noStore = true
	case "no-cache": // with field names, too: to validate everything is always right
		c.noCache = true
	case "private": // with field names, too
		c.private = true
	case "public":
		c.public = c.public || !has
	case "must-revalidate":
		c.mustRevalidate = true
	case "proxy-revalidate":
		c.proxyRevalidate = true
	case "must-understand":
		c.mustUnderstand = true
	case "max-age":
		c.maxAge.restrict(parseSeconds(value))
	case "s-maxage":
		c.sharedMaxAge.restrict(parseSeconds(value))
	case "stale-while-revalidate":
		c.whileRevalidate.restrict(parseSeconds(value))
	case "stale-if-error":
		c.ifError.restrict(parseSeconds(value))
	}
}

// eachDirective calls f for each directive of a line, with the name in lower case and the value without quotes. Commas
// in quotes do not separate directives. It returns false when a quoted string does not end.
func eachDirective(line string, f func(name, value string, has bool)) bool {
	for len(line) > 0 {
		end, complete := directiveEnd(line)
		if !complete {
			return false
		}
		if part := trim(line[:end]); part != "" {
			name, value, has := strings.Cut(part, "=")
			// No space may surround "=". A value after a space is malformed, and its directive counts with the value 0.
			f(strings.ToLower(strings.TrimRight(name, " \t")), unquote(value, name), has)
		}
		if end == len(line) {
			break
		}
		line = line[end+1:]
	}
	return true
}

// directiveEnd returns the index of the first comma outside quotes, or the length of the line.
func directiveEnd(line string) (end int, complete bool) {
	quoted := false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			return i, true
		}
	}
	return len(line), !quoted
}

// unquote returns a value without its quotes. A value with a space around "=" stays malformed.
func unquote(value, name string) string {
	if strings.HasSuffix(name, " ") || strings.HasSuffix(name, "\t") {
		return " "
	}
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		return value[1 : len(value)-1]
	}
	return value
}

// trim removes the white space that may surround a list member.
func trim(s string) string { return strings.Trim(s, " \t") }

// parseSeconds reads a number of seconds. A malformed one is 0: the response counts as stale (RFC 9111, 4.2.1).
func parseSeconds(text string) time.Duration {
	d, _ := digits(text)
	return d
}

// digits reads a number of seconds of decimal digits only.
func digits(text string) (time.Duration, bool) {
	if text == "" {
		return 0, false
	}
	var n int64
	for i := range len(text) {
		c := text[i]
		if c < '0' || c > '9' {
			return 0, false
		}
		n = min(n*10+int64(c-'0'), maxSeconds)
	}
	return time.Duration(n) * time.Second, true
}

// targeted reads CDN-Cache-Control. It returns false when the field does not apply: it is absent, empty or malformed
// (RFC 9213, 2.1). A directive whose value has the wrong type is ignored, or counts as present when it takes no value.
func targeted(lines []string) (control, bool) {
	var c control
	if len(lines) == 0 {
		return c, false
	}
	dictionary, err := httpsfv.UnmarshalDictionary(lines)
	if err != nil || len(dictionary.Names()) == 0 {
		return c, false
	}
	for _, name := range dictionary.Names() {
		member, _ := dictionary.Get(name)
		item, isItem := member.(httpsfv.Item)
		if !isItem {
			item.Value = true
		}
		switch value := item.Value.(type) {
		case bool:
			if value {
				c.applyFlag(name)
			}
		case int64:
			c.applyNumber(name, value)
		default: // for example no-cache="X-Header"
			c.applyFlag(name)
		}
	}
	return c, true
}

// applyFlag applies a directive that takes no number.
func (c *control) applyFlag(name string) {
	switch name {
	case "max-age", "s-maxage", "stale-while-revalidate", "stale-if-error": // without a number they say nothing
	default:
		c.apply(name, "", false)
	}
}

// applyNumber applies a directive with an integer. A negative one counts as 0.
func (c *control) applyNumber(name string, n int64) {
	value := time.Duration(min(max(n, 0), maxSeconds)) * time.Second
	switch name {
	case "max-age":
		c.maxAge.restrict(value)
	case "s-maxage":
		c.sharedMaxAge.restrict(value)
	case "stale-while-revalidate":
		c.whileRevalidate.restrict(value)
	case "stale-if-error":
		c.ifError.restrict(value)
	default:
		c.apply(name, "", true)
	}
}

// requestControl is the directives of Cache-Control in a request (RFC 9111, 5.2.1).
type requestControl struct {
	noCache, noStore, onlyIfCached bool
	maxAge                         seconds
	minFresh                       seconds
	maxStale                       time.Duration
}

func parseRequestControl(lines []string) requestControl {
	var c requestControl
	var stale seconds
	for _, line := range lines {
		eachDirective(line, func(name, value string, has bool) {
			switch name {
			case "no-cache":
				c.noCache = true
			case "no-store":
				c.noStore = true
			case "only-if-cached":
				c.onlyIfCached = true
			case "max-age":
				c.maxAge.restrict(parseSeconds(value))
			case "min-fresh":
				c.minFresh.extend(parseSeconds(value))
			case "max-stale":
				if !has {
					value = "2147483648" // any staleness
				}
				stale.restrict(parseSeconds(value))
			}
		})
	}
	c.maxStale = stale.value
	return c
}

// restricts reports whether the client may refuse a fresh response.
func (c requestControl) restricts() bool { return c.noCache || c.maxAge.set || c.minFresh.set }

// refuses reports whether the client refuses a stored response of an age, with a rest of its freshness lifetime.
func (c requestControl) refuses(age, left time.Duration) bool {
	switch {
	case c.noCache, c.maxAge.set && (age > c.maxAge.value || c.maxAge.value == 0):
		return true
	case c.minFresh.set && left < c.minFresh.value:
		return true
	}
	return false
}
