package balance

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// Files in the directory of a server.
const (
	configName = "haproxy.cfg"
	socketName = "stats.sock"
)

// Idle clients keep their connection this long: longer than the pauses of a
// user, as a connection that closes under a request looks like a failure.
const clientKeepAlive = 5 * time.Minute

// connectionsWithin returns how many clients' connections fit into a limit on
// open files. HAProxy uses two for each, and a number of its own, and refuses
// to start when it is promised more than it can get.
func connectionsWithin(want int, files uint64) int {
	const own = 200
	if files/2 > uint64(want+own) {
		return want
	}
	return max(1, (int(files)-own)/2)
}

// render writes the server's configuration file. Everything in it has passed
// validate, so that nothing needs quotes.
func (c HAProxyConfig) render(maxConnections int) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	setting := func(format string, args ...any) { line("    "+format, args...) }
	milliseconds := func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) + "ms" }

	line("# Written by stagebench before each start.")
	line("global")
	setting("nbthread %d", c.Procs)
	setting("maxconn %d", maxConnections)
	setting("hard-stop-after %s", milliseconds(c.Drain))
	// With it, a second server on the port would start, and get half of the clients.
	setting("noreuseport")
	setting("stats socket unix@%s mode 600 level admin", socketName)

	line("defaults")
	setting("mode http")
	setting("timeout connect %s", milliseconds(c.ConnectTimeout))
	setting("timeout client %s", milliseconds(c.ResponseTimeout))
	setting("timeout server %s", milliseconds(c.ResponseTimeout))
	setting("timeout http-request %s", milliseconds(c.ResponseTimeout))
	setting("timeout http-keep-alive %s", milliseconds(clientKeepAlive))
	setting("timeout queue %s", milliseconds(c.ConnectTimeout))
	setting("timeout check %s", milliseconds(c.HealthTimeout))
	setting("option http-keep-alive")
	setting("option forwardfor")
	// A client that leaves takes its request with it.
	setting("option abortonclose")
	// Another host at each retry, and a retry only when nothing was sent.
	setting("option redispatch 1")
	setting("retries %d", max(3, len(c.Upstreams)))
	setting("retry-on conn-failure")
	c.renderErrors(setting)

	line("frontend public")
	setting("bind %s", net.JoinHostPort(c.Listen.String(), strconv.Itoa(c.Port)))
	setting("http-request set-header X-Forwarded-Host %%[req.hdr(Host)]")
	setting("http-request set-header X-Forwarded-Proto http")
	setting("default_backend web")

	line("backend web")
	setting("balance %s", map[string]string{PolicyRoundRobin: "roundrobin", PolicyLeastConn: "leastconn"}[c.Policy])
	setting("option httpchk")
	setting("http-check send meth GET uri %s ver HTTP/1.1 hdr Host %s", c.HealthPath, c.Node)
	setting("http-check expect status 200-399")
	if c.Sticky {
		setting("cookie %s insert indirect nocache httponly", CookieName)
	}
	setting("default-server check inter %s fall 1 rise 1 pool-max-conn %d", milliseconds(c.HealthInterval), c.MaxIdlePerUpstream)
	for _, peer := range c.Upstreams {
		cookie := ""
		if c.Sticky {
			cookie = " cookie " + peer.Node
		}
		setting("server %s %s%s", peer.Node, peer.Address, cookie)
	}
	return b.String()
}

// renderErrors has the server's own errors look like those of Balancer.
func (c HAProxyConfig) renderErrors(setting func(format string, args ...any)) {
	retryAfter := int((c.HealthInterval + time.Second - 1) / time.Second)
	for _, failure := range []struct {
		code          int
		text, headers string
	}{
		{400, "the request could not be read to its end", ""},
		{502, "the web host did not answer the request, which may have taken effect", ""},
		{503, "no web host is up, try again later", fmt.Sprintf(" hdr Retry-After %d", retryAfter)},
		{504, "the web host did not answer in time", ""},
	} {
		setting(`http-error status %d content-type application/json string "{\"error\":\"%s\"}\n"%s`, failure.code, failure.text, failure.headers)
	}
}
