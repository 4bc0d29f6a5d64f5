package trace

import (
	"errors"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/workloads"
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
	errNoFields = errors.New("a line before #Fields")
)

// combined parses the common log format: host ident user [time] "request" status
// bytes. It ignores further columns, such as referrer and user agent. The name of a virtual
// host may precede the line, as in Apache's vhost_combined.
// Source: Apache HTTP Server, mod_log_config; nginx, log_format combined; Traefik, CLF.
type combined struct{}

// commonTime is the layout of times in the common log format.
const commonTime = "02/Jan/2006:15:04:05 -0700"

func (combined) parse(line string) (e entry, err error) {
	open := strings.Index(line, " [")
	if open <= 0 {
		return e, errLine
	}
	text, rest, found := strings.Cut(line[open+2:], "] \"")
	if !found {
		return e, errLine
	}
	if e.time, err = time.Parse(commonTime, text); err != nil {
		return e, errNoTime
	}
	request, _, found := quoted(rest)
	if !found {
		return e, errLine
	}
	if e.client = client(strings.Fields(line[:open])); e.client == "" {
		return e, errLine
	}
	e.method, e.target, err = requestLine(request)
	return e, err
}

// client returns the address of the client from the columns before the time: [virtual host] host ident user.
func client(columns []string) string {
	if len(columns) == 0 {
		return ""
	}
	first, list := strings.CutSuffix(columns[0], ",") // a list of forwarded addresses
	if len(columns) > 1 && !list {
		if _, err := netip.ParseAddr(columns[1]); err == nil { // an ident is never an address
			return columns[1]
		}
		if host, port, found := strings.Cut(first, ":"); found && len(columns) > 3 && columns[1] != "-" &&
			host != "" && isNumber(port) {
			return columns[1] // a host name after a virtual host with its port
		}
	}
	if _, err := netip.ParseAddr(first); err == nil {
		return first
	}
	// Virtual host, port and address without a space between them: shop.example:443:192.0.2.1
	_, rest, _ := strings.Cut(first, ":")
	_, afterPort, _ := strings.Cut(rest, ":")
	for _, text := range []string{afterPort, rest} {
		if _, err := netip.ParseAddr(text); err == nil {
			return text
		}
	}
	return first
}

func isNumber(text string) bool { return text != "" && strings.Trim(text, "0123456789") == "" }

// envoy parses the default formats of Envoy and Istio: [time] "request" and columns, of which the first or second one
// in quotes is the forwarded address of the client.
// Source: Envoy, Access logging, default format string.
type envoy struct{}

func (envoy) parse(line string) (e entry, err error) {
	text, rest, found := strings.Cut(strings.TrimPrefix(line, "["), "] \"")
	if !found || !strings.HasPrefix(line, "[") {
		return e, errLine
	}
	if e.time, err = time.Parse(time.RFC3339Nano, text); err != nil {
		return e, errNoTime
	}
	request, rest, found := quoted(rest)
	if !found {
		return e, errLine
	}
	for n := 0; n < 2 && found && e.client == ""; n++ {
		var value string
		if _, rest, found = strings.Cut(rest, "\""); found {
			value, rest, found = quoted(rest)
			e.client = address(value)
		}
	}
	if all := strings.Fields(line); e.client == "" && len(all) > 3 {
		e.client = address(all[len(all)-3]) // the downstream address of Istio
	}
	e.method, e.target, err = requestLine(request)
	return e, err
}

// address returns the first address of a list such as "192.0.2.1, 198.51.100.2:4711", without its port; "" if the text
// does not begin with an address.
func address(list string) string {
	first, _, _ := strings.Cut(list, ",")
	first = strings.TrimSpace(first)
	if with, err := netip.ParseAddrPort(first); err == nil {
		return with.Addr().String()
	}
	if alone, err := netip.ParseAddr(first); err == nil {
		return alone.String()
	}
	return ""
}

// quoted returns a text up to its closing quote, and what follows. It decodes the escapes of Apache
// and nginx: \" \\ \xHH. found is false without a closing quote.
func quoted(text string) (value, rest string, found bool) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			return b.String(), text[i+1:], true
		case c == '\\' && i+3 < len(text) && text[i+1] == 'x':
			n, err := strconv.ParseUint(text[i+2:i+4], 16, 8)
			if err != nil {
				b.WriteByte(c)
				continue
			}
			b.WriteByte(byte(n))
			i += 3
		case c == '\\' && i+1 < len(text) && (text[i+1] == '"' || text[i+1] == '\\'):
			b.WriteByte(text[i+1])
			i++
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
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

// sendable returns the path and query of a logged request, ready for a request
// line. It percent-encodes the bytes that a request line must not contain. It
// removes scheme and host of an absolute URL, which clients send to a proxy.
func sendable(method, target string) (string, error) {
	if !isMethod(method) {
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
	path := workloads.RequestTarget(target)
	if _, err := url.ParseRequestURI(path); err != nil {
		return "", errNoTarget
	}
	return path, nil
}

func isMethod(text string) bool {
	return text != "" && len(text) <= 20 && strings.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-_") == ""
}
