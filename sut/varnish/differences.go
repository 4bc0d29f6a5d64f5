package varnish

import "github.com/stagebench/stagebench/sut"

// Differences are the cases of sut/edge/edgetest that Varnish does not pass, with the reasons.
func Differences() []sut.Difference {
	return []sut.Difference{
		{
			Reason: "it takes a directive inside of a quoted string for a directive",
			Cases:  []string{"freshness-max-age-ignore-quoted-comma"},
		},
		{Reason: "it takes Age 7200.0 for 7200", Cases: []string{"age-parse-float"}},
		{
			Reason: "it compares Expires with its own clock if Date is in the future",
			Cases:  []string{"freshness-expires-age-fast-date"},
		},
		{
			Reason: "its configuration does not store no-cache: requests for it would wait for each other",
			Cases:  []string{"cc-resp-no-cache-revalidate", "cc-resp-no-cache-revalidate-fresh"},
		},
		{
			Reason: "it compares If-None-Match as a whole with ETag: neither lists nor *",
			Cases: []string{
				"conditional-etag-star", "conditional-etag-strong-respond-multiple-first",
				"conditional-etag-strong-respond-multiple-second", "conditional-etag-strong-respond-multiple-last",
			},
		},
		{
			Reason: "it compares the lines of a field without joining them",
			Cases:  []string{"vary-normalise-combine"},
		},
		{
			Reason: "an error ends the wait of all clients, and each of them asks the origin",
			Cases:  []string{"collapse-error"},
		},
		{
			Reason: "a purge does not reach responses that are on their way",
			Cases:  []string{"purge-fill", "purge-group-fill"},
		},
	}
}
