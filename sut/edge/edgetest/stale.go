package edgetest

// staleCases are the rules about stale responses: when they may be used, and how they are validated and invalidated.
func staleCases() []Case {
	var all []Case
	all = append(all, servingStale()...)
	all = append(all, conditionalLM()...)
	all = append(all, conditionalETag()...)
	all = append(all, update304()...)
	all = append(all, updateHEAD()...)
	all = append(all, invalidation()...)
	return all
}

func servingStale() []Case {
	const window = "|ETag: \"abc\"|Cache-Control: max-age=1, stale-while-revalidate="
	drop := &Answer{Drop: true}
	// onError is a case whose origin fails when the response is stale.
	onError := func(id string, severity Severity, directives string, failing *Answer, want Want) Case {
		return Case{ID: id, Severity: severity, Section: "RFC 5861, 4", Steps: []Step{
			{Answer: answer("Cache-Control: max-age=1" + directives), Want: Miss},
			{Wait: 1, Answer: failing, Want: want},
		}}
	}
	all := []Case{
		{ID: "stale-while-revalidate", Severity: Optimal, Section: "RFC 5861, 3", Steps: []Step{
			{Answer: answer(window[1:] + "3600"), Want: Miss},
			{Wait: 1, Answer: answer(window[1:] + "3600"), Want: Stale, Settle: true},
		}},
		{
			ID: "stale-while-revalidate-update", Severity: Optimal, Section: "RFC 5861, 3",
			Needs: "stale-while-revalidate", Steps: []Step{
				{Answer: answer("Cache-Control: max-age=1, stale-while-revalidate=3600"), Want: Miss},
				{Wait: 1, Answer: answer(fresh), Want: Stale, Settle: true},
				{Wait: 1, Want: Hit, Fields: []string{fresh}},
			},
		},
		{
			ID: "stale-while-revalidate-window", Severity: Required, Section: "RFC 5861, 3",
			Needs: "stale-while-revalidate", Steps: []Step{
				{Answer: answer("Cache-Control: max-age=1, stale-while-revalidate=1"), Want: Miss},
				{Wait: 2, Answer: answer("Cache-Control: no-store"), Want: Miss},
			},
		},
		onError("stale-close", Check, "", drop, Stale),
		onError("stale-503", Check, "", status(503, ""), Stale),
		onError("stale-sie-close", Optimal, ", stale-if-error=60", drop, Stale),
		onError("stale-sie-500", Optimal, ", stale-if-error=60", status(500, ""), Stale),
		onError("stale-sie-502", Optimal, ", stale-if-error=60", status(502, ""), Stale),
		onError("stale-sie-503", Optimal, ", stale-if-error=60", status(503, ""), Stale),
		onError("stale-sie-504", Optimal, ", stale-if-error=60", status(504, ""), Stale),
		onError("stale-sie-404", Required, ", stale-if-error=60", status(404, ""), Miss),
		onError("stale-sie-window", Required, ", stale-if-error=0", drop, Failed),
	}
	for _, directive := range []string{"must-revalidate", "proxy-revalidate", "no-cache", "s-maxage=1"} {
		forbidden := onError("stale-close-"+directive, Required, ", "+directive, drop, Failed)
		forbidden.Section = "RFC 9111, 4.2.4"
		all = append(all, forbidden)
	}
	return in("stale", "", all...)
}

func conditionalLM() []Case {
	since := func(id string, want Want, first *Answer, wait int, send string) Case {
		return Case{ID: id, Severity: Optimal, Steps: []Step{
			{Answer: first, Want: Miss},
			{Wait: wait, Send: []string{"If-Modified-Since: " + send}, Want: want, Status: 304},
		}}
	}
	stored := answer(fresh + "|Last-Modified: @-3000|Date: @0")
	return in("conditional-lm", "RFC 9111, 4.3.2",
		since("conditional-lm-fresh", Hit, stored, 0, "@-3000"),
		since("conditional-lm-fresh-earlier", Hit, stored, 0, "@-2000"),
		since("conditional-lm-stale", Validated, answer(brief+"|Last-Modified: @-3000|Date: @0"), 1, "@-3000"),
		Case{ID: "conditional-lm-fresh-later", Severity: Required, Steps: []Step{
			{Answer: stored, Want: Miss},
			{Send: []string{"If-Modified-Since: @-4000"}, Want: Hit, Status: 200},
		}},
		Case{ID: "conditional-lm-generate", Severity: Optimal, Section: "RFC 9111, 4.3.1", Steps: []Step{
			{Answer: answer(brief + "|Last-Modified: @-3000|Date: @0"), Want: Miss},
			{Wait: 1, Want: Validated, Status: 200, Forwarded: []string{"If-Modified-Since: @-3000"}},
		}},
	)
}

func conditionalETag() []Case {
	const tag, weak = `ETag: "abcdef"`, `ETag: W/"abcdef"`
	none := func(id string, severity Severity, first, send string, code int, fields ...string) Case {
		return Case{ID: id, Severity: severity, Steps: []Step{
			{Answer: answer(fresh + "|Vary: Abc|" + first), Want: Miss},
			{Send: split(send), Want: Hit, Status: code, Fields: fields},
		}}
	}
	generate := func(id, first, want string) Case {
		return Case{ID: id, Severity: Optimal, Section: "RFC 9111, 4.3.1", Steps: []Step{
			{Answer: answer(brief + "|" + first), Want: Miss},
			{Wait: 1, Want: Validated, Status: 200, Forwarded: []string{"If-None-Match: " + want}},
		}}
	}
	const both = tag + "|Last-Modified: @-5000"
	return in("conditional-inm", "RFC 9111, 4.3.2",
		none("conditional-etag-strong-respond", Optimal, tag, `If-None-Match: "abcdef"`, 304),
		none("conditional-304-etag", Required, tag, `If-None-Match: "abcdef"`, 304, tag),
		none("conditional-304-fields", Required, tag, `If-None-Match: "abcdef"`, 304, fresh, "Vary: Abc", "Date"),
		none("conditional-etag-precedence", Required, both, `If-None-Match: "abcdef"|If-Modified-Since: @-9000`, 304),
		none("conditional-etag-precedence-other", Required, both, `If-None-Match: "other"|If-Modified-Since: @-1`, 200),
		none("conditional-etag-weak-respond", Optimal, weak, `If-None-Match: W/"abcdef"`, 304),
		none("conditional-etag-weak-strong", Optimal, weak, `If-None-Match: "abcdef"`, 304),
		none("conditional-etag-star", Optimal, tag, `If-None-Match: *`, 304),
		none("conditional-etag-strong-respond-multiple-first", Optimal, tag,
			`If-None-Match: "abcdef", "1234", "5678"`, 304),
		none("conditional-etag-strong-respond-multiple-second", Optimal, tag,
			`If-None-Match: "1234", "abcdef", "5678"`, 304),
		none("conditional-etag-strong-respond-multiple-last", Optimal, tag,
			`If-None-Match: "1234", "5678", "abcdef"`, 304),
		none("conditional-etag-quoted-respond-unquoted", Check, tag, `If-None-Match: abcdef`, 304),
		none("conditional-etag-unquoted-respond-unquoted", Check, "ETag: abcdef", `If-None-Match: abcdef`, 304),
		none("conditional-etag-unquoted-respond-quoted", Check, "ETag: abcdef", `If-None-Match: "abcdef"`, 304),
		generate("conditional-etag-strong-generate", tag, `"abcdef"`),
		generate("conditional-etag-weak-generate-weak", weak, `W/"abcdef"`),
		Case{ID: "conditional-etag-vary-headers", Severity: Required, Section: "RFC 9111, 4.1", Steps: []Step{
			{Send: []string{"Abc: 123"}, Answer: answer(brief + "|Vary: Abc|" + tag), Want: Miss},
			{Wait: 1, Send: []string{"Abc: 123"}, Want: Any, Forwarded: []string{"Abc: 123"}},
		}},
		Case{ID: "conditional-etag-forward", Severity: Check, Steps: []Step{
			{Send: []string{`If-None-Match: "abcdef"`}, Answer: answer(tag), Forwarded: []string{`If-None-Match: "abcdef"`}},
		}},
		// A client's validator must not reach the store: the next client has none and needs the body.
		Case{ID: "conditional-miss-full", Severity: Required, Section: "RFC 9111, 3", Steps: []Step{
			{Send: []string{`If-None-Match: "abcdef"`}, Answer: answer(fresh + "|" + tag)},
			{Status: 200, Fields: []string{tag}},
		}},
	)
}

// update304: fields of a 304 replace those of the stored response, in the response of the request that caused it and
// in those after it.
func update304() []Case {
	all := []Case{{ID: "304-lm-use-stored-Test-Header", Severity: Required, Steps: []Step{
		{Answer: answer(brief + "|Last-Modified: @-3000|Date: @0|Test-Header: A"), Want: Miss},
		{
			Wait: 1, Answer: answer(brief + "|Last-Modified: @-3000|Date: @0"), Want: Validated,
			Fields: []string{"Test-Header: A"},
		},
	}}}
	for _, update := range []struct{ name, old, changed string }{
		{"Test-Header", "A", "B"},
		{"X-Test-Header", "A", "B"},
		{"Content-Foo", "A", "B"},
		{"X-Content-Foo", "A", "B"},
		{"Content-Type", "text/plain", "text/plain;charset=utf-8"},
		{"Content-Location", "/foo", "/bar"},
		{"Content-Security-Policy", "default-src 'self'", "default-src 'self' cdn.example.com"},
		{"X-Frame-Options", "deny", "sameorigin"},
		{"Expires", "@1", "@3600"},
	} {
		line := update.name + ": "
		all = append(all, Case{
			ID: "304-etag-update-response-" + update.name, Severity: Required, Needs: "conditional-etag-strong-generate",
			Steps: []Step{
				{Answer: answer(brief + `|ETag: "abc"|` + line + update.old), Want: Miss},
				{
					Wait: 1, Answer: answer(fresh + `|ETag: "abc"|` + line + update.changed), Want: Validated,
					Fields: []string{line + update.changed},
				},
				{Want: Hit, Fields: []string{line + update.changed, fresh}},
			},
		})
	}
	all = append(all, Case{
		ID: "304-etag-update-response-Content-Length", Severity: Required, Needs: "conditional-etag-strong-generate",
		Steps: []Step{
			{Answer: &Answer{Fields: split(brief + `|ETag: "abc"`), Body: "abcde"}, Want: Miss},
			{Wait: 1, Answer: answer(fresh + `|ETag: "abc"|Content-Length: 10`), Want: Validated, Text: "abcde"},
			{Want: Hit, Text: "abcde", Fields: []string{"Content-Length: 5"}},
		},
	})
	return in("update304", "RFC 9111, 4.3.4", all...)
}

func updateHEAD() []Case {
	head := func(id string, second *Answer, rest ...Step) Case {
		return Case{ID: id, Severity: Check, Needs: "freshness-max-age-stale", Steps: append([]Step{
			{Answer: answer(brief + "|Template-A: 1"), Want: Miss},
			{Wait: 1, Method: "HEAD", Answer: second},
		}, rest...)}
	}
	return in("updateHEAD", "RFC 9111, 4.3.5",
		Case{ID: "head-from-get", Severity: Optimal, Section: "RFC 9111, 4", Steps: []Step{
			{Answer: answer(fresh + "|Template-A: 1"), Want: Miss},
			{Method: "HEAD", Want: Hit, Status: 200, Fields: []string{"Template-A: 1", "Content-Length"}},
		}},
		Case{ID: "head-is-no-get", Severity: Required, Section: "RFC 9111, 4", Steps: []Step{
			{Method: "HEAD", Answer: &Answer{Fields: split(fresh), Body: "body"}},
			{Status: 200, Text: "body"},
		}},
		head("head-200-retain", nil, Step{Fields: []string{"Template-A: 1"}}),
		head("head-200-freshness-update", answer(fresh+"|Template-A: 1"), Step{Want: Hit}),
		head("head-200-update", answer(fresh+"|Template-A: 2"), Step{Fields: []string{"Template-A: 2"}}),
	)
}

// invalidation: an answer of 200 to 399 to an unsafe or unknown method removes what is stored for the URL.
func invalidation() []Case {
	var all []Case
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "M-SEARCH"} {
		write := func(id string, severity Severity, a *Answer, want Want, section string) Case {
			at := "/target"
			if id == "" || id == "-failed" || id == "-redirect" {
				at = ""
			}
			return Case{ID: "invalidate-" + method + id, Severity: severity, Section: section, Steps: []Step{
				{At: at, Answer: answer(fresh), Want: Miss},
				{Method: method, Body: "abc", Answer: a},
				{At: at, Answer: answer(fresh), Want: want},
			}}
		}
		const section = "RFC 9111, 4.4"
		all = append(all,
			write("", Required, answer(""), Miss, section),
			write("-failed", Optimal, status(500, ""), Hit, section))
		if method == "POST" {
			all = append(all,
				write("-redirect", Required, status(303, "Location: /elsewhere"), Miss, section),
				write("-other-host", Required, answer("Location: http://other.example{path}/target"), Hit, section))
		}
		for i := range all {
			if all[i].ID == "invalidate-"+method+"-failed" {
				all[i].Needs = "invalidate-" + method
			}
		}
		location := write("-location", Check, answer("Location: {path}/target"), Miss, section)
		content := write("-cl", Check, answer("Content-Location: {path}/target"), Miss, section)
		all = append(all, location, content)
	}
	return in("invalidation", "", all...)
}
