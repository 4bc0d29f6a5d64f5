package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/stagebench/stagebench/sut/photos"
)

// Limits of a client's input. Config has further limits.
const (
	maxJSONBytes     = 64 << 10
	maxTitleRunes    = 200
	maxCommentRunes  = 2000
	maxLoginRunes    = 64
	maxPasswordRunes = 128
	defaultLimit     = 20
	maxLimit         = 100
)

// parseID reads an id: decimal digits and nothing else.
func parseID(name, text string) (photos.ID, error) {
	// ParseInt would accept a sign.
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || n == 0 {
		return 0, badRequest("ids are decimal numbers from 1 up to 9223372036854775807",
			"%s is not an id: %q", name, clip(text))
	}
	return photos.ID(n), nil
}

// query reads the parameters after the question mark.
func query(x *exchange) (url.Values, error) {
	if x.r.URL.RawQuery == "" {
		return nil, nil
	}
	values, err := url.ParseQuery(x.r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("separate parameters by & and percent-encode their values", "the query is malformed: %v", err)
	}
	return values, nil
}

// limit reads the maximum number of records of a list.
func limit(values url.Values) (int, error) {
	text := values.Get("limit")
	if text == "" {
		return defaultLimit, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > maxLimit {
		return 0, badRequest(fmt.Sprintf("use a number from 1 to %d, or leave it out for %d", maxLimit, defaultLimit),
			"limit is out of range: %q", clip(text))
	}
	return n, nil
}

// readJSON reads a JSON object into a struct. Unknown fields are errors, so that a
// client notices a misspelled name. example is shown in the hints.
func readJSON(x *exchange, into any, example string) error {
	hint := "send " + example
	if err := checkContentType(x, "application/json", hint); err != nil {
		return err
	}
	body, err := readBody(x, maxJSONBytes)
	if err != nil {
		return err
	}
	if !utf8.Valid(body) {
		// The decoder would replace invalid bytes, and the store would keep a text that
		// the client never sent.
		return badRequest("encode the body in UTF-8", "the body is not valid UTF-8")
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return badRequest(hint, "%s", jsonFault(err))
	}
	if _, err := decoder.Token(); err != io.EOF {
		return badRequest(hint, "the body has more data after the JSON object")
	}
	return nil
}

// jsonFault describes the error of a JSON decoder to the client.
func jsonFault(err error) string {
	var syntax *json.SyntaxError
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.Is(err, io.EOF):
		return "the body is empty"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "the JSON ends early"
	case errors.As(err, &syntax):
		return fmt.Sprintf("the JSON is malformed at byte %d: %v", syntax.Offset, syntax)
	case errors.As(err, &mismatch):
		return fmt.Sprintf("the JSON has a %s where %q should be a %s", mismatch.Value, mismatch.Field, mismatch.Type)
	}
	return strings.TrimPrefix(err.Error(), "json: ")
}

// checkContentType refuses a body with another media type or charset, and a
// compressed body.
func checkContentType(x *exchange, want, hint string) error {
	sent := x.r.Header.Get("Content-Type")
	got, parameters, err := mime.ParseMediaType(sent)
	if err != nil || got != want {
		return unsupported(fmt.Sprintf("the content type is %q", clip(sent)), hint+" with Content-Type: "+want)
	}
	if charset := parameters["charset"]; charset != "" && !strings.EqualFold(charset, "utf-8") {
		return unsupported(fmt.Sprintf("the charset is %q", clip(charset)), "encode the body in UTF-8")
	}
	return checkEncoding(x)
}

func checkEncoding(x *exchange) error {
	if encoding := x.r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return unsupported(fmt.Sprintf("the content encoding is %q", clip(encoding)),
			"send the body as it is, without compression")
	}
	return nil
}

// readBody reads a body of at most limit bytes.
func readBody(x *exchange, limit int64) ([]byte, error) {
	if x.r.ContentLength > limit {
		return nil, tooLarge(limit, "the body")
	}
	from := x.body(limit)
	var body []byte
	var err error
	if x.r.ContentLength >= 0 {
		body = make([]byte, x.r.ContentLength)
		_, err = io.ReadFull(from, body)
	} else {
		// One buffer of the largest size: a buffer that grows would take a multiple of the reserved memory.
		var buffer bytes.Buffer
		buffer.Grow(int(limit) + bytes.MinRead)
		_, err = buffer.ReadFrom(from)
		body = buffer.Bytes()
	}
	if err != nil {
		return nil, bodyProblem(err)
	}
	x.bodyRead()
	return body, nil
}

// bodyProblem says why a body could not be read.
func bodyProblem(err error) error {
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return tooLarge(over.Limit, "the body")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return refusal(http.StatusRequestTimeout, "the body did not arrive in time", "send it faster, or send less")
	}
	// If the client disconnected instead, nobody reads this response.
	return badRequest("send as many bytes as Content-Length says", "the body ended early")
}

// cleanText checks a text that a person typed and trims the space around it. Control
// characters are refused, because PostgreSQL cannot store NUL and escape sequences
// could harm a terminal. If lines is true, line breaks and tabs are allowed. All
// other characters are allowed, including quotes.
func cleanText(name, text string, maxRunes int, lines bool) (string, error) {
	if !utf8.ValidString(text) {
		return "", badRequest("encode it in UTF-8", "%s is not valid UTF-8", name)
	}
	text = strings.TrimSpace(text)
	if text == "" {
		return "", badRequest(fmt.Sprintf("send 1 to %d characters", maxRunes), "%s is empty", name)
	}
	if n := utf8.RuneCountInString(text); n > maxRunes {
		return "", badRequest(fmt.Sprintf("send 1 to %d characters", maxRunes), "%s has %d characters", name, n)
	}
	for _, r := range text {
		if unicode.IsControl(r) && !(lines && (r == '\n' || r == '\r' || r == '\t')) {
			return "", badRequest("leave control characters out", "%s has the control character %U", name, r)
		}
	}
	return text, nil
}

// clip shortens a client's input to at most 64 bytes, for error messages and logs.
func clip(text string) string {
	const most = 64
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "..."
}
