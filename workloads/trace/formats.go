package trace

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Reasons why a line is broken. Their texts are the keys of Stats.Broken.
var (
	errNoTime   = errors.New("no valid time")
	errNoMethod = errors.New("no HTTP method")
	errNoTarget = errors.New("no path")
	errRequest  = errors.New("no request line such as GET / HTTP/1.1")
	errLine     = errors.New("not an access log line")
	errJSON     = errors.New("not a JSON object")
	errColumns  = errors.New("not as many columns as the header")
	errCSV      = errors.New("not a line of CSV")
)

// combined parses the common log format: host ident user [time] "request" status
// bytes. It ignores further columns, such as referrer and user agent.
// Source: Apache HTTP Server, mod_log_config; nginx, log_format combined.
type combined struct{}

// commonTime is the layout of times in the common log format.
const commonTime = "02/Jan/2006:15:04:05 -0700"

func (combined) parse(line string) (e entry, err error) {
	client, rest, found := strings.Cut(line, " ")
	open := strings.Index(rest, " [")
	if !found || client == "" || open < 0 {
		return e, errLine
	}
	text, rest, found := strings.Cut(rest[open+2:], "] \"")
	if !found {
		return e, errLine
	}
	if e.time, err = time.Parse(commonTime, text); err != nil {
		return e, errNoTime
	}
	request, found := quoted(rest)
	if !found {
		return e, errLine
	}
	e.client = client
	e.method, e.target, err = requestLine(request)
	return e, err
}

// quoted returns a text up to its closing quote. It decodes the escapes of Apache
// and nginx: \" \\ \xHH. found is false without a closing quote.
func quoted(text string) (value string, found bool) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			return b.String(), true
		case c == '\\' && i+3 < len(text) && text[i+1] == 'x' && isHex(text[i+2]) && isHex(text[i+3]):
			n, _ := strconv.ParseUint(text[i+2:i+4], 16, 8)
			b.WriteByte(byte(n))
			i += 3
		case c == '\\' && i+1 < len(text) && (text[i+1] == '"' || text[i+1] == '\\'):
			b.WriteByte(text[i+1])
			i++
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

// requestLine splits a request line such as "GET /path HTTP/1.1". A line without
// the version is valid too: HTTP/0.9 has none.
func requestLine(line string) (method, target string, err error) {
	method, rest, found := strings.Cut(line, " ")
	if !found {
		return "", "", errRequest
	}
	if last := strings.LastIndex(rest, " "); last >= 0 && strings.HasPrefix(rest[last+1:], "HTTP/") {
		rest = rest[:last]
	}
	return method, rest, nil
}

// timeNames returns the names that the time column may have: ours, and those of
// nginx, Apache, Elastic and cloud providers.
func timeNames() []string {
	return []string{"time", "timestamp", "@timestamp", "ts", "time_iso8601", "time_local", "msec", "date"}
}

// fields builds an entry from columns. value returns the text of the column with
// that name.
func fields(value func(name string) (text string, found bool)) (e entry, err error) {
	get := func(names ...string) string {
		for _, name := range names {
			if text, found := value(name); found {
				return text
			}
		}
		return ""
	}
	if e.time, err = readTime(get(timeNames()...)); err != nil {
		return e, err
	}
	e.method = strings.ToUpper(get("method", "request_method", "verb", "http_method"))
	e.target = get("path", "url", "uri", "request_uri")
	if request := get("request"); e.target == "" && request != "" {
		if e.method, e.target, err = requestLine(request); err != nil {
			return e, err
		}
	}
	if e.method == "" {
		e.method = "GET"
	}
	e.client = get("client", "client_ip", "clientip", "remote_addr", "ip", "remote_host")
	return e, nil
}

// readTime parses a time. The text is in a known layout or is a number of
// seconds, milliseconds, microseconds or nanoseconds since 1970. The size of the
// number decides its unit.
func readTime(text string) (time.Time, error) {
	for _, layout := range []string{
		time.RFC3339Nano, commonTime, "2006-01-02 15:04:05.999999999", "2006-01-02T15:04:05.999999999",
	} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	whole, fraction, _ := strings.Cut(text, ".")
	n, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || n <= 0 {
		return time.Time{}, errNoTime
	}
	unit := time.Second
	for _, smaller := range []struct {
		from int64
		unit time.Duration
	}{{1e11, time.Millisecond}, {1e14, time.Microsecond}, {1e17, time.Nanosecond}} {
		if n >= smaller.from {
			unit = smaller.unit
		}
	}
	perSecond := int64(time.Second / unit)
	at := time.Unix(n/perSecond, n%perSecond*int64(unit))
	if fraction != "" {
		part, err := strconv.ParseFloat("0."+fraction, 64)
		if err != nil {
			return time.Time{}, errNoTime
		}
		at = at.Add(time.Duration(part * float64(unit)))
	}
	return at, nil
}

// jsonLines parses one JSON object per line.
type jsonLines struct{}

func (jsonLines) parse(line string) (entry, error) {
	if !strings.HasPrefix(strings.TrimSpace(line), "{") {
		return entry{}, errJSON
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal([]byte(line), &object); err != nil {
		return entry{}, errJSON
	}
	return fields(func(name string) (text string, found bool) {
		raw, found := object[name]
		if found && json.Unmarshal(raw, &text) != nil {
			text = string(raw) // a number: its literal
		}
		return text, found
	})
}

// csvLines parses CSV (RFC 4180) with a header. Fields must not contain line
// breaks.
type csvLines struct {
	columns map[string]int // name -> index; nil before the header
	width   int            // number of columns of the header
}

func (c *csvLines) parse(line string) (entry, error) {
	values, err := splitCSV(line)
	if err != nil {
		return entry{}, errCSV
	}
	if c.columns == nil {
		if !isHeader(line) {
			return entry{}, errors.New("a line before the CSV header")
		}
		c.columns, c.width = map[string]int{}, len(values)
		for i, name := range values {
			c.columns[columnName(name)] = i
		}
		return entry{}, errHeader
	}
	if len(values) != c.width {
		return entry{}, errColumns
	}
	return fields(func(name string) (string, bool) {
		i, found := c.columns[name]
		return values[i], found
	})
}

func columnName(text string) string {
	return strings.ToLower(strings.TrimSpace(strings.TrimPrefix(text, "\ufeff")))
}

// isHeader reports whether a line is a CSV header: one of its columns is the time.
func isHeader(line string) bool {
	names, err := splitCSV(line)
	return err == nil && len(names) > 1 && slices.ContainsFunc(names, func(name string) bool {
		return slices.Contains(timeNames(), columnName(name))
	})
}

func splitCSV(line string) ([]string, error) {
	r := csv.NewReader(strings.NewReader(line))
	r.FieldsPerRecord = -1
	return r.Read()
}

// sendable returns the path and query of a logged request, ready for a request
// line. It percent-encodes the bytes that a request line must not contain. It
// removes scheme and host of an absolute URL, which clients send to a proxy.
func sendable(method, target string) (string, error) {
	if method == "" || len(method) > 20 || strings.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-_") != "" {
		return "", errNoMethod
	}
	if scheme, rest, found := strings.Cut(target, "://"); found && (scheme == "http" || scheme == "https") {
		slash := strings.IndexAny(rest, "/?")
		switch {
		case slash < 0:
			target = "/"
		case rest[slash] == '?':
			target = "/" + rest[slash:]
		default:
			target = rest[slash:]
		}
	}
	if !strings.HasPrefix(target, "/") {
		return "", errNoTarget
	}
	path := encode(target)
	if _, err := url.ParseRequestURI(path); err != nil {
		return "", errNoTarget
	}
	return path, nil
}

// encode percent-encodes the bytes that a request line must not contain. Valid
// escapes stay unchanged; any other percent sign becomes %25.
func encode(target string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := 0; i < len(target); i++ {
		c := target[i]
		plain := c > ' ' && c < 0x7f && !strings.ContainsRune("\"#<>\\^`{|}", rune(c))
		if c == '%' {
			plain = i+2 < len(target) && isHex(target[i+1]) && isHex(target[i+2])
		}
		if plain {
			b.WriteByte(c)
			continue
		}
		b.Write([]byte{'%', digits[c>>4], digits[c&15]})
	}
	return b.String()
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}
