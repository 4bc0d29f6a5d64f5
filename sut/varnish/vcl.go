package varnish

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/stagebench/stagebench/sut"
)

// render returns the server's configuration with those origins. All values have passed validate. No subroutine falls
// through to Varnish's built-in rules: they do not store responses to requests with a cookie.
func (c Config) render(origins []sut.Peer) string {
	var f strings.Builder
	f.WriteString("# Written by stagebench before each start and each change of the origins.\nvcl 4.1;\n\n" +
		"import directors;\nimport std;\n\n")
	for i, origin := range origins {
		address := netip.MustParseAddrPort(origin.Address)
		fmt.Fprintf(&f, "backend o%d {\n    .host = \"%s\";\n    .port = \"%d\";\n}\n", i, address.Addr(), address.Port())
	}
	f.WriteString("\nsub vcl_init {\n    new origins = directors.round_robin();\n")
	for i := range origins {
		fmt.Fprintf(&f, "    origins.add_backend(o%d);\n", i)
	}
	f.WriteString("}\n")
	host, key := "    set req.http.X-Forwarded-Host = req.http.Host;\n", "    hash_data(req.http.Host);\n"
	if c.Site != "" {
		host += fmt.Sprintf("    set req.http.Host = %q;\n", c.Site)
	}
	admission, lifetime := "", ""
	if c.Admit == sut.AdmitSecondHit {
		admission = secondHit
	}
	if c.TTL > 0 {
		lifetime = fmt.Sprintf(replaceTTL, seconds(c.TTL))
	}
	f.WriteString(strings.NewReplacer(
		"@NODE@", c.Node, "@HOST@\n", host, "@KEY@\n", key, "@ADMISSION@\n", admission, "@LIFETIME@\n", lifetime,
		"@DICTIONARY@", dictionary, "@RETRIES@", fmt.Sprint(min(len(origins)-1, 3)),
	).Replace(rules))
	return f.String()
}

// secondHit stores nothing for a key that was not asked for before. The mark that Varnish keeps for a response that is
// not stored shows that a key was. It needs no vmod that counts.
const secondHit = `
    if (!bereq.is_hitmiss) {
        call uncacheable;
        set beresp.ttl = 1h;
        return (deliver);
    }
`

// replaceTTL replaces a lifetime that the origin gives.
const replaceTTL = `
    if (beresp.http.x-edge-lifetime) {
        set beresp.ttl = %ss;
    }
`

// dictionary is a pattern for dictionaries of RFC 9651 whose members are integers, tokens, strings without a backslash,
// or have no value.
const (
	member     = `[a-z*][a-z0-9_.*-]*(=(-?[0-9]{1,15}|"[^"\\]*"|[A-Za-z*][A-Za-z0-9_./:*-]*))?`
	dictionary = `^ *` + member + `( *, *` + member + `)* *$`
)

// rules is the part of the configuration that is the same for all edges.
//
// A stale response is found like a fresh one if it is within its grace, which is the longer one of the times that
// stale-while-revalidate and stale-if-error give. Within the first, it is served, and updated in the background.
// Otherwise the request is restarted without grace, so that it goes to the origin. If that fails, it is restarted once
// more, and the stale response is served.
const rules = `
sub vcl_recv {
    if (req.restarts == 0) {
        unset req.http.x-edge-hit;
        unset req.http.x-edge-status;
        unset req.http.x-edge-stale;
        unset req.http.x-edge-failed;
@HOST@
        set req.http.X-Forwarded-For = client.ip;
        set req.http.X-Forwarded-Proto = "http";
        if (req.http.X-Request-Id !~ "^[A-Za-z0-9._-]{1,64}$") {
            set req.http.X-Request-Id = "@NODE@-" + std.time2integer(now, 0) + "-" + req.xid;
        }
        if (req.http.Via) {
            set req.http.Via = req.http.Via + ", 1.1 @NODE@";
        } else {
            set req.http.Via = "1.1 @NODE@";
        }
        unset req.http.Proxy-Connection;
        if (req.http.Range !~ "(?i)^bytes=") {
            unset req.http.Range;
        }
        if (req.url ~ "^/(img|static)/") {
            unset req.http.Cookie;
        }
        set req.grace = 1y;
    } else if (req.http.x-edge-failed) {
        set req.grace = 1y;
    } else {
        set req.grace = 0s;
    }
    if (req.method != "GET" && req.method != "HEAD") {
        return (pass);
    }
    return (hash);
}

sub vcl_hash {
    hash_data(req.url);
@KEY@
    return (lookup);
}

sub vcl_hit {
    if (obj.ttl > 0s || req.http.x-edge-failed ||
        obj.ttl + std.duration(obj.http.x-edge-swr + "s", 0s) > 0s) {
        set req.http.x-edge-hit = "1";
        return (deliver);
    }
    set req.http.x-edge-stale = "1";
    return (restart);
}

sub vcl_miss {
    set req.http.x-edge-status = "fwd=uri-miss";
    return (fetch);
}

sub vcl_pass {
    set req.http.x-edge-status = "fwd=uri-miss";
    if (req.method != "GET" && req.method != "HEAD") {
        set req.http.x-edge-status = "fwd=method";
    }
    return (fetch);
}

sub vcl_purge {
    return (synth(405));
}

sub vcl_pipe {
    return (synth(501));
}

sub vcl_backend_fetch {
    # An update in the background of a response that is served because the origin fails.
    if (bereq.is_bgfetch && bereq.http.x-edge-failed) {
        return (abandon);
    }
    unset bereq.http.x-edge-hit;
    unset bereq.http.x-edge-status;
    unset bereq.http.x-edge-failed;
    unset bereq.http.x-edge-begun;
    # x-edge-stale stays, and the origin sees it: vcl_backend_response has no other way to know.
    set bereq.backend = origins.backend();
    return (fetch);
}

sub vcl_backend_response {
    if (!beresp.http.Content-Length) {
        # A streamed body that breaks off before its delivery has begun would be delivered as a whole one.
        set beresp.do_stream = false;
        set bereq.http.x-edge-begun = "1";
    }
    unset beresp.http.x-edge-swr;
    unset beresp.http.x-edge-lifetime;
    unset beresp.http.x-edge-stale;
    std.collect(beresp.http.Vary);
    std.collect(beresp.http.Cache-Control);
    std.collect(beresp.http.Cache-Groups);
    std.collect(beresp.http.CDN-Cache-Control);
    unset beresp.http.Proxy-Connection;
    unset beresp.http.Proxy-Authentication-Info;
    if (bereq.method !~ "^(GET|HEAD|OPTIONS|TRACE)$" && beresp.status < 400) {
        # A write makes what is stored for its URL invalid.
        std.ban("obj.http.x-edge-url == " + bereq.url);
    }
    if (beresp.was_304) {
        set beresp.http.x-edge-stale = "1";
    }
    set beresp.http.x-edge-url = bereq.url;
    call control;

    # A failed update leaves the stale response as it is. In the foreground, vcl_synth finds it.
    if ((bereq.is_bgfetch || bereq.http.x-edge-stale) && beresp.ttl <= 0s &&
        (beresp.status == 500 || (beresp.status >= 502 && beresp.status <= 504))) {
        return (abandon);
    }
    if (beresp.http.x-edge-control ~ "(?i)(^|[, ])(private|no-store|no-cache)($|[,= ])" || beresp.http.Set-Cookie ||
        beresp.http.Vary ~ "\*" || beresp.status == 206 || beresp.status < 200 ||
        (bereq.http.Authorization &&
            beresp.http.x-edge-control !~ "(?i)(^|[, ])(public|must-revalidate|s-maxage)($|[,= ])") ||
        (beresp.http.x-edge-control ~ "(?i)(^|[, ])must-understand" && beresp.status > 511)) {
        call uncacheable;
        return (deliver);
    }
@LIFETIME@
    if (beresp.ttl <= 0s) {
        call uncacheable;
        return (deliver);
    }
@ADMISSION@
    call stale;
    unset beresp.http.x-edge-control;
    unset beresp.http.x-edge-lifetime;
    return (deliver);
}

# uncacheable marks the key: for two minutes requests do not wait for each other. A response that can be stored ends it.
sub uncacheable {
    unset beresp.http.x-edge-control;
    unset beresp.http.x-edge-lifetime;
    set beresp.ttl = 120s;
    set beresp.uncacheable = true;
}

# control finds the directives for an edge, and the lifetime that they give. CDN-Cache-Control counts if it is a
# dictionary of RFC 9651 whose values are integers, tokens, or strings.
sub control {
    set beresp.http.x-edge-control = beresp.http.Cache-Control;
    if (beresp.http.Cache-Control ~ "(?i)(^|[, ])(s-maxage|max-age)=" || beresp.http.Expires) {
        set beresp.http.x-edge-lifetime = "1";
    }
    if (beresp.http.CDN-Cache-Control ~ {"@DICTIONARY@"}) {
        set beresp.http.x-edge-control = beresp.http.CDN-Cache-Control;
        set beresp.ttl = 0s;
        unset beresp.http.x-edge-lifetime;
        if (beresp.http.CDN-Cache-Control ~ "(^|[, ])max-age=[0-9]+( *,| *$)") {
            set beresp.http.x-edge-lifetime =
                regsub(beresp.http.CDN-Cache-Control, "^(.*[, ])?max-age=([0-9]+)( *,.*| *)$", "\2");
            set beresp.ttl = std.duration(beresp.http.x-edge-lifetime + "s", 0s) -
                std.duration(beresp.http.Age + "s", 0s);
        }
    } else if (beresp.status != 200 && beresp.status != 304 && beresp.ttl <= 0s &&
        beresp.http.Cache-Control ~ "(^|[, ])max-age=[0-9]+( *,| *$)") {
        # Varnish itself has a list of statuses, and ignores the lifetime of others.
        set beresp.ttl = std.duration(
            regsub(beresp.http.Cache-Control, "^(.*[, ])?max-age=([0-9]+)( *,.*| *)$", "\2") + "s", 0s) -
            std.duration(beresp.http.Age + "s", 0s);
    }
}

# stale sets how long a stale response may be used, and how long it is kept to be validated.
sub stale {
    set beresp.grace = 0s;
    set beresp.keep = 1h;
    if (beresp.http.x-edge-control ~ "(?i)(^|[, ])(must-revalidate|proxy-revalidate|s-maxage)") {
        return;
    }
    if (beresp.http.x-edge-control ~ "(^|[, ])stale-while-revalidate=[0-9]+( *,| *$)") {
        set beresp.http.x-edge-swr =
            regsub(beresp.http.x-edge-control, "^(.*[, ])?stale-while-revalidate=([0-9]+)( *,.*| *)$", "\2");
        set beresp.grace = std.duration(beresp.http.x-edge-swr + "s", 0s);
    }
    if (beresp.http.x-edge-control ~ "(^|[, ])stale-if-error=[0-9]+( *,| *$)") {
        if (std.duration(regsub(beresp.http.x-edge-control,
            "^(.*[, ])?stale-if-error=([0-9]+)( *,.*| *)$", "\2") + "s", 0s) > beresp.grace) {
            set beresp.grace = std.duration(regsub(beresp.http.x-edge-control,
                "^(.*[, ])?stale-if-error=([0-9]+)( *,.*| *)$", "\2") + "s", 0s);
        }
    }
}

sub vcl_backend_error {
    if (bereq.is_bgfetch) {
        return (abandon);
    }
    if (bereq.retries < @RETRIES@ && (bereq.method == "GET" || bereq.method == "HEAD") && !bereq.http.x-edge-begun) {
        return (retry);
    }
    if (bereq.http.x-edge-stale) {
        return (abandon);
    }
    set beresp.http.Content-Type = "text/plain; charset=utf-8";
    set beresp.http.Cache-Control = "no-store";
    set beresp.body = "The edge @NODE@ got no answer from its origins. Try again later." + "";
    set beresp.ttl = 0s;
    set beresp.uncacheable = true;
    return (deliver);
}

sub vcl_deliver {
    if (req.http.x-edge-hit) {
        set req.http.x-edge-status = "hit; ttl=" + std.integer(real = std.real(duration = obj.ttl), fallback = 0);
    } else {
        if (resp.http.x-edge-stale) {
            set req.http.x-edge-status = "fwd=stale; fwd-status=304";
        } else if (req.http.x-edge-stale) {
            set req.http.x-edge-status = "fwd=stale";
        }
        if (!obj.uncacheable) {
            set req.http.x-edge-status = req.http.x-edge-status + "; stored";
        }
    }
    if (resp.http.Cache-Status) {
        set resp.http.Cache-Status = resp.http.Cache-Status + ", @NODE@; " + req.http.x-edge-status;
    } else {
        set resp.http.Cache-Status = "@NODE@; " + req.http.x-edge-status;
    }
    unset resp.http.x-edge-url;
    unset resp.http.x-edge-swr;
    unset resp.http.x-edge-stale;
    unset resp.http.X-Varnish;
    set resp.http.Via = "1.1 @NODE@";
    return (deliver);
}

sub vcl_synth {
    if (req.http.x-edge-stale && !req.http.x-edge-failed && resp.status == 503) {
        set req.http.x-edge-failed = "1";
        return (restart);
    }
    set resp.http.Content-Type = "text/plain; charset=utf-8";
    set resp.http.Cache-Control = "no-store";
    set resp.body = resp.reason;
    return (deliver);
}
`
