# /nonexistent
#   -F
#   -j
#   none
#   -n
#   /nonexistent/work
#   -f
#   /nonexistent/edge0.vcl
#   -a
#   127.0.0.1:8080
#   -T
#   127.0.0.1:0
#   -S
#   /nonexistent/secret
#   -s
#   malloc,67108864
#   -s
#   Transient=malloc,16777216
#   -p
#   default_ttl=0
#   -p
#   default_grace=0
#   -p
#   default_keep=0
#   -p
#   shortlived=0
#   -p
#   http_gzip_support=off
#   -p
#   thread_pools=2
#   -p
#   thread_pool_min=10
#   -p
#   thread_pool_max=500
#   -p
#   thread_queue_limit=1000
#   -p
#   rush_exponent=1000
#   -p
#   vsl_space=1M
#   -p
#   nuke_limit=1000
#   -p
#   timeout_idle=300
#   -p
#   max_restarts=4
#   -p
#   max_retries=4
#   -p
#   connect_timeout=3
#   -p
#   first_byte_timeout=60
#   -p
#   between_bytes_timeout=60

# Written by stagebench before each start and each change of the origins.
vcl 4.1;

import directors;
import std;

backend o0 {
    .host = "127.0.0.1";
    .port = "81";
}
backend o1 {
    .host = "::1";
    .port = "82";
}

sub vcl_init {
    new origins = directors.round_robin();
    origins.add_backend(o0);
    origins.add_backend(o1);
}

sub vcl_recv {
    if (req.restarts == 0) {
        unset req.http.x-edge-hit;
        unset req.http.x-edge-status;
        unset req.http.x-edge-stale;
        unset req.http.x-edge-failed;
    set req.http.X-Forwarded-Host = req.http.Host;
        set req.http.X-Forwarded-For = client.ip;
        set req.http.X-Forwarded-Proto = "http";
        if (req.http.X-Request-Id !~ "^[A-Za-z0-9._-]{1,64}$") {
            set req.http.X-Request-Id = "edge-1-" + std.time2integer(now, 0) + "-" + req.xid;
        }
        if (req.http.Via) {
            set req.http.Via = req.http.Via + ", 1.1 edge-1";
        } else {
            set req.http.Via = "1.1 edge-1";
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
    hash_data(req.http.Host);
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
    if (beresp.ttl <= 0s) {
        call uncacheable;
        return (deliver);
    }
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
    if (beresp.http.CDN-Cache-Control ~ {"^ *[a-z*][a-z0-9_.*-]*(=(-?[0-9]{1,15}|"[^"\\]*"|[A-Za-z*][A-Za-z0-9_./:*-]*))?( *, *[a-z*][a-z0-9_.*-]*(=(-?[0-9]{1,15}|"[^"\\]*"|[A-Za-z*][A-Za-z0-9_./:*-]*))?)* *$"}) {
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
    if (bereq.retries < 1 && (bereq.method == "GET" || bereq.method == "HEAD") && !bereq.http.x-edge-begun) {
        return (retry);
    }
    if (bereq.http.x-edge-stale) {
        return (abandon);
    }
    set beresp.http.Content-Type = "text/plain; charset=utf-8";
    set beresp.http.Cache-Control = "no-store";
    set beresp.body = "The edge edge-1 got no answer from its origins. Try again later." + "";
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
        set resp.http.Cache-Status = resp.http.Cache-Status + ", edge-1; " + req.http.x-edge-status;
    } else {
        set resp.http.Cache-Status = "edge-1; " + req.http.x-edge-status;
    }
    unset resp.http.x-edge-url;
    unset resp.http.x-edge-swr;
    unset resp.http.x-edge-stale;
    unset resp.http.X-Varnish;
    set resp.http.Via = "1.1 edge-1";
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
