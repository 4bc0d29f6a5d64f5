package nginx

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// zoneOf divides the memory budget: the index in shared memory, and the files of the entries. nginx keeps about 8000
// keys in 1 MiB.
func zoneOf(budget int64) (index, files int64) {
	index = max(256<<10, budget/32)
	return index, budget - index
}

// connectionsWithin returns the number of connections of a worker, at most that many, that fit into a limit of open
// files. A request that is not a hit needs a connection to an origin and a file of the cache, too.
func connectionsWithin(files uint64, most int) int {
	const reserved = 100
	if files > uint64(2*most+reserved) {
		return most
	}
	return max(8, (int(files)-reserved)/2)
}

// file collects the lines of a configuration.
type file struct {
	strings.Builder
	indent string
}

func (f *file) set(format string, args ...any) {
	f.WriteString(f.indent)
	fmt.Fprintf(f, format+";\n", args...)
}

// block writes a block. inside writes its lines.
func (f *file) block(name string, inside func()) {
	outer := f.indent
	f.WriteString(outer + name + " {\n")
	f.indent += "    "
	inside()
	f.indent = outer
	f.WriteString(outer + "}\n")
}

// choose writes a map: a variable that depends on another one. rows are patterns with values.
func (f *file) choose(from, variable string, rows ...string) {
	f.block("map "+from+" "+variable, func() {
		for _, row := range rows {
			f.set("%s", row)
		}
	})
}

// render returns the server's configuration file with those origins. All values have passed validate.
func (c Config) render(origins []sut.Peer, root bool, connections int) string {
	f := &file{}
	f.WriteString("# Written by stagebench before each start and each change of the origins.\n")
	f.set("daemon off")
	if root {
		f.set("user root root") // the directory is private
	}
	f.set("worker_processes %d", c.Procs)
	f.set("worker_shutdown_timeout %s", seconds(c.Drain))
	f.set("pid %s", pidName)
	f.set("error_log stderr warn")
	f.block("events", func() { f.set("worker_connections %d", connections) })
	f.block("http", func() {
		c.renderCache(f)
		c.renderVariables(f)
		c.renderClients(f)
		f.block("upstream origins", func() {
			for _, peer := range origins {
				f.set("server %s max_fails=1 fail_timeout=1s", peer.Address)
			}
			f.set("keepalive 64")
		})
		f.block("server", func() { c.renderServer(f) })
		f.block("server", func() {
			f.set("listen unix:%s", socketName)
			f.set("access_log off")
			f.block("location = /status", func() { f.set("stub_status") })
			f.block("location /", func() { f.set("return 404") })
		})
	})
	return f.String()
}

func seconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) + "s" }

// unused is how long an entry stays that nobody asks for. Only the size of the cache shall remove entries.
const unused = "30d"

func (c Config) renderCache(f *file) {
	index, files := zoneOf(c.MaxBytes)
	// Files that begin a cache entry are made in the cache itself: no copy between file systems.
	f.set("proxy_cache_path %s levels=1:2 keys_zone=edge:%d max_size=%d inactive=%s use_temp_path=off",
		cacheName, index, files, unused)
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		f.set("%s_temp_path %s/%s", kind, tempName, kind)
	}
	f.set("proxy_cache edge")
	if c.Site != "" {
		f.set(`proxy_cache_key "$request_uri"`)
	} else {
		f.set(`proxy_cache_key "$http_host$request_uri"`)
	}
	if c.Admit == sut.AdmitSecondHit {
		f.set("proxy_cache_min_uses 2")
	}
	f.set("proxy_cache_lock on")
	f.set("proxy_cache_revalidate on")
	// No proxy_cache_use_stale: it would serve stale responses without a bound, whatever their headers say.
	// stale-while-revalidate and stale-if-error work without it.
	f.set("proxy_cache_background_update on")
	if c.TTL > 0 {
		// The lifetime that the origin gives is not read at all, so $not_shared must keep away what has none.
		f.set("proxy_ignore_headers X-Accel-Redirect X-Accel-Expires X-Accel-Limit-Rate X-Accel-Buffering X-Accel-Charset " +
			"Cache-Control Expires")
		f.set("proxy_cache_valid any %s", seconds(c.TTL))
	} else {
		f.set("proxy_ignore_headers X-Accel-Redirect X-Accel-Expires X-Accel-Limit-Rate X-Accel-Buffering X-Accel-Charset")
	}
	f.set("proxy_no_cache $not_shared $no_lifetime $varies_by_all")
}

// renderVariables writes the variables that depend on a request or a response.
func (c Config) renderVariables(f *file) {
	// A response to a request with Authorization is stored only if the origin permits it.
	f.choose(`"$http_authorization:$upstream_http_cache_control"`, "$not_shared",
		`"~^:" 0`, `"~*:.*(public|must-revalidate|s-maxage)" 0`, `default 1`)
	f.choose("$upstream_http_vary", "$varies_by_all", `"~\*" 1`, `default 0`)
	if c.TTL > 0 {
		f.choose(`"$upstream_http_cache_control:$upstream_http_expires"`, "$no_lifetime",
			`"~*(no-store|no-cache|private)" 1`, `"~*(max-age|s-maxage)=" 0`, `"~:." 0`, `default 1`)
	} else {
		f.choose("$host", "$no_lifetime", "default 0") // nginx itself reads the lifetime
	}
	f.choose("$http_via", "$via", fmt.Sprintf(`"" "1.1 %s"`, c.Node), fmt.Sprintf(`default "$http_via, 1.1 %s"`, c.Node))
	f.choose("$http_x_request_id", "$id", `"~^[A-Za-z0-9._-]{1,64}$" $http_x_request_id`, `default $request_id`)
	says := func(status, rest string) string { return fmt.Sprintf(`%s "%s; %s"`, status, c.Node, rest) }
	f.choose("$upstream_cache_status", "$cache_status",
		says("HIT", "hit"), says("STALE", "hit; detail=stale"), says("UPDATING", "hit; detail=stale"),
		says("MISS", "fwd=uri-miss"), says("EXPIRED", "fwd=stale"), says("REVALIDATED", "fwd=stale; fwd-status=304"),
		says("BYPASS", "fwd=bypass"), says("default", "fwd=method"))
	// Hits are not logged: they are all other requests that the status page counts.
	f.choose("$upstream_addr", "$fetched", `"" 0`, `default 1`)
	f.set(`log_format fetch "%s $upstream_cache_status $upstream_addr|$upstream_bytes_received|$upstream_response_length"`,
		fetchPrefix)
	f.set("access_log /dev/stderr fetch buffer=4k flush=100ms if=$fetched")
	f.set("log_subrequest on") // updates in the background
}

func (c Config) renderClients(f *file) {
	f.set("server_tokens off")
	f.set("default_type application/octet-stream")
	f.set("sendfile on")
	f.set("tcp_nopush on")
	f.set("keepalive_timeout 300s")
	f.set("keepalive_requests 1000000000")
	f.set("client_max_body_size 0")
	f.set("client_body_timeout %s", seconds(sut.ResponseTimeout))
	f.set("large_client_header_buffers 4 8k")
	f.set("ignore_invalid_headers off")
	f.set("underscores_in_headers on")
	f.set("merge_slashes off")
}

// renderServer writes the server of the clients.
func (c Config) renderServer(f *file) {
	f.set("listen %s", net.JoinHostPort(c.Listen.String(), strconv.Itoa(c.Port)))
	f.set("add_header Cache-Status $cache_status always")
	f.set("proxy_http_version 1.1")
	f.set("proxy_request_buffering off")
	f.set("proxy_connect_timeout %s", seconds(sut.ConnectTimeout))
	f.set("proxy_read_timeout %s", seconds(sut.ResponseTimeout))
	f.set("proxy_send_timeout %s", seconds(sut.ResponseTimeout))
	f.set("proxy_buffer_size 16k")
	f.set("proxy_buffers 8 16k")
	f.set("proxy_force_ranges on")
	f.set("proxy_ignore_client_abort on") // a fill goes on when its client leaves
	f.set("if_modified_since before")
	f.set("proxy_pass_header Date")
	f.set("proxy_pass_header Server")
	for _, name := range []string{
		"Proxy-Connection", "Proxy-Authenticate", "Proxy-Authentication-Info", "Proxy-Authorization", "TE", "Upgrade",
	} {
		f.set("proxy_hide_header %s", name)
	}
	f.block("location /", func() { c.renderProxy(f) })
	for _, shared := range []string{"/img/", "/static/"} {
		f.block("location "+shared, func() {
			c.renderProxy(f)
			f.set(`proxy_set_header Cookie ""`)
		})
	}
}

// renderProxy writes what a location passes to the origins.
func (c Config) renderProxy(f *file) {
	host := "$http_host"
	if c.Site != "" {
		host = c.Site
	}
	f.set("proxy_pass http://origins")
	for _, header := range []string{
		"Host " + host, `Connection ""`, `Keep-Alive ""`, `Proxy-Connection ""`, `TE ""`, `Upgrade ""`, "Via $via",
		"X-Forwarded-For $remote_addr", "X-Forwarded-Host $http_host", "X-Forwarded-Proto http", "X-Request-Id $id",
	} {
		f.set("proxy_set_header %s", header)
	}
}
