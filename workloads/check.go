package workloads

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// Check says what the response to an op has to be like. All of it must hold;
// what is left empty is not looked at. It is shared and never written to.
type Check struct {
	// Status lists the statuses that are accepted, also those from 400 on; empty =
	// all below 400.
	Status []int
	// Header maps names to texts that the values must contain; an empty text asks
	// for the header only.
	Header map[string]string
	// Contains lists texts that must be in the body.
	Contains []string
	// Matches lists expressions that must match somewhere in the body.
	Matches []*regexp.Regexp
	// MinBytes and MaxBytes bound the length of the body; MaxBytes 0 = no bound.
	MinBytes, MaxBytes int64
}

// MaxCheckedBody is how much of a body is kept to be looked into, in bytes. What
// comes after it is read and counted, and not searched.
const MaxCheckedBody = 1 << 20

// NeedsBody reports whether the check looks into the body, so that it must be
// kept.
func (c *Check) NeedsBody() bool { return c != nil && len(c.Contains)+len(c.Matches) > 0 }

// Accepts reports whether the status is one that the op counts as success.
func (c *Check) Accepts(status int) bool {
	if c == nil || len(c.Status) == 0 {
		return status < http.StatusBadRequest
	}
	return slices.Contains(c.Status, status)
}

// Fails says in a few words what of a response is not as it has to be, "" when
// all is. Length is that of the whole body, body what was kept of it. The status
// is for Accepts.
func (c *Check) Fails(header http.Header, body []byte, length int64) string {
	if c == nil {
		return ""
	}
	for _, name := range slices.Sorted(maps.Keys(c.Header)) { // the same cause each time
		values := header.Values(name)
		if len(values) == 0 || !strings.Contains(strings.Join(values, ", "), c.Header[name]) {
			return fmt.Sprintf("check: header %s without %q", name, c.Header[name])
		}
	}
	switch {
	case length < c.MinBytes:
		return fmt.Sprintf("check: body below %d bytes", c.MinBytes)
	case c.MaxBytes > 0 && length > c.MaxBytes:
		return fmt.Sprintf("check: body above %d bytes", c.MaxBytes)
	}
	for _, want := range c.Contains {
		if !bytes.Contains(body, []byte(want)) {
			return fmt.Sprintf("check: body without %q", want)
		}
	}
	for _, want := range c.Matches {
		if !want.Match(body) {
			return fmt.Sprintf("check: body does not match %s", want)
		}
	}
	return ""
}
