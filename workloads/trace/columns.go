package trace

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// columns returns the text of the column with a name; "" if there is none. Names are in lower case.
type columns func(name string) string

// first returns the text of the first column that has one. A single dash means that the log has no value.
func (c columns) first(names ...string) string {
	for _, name := range names {
		if text := c(name); text != "" && text != "-" {
			return text
		}
	}
	return ""
}

// timeNames returns the names that the time column may have, best first. The start of a request comes before the time
// at which its line was written, and the finer clock before the coarser one.
func timeNames() []string {
	return []string{
		"start_time", "startutc", // Envoy, Traefik
		"time", "timestamp", "@timestamp", "ts", // ours, Apache, Elastic, Caddy
		"msec", "time_iso8601", "time_local", // nginx
		"date",
	}
}

// entry returns the request that a line with named columns describes. The package comment lists the order in which the
// columns are asked.
func (c columns) entry() (e entry, err error) {
	if e.time, err = readTime(c.first(timeNames()...)); err != nil {
		return e, err
	}
	e.client = c.client()
	// A whole request line is what the client sent. Other columns may hold what the server made of it.
	request := c.first("request", "request_line", "requestline")
	if method, target, err := requestLine(request); err == nil && isMethod(method) {
		e.method, e.target = method, target
		return e, nil
	}
	e.method = strings.ToUpper(c.first("request_method", "method", "verb", "http_method",
		"request.method", "requestmethod", "http.request.method", "cs-method"))
	if e.method == "" {
		e.method = "GET"
	}
	if e.target = c.first("request_uri", "request.uri", "requestpath", "url.original"); e.target != "" {
		return e, nil
	}
	if strings.HasPrefix(request, "/") || strings.HasPrefix(request, "http") { // as Logstash logs the target
		e.target = request
		return e, nil
	}
	e.target = c.first("path", "url", "uri", "url.path", "cs-uri-stem", "cs-uri")
	if e.target == "" && request != "" {
		return e, errRequest
	}
	query := strings.TrimPrefix(c.first("query_string", "querystring", "args", "query", "url.query", "cs-uri-query"), "?")
	if query != "" && !strings.Contains(e.target, "?") {
		e.target += "?" + query
	}
	return e, nil
}

// client returns the address of the client without its port, or else the name that the log has for it.
func (c columns) client() string {
	for _, name := range []string{
		"client", "client_ip", "clientip", "remote_addr", "remote_ip", "remoteip", "ip", "remote_host",
		"request.client_ip", "request.remote_ip", "request.remote_addr", // Caddy
		"clienthost", "clientaddr", // Traefik
		"client.ip", "source.ip", "c-ip", // Elastic Common Schema, W3C
		"x_forwarded_for", "downstream_remote_address", // Envoy, where the second one may be a proxy
	} {
		switch text := c.first(name); {
		case text == "" || text == "unknown":
		case address(text) != "":
			return address(text)
		default:
			return text
		}
	}
	return ""
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

// jsonLines parses one JSON object per line. The name of a column in an object inside has the names of the objects
// before it: {"request":{"uri":"/"}} has the column request.uri.
type jsonLines struct{}

func (jsonLines) parse(line string) (entry, error) {
	values := map[string]string{}
	if !strings.HasPrefix(strings.TrimSpace(line), "{") || flatten(values, "", []byte(line), maxDepth) != nil {
		return entry{}, errJSON
	}
	return columns(func(name string) string { return values[name] }).entry()
}

// maxDepth is the number of nested JSON objects whose columns are read. No producer nests deeper.
const maxDepth = 4

// flatten adds the values of a JSON object to a map. Of names that differ in their case only, the one in lower case
// counts.
func flatten(into map[string]string, prefix string, object []byte, depth int) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(object, &raw); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(raw)) { // sorted: capital letters come first
		name, value := prefix+strings.ToLower(key), raw[key]
		var text string
		switch {
		case value[0] == '{' && depth == 0:
			continue
		case value[0] == '{':
			if err := flatten(into, name+".", value, depth-1); err != nil {
				return err
			}
			continue
		case json.Unmarshal(value, &text) != nil: // a number: its literal
			text = string(value)
		}
		into[name] = text
	}
	return nil
}

// table holds the columns of a log whose header names them.
type table struct {
	index map[string]int // by name; nil before the header
	width int            // number of columns
}

func (t *table) header(names []string) {
	t.index, t.width = map[string]int{}, len(names)
	for i, name := range names {
		t.index[columnName(name)] = i
	}
}

// columns returns the columns of a line with these values.
func (t *table) columns(values []string) (columns, error) {
	if len(values) != t.width {
		return nil, errColumns
	}
	return func(name string) string {
		if i, found := t.index[name]; found {
			return values[i]
		}
		return ""
	}, nil
}

// csvLines parses CSV (RFC 4180) with a header. Fields must not contain line
// breaks.
type csvLines struct{ table }

func (c *csvLines) parse(line string) (entry, error) {
	values, err := splitCSV(line)
	if err != nil {
		return entry{}, errCSV
	}
	if c.index == nil {
		if !isHeader(line) {
			return entry{}, errors.New("a line before the CSV header")
		}
		c.header(values)
		return entry{}, errHeader
	}
	all, err := c.columns(values)
	if err != nil {
		return entry{}, err
	}
	return all.entry()
}

// extended parses the W3C extended log file format of IIS (columns are separated by spaces) and CloudFront (by tabs).
// Its times are UTC. Lines that begin with # are directives; #Fields names the columns and may appear again.
// Source: W3C Working Draft WD-logfile-960323.
type extended struct{ table }

const fieldsDirective = "#Fields:"

// isDirective reports whether a line begins a log in the extended format.
func isDirective(line string) bool {
	return strings.HasPrefix(line, "#Version:") || strings.HasPrefix(line, "#Software:") ||
		strings.HasPrefix(line, fieldsDirective)
}

func (x *extended) parse(line string) (entry, error) {
	if names, found := strings.CutPrefix(line, fieldsDirective); found {
		x.header(strings.Fields(names))
	}
	switch {
	case strings.HasPrefix(line, "#"):
		return entry{}, errHeader
	case x.index == nil:
		return entry{}, errNoFields
	}
	values, tabs := strings.Fields(line), strings.Contains(line, "\t")
	if tabs {
		values = strings.Split(line, "\t")
	}
	all, err := x.columns(values)
	if err != nil {
		return entry{}, err
	}
	return columns(func(name string) string {
		text := all(name)
		if name == "time" {
			return all("date") + " " + text
		}
		// CloudFront encodes each value once more: a request for /a%20b is logged as /a%2520b.
		if decoded, err := url.PathUnescape(text); err == nil && tabs {
			return decoded
		}
		return text
	}).entry()
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
