package edgetest

import "strconv"

func itoa(n int) string { return strconv.Itoa(n) }

// fieldCases are the rules about fields of requests and responses, and about methods and ranges.
func fieldCases() []Case {
	var all []Case
	all = append(all, varyCases()...)
	all = append(all, varyParse()...)
	all = append(all, headerFields()...)
	all = append(all, authorization()...)
	all = append(all, partial()...)
	all = append(all, requestFields()...)
	all = append(all, other()...)
	return all
}

func varyCases() []Case {
	// vary is a case whose two requests have different fields.
	vary := func(id string, severity Severity, list, first, second string, want Want) Case {
		c := Case{ID: id, Severity: severity, Steps: []Step{
			{Send: split(first), Answer: answer(fresh + "|Vary: " + list), Want: Miss},
			{Send: split(second), Want: want},
		}}
		if want != Hit {
			c.Needs = "vary-match"
		}
		return c
	}
	const three = "Foo, Bar, Baz"
	return in("vary", "RFC 9111, 4.1",
		vary("vary-match", Optimal, "Foo", "Foo: 1", "Foo: 1", Hit),
		vary("vary-no-match", Required, "Foo", "Foo: 1", "Foo: 2", Miss),
		vary("vary-omit-stored", Required, "Foo", "", "Foo: 1", Miss),
		vary("vary-omit", Required, "Foo", "Foo: 1", "", Miss),
		vary("vary-case", Optimal, "fOO", "Foo: 1", "Foo: 1", Hit),
		vary("vary-cache-key", Optimal, "Foo", "Foo: 1|Other: 2", "Foo: 1|Other: 3", Hit),
		vary("vary-2-match", Optimal, "Foo, Bar", "Foo: 1|Bar: abc", "Foo: 1|Bar: abc", Hit),
		vary("vary-2-no-match", Required, "Foo, Bar", "Foo: 1|Bar: abc", "Foo: 2|Bar: abc", Miss),
		vary("vary-2-match-omit", Required, "Foo, Bar", "Foo: 1", "", Miss),
		vary("vary-3-match", Optimal, three, "Foo: 1|Bar: abc|Baz: 789", "Foo: 1|Bar: abc|Baz: 789", Hit),
		vary("vary-3-no-match", Required, three, "Foo: 1|Bar: abc|Baz: 789", "Foo: 2|Bar: abc|Baz: 789", Miss),
		vary("vary-3-order", Required, three, "Foo: 1|Bar: abc4|Baz: 789", "Foo: 1|Bar: abc|Baz: 789", Miss),
		vary("vary-3-omit", Optimal, three, "Foo: 1|Baz: 789", "Foo: 1|Baz: 789", Hit),
		vary("vary-star", Required, "*", "Foo: 1|Baz: 789", "Foo: 1|Baz: 789", Miss),
		vary("vary-lines", Required, "Foo|Vary: Bar", "Foo: 1|Bar: 1", "Foo: 1|Bar: 2", Miss),
		vary("vary-normalise-combine", Optimal, "Foo", "Foo: 1, 2", "Foo: 1|Foo: 2", Hit),
		vary("vary-normalise-lang-order", Check, "Accept-Language", "Accept-Language: en, de",
			"Accept-Language: de, en", Hit),
		Case{ID: "vary-invalidate", Severity: Optimal, Needs: "vary-match", Steps: []Step{
			{Send: []string{"Foo: 1"}, Answer: answer(fresh + "|Vary: Foo"), Want: Miss},
			{Send: []string{"Foo: 2"}, Want: Miss},
			{Send: []string{"Foo: 1"}, Want: Hit},
			{Send: []string{"Foo: 2"}, Want: Hit},
		}},
	)
}

func varyParse() []Case {
	return cases("vary-parse", "RFC 9110, 12.5.5", "freshness-max-age", []rule{
		{"vary-syntax-star", Required, Miss, fresh + "|Vary: *"},
		{"vary-syntax-star-star", Required, Miss, fresh + "|Vary: *, *"},
		{"vary-syntax-star-star-lines", Required, Miss, fresh + "|Vary: *|Vary: *"},
		{"vary-syntax-empty-star", Required, Miss, fresh + "|Vary: , *"},
		{"vary-syntax-empty-star-lines", Required, Miss, fresh + "|Vary: |Vary: *"},
		{"vary-syntax-star-foo", Required, Miss, fresh + "|Vary: *, Foo"},
		{"vary-syntax-foo-star", Required, Miss, fresh + "|Vary: Foo, *"},
	})
}

func headerFields() []Case {
	var all []Case
	store := func(id, stored string, fields ...string) {
		all = append(all, Case{ID: "headers-" + id, Severity: Required, Steps: []Step{
			{Answer: answer(fresh + "|" + stored), Want: Miss}, {Want: Hit, Fields: fields},
		}})
	}
	store("omit-headers-listed-in-Connection", "Connection: a, b|a: 1|b: 2|c: 3", "c: 3", "!a", "!b")
	for _, line := range []string{
		"Test-Header: 1", "X-Test-Header: 1", "Content-Foo: 1", "X-Content-Foo: 1", "Content-Encoding: foo",
		"Content-Location: /bar", "Content-MD5: N7UdGUp1E+RbVvZSTy1R8g==", "Content-Security-Policy: default-src 'self'",
		"Content-Type: text/plain;charset=utf-8", "Clear-Site-Data: cookies", `ETag: "ghijkl"`,
		"Expires: Mon, 11 Jan 2038 11:11:11 GMT", "Public-Key-Pins: x", "X-Frame-Options: deny",
		"X-XSS-Protection: 1; mode=block", "Last-Modified: @-5000", "Strict-Transport-Security: max-age=1",
		"WWW-Authenticate: Basic", "Link: </a>; rel=preload", "Cache-Groups: \"g\"",
	} {
		name, _ := field(line)
		store("store-"+name, line, line)
	}
	store("store-Cache-Control", "Test: 1", fresh)
	store("store-two-lines", "Test: 1|Test: 2", "Test: 1, 2")
	store("store-no-cookie", "Test: 1", "!Set-Cookie")
	for _, line := range []string{
		"Keep-Alive: 7", "Proxy-Connection: x", "Proxy-Authenticate: Basic", "Proxy-Authentication-Info: x", "TE: x",
		"Upgrade: x",
	} {
		name, _ := field(line)
		store("store-"+name, line, "!"+name)
	}
	return in("headers", "RFC 9111, 3.1", all...)
}

func authorization() []Case {
	with := func(id string, severity Severity, fields string, want Want) Case {
		c := Case{ID: "other-authorization" + id, Severity: severity, Steps: []Step{
			{
				Send: []string{"Authorization: FOO"}, Answer: answer(fields), Want: Miss,
				Forwarded: []string{"Authorization: FOO"},
			},
			{Want: want},
		}}
		return c
	}
	return in("auth", "RFC 9111, 3.5",
		with("", Required, fresh, Miss),
		with("-public", Optimal, "Cache-Control: max-age=3600, public", Hit),
		with("-must-revalidate", Optimal, "Cache-Control: max-age=3600, must-revalidate", Hit),
		with("-smaxage", Optimal, "Cache-Control: s-maxage=3600", Hit),
	)
}

func partial() []Case {
	stored := &Answer{Fields: split(fresh + `|ETag: "abc"`), Body: "01234567890"}
	part := func(id string, send string, code int, text string, fields ...string) Case {
		return Case{ID: "partial-" + id, Severity: Optimal, Steps: []Step{
			{Answer: stored, Want: Miss},
			{Send: split(send), Want: Hit, Status: code, Text: text, Fields: fields},
		}}
	}
	whole := stored.Body
	conditional := part("if-range-match", `Range: bytes=0-1|If-Range: "abc"`, 206, "01")
	other := part("if-range-other", `Range: bytes=0-1|If-Range: "def"`, 200, whole)
	weak := part("if-range-weak", `Range: bytes=0-1|If-Range: W/"abc"`, 200, whole)
	for _, c := range []*Case{&other, &weak} {
		c.Severity, c.Section = Required, "RFC 9110, 13.1.5"
	}
	return in("partial", "RFC 9110, 14.2",
		part("store-complete-reuse-partial", "Range: bytes=0-1", 206, "01", "Content-Range: bytes 0-1/11",
			"Content-Length: 2"),
		part("store-complete-reuse-partial-no-last", "Range: bytes=1-", 206, "1234567890"),
		part("store-complete-reuse-partial-suffix", "Range: bytes=-1", 206, "0"),
		part("unsatisfiable", "Range: bytes=100-", 416, ""),
		part("unknown-unit", "Range: lines=1-2", 200, whole),
		conditional, other, weak,
		// A part that the origin sends must never be served as the whole.
		Case{ID: "partial-is-no-whole", Severity: Required, Section: "RFC 9111, 3.3", Steps: []Step{
			{
				Send: []string{"Range: bytes=0-4"},
				Answer: &Answer{
					Status: 206, Fields: split(fresh + "|Content-Range: bytes 0-4/11"), Body: "01234", Whole: whole,
				},
			},
			{Answer: stored, Status: 200, Text: whole},
		}},
	)
}

// requestFields are the rules about what reaches the origin.
func requestFields() []Case {
	passed := func(id string, severity Severity, section, send string, forwarded ...string) Case {
		return Case{ID: "forward-" + id, Severity: severity, Section: section, Steps: []Step{
			{Send: split(send), Answer: answer(""), Want: Miss, Forwarded: forwarded},
		}}
	}
	const shared = "Cookie: session=a"
	reused := func(id, prefix string, severity Severity) Case {
		return Case{ID: "cookie-dropped-" + id, Severity: severity, Section: "sut.EdgeConfig", Prefix: prefix, Steps: []Step{
			{Send: []string{shared}, Answer: answer(fresh), Want: Miss, Forwarded: []string{"!Cookie"}},
			{Send: []string{"Cookie: session=b"}, Want: Hit},
		}}
	}
	return in("forward", "RFC 9110, 7.6",
		passed("via", Required, "RFC 9110, 7.6.3", "", "Via"),
		passed("x-forwarded-for", Required, "sut.EdgeConfig", "", "X-Forwarded-For: 127.0.0.1"),
		passed("x-forwarded-for-forged", Required, "sut.EdgeConfig", "X-Forwarded-For: 192.0.2.1",
			"X-Forwarded-For: 127.0.0.1"),
		passed("request-id", Required, "sut.RequestIDHeader", "X-Request-Id: abc-1", "X-Request-Id: abc-1"),
		passed("request-id-new", Optimal, "sut.RequestIDHeader", "", "X-Request-Id"),
		passed("fields", Required, "", "Test: 1|Accept: image/webp|User-Agent: kit", "Test: 1", "Accept: image/webp",
			"User-Agent: kit"),
		passed("hop-by-hop", Required, "RFC 9110, 7.6.1", "Connection: Foo|Foo: 1|Keep-Alive: 1|Proxy-Connection: x",
			"!Foo", "!Keep-Alive", "!Proxy-Connection"),
		passed("cookie", Required, "sut.EdgeConfig", shared, shared),
		passed("accept-encoding", Required, "RFC 9111, 4.1", "Accept-Encoding: br, foo", "Accept-Encoding: br, foo"),
		reused("img", "/img", Required),
		reused("static", "/static", Required),
	)
}

func other() []Case {
	const store = fresh + "|Date: @-5"
	all := []Case{
		{ID: "other-age-gen", Severity: Required, Section: "RFC 9111, 5.1", Steps: []Step{
			{Answer: answer(fresh), Want: Miss},
			{Wait: 1, Want: Hit, Fields: []string{"Age>0"}},
		}},
		{ID: "other-age-update-expires", Severity: Required, Section: "RFC 9111, 4.2.3", Steps: []Step{
			{Answer: answer("Expires: @3600|Date: @0|Age: 30"), Want: Miss},
			{Wait: 1, Want: Hit, Fields: []string{"Age>30"}},
		}},
		{ID: "other-age-update-max-age", Severity: Required, Section: "RFC 9111, 4.2.3", Steps: []Step{
			{Answer: answer(fresh + "|Date: @0|Age: 30"), Want: Miss},
			{Wait: 1, Want: Hit, Fields: []string{"Age>30"}},
		}},
		{ID: "other-date-update", Severity: Required, Section: "RFC 9110, 6.6.1", Steps: []Step{
			{Answer: answer(store), Want: Miss}, {Want: Hit, Fields: []string{"Date: @-5"}},
		}},
		{ID: "other-date-update-expires", Severity: Required, Section: "RFC 9110, 6.6.1", Steps: []Step{
			{Answer: answer("Expires: @3600|Date: @-5"), Want: Miss}, {Want: Hit, Fields: []string{"Date: @-5"}},
		}},
		{ID: "other-date-update-expires-update", Severity: Check, Section: "RFC 9111, 5.3", Steps: []Step{
			{Answer: answer("Expires: @3600|Date: @-5"), Want: Miss}, {Want: Hit, Fields: []string{"Expires: @3600"}},
		}},
		{ID: "query-args-different", Severity: Required, Steps: []Step{
			{At: "?test=1", Answer: answer(fresh), Want: Miss}, {At: "?test=2", Want: Miss},
		}},
		{ID: "query-args-same", Severity: Optimal, Steps: []Step{
			{At: "?test=1&a=b", Answer: answer(fresh), Want: Miss}, {At: "?test=1&a=b", Want: Hit},
		}},
		{ID: "query-args-order", Severity: Required, Steps: []Step{
			{At: "?a=1&b=2", Answer: answer(fresh), Want: Miss}, {At: "?b=2&a=1", Want: Miss},
		}},
		{ID: "path-case", Severity: Required, Steps: []Step{
			{At: "/a", Answer: answer(fresh), Want: Miss}, {At: "/A", Want: Miss},
		}},
		{ID: "path-escapes", Severity: Required, Steps: []Step{
			{At: "/a%2Fb", Answer: answer(fresh), Want: Miss}, {At: "/a/b", Want: Miss}, {At: "/a%2Fb", Want: Hit},
		}},
		{ID: "other-set-cookie", Severity: Check, Section: "RFC 9111, 7.3", Steps: []Step{
			{Answer: answer(fresh + "|Set-Cookie: a=b"), Want: Miss}, {Want: Hit},
		}},
		// The product's rule: a response for one user is never shared.
		{ID: "set-cookie-not-stored", Severity: Required, Section: "sut.EdgeConfig", Steps: []Step{
			{Answer: answer(fresh + "|Set-Cookie: a=b"), Want: Miss, Fields: []string{"Set-Cookie: a=b"}}, {Want: Miss},
		}},
		{ID: "other-fresh-content-disposition-attachment", Severity: Check, Steps: []Step{
			{Answer: answer(fresh + "|Content-Disposition: attachment; filename=a"), Want: Miss}, {Want: Hit},
		}},
		{ID: "method-POST", Severity: Check, Section: "RFC 9110, 9.3.3", Steps: []Step{
			{Method: "POST", Body: "1", Answer: answer(fresh + "|Content-Location: {path}")}, {Want: Hit},
		}},
		{ID: "method-POST-through", Severity: Required, Section: "RFC 9111, 4", Steps: []Step{
			{Answer: answer(fresh), Want: Miss}, {Method: "POST", Body: "1", Want: Miss},
		}},
		{ID: "method-OPTIONS-through", Severity: Required, Section: "RFC 9111, 4", Steps: []Step{
			{Answer: answer(fresh), Want: Miss}, {Method: "OPTIONS", Want: Miss}, {Want: Hit},
		}},
	}
	return in("other", "RFC 9111, 2", all...)
}
