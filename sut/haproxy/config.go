package haproxy

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Names of the files in the directory of a server.
const (
	configName = "haproxy.cfg"
	socketName = "stats.sock"
)

// unstickyVariable is a variable of the server that is true while users do not stay on a host.
const unstickyVariable = "proc.unsticky"

// logLine is the maximum length in bytes of a line of the server's log. It is longer than
// any path, because the headers of a request are limited to 16 KiB.
const logLine = 32 << 10

// clientKeepAlive is how long an idle connection of a client stays open. It is longer
// than the pauses of a user: a connection that closes while a request arrives looks like
// a failure.
const clientKeepAlive = 5 * time.Minute

// connectionsWithin returns the number of client connections, at most that many, that fit into a limit of
// open files. HAProxy needs two files for each connection and some for itself. It does
// not start if the limit is too low for its maxconn.
func connectionsWithin(files uint64, most int) int {
	const reserved = 200
	if files/2 > uint64(most)+reserved {
		return most
	}
	return max(1, (int(files)-reserved)/2)
}

// render returns the server's configuration file with those backends. All values have
// passed validate, so they need no quotes.
func (c Config) render(maxConnections int, backends []backend) string {
	f := &file{}
	f.line("# Written by stagebench before each start.")
	f.line("global")
	f.set("nbthread %d", c.Procs)
	f.set("maxconn %d", maxConnections)
	f.set("hard-stop-after %s", milliseconds(c.Drain))
	// Without noreuseport, a second server could start on the port and get half of the clients.
	f.set("noreuseport")
	f.set("stats socket unix@%s mode 600 level admin", socketName)
	f.set("log stderr len %d format raw local0", logLine)
	c.renderDefaults(f)

	f.line("frontend public")
	f.set("bind %s", net.JoinHostPort(c.Listen.String(), strconv.Itoa(c.Port)))
	if c.Layer == sut.Layer7 {
		c.renderRequests(f)
	}
	for _, b := range backends {
		if conditions := b.conditions(); conditions != "" {
			f.set("use_backend %s if %s", b.name, conditions)
		} else {
			f.set("default_backend %s", b.name)
		}
	}
	if c.ejects() {
		f.line("backend %s", successTable)
		f.set("stick-table type string len 256 size 1k store gpc0")
	}
	for _, b := range backends {
		c.renderBackend(f, b)
	}
	return f.String()
}

// file collects the lines of a configuration.
type file struct{ strings.Builder }

func (f *file) line(format string, args ...any) { fmt.Fprintf(f, format+"\n", args...) }
func (f *file) set(format string, args ...any)  { f.line("    "+format, args...) }

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) + "ms" }

// connectionIdle bounds an idle connection of layer 4. It is longer than any client keeps
// a connection.
const connectionIdle = 24 * time.Hour

func (c Config) renderDefaults(f *file) {
	f.line("defaults")
	f.set("timeout connect %s", milliseconds(sut.ConnectTimeout))
	f.set("timeout queue %s", milliseconds(sut.ConnectTimeout))
	f.set("timeout check %s", milliseconds(c.HealthTimeout))
	// Each retry goes to another host. HAProxy retries only if nothing was sent.
	f.set("option redispatch 1")
	f.set("retries %d", max(3, len(c.Peers)))
	if c.Layer == sut.Layer4 {
		f.set("mode tcp")
		f.set("timeout client %s", milliseconds(connectionIdle))
		f.set("timeout server %s", milliseconds(connectionIdle))
		return
	}
	f.set("mode http")
	f.set("timeout client %s", milliseconds(sut.ResponseTimeout))
	f.set("timeout server %s", milliseconds(sut.ResponseTimeout))
	f.set("timeout http-request %s", milliseconds(sut.ResponseTimeout))
	f.set("timeout http-keep-alive %s", milliseconds(clientKeepAlive))
	f.set("option http-keep-alive")
	// A connection without a request is closed without a response: a client could take a
	// 408 for the response to its next request.
	f.set("option http-ignore-probes")
	f.set("option forwardfor")
	// When a client leaves, its request is aborted.
	f.set("option abortonclose")
	f.set("retry-on conn-failure")
	c.renderErrors(f.set)
}

// renderRequests writes the rules for every request: the X-Forwarded headers, the request
// id, and the log line.
func (c Config) renderRequests(f *file) {
	f.set("http-request set-header X-Forwarded-Host %%[req.hdr(Host)]")
	f.set("http-request set-header X-Forwarded-Proto http")
	f.set("acl with_id req.hdr(%s) -m reg ^[A-Za-z0-9._-]{1,64}$", sut.RequestIDHeader)
	f.set("acl one_id req.hdr_cnt(%s) eq 1", sut.RequestIDHeader)
	f.set("http-request set-header %s %%[uuid(),regsub(-,,g)] unless one_id with_id", sut.RequestIDHeader)
	f.set("http-request set-var(txn.id) req.hdr(%s)", sut.RequestIDHeader)
	f.set("http-request set-var(txn.path) path")
	f.set("http-after-response set-header %s %%[var(txn.id)]", sut.RequestIDHeader)
	if c.LogRequests == sut.LogNone && !c.ejects() {
		return
	}
	f.set("log global")
	if c.LogRequests != sut.LogAll {
		f.set("option dontlog-normal") // HandleLogLine also drops requests that succeeded after a retry
	}
	f.set("log-format %s", c.logFormat())
}

// renderBackend writes a backend and its slots.
func (c Config) renderBackend(f *file, b backend) {
	f.line("backend %s", b.name)
	switch c.Policy {
	case sut.PolicyIPHash:
		f.set("balance source")
		f.set("hash-type consistent")
	case sut.PolicyLeastConn:
		f.set("balance leastconn")
	default:
		f.set("balance roundrobin")
	}
	if len(b.route.To) > 0 && c.Layer == sut.Layer7 {
		c.renderError(f.set, 503, "none of "+strings.Join(b.route.To, ", ")+" is up, try again later")
	}
	f.set("option httpchk")
	f.set("http-check send meth GET uri %s ver HTTP/1.1 hdr Host %s", sut.HealthPath, c.Node)
	f.set("http-check expect status 200-399")
	if c.Sticky {
		f.set("cookie %s insert indirect nocache httponly", b.cookie)
		// With a cookie, no shared cache could store these responses.
		f.set("ignore-persist if { path_beg %s }", strings.Join(sut.SharedPaths(), " "))
		f.set("ignore-persist if { var(%s) -m bool }", unstickyVariable)
	}
	server := "default-server check inter %s fall 1 rise 1"
	if c.Layer == sut.Layer4 {
		server += " on-marked-down shutdown-sessions"
	} else {
		server += fmt.Sprintf(" pool-max-conn %d", sut.MaxIdlePerUpstream)
	}
	if c.ejects() {
		renderSuccesses(f)
	}
	if c.EjectAfter > 0 {
		// Only failed connections count here; judge ejects for responses. The checks of an ejected host are more
		// frequent, so a healthy host is back soon.
		server += fmt.Sprintf(" downinter %s observe layer4 error-limit %d on-error mark-down",
			milliseconds(c.HealthInterval/5), c.EjectAfter)
	}
	f.set(server, milliseconds(c.HealthInterval))
	for _, p := range b.slots {
		text := fmt.Sprintf("server %s %s weight %d", p.name, p.address, p.weight)
		if c.Sticky {
			text += " cookie " + p.name
		}
		if !p.used {
			text += " disabled"
		}
		f.set("%s", text)
	}
}

// conditions returns the conditions of the route in HAProxy's syntax; "" = none.
func (b backend) conditions() string {
	var all []string
	add := func(format string, args ...any) { all = append(all, "{ "+fmt.Sprintf(format, args...)+" }") }
	if b.route.Method != "" {
		add("method %s", b.route.Method)
	}
	if prefix, open := strings.CutSuffix(b.route.Path, "*"); open {
		add("path -m beg %s", prefix)
	} else if b.route.Path != "" {
		add("path -m str %s", b.route.Path)
	}
	for fetch, condition := range map[string]string{"req.hdr": b.route.Header, "req.cook": b.route.Cookie} {
		name, value, valued := strings.Cut(condition, ":")
		switch {
		case valued:
			add("%s(%s) -m str %s", fetch, name, value)
		case name != "":
			add("%s(%s) -m found", fetch, name)
		}
	}
	slices.Sort(all) // the order of a map is random
	return strings.Join(all, " ")
}

// renderErrors makes the server's own errors look like those of the embedded balancer.
func (c Config) renderErrors(set func(format string, args ...any)) {
	c.renderError(set, 400, "the request could not be read completely")
	c.renderError(set, 502, "the web host did not answer the request, which may have taken effect")
	c.renderError(set, 503, "no web host is up, try again later")
	c.renderError(set, 504, "the web host did not answer in time")
}

func (c Config) renderError(set func(format string, args ...any), code int, text string) {
	headers := ""
	if code == 503 {
		headers = fmt.Sprintf(" hdr Retry-After %d hdr X-Degraded web", int((c.HealthInterval+time.Second-1)/time.Second))
	}
	set(`http-error status %d content-type application/json string "{\"error\":\"%s\"}\n"%s`, code, text, headers)
}
