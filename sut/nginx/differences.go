package nginx

import (
	"slices"

	"github.com/stagebench/stagebench/sut"
)

// Differences are the cases of sut/edge/edgetest that nginx does not pass, with the reasons.
func Differences() []sut.Difference {
	return slices.Concat(lifetimes(), entries(), features())
}

// lifetimes are the differences about fresh and stale responses.
func lifetimes() []sut.Difference {
	return []sut.Difference{
		{
			Reason: "it neither reads nor sends Age",
			Cases: []string{
				"freshness-max-age-age", "freshness-expires-age-slow-date", "freshness-expires-age-fast-date",
				"other-age-gen", "other-age-update-expires", "other-age-update-max-age",
			},
		},
		{
			Reason: "it compares Expires with its own clock and not with Date, and accepts dates of other zones",
			Cases: []string{
				"freshness-expires-old-date", "freshness-expires-invalid-utc", "freshness-expires-invalid-aest",
			},
		},
		{
			Reason: "a past Expires or max-age=0 before s-maxage makes it not store the response",
			Cases:  []string{"freshness-max-age-s-maxage-shared-shorter-expires"},
		},
		{
			Reason: "it takes a directive inside of a quoted string for a directive",
			Cases:  []string{"freshness-max-age-ignore-quoted-comma"},
		},
		{Reason: "it does not know must-understand", Cases: []string{"status-599-must-understand"}},
		{
			Reason: "it does not store responses with no-cache",
			Cases:  []string{"cc-resp-no-cache-revalidate", "cc-resp-no-cache-revalidate-fresh"},
		},
		{
			Reason: "it uses stale-if-error only if the origin does not answer, not for a status",
			Cases:  []string{"stale-sie-500", "stale-sie-502", "stale-sie-503", "stale-sie-504"},
		},
	}
}

// entries are the differences about what is stored, and what happens to it.
func entries() []sut.Difference {
	return []sut.Difference{
		{
			Reason: "it wants If-Modified-Since to match although If-None-Match does",
			Cases:  []string{"conditional-etag-precedence"},
		},
		{
			Reason: "a 304 renews the lifetime, but not the fields of a stored response",
			Cases: []string{
				"304-etag-update-response-Test-Header", "304-etag-update-response-X-Test-Header",
				"304-etag-update-response-Content-Foo", "304-etag-update-response-X-Content-Foo",
				"304-etag-update-response-Content-Type", "304-etag-update-response-Content-Location",
				"304-etag-update-response-Content-Security-Policy", "304-etag-update-response-X-Frame-Options",
				"304-etag-update-response-Expires",
			},
		},
		{
			Reason: "a write does not remove what is stored for its URL",
			Cases: []string{
				"invalidate-POST", "invalidate-POST-redirect", "invalidate-PUT", "invalidate-DELETE", "invalidate-PATCH",
				"invalidate-M-SEARCH",
			},
		},
		{
			Reason: "it compares the lines of a field without joining them",
			Cases:  []string{"vary-normalise-combine"},
		},
		{
			Reason: "it passes on fields that Connection lists",
			Cases:  []string{"headers-omit-headers-listed-in-Connection", "forward-hop-by-hop"},
		},
	}
}

// features are the differences about what is beyond RFC 9111.
func features() []sut.Difference {
	return []sut.Difference{
		{
			Reason: "it does not know CDN-Cache-Control",
			Cases: []string{
				"cdn-max-age", "cdn-max-age-max", "cdn-max-age-max-plus", "cdn-max-age-extension", "cdn-max-age-expires",
				"cdn-max-age-cc-max-age-invalid-expires", "cdn-max-age-short-cc-max-age", "cdn-fresh-cc-nostore",
				"cdn-fresh-cc-private", "cdn-two-lines",
			},
		},
		{
			Reason: "its configuration language knows neither the rest of a lifetime nor whether a response was stored",
			Cases:  []string{"cache-status-hit-ttl", "cache-status-stored"},
		},
		{
			Reason: "clients that wait for a fill look every 500 ms, one after the other if the response is not stored",
			Cases:  []string{"collapse-uncacheable", "collapse-error"},
		},
		{
			Reason: "a purge does not reach responses that are on their way",
			Cases:  []string{"purge-fill", "purge-group-fill"},
		},
	}
}
