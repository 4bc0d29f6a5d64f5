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

// Files in the directory of a server.
const (
	configName = "haproxy.cfg"
	socketName = "stats.sock"
)

// logLine is the length in bytes at which the server cuts a line of its log: no
// path comes near it, as a request's headers may have 16 KiB.
const logLine = 32 << 10

// Idle clients keep their connection this long: longer than the pauses of a
// user, as a connection that closes under a request looks like a failure.
const clientKeepAlive = 5 * time.Minute

// mostConnections bounds the clients' connections. Those above it wait.
const mostConnections = 10_000

// connectionsWithin returns how many clients' connections fit into a limit on
// open files. HAProxy uses two for each, and a number of its own, and refuses
// to start when it is promised more than it can get.
func connectionsWithin(files uint64) int {
	const own = 200
	if files/2 > mostConnections+own {
		return mostConnections
	}
	return max(1, (int(files)-own)/2)
}

// render writes the server's configuration file for those backends. Everything in
// it has passed validate, so that nothing needs quotes.
func (c Config) render(maxConnections int, backends []backend) string {
	f := &file{}
	f.line("# Written by stagebench before each start.")
	f.line("global")
	f.set("nbthread %d", c.Procs)
	f.set("maxconn %d", maxConnections)
	f.set("hard-stop-after %s", milliseconds(c.Drain))
	// With it, a second server on the port would start, and get half of the clients.
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
	for _, b := range backends {
		c.renderBackend(f, b)
	}
	return f.String()
}

// file is a configuration in the making.
type file struct{ strings.Builder }

func (f *file) line(format string, args ...any) { fmt.Fprintf(f, format+"\n", args...) }
func (f *file) set(format string, args ...any)  { f.line("    "+format, args...) }

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) + "ms" }

// connectionLife bounds a connection of layer 4 on which nothing happens: longer
// than anybody keeps one.
const connectionLife = 24 * time.Hour

func (c Config) renderDefaults(f *file) {
	f.line("defaults")
	f.set("timeout connect %s", milliseconds(c.ConnectTimeout))
	f.set("timeout queue %s", milliseconds(c.ConnectTimeout))
	f.set("timeout check %s", milliseconds(c.HealthTimeout))
	// Another host at each retry, and a retry only when nothing was sent.
	f.set("option redispatch 1")
	f.set("retries %d", max(3, len(c.Peers)))
	if c.Layer == sut.Layer4 {
		f.set("mode tcp")
		f.set("timeout client %s", milliseconds(connectionLife))
		f.set("timeout server %s", milliseconds(connectionLife))
		return
	}
	f.set("mode http")
	f.set("timeout client %s", milliseconds(c.ResponseTimeout))
	f.set("timeout server %s", milliseconds(c.ResponseTimeout))
	f.set("timeout http-request %s", milliseconds(c.ResponseTimeout))
	f.set("timeout http-keep-alive %s", milliseconds(clientKeepAlive))
	f.set("option http-keep-alive")
	// A connection on which nothing was asked ends without a word: the client might
	// take a 408 for the answer to what it is about to ask.
	f.set("option http-ignore-probes")
	f.set("option forwardfor")
	// A client that leaves takes its request with it.
	f.set("option abortonclose")
	f.set("retry-on conn-failure")
	c.renderErrors(f.set)
}

// renderRequests is what happens to each request, whoever gets it: what hosts
// learn of the client, the request's id, and its line in the log.
func (c Config) renderRequests(f *file) {
	f.set("http-request set-header X-Forwarded-Host %%[req.hdr(Host)]")
	f.set("http-request set-header X-Forwarded-Proto http")
	f.set("acl with_id req.hdr(%s) -m reg ^[A-Za-z0-9._-]{1,64}$", sut.RequestIDHeader)
	f.set("acl one_id req.hdr_cnt(%s) eq 1", sut.RequestIDHeader)
	f.set("http-request set-header %s %%[uuid(),regsub(-,,g)] unless one_id with_id", sut.RequestIDHeader)
	f.set("http-request set-var(txn.id) req.hdr(%s)", sut.RequestIDHeader)
	f.set("http-request set-var(txn.path) path")
	f.set("http-after-response set-header %s %%[var(txn.id)]", sut.RequestIDHeader)
	if c.LogRequests == sut.LogNone {
		return
	}
	f.set("log global")
	if c.LogRequests == sut.LogFailed {
		f.set("option dontlog-normal") // and Printed leaves out what went well in the end
	}
	f.set("log-format %s", logFormat)
}

// renderBackend writes a backend with all places in it.
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
	f.set("http-check send meth GET uri %s ver HTTP/1.1 hdr Host %s", c.HealthPath, c.Node)
	f.set("http-check expect status 200-399")
	if c.Sticky {
		f.set("cookie %s insert indirect nocache httponly", b.cookie)
	}
	server := "default-server check inter %s fall 1 rise 1"
	if c.Layer == sut.Layer4 {
		server += " on-marked-down shutdown-sessions"
	} else {
		server += fmt.Sprintf(" pool-max-conn %d", c.MaxIdlePerUpstream)
	}
	if c.EjectAfter > 0 {
		// A 503 counts here, too: when the database is away, all hosts are taken out
		// for it. So who is down is asked more often, and one that is well is back soon.
		server += fmt.Sprintf(" downinter %s observe layer%c error-limit %d on-error mark-down",
			milliseconds(c.HealthInterval/5), c.Layer[len("l")], c.EjectAfter)
	}
	f.set(server, milliseconds(c.HealthInterval))
	for _, p := range b.places {
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

// conditions are the route's, as the server writes them; "" for none.
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
	slices.Sort(all) // the same each time
	return strings.Join(all, " ")
}

// renderErrors has the server's own errors look like those of the embedded balancer.
func (c Config) renderErrors(set func(format string, args ...any)) {
	c.renderError(set, 400, "the request could not be read to its end")
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
