package edgetest

// freshnessCases are the rules about lifetimes.
func freshnessCases() []Case {
	var all []Case
	all = append(all, ccFreshness()...)
	all = append(all, ccParse()...)
	all = append(all, ageParse()...)
	all = append(all, expires()...)
	all = append(all, expiresParse()...)
	all = append(all, ccResponse()...)
	all = append(all, heuristic()...)
	all = append(all, statusCodes()...)
	return all
}

// ccFreshness has no lifetime of a second: s-maxage=0 is as short, and needs no wait.
func ccFreshness() []Case {
	all := cases("cc-freshness", "RFC 9111, 4.2.1", "freshness-max-age", []rule{
		{"freshness-none", Check, Miss, ""},
		{"freshness-max-age", Optimal, Hit, fresh},
		{"freshness-max-age-0", Required, Miss, "Cache-Control: max-age=0"},
		{"freshness-max-age-max-minus-1", Optimal, Hit, "Cache-Control: max-age=2147483647"},
		{"freshness-max-age-max", Optimal, Hit, "Cache-Control: max-age=2147483648"},
		{"freshness-max-age-max-plus-1", Optimal, Hit, "Cache-Control: max-age=2147483649"},
		{"freshness-max-age-max-plus", Optimal, Hit, "Cache-Control: max-age=99999999999"},
		{"freshness-max-age-age", Required, Miss, "Date: @0|Cache-Control: max-age=3600|Age: 7200"},
		{"freshness-max-age-date", Check, Miss, "Date: @-7200|Cache-Control: max-age=3600"},
		{"freshness-max-age-expires", Optimal, Hit, "Cache-Control: max-age=3600|Expires: @-7200|Date: @0"},
		{"freshness-max-age-expires-invalid", Optimal, Hit, "Cache-Control: max-age=3600|Expires: 0|Date: @0"},
		{"freshness-max-age-0-expires", Required, Miss, "Expires: @3600|Cache-Control: max-age=0|Date: @0"},
		{"freshness-max-age-extension", Optimal, Hit, "Cache-Control: foobar, max-age=3600"},
		{"freshness-max-age-case-insenstive", Optimal, Hit, "Cache-Control: MaX-aGe=3600"},
		{"freshness-max-age-negative", Required, Miss, "Cache-Control: max-age=-3600"},
		{"freshness-s-maxage-shared", Required, Hit, "Cache-Control: s-maxage=3600"},
		{"freshness-max-age-s-maxage-shared-longer", Required, Miss, "Cache-Control: max-age=3600, s-maxage=0"},
		{"freshness-max-age-s-maxage-shared-longer-reversed", Required, Miss, "Cache-Control: s-maxage=0, max-age=3600"},
		{
			"freshness-max-age-s-maxage-shared-longer-multiple", Required, Miss,
			"Cache-Control: max-age=3600|Cache-Control: s-maxage=0",
		},
		{"freshness-max-age-s-maxage-shared-shorter", Optimal, Hit, "Cache-Control: max-age=1, s-maxage=3600"},
		{
			"freshness-max-age-s-maxage-shared-shorter-expires", Optimal, Hit,
			"Expires: @-10|Cache-Control: max-age=0, s-maxage=3600",
		},
	})
	return append(all, in("cc-freshness", "RFC 9111, 4.2", Case{
		ID: "freshness-max-age-stale", Severity: Required, Needs: "freshness-max-age", Steps: []Step{
			{Answer: answer(brief), Want: Miss},
			{Want: Hit},
			{Wait: 1, Want: Miss},
		},
	})...)
}

func ccParse() []Case {
	return cases("cc-parse", "RFC 9111, 5.2", "freshness-max-age", []rule{
		{"freshness-max-age-quoted", Check, Hit, `Cache-Control: max-age="3600"`},
		{"freshness-max-age-single-quoted", Required, Miss, "Cache-Control: max-age='3600'"},
		{
			"freshness-max-age-ignore-quoted", Required, Miss,
			`Cache-Control: extension="max-age=3600", max-age=0`,
		},
		{
			"freshness-max-age-ignore-quoted-rev", Required, Miss,
			`Cache-Control: max-age=0, extension="max-age=3600"`,
		},
		{"freshness-max-age-ignore-quoted-comma", Required, Miss, `Cache-Control: extension="a, max-age=3600, b"`},
		{"freshness-max-age-leading-zero", Required, Hit, "Cache-Control: max-age=003600"},
		{"freshness-max-age-decimal-zero", Check, Hit, "Cache-Control: max-age=3600.0"},
		{"freshness-max-age-decimal-five", Check, Hit, "Cache-Control: max-age=3600.5"},
		{"freshness-max-age-space-before-equals", Check, Miss, "Cache-Control: max-age =3600"},
		{"freshness-max-age-space-after-equals", Check, Miss, "Cache-Control: max-age= 3600"},
		{"freshness-max-age-a100", Check, Hit, "Cache-Control: max-age=a3600"},
		{"freshness-max-age-100a", Check, Hit, "Cache-Control: max-age=3600a"},
		{"freshness-max-age-two-stale-fresh-sameline", Check, Hit, "Cache-Control: max-age=0, max-age=1800"},
		{"freshness-max-age-two-fresh-stale-sameline", Check, Hit, "Cache-Control: max-age=1800, max-age=0"},
		{
			"freshness-max-age-two-stale-fresh-sepline", Check, Hit,
			"Cache-Control: max-age=0|Cache-Control: max-age=1800",
		},
		{
			"freshness-max-age-two-fresh-stale-sepline", Check, Hit,
			"Cache-Control: max-age=1800|Cache-Control: max-age=0",
		},
	})
}

// ageParse has the meaning of RFC 9111, 5.1: the first member counts, and what is not a non-negative integer is
// ignored. A response with Age 7200 is older than its lifetime of an hour.
func ageParse() []Case {
	const hour = "Date: @0|Cache-Control: max-age=3600|"
	all := cases("age-parse", "RFC 9111, 5.1", "freshness-max-age-age", []rule{
		{"age-parse-nonnumeric", Required, Hit, hour + "Age: abc"},
		{"age-parse-negative", Required, Hit, hour + "Age: -7200"},
		{"age-parse-float", Required, Hit, hour + "Age: 7200.0"},
		{"age-parse-large", Required, Miss, hour + "Age: 2147483648"},
		{"age-parse-large-minus-one", Required, Miss, hour + "Age: 2147483647"},
		{"age-parse-larger", Required, Miss, hour + "Age: 99999999999"},
		{"age-parse-suffix", Required, Miss, hour + "Age: 7200, 0"},
		{"age-parse-prefix", Required, Hit, hour + "Age: 0, 7200"},
		{"age-parse-suffix-twoline", Required, Miss, hour + "Age: 7200|Age: 0"},
		{"age-parse-prefix-twoline", Required, Hit, hour + "Age: 0|Age: 7200"},
		{"age-parse-dup-0", Required, Hit, hour + "Age: 0, 0"},
		{"age-parse-dup-0-twoline", Required, Hit, hour + "Age: 0|Age: 0"},
		{"age-parse-dup-old", Required, Hit, "Date: @0|Cache-Control: max-age=10000|Age: 3600|Age: 3600"},
		{"age-parse-parameter", Check, Miss, hour + "Age: 7200;foo=bar"},
		{"age-parse-numeric-parameter", Check, Miss, hour + "Age: 7200;foo=111"},
	})
	for i := range all {
		all[i].Needs = "freshness-max-age-age" // a cache that ignores Age would pass the hits
	}
	return all
}

func expires() []Case {
	return cases("expires", "RFC 9111, 5.3", "freshness-expires-future", []rule{
		{"freshness-expires-future", Optimal, Hit, "Expires: @2592000|Date: @0"},
		{"freshness-expires-past", Required, Miss, "Expires: @-2592000|Date: @0"},
		{"freshness-expires-present", Required, Miss, "Expires: @-2|Date: @-2"},
		{"freshness-expires-old-date", Required, Miss, "Expires: @300|Date: @400"},
		{"freshness-expires-invalid", Required, Miss, "Expires: 0|Date: @0"},
		{"freshness-expires-invalid-date", Optimal, Hit, "Date: foo|Expires: @60"},
		{"freshness-expires-age-slow-date", Required, Miss, "Date: @-10|Expires: @10|Age: 25"},
		{"freshness-expires-age-fast-date", Required, Miss, "Date: @10|Expires: @20|Age: 15"},
	})
}

func expiresParse() []Case {
	all := cases("expires-parse", "RFC 9110, 5.6.7", "freshness-expires-future", []rule{
		{"freshness-expires-32bit", Optimal, Hit, "Expires: Tue, 19 Jan 2038 14:14:08 GMT|Date: @0"},
		{"freshness-expires-far-future", Optimal, Hit, "Expires: Sun, 21 Nov 2286 04:46:39 GMT|Date: @0"},
		{"freshness-expires-rfc850", Optimal, Hit, "Expires: Thursday, 18-Aug-50 02:01:18 GMT|Date: @0"},
		{"freshness-expires-ansi-c", Optimal, Hit, "Expires: Thu Aug 18 02:01:18 2050|Date: @0"},
		{"freshness-expires-invalid-utc", Required, Miss, "Expires: Thu, 18 Aug 2050 02:01:18 UTC|Date: @0"},
		{"freshness-expires-invalid-aest", Required, Miss, "Expires: Thu, 18 Aug 2050 02:01:18 AEST|Date: @0"},
		{"freshness-expires-invalid-2-digit-year", Required, Miss, "Expires: Thu, 18 Aug 50 02:01:18 GMT|Date: @0"},
		{"freshness-expires-invalid-no-comma", Required, Miss, "Expires: Thu 18 Aug 2050 02:01:18 GMT|Date: @0"},
		{
			"freshness-expires-invalid-multiple-spaces", Required, Miss,
			"Expires: Thu, 18  Aug  2050 02:01:18 GMT|Date: @0",
		},
		{"freshness-expires-invalid-date-dashes", Required, Miss, "Expires: Thu, 18-Aug-2050 02:01:18 GMT|Date: @0"},
		{"freshness-expires-invalid-time-periods", Required, Miss, "Expires: Thu, 18 Aug 2050 02.01.18 GMT|Date: @0"},
		{"freshness-expires-invalid-1-digit-hour", Required, Miss, "Expires: Thu, 18 Aug 2050 2:01:18 GMT|Date: @0"},
	})
	return append(all, cases("expires-parse", "RFC 9111, 4.2", "freshness-expires-future", []rule{
		{"freshness-expires-wrong-case-weekday", Check, Hit, "Expires: THU, 18 Aug 2050 02:01:18 GMT|Date: @0"},
		{"freshness-expires-wrong-case-month", Check, Hit, "Expires: Thu, 18 AUG 2050 02:01:18 GMT|Date: @0"},
		{"freshness-expires-wrong-case-tz", Check, Hit, "Expires: Thu, 18 Aug 2050 02:01:18 gMT|Date: @0"},
	})...)
}

func ccResponse() []Case {
	const dated = "|Expires: @10000|Date: @0"
	all := cases("cc-response", "RFC 9111, 5.2.2", "freshness-max-age", []rule{
		{"cc-resp-private-shared", Required, Miss, "Cache-Control: private, max-age=3600"},
		{"cc-resp-private-fields", Required, Miss, `Cache-Control: private="a", max-age=3600`},
		{"cc-resp-no-store", Required, Miss, "Cache-Control: no-store"},
		{"cc-resp-no-store-case-insensitive", Required, Miss, "Cache-Control: max-age=3600, No-StOrE"},
		{"cc-resp-no-store-fresh", Required, Miss, "Cache-Control: max-age=10000, no-store" + dated},
		{"cc-resp-no-store-old-new", Required, Miss, "Cache-Control: max-age=10000|Cache-Control: no-store" + dated},
		{"cc-resp-no-cache", Required, Miss, "Cache-Control: max-age=10000, no-cache" + dated},
		{"cc-resp-no-cache-case-insensitive", Required, Miss, "Cache-Control: max-age=10000, No-CaChE" + dated},
		{"cc-resp-must-revalidate-fresh", Optimal, Hit, `Cache-Control: max-age=10000, must-revalidate|ETag: "abcd"`},
		{"cc-resp-immutable-fresh", Check, Hit, "Cache-Control: max-age=10000, immutable"},
	})
	validated := func(id, fields string) Case {
		return Case{ID: id, Severity: Optimal, Steps: []Step{
			{Answer: answer(fields + `|ETag: "abcd"`), Want: Miss}, {Want: Validated},
		}}
	}
	return append(all, in("cc-response", "RFC 9111, 5.2.2.4",
		validated("cc-resp-no-cache-revalidate", "Cache-Control: no-cache"),
		validated("cc-resp-no-cache-revalidate-fresh", "Cache-Control: max-age=10000, no-cache"+dated),
		Case{ID: "cc-resp-must-revalidate-stale", Severity: Required, Section: "RFC 9111, 5.2.2.2", Steps: []Step{
			{Answer: answer(`Cache-Control: max-age=1, must-revalidate|ETag: "abcd"`), Want: Miss},
			{Wait: 1, Want: Any, Forwarded: []string{"Host"}},
		}},
	)...)
}

// heuristic: an edge must not guess lifetimes for these statuses, and need not guess any.
func heuristic() []Case {
	var all []Case
	for _, code := range []int{200, 404} {
		all = append(all, statusCase("heuristic", "cached", code, Check, Hit, "Last-Modified: @-86400|Date: @0"))
	}
	for _, code := range []int{201, 202, 403, 502, 503, 504, 599} {
		all = append(all, statusCase("heuristic", "not_cached", code, Required, Miss, "Last-Modified: @-86400|Date: @0"))
	}
	return all
}

func statusCodes() []Case {
	var all []Case
	for _, code := range []int{200, 203, 204, 299, 301, 302, 303, 307, 308, 400, 404, 410, 499, 500, 502, 503, 504, 599} {
		stored := statusCase("status", "fresh", code, Optimal, Hit, "Cache-Control: max-age=100000|Date: @0")
		stale := statusCase("status", "stale", code, Required, Miss, "Expires: @-5000|Date: @0")
		stale.Needs = stored.ID
		all = append(all, stored, stale)
	}
	unknown := statusCase("status", "must-understand", 599, Required, Miss, "Cache-Control: max-age=3600, must-understand")
	unknown.Section, unknown.Needs = "RFC 9111, 5.2.2.3", "status-599-fresh"
	return append(all, unknown)
}

// statusCase is a rule for a status. Its id is GROUP-CODE-SUFFIX.
func statusCase(group, suffix string, code int, severity Severity, want Want, fields string) Case {
	return Case{
		ID: group + "-" + itoa(code) + "-" + suffix, Group: group, Severity: severity, Section: "RFC 9111, 3",
		Steps: []Step{
			{Answer: status(code, fields), Want: Miss, Status: code}, {Want: want, Status: code},
		},
	}
}
