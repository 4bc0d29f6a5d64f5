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

// What can be wrong with a line, in words that can be counted.
var (
	errNoTime   = errors.New("no time that can be read")
	errNoMethod = errors.New("no HTTP method")
	errNoTarget = errors.New("no path")
	errRequest  = errors.New("no request line such as GET / HTTP/1.1")
	errLine     = errors.New("not an access log line")
	errJSON     = errors.New("not a JSON object")
	errColumns  = errors.New("another number of columns than the header")
	errCSV      = errors.New("not a line of CSV")
)

// combined is the common log format, "host ident user [time] "request" status
// bytes", with whatever follows, such as referrer and user agent.
// Source: Apache HTTP Server, mod_log_config; nginx, log_format combined.
type combined struct{}

// commonTime is the time of the common log format.
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

// quoted reads a text to its closing quote and undoes the escapes of Apache and
// nginx: \" \\ \xHH.
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

// requestLine takes "GET /path HTTP/1.1" apart. Without the version it is one of
// HTTP/0.9, which had nothing but GET.
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

// timeNames are what the column of times is called, by us and by nginx, Apache,
// Elastic and the clouds.
func timeNames() []string {
	return []string{"time", "timestamp", "@timestamp", "ts", "time_iso8601", "time_local", "msec", "date"}
}

// fields returns a record from its columns by name.
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

// readTime reads a time as text, or as a number of seconds, milliseconds,
// microseconds or nanoseconds since 1970: which of them shows in its size.
func readTime(text string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, commonTime, "2006-01-02 15:04:05.999999999", "2006-01-02T15:04:05.999999999"} {
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

// jsonLines is one object per line.
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
			text = string(raw) // a number, as it is written
		}
		return text, found
	})
}

// csvLines is lines of RFC 4180 whose fields hold no line breaks, after a header.
type csvLines struct {
	columns map[string]int
	width   int // of the header
}

func (c *csvLines) parse(line string) (entry, error) {
	values, err := splitCSV(line)
	if err != nil {
		return entry{}, errCSV
	}
	if c.columns == nil {
		if !isHeader(line) {
			return entry{}, errors.New("before the CSV header")
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

// isHeader reports whether a line names a column of times.
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

// sendable returns the path and query of a request in a form in which they can
// be sent: bytes that must not stand in a request line are percent-encoded, and
// an absolute URL, which is what a proxy is asked for, loses its host.
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

// encode percent-encodes what cannot be sent as it is. What is encoded already
// stays; a percent sign that encodes nothing becomes one that does.
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
