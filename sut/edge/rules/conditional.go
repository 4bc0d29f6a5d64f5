package rules

import (
	"net/http"
	"strings"
	"time"
)

// NotModified reports whether a request for a stored response is answered with 304 (RFC 9111, 4.3.2). If-None-Match
// takes precedence over If-Modified-Since. A stored response without Last-Modified is compared by its Date.
func NotModified(request http.Header, status int, stored http.Header, now time.Time) bool {
	if status != http.StatusOK {
		return false
	}
	if lines := request[headerIfNoneMatch]; len(lines) > 0 {
		tag := first(stored, headerETag)
		return matchesAny(lines, tag)
	}
	since, valid := ParseDate(first(request, headerIfModifiedSince), now)
	if !valid {
		return false
	}
	modified, known := ParseDate(first(stored, headerLastModified), now)
	if !known {
		modified, known = ParseDate(first(stored, headerDate), now)
	}
	return known && !modified.After(since)
}

// matchesAny reports whether a list of entity tags has a tag, by weak comparison (RFC 9110, 8.8.3.2), or is "*".
func matchesAny(lines []string, tag string) bool {
	for _, line := range lines {
		if trim(line) == "*" {
			return true
		}
		for rest := line; tag != "" && rest != ""; {
			// Entity tags may contain commas, inside their quotes.
			end := tagEnd(rest)
			if weak(trim(rest[:end])) == weak(tag) {
				return true
			}
			if end == len(rest) {
				break
			}
			rest = rest[end+1:]
		}
	}
	return false
}

// tagEnd returns the index of the first comma outside an entity tag. A backslash in an entity tag has no
// special meaning.
func tagEnd(line string) int {
	quoted := false
	for i := range len(line) {
		switch {
		case line[i] == '"':
			quoted = !quoted
		case line[i] == ',' && !quoted:
			return i
		}
	}
	return len(line)
}

// weak removes the mark of a weak entity tag.
func weak(tag string) string { return strings.TrimPrefix(tag, "W/") }

// Validators adds the conditions to a request that validate a stored response (RFC 9111, 4.3.1). It removes the
// conditions of the client. It modifies request. It returns false when the stored response has no validator.
func Validators(request, stored http.Header) bool {
	for _, name := range []string{
		headerIfNoneMatch, headerIfModifiedSince, headerIfMatch, headerIfUnmodifiedSince, headerIfRange, headerRange,
	} {
		delete(request, name)
	}
	tag, modified := first(stored, headerETag), first(stored, headerLastModified)
	if tag != "" {
		request[headerIfNoneMatch] = []string{tag}
	}
	if modified != "" {
		request[headerIfModifiedSince] = []string{modified}
	}
	return tag != "" || modified != ""
}

// Unconditional removes all conditions from a request, so that its answer is complete. It modifies request.
func Unconditional(request http.Header) { Validators(request, nil) }

// Updates reports whether a 304 is about a stored response: it has no strong entity tag, or the same one
// (RFC 9111, 4.3.4).
func Updates(notModified, stored http.Header) bool {
	tag := first(notModified, headerETag)
	return tag == "" || strings.HasPrefix(tag, "W/") || tag == first(stored, headerETag)
}

// Merge returns the header of a stored response after a 304 (RFC 9111, 3.2). Fields of the 304 replace stored ones,
// except Content-Length. The stored Age and Date do not survive: they tell the time of the old answer.
func Merge(stored, notModified http.Header) http.Header {
	merged := make(http.Header, len(stored)+len(notModified))
	for name, lines := range stored {
		if name != headerAge && name != headerDate {
			merged[name] = lines
		}
	}
	for name, lines := range notModified {
		if name != "Content-Length" {
			merged[name] = lines
		}
	}
	return merged
}

// NotModifiedHeader returns the fields of a stored response that a 304 carries (RFC 9110, 15.4.5).
func NotModifiedHeader(stored http.Header) http.Header {
	header := make(http.Header, 8)
	for _, name := range []string{
		headerCacheControl, headerCDNCacheControl, "Content-Location", headerDate, headerETag, headerExpires,
		headerLastModified, headerVary,
	} {
		if lines := stored[name]; lines != nil {
			header[name] = lines
		}
	}
	return header
}
