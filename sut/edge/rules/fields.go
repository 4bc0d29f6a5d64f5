package rules

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/dunglas/httpsfv"
)

// ParseAge reads Age: the first member of the first line (RFC 9111, 5.1). A value that is not a non-negative integer is
// ignored. Large values count as 2^31 seconds.
func ParseAge(header http.Header) time.Duration {
	lines := header[headerAge]
	if len(lines) == 0 {
		return 0
	}
	first, _, _ := strings.Cut(lines[0], ",")
	d, _ := digits(trim(first))
	return d
}

// ParseVary reads Vary: the canonical names of its fields, sorted and without duplicates. any means that one member
// is "*", so that no request selects the response (RFC 9110, 12.5.5).
func ParseVary(header http.Header) (names []string, any bool) {
	for _, line := range header[headerVary] {
		for member := range strings.SplitSeq(line, ",") {
			switch member = trim(member); member {
			case "":
			case "*":
				return nil, true
			default:
				names = append(names, http.CanonicalHeaderKey(member))
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), false
}

// Field is a header field that selects a stored response: its name in Vary, and its value in the request that the
// response answered.
type Field struct {
	Name  string
	Value string // the lines, normalised
	Set   bool   // an absent field selects only requests without it
}

// Selecting returns the fields of a request that select a response to it (RFC 9111, 4.1).
func Selecting(names []string, request http.Header) []Field {
	fields := make([]Field, 0, len(names))
	for _, name := range names {
		lines := request[name]
		fields = append(fields, Field{Name: name, Value: normalize(lines), Set: len(lines) > 0})
	}
	return fields
}

// Selects reports whether a request selects the response with these fields.
func Selects(fields []Field, request http.Header) bool {
	for _, f := range fields {
		lines := request[f.Name]
		if f.Set != (len(lines) > 0) {
			return false
		}
		if f.Set && !(len(lines) == 1 && lines[0] == f.Value) && normalize(lines) != f.Value {
			return false
		}
	}
	return true
}

// normalize joins lines and removes the white space around commas. That changes the meaning of no field, except inside
// quotes, so a value with quotes is kept.
func normalize(lines []string) string {
	joined := strings.Join(lines, ",")
	if !strings.ContainsAny(joined, " \t") || strings.Contains(joined, `"`) {
		return joined
	}
	parts := strings.Split(joined, ",")
	for i := range parts {
		parts[i] = trim(parts[i])
	}
	return strings.Join(parts, ",")
}

// Limits of Cache-Groups (RFC 9875, 2: at least 128 groups of at least 128 characters).
const (
	MaxGroups      = 128
	MaxGroupLength = 128
)

// Groups returns the groups of a response (RFC 9875, 2). A malformed field has none. ok is false when the groups exceed
// the limits: such a response must not be stored, because a purge might miss it.
func Groups(header http.Header) (groups []string, ok bool) {
	return parseGroups(header[headerCacheGroups])
}

// InvalidatedGroups returns the groups that the response to an unsafe request invalidates (RFC 9875, 3).
func InvalidatedGroups(header http.Header) []string {
	groups, _ := parseGroups(header[headerCacheGroupInvalidates])
	return groups
}

func parseGroups(lines []string) (groups []string, ok bool) {
	if len(lines) == 0 {
		return nil, true
	}
	list, err := httpsfv.UnmarshalList(lines)
	if err != nil {
		return nil, true
	}
	tooLong := false
	for _, member := range list {
		item, isItem := member.(httpsfv.Item)
		if !isItem {
			continue
		}
		group, isString := item.Value.(string)
		switch {
		case !isString:
		case len(group) > MaxGroupLength:
			tooLong = true
		default:
			groups = append(groups, group)
		}
	}
	slices.Sort(groups)
	groups = slices.Compact(groups)
	if len(groups) > MaxGroups {
		return groups[:MaxGroups], false
	}
	return groups, !tooLong
}
