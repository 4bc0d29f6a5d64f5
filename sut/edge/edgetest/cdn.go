package edgetest

// cdnCases are the rules of fields for caches: CDN-Cache-Control and Cache-Status.
func cdnCases() []Case { return append(cdnCacheControl(), cacheStatus()...) }

func cdnCacheControl() []Case {
	const cc, dated = "CDN-Cache-Control: ", "|Expires: @10000|Date: @0"
	all := cases("cdn-cache-control", "RFC 9213, 2.1", "cdn-max-age", []rule{
		{"cdn-max-age", Optimal, Hit, cc + "max-age=3600"},
		{"cdn-max-age-max", Optimal, Hit, cc + "max-age=2147483648"},
		{"cdn-max-age-max-plus", Optimal, Hit, cc + "max-age=99999999999"},
		{"cdn-max-age-age", Required, Miss, "Date: @0|Age: 7200|" + cc + "max-age=3600"},
		{"cdn-max-age-0", Required, Miss, cc + "max-age=0"},
		{"cdn-max-age-extension", Optimal, Hit, cc + "foobar, max-age=3600"},
		{"cdn-max-age-case-insensitive", Check, Hit, cc + "MaX-aGe=3600"},
		{"cdn-max-age-expires", Optimal, Hit, "Expires: @-10000|Date: @0|" + cc + "max-age=3600"},
		{"cdn-max-age-cc-max-age-invalid-expires", Optimal, Hit, "Expires: 0|Date: @0|" + cc + "max-age=3600"},
		{"cdn-max-age-0-expires", Required, Miss, cc + "max-age=0" + dated},
		{"cdn-max-age-short-cc-max-age", Optimal, Hit, "Cache-Control: max-age=0|" + cc + "max-age=3600"},
		{"cdn-max-age-long-cc-max-age", Required, Miss, fresh + "|" + cc + "max-age=0"},
		{"cdn-private", Required, Miss, fresh + "|" + cc + "private" + dated},
		{"cdn-no-cache", Required, Miss, fresh + "|" + cc + "no-cache" + dated},
		{"cdn-no-store-cc-fresh", Required, Miss, fresh + "|" + cc + "no-store" + dated},
		{"cdn-fresh-cc-nostore", Required, Hit, "Cache-Control: no-store|" + cc + "max-age=10000"},
		{"cdn-fresh-cc-private", Required, Hit, "Cache-Control: private|" + cc + "max-age=10000"},
		{"cdn-two-lines", Required, Hit, "Cache-Control: no-store|" + cc + "foobar|" + cc + "max-age=10000"},
		// A field that is no dictionary is ignored as a whole.
		{"cdn-cc-invalid-sh-type-unknown", Required, Miss, "Cache-Control: no-store|" + cc + "max-age=10000, &&&&&"},
		{"cdn-cc-invalid-sh-type-wrong", Required, Miss, `Cache-Control: no-store|` + cc + `max-age="10000"`},
		{"cdn-cc-invalid-decimal", Required, Miss, "Cache-Control: no-store|" + cc + "max-age=10000.5"},
		{"cdn-cc-invalid-fallback", Required, Hit, fresh + "|" + cc + "max-age=0, &&&&&"},
		{"cdn-cc-empty-fallback", Required, Hit, fresh + "|" + cc},
		{"cdn-max-age-space-before-equals", Check, Miss, "Cache-Control: max-age=0|" + cc + "max-age =100"},
		{"cdn-max-age-space-after-equals", Check, Miss, "Cache-Control: max-age=0|" + cc + "max-age= 100"},
	})
	for i := range all {
		if all[i].ID == "cdn-cc-invalid-fallback" || all[i].ID == "cdn-cc-empty-fallback" {
			all[i].Needs = "cdn-max-age"
		}
	}
	// The way to permit stale responses at the edge: s-maxage would forbid them.
	stale := func(id, directive string, failing *Answer) Case {
		return Case{ID: id, Severity: Optimal, Section: "RFC 9213, 2", Needs: "cdn-max-age", Steps: []Step{
			{Answer: answer("Cache-Control: no-cache|CDN-Cache-Control: max-age=1, " + directive + "=60"), Want: Miss},
			{Wait: 1, Answer: failing, Want: Stale},
		}}
	}
	return append(all, in("cdn-cache-control", "RFC 9213, 2.2",
		Case{ID: "cdn-remove-header", Severity: Check, Steps: []Step{
			{Answer: answer(fresh + "|CDN-Cache-Control: foo"), Want: Miss, Fields: []string{"CDN-Cache-Control: foo"}},
		}},
		stale("cdn-stale-while-revalidate", "stale-while-revalidate", nil),
		stale("cdn-stale-if-error", "stale-if-error", status(503, "")),
	)...)
}

// nodeName is the name of the edges of the kit.
const nodeName = "edge-1"

func cacheStatus() []Case {
	says := func(id string, severity Severity, want string, steps ...Step) Case {
		last := &steps[len(steps)-1]
		last.Fields = append(last.Fields, "Cache-Status~"+want)
		return Case{ID: "cache-status-" + id, Severity: severity, Steps: steps}
	}
	store := Step{Answer: answer(fresh), Want: Miss}
	return in("cache-status", "RFC 9211, 2",
		says("miss", Required, "fwd=(uri-)?miss", store),
		says("hit", Required, "hit", store, Step{Want: Hit}),
		says("hit-ttl", Optimal, `hit; ttl=3[56]\d\d`, store, Step{Want: Hit}),
		says("stored", Optimal, "fwd=(uri-)?miss;.*stored", store),
		says("stale", Optimal, "fwd=stale",
			Step{Answer: answer(brief + `|ETag: "abc"`), Want: Miss}, Step{Wait: 1, Want: Validated}),
		says("method", Optimal, "fwd=method", Step{Method: "POST", Body: "1", Want: Miss}),
		says("vary-miss", Check, "fwd=vary-miss", Step{Answer: answer(fresh + "|Vary: Foo"), Want: Miss},
			Step{Send: []string{"Foo: 1"}, Want: Miss}),
	)
}
