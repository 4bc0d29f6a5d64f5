package workloads

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// Check lists the conditions that the response to an op must meet. All of them
// must hold; an empty field is not checked. A Check is shared and read-only.
type Check struct {
	// Status lists the accepted statuses; 400 and above are allowed here. Empty =
	// every status below 400 except 101, after which no response follows.
	Status []int
	// Header maps a header name to a text that its value must contain. An empty text
	// requires only that the header is present.
	Header map[string]string
	// Contains lists texts that must be in the body. Contains and Matches look at the body
	// without its content encoding.
	Contains []string
	// Matches lists regular expressions that must match somewhere in the body.
	Matches []*regexp.Regexp
	// MinBytes and MaxBytes bound the length of the body; MaxBytes 0 = no bound.
	MinBytes, MaxBytes int64
}

// MaxCheckedBody is the size in bytes of the part of a body that is kept and
// searched. The rest of the body is read and counted, but not searched.
const MaxCheckedBody = 1 << 20

// NeedsBody reports whether the check searches the body. The body must then be kept.
func (c *Check) NeedsBody() bool { return c != nil && len(c.Contains)+len(c.Matches) > 0 }

// Accepts reports whether the op counts the status as success.
func (c *Check) Accepts(status int) bool {
	if c == nil || len(c.Status) == 0 {
		return status < http.StatusBadRequest && status != http.StatusSwitchingProtocols
	}
	return slices.Contains(c.Status, status)
}

// Failure describes the first condition that the response does not meet, or returns ""
// when it meets all. Length is the length of the full body, and body is the part
// that was kept. Failure does not check the status: see Accepts.
func (c *Check) Failure(header http.Header, body []byte, length int64) string {
	if c == nil {
		return ""
	}
	for _, name := range slices.Sorted(maps.Keys(c.Header)) { // sorted: equal responses get equal causes
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
	if c.NeedsBody() {
		var problem string
		if body, problem = decoded(header.Get("Content-Encoding"), body); problem != "" {
			return "check: " + problem
		}
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

// decoded returns the first MaxCheckedBody bytes of a body without its content encoding, or why it cannot be decoded.
// The end of the body may be missing.
func decoded(encoding string, body []byte) (plain []byte, problem string) {
	encoding = strings.ToLower(encoding)
	if len(body) == 0 || encoding == "" || encoding == "identity" {
		return body, ""
	}
	var reader io.Reader
	var err error
	switch encoding {
	case "gzip", "x-gzip":
		reader, err = gzip.NewReader(bytes.NewReader(body))
	case "deflate":
		reader, err = zlib.NewReader(bytes.NewReader(body))
	default:
		return nil, fmt.Sprintf("body is encoded as %q: ask for gzip, deflate or identity with Accept-Encoding", encoding)
	}
	if err == nil {
		plain, err = io.ReadAll(io.LimitReader(reader, MaxCheckedBody))
	}
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Sprintf("body is not encoded as %q, as its header says", encoding)
	}
	return plain, ""
}
