package rules

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// now returns a whole second, as Date has no fractions.
func now() time.Time { return time.Date(2026, time.July, 1, 12, 0, 0, 0, time.UTC) }

func date(offset time.Duration) string { return now().Add(offset).Format(http.TimeFormat) }

// fields makes a header from lines such as "Name: value".
func fields(lines ...string) http.Header {
	header := http.Header{}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		header.Add(name, value)
	}
	return header
}

func get(lines ...string) Request { return NewRequest(http.MethodGet, fields(lines...), false) }

func TestAssess(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	cc := func(value string, more ...string) []string { return append(more, "Cache-Control: "+value) }
	type want struct {
		store bool
		Lifetimes
		age time.Duration
	}
	fresh := func(n time.Duration) want {
		return want{true, Lifetimes{Fresh: n * time.Second, IfUnreachable: day}, 0}
	}
	for _, test := range []struct {
		name    string // of the public suite, or the section of RFC 9111
		request Request
		status  int
		ttl     time.Duration
		header  []string
		want    want
	}{
		{"freshness-max-age", get(), 200, 0, cc("max-age=60"), fresh(60)},
		{"a ttl", get(), 200, time.Hour, cc("max-age=60"), fresh(3600)},
		{"freshness-expires-future", get(), 200, 0, []string{"Expires: " + date(time.Minute), "Date: " + date(0)}, fresh(60)},
		{
			"Expires counts from Date", get(), 200, 0,
			[]string{"Expires: " + date(time.Minute), "Date: " + date(-time.Minute)},
			want{true, Lifetimes{Fresh: 2 * time.Minute, IfUnreachable: day}, time.Minute},
		},
		{"a second begins on the way", get(), 200, 0, cc("max-age=1", "Date: "+date(-time.Second)), fresh(1)},
		{"max-age before Expires", get(), 200, 0, cc("max-age=60", "Expires: 0"), fresh(60)},
		{
			"freshness-max-age-age", get(), 200, 0,
			cc("max-age=3600", "Age: 7200", "Etag: \"a\""),
			want{true, Lifetimes{Fresh: time.Hour, IfUnreachable: day}, 2 * time.Hour},
		},
		{
			"freshness-s-maxage-shared", get(), 200, 0,
			cc("max-age=1, s-maxage=60"),
			want{true, Lifetimes{Fresh: time.Minute, MustRevalidate: true}, 0},
		},
		{
			"5.2.2.2 must-revalidate forbids stale responses", get(), 200, 0,
			cc("max-age=60, must-revalidate, stale-while-revalidate=9, stale-if-error=9"),
			want{true, Lifetimes{Fresh: time.Minute, MustRevalidate: true}, 0},
		},
		{
			"RFC 5861", get(), 200, 0,
			cc("max-age=60, stale-while-revalidate=5, stale-if-error=7"),
			want{true, Lifetimes{
				Fresh: time.Minute, WhileRevalidate: 5 * time.Second, IfError: 7 * time.Second, IfUnreachable: 7 * time.Second,
			}, 0},
		},
		{"cc-resp-no-cache-revalidate", get(), 200, 0, cc("no-cache", `Etag: "a"`), want{true, Lifetimes{Validate: true}, 0}},
		{"status-404-fresh", get(), 404, 0, cc("max-age=60"), fresh(60)},
		{"5.2.2.3 must-understand", get(), 200, 0, cc("max-age=60, must-understand, no-store"), fresh(60)},
		{"other-authorization-public", get("Authorization: x"), 200, 0, cc("max-age=60, public"), fresh(60)},
		{"cdn-max-age-expires", get(), 200, 0, []string{"Cdn-Cache-Control: max-age=60", "Expires: 0"}, fresh(60)},
		{"cdn-fresh-cc-nostore", get(), 200, 0, cc("no-store", "Cdn-Cache-Control: max-age=60"), fresh(60)},
		{"cdn-cc-invalid", get(), 200, 0, []string{"Cdn-Cache-Control: no-store, &", "Cache-Control: max-age=60"}, fresh(60)},
	} {
		v := Assess(test.request, Response{test.status, fields(test.header...), now(), now()}, test.ttl)
		got := want{v.Store, v.Lifetimes, v.InitialAge}
		if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(want{})); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", test.name, diff)
		}
		if (v.Why == "") != v.Store {
			t.Errorf("%s: stored is %v, because %q", test.name, v.Store, v.Why)
		}
	}
}

// TestRefusals: responses that must not be stored, whatever the ttl.
func TestRefusals(t *testing.T) {
	t.Parallel()
	cc := func(value string, more ...string) []string { return append(more, "Cache-Control: "+value) }
	for _, test := range []struct {
		name    string // of the public suite, or the section of RFC 9111
		request Request
		status  int
		ttl     time.Duration
		header  []string
	}{
		{"freshness-none", get(), 200, 0, nil},
		{"freshness-none with a ttl", get(), 200, time.Minute, nil},
		{"max-age=0", get(), 200, 0, cc("max-age=0")},
		{"a ttl does not revive a stale response", get(), 200, time.Hour, cc("max-age=0")},
		{"a ttl and no-store", get(), 200, time.Hour, cc("max-age=60, no-store")},
		{"freshness-expires-invalid", get(), 200, 0, []string{"Expires: 0"}},
		{"no-cache without a validator", get(), 200, 0, cc("no-cache, max-age=60")},
		{"cc-resp-private-shared", get(), 200, 0, cc("private, max-age=60")},
		{"a cookie", get(), 200, 0, cc("max-age=60", "Set-Cookie: a=b")},
		{"vary-syntax-foo-star", get(), 200, 0, cc("max-age=60", "Vary: Foo, *")},
		{"3 POST", NewRequest("POST", nil, true), 200, 0, cc("max-age=60")},
		{"3 GET with a body", NewRequest("GET", nil, true), 200, 0, cc("max-age=60")},
		{"3.3 partial", get(), 206, 0, cc("max-age=60")},
		{"status-599-must-understand", get(), 599, 0, cc("max-age=60, must-understand")},
		{"5.2.1.5 no-store", get("Cache-Control: no-store"), 200, 0, cc("max-age=60")},
		{"other-authorization", get("Authorization: x"), 200, 0, cc("max-age=60")},
		{"3.5 proxy-revalidate", get("Authorization: x"), 200, 0, cc("max-age=60, proxy-revalidate")},
		{"RFC 9213, 2.2", get(), 200, 0, []string{"Cdn-Cache-Control: foo", "Expires: " + date(time.Hour)}},
		{"freshness-max-age-date", get(), 200, 0, cc("max-age=3600", "Date: "+date(-2*time.Hour))},
		{"RFC 9875", get(), 200, 0, cc("max-age=60", `Cache-Groups: "`+strings.Repeat("g", 129)+`"`)},
	} {
		response := Response{test.status, fields(test.header...), now(), now()}
		if v := Assess(test.request, response, test.ttl); v.Store || v.Why == "" {
			t.Errorf("%s: got %+v", test.name, v)
		}
	}
}

// TestAge: the delay of the response and the time in the store count (RFC 9111, 4.2.3).
func TestAge(t *testing.T) {
	t.Parallel()
	header := fields("Cache-Control: max-age=60", "Age: 10", "Date: "+date(0))
	response := Response{200, header, now(), now().Add(2500 * time.Millisecond)}
	v := Assess(get(), response, 0)
	if got := v.Age(now().Add(4 * time.Second)); got != 14*time.Second {
		t.Errorf("age %v, want 14s", got)
	}
	if got := v.Remaining(now().Add(4 * time.Second)); got != 46*time.Second {
		t.Errorf("remaining %v, want 46s", got)
	}
	if got := v.Age(now().Add(-time.Hour)); got != 12500*time.Millisecond {
		t.Errorf("age %v after the clock went back, want 12.5s", got)
	}
}

func TestDecide(t *testing.T) {
	t.Parallel()
	// The response was received a minute ago.
	stored := func(l Lifetimes) *Stored { return &Stored{Lifetimes: l, Received: now().Add(-time.Minute)} }
	fresh := stored(Lifetimes{Fresh: time.Hour})
	stale := stored(Lifetimes{Fresh: 50 * time.Second})
	while := stored(Lifetimes{Fresh: 50 * time.Second, WhileRevalidate: 10 * time.Second})
	tooLate := stored(Lifetimes{Fresh: 50 * time.Second, WhileRevalidate: 9 * time.Second})
	for _, test := range []struct {
		name    string
		request Request
		stored  *Stored
		want    Decision
	}{
		{"POST", NewRequest("POST", nil, false), fresh, Decision{Bypass, ReasonMethod}},
		{"an unknown method", NewRequest("M-SEARCH", nil, false), fresh, Decision{Bypass, ReasonMethod}},
		{"GET with a body", NewRequest("GET", nil, true), fresh, Decision{Bypass, ReasonBypass}},
		{"nothing stored", get(), nil, Decision{Miss, ReasonMiss}},
		{"fresh", get(), fresh, Decision{Action: Hit}},
		{"HEAD", NewRequest("HEAD", nil, false), fresh, Decision{Action: Hit}},
		{"the last moment", get(), stored(Lifetimes{Fresh: time.Minute}), Decision{Revalidate, ReasonStale}},
		{"stale", get(), stale, Decision{Revalidate, ReasonStale}},
		{"stale-while-revalidate", get(), while, Decision{Action: Stale}},
		{"stale-while-revalidate-window", get(), tooLate, Decision{Revalidate, ReasonStale}},
		{"cc-resp-no-cache", get(), stored(Lifetimes{Fresh: time.Hour, Validate: true}), Decision{Revalidate, ReasonStale}},
		{"ccreq-no-cache", get("Cache-Control: no-cache"), fresh, Decision{Revalidate, ReasonRequest}},
		{"ccreq-ma0", get("Cache-Control: max-age=0"), fresh, Decision{Revalidate, ReasonRequest}},
		{"ccreq-ma1", get("Cache-Control: max-age=1"), fresh, Decision{Revalidate, ReasonRequest}},
		{"a large max-age", get("Cache-Control: max-age=60"), fresh, Decision{Action: Hit}},
		{"ccreq-min-fresh", get("Cache-Control: min-fresh=3600"), fresh, Decision{Revalidate, ReasonRequest}},
		{"ccreq-max-stale", get("Cache-Control: max-stale=10"), stale, Decision{Action: Hit}},
		{"max-stale without a limit", get("Cache-Control: max-stale"), stale, Decision{Action: Hit}},
		{"too stale", get("Cache-Control: max-stale=9"), stale, Decision{Revalidate, ReasonStale}},
		{
			"5.2.2.2", get("Cache-Control: max-stale"), stored(Lifetimes{Fresh: 1, MustRevalidate: true}),
			Decision{Revalidate, ReasonStale},
		},
		{"no-cache and stale-while-revalidate", get("Cache-Control: no-cache"), while, Decision{Revalidate, ReasonStale}},
		{"4.3.2 If-Match", get(`If-Match: "a"`), fresh, Decision{Miss, ReasonRequest}},
	} {
		if got := Decide(test.request, test.stored, now()); got != test.want {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
}

func TestUsableAfterError(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		l      Lifetimes
		status int
		want   bool
	}{
		{"stale-sie-503", Lifetimes{IfError: time.Minute}, 503, true},
		{"the window is over", Lifetimes{IfError: 59 * time.Second}, 503, false},
		{"no stale-if-error", Lifetimes{IfUnreachable: time.Hour}, 503, false},
		{"404 is an answer", Lifetimes{IfError: time.Hour}, 404, false},
		{"501 is an answer", Lifetimes{IfError: time.Hour}, 501, false},
		{"stale-close", Lifetimes{IfUnreachable: time.Hour}, 0, true},
		{"stale-close-must-revalidate", Lifetimes{IfUnreachable: time.Hour, MustRevalidate: true}, 0, false},
		{"stale-close-no-cache", Lifetimes{IfUnreachable: time.Hour, Validate: true}, 0, false},
	} {
		s := Stored{Lifetimes: test.l, Received: now().Add(-time.Minute)}
		if got := s.UsableAfterError(test.status, now()); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

func TestParseDate(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"Thu, 18 Aug 2050 02:01:18 GMT":      "2050-08-18T02:01:18Z",
		"THU, 18 AUG 2050 02:01:18 gMT":      "2050-08-18T02:01:18Z",
		"Thursday, 18-Aug-50 02:01:18 GMT":   "2050-08-18T02:01:18Z",
		"Sunday, 06-Nov-94 08:49:37 GMT":     "1994-11-06T08:49:37Z",
		"Sun Nov  6 08:49:37 1994":           "1994-11-06T08:49:37Z",
		"Sun, 21 Nov 2286 04:46:39 GMT":      "2286-11-21T04:46:39Z",
		"Thu, 18 Aug 2050 02:01:18 UTC":      "",
		"Thu, 18 Aug 2050 02:01:18 AEST":     "",
		"Thu, 18 Aug 50 02:01:18 GMT":        "",
		"Thu 18 Aug 2050 02:01:18 GMT":       "",
		"Thu, 18  Aug  2050 02:01:18 GMT":    "",
		"Thu, 18-Aug-2050 02:01:18 GMT":      "",
		"Thu, 18 Aug 2050 02.01.18 GMT":      "",
		"Thu, 18 Aug 2050 2:01:18 GMT":       "",
		"Fri, 18 Aug 2050 02:01:18 GMT":      "", // it is a Thursday
		"Thu, 18 Aug 2050 02:01:18 GMT more": "",
		"0":                                  "",
		"":                                   "",
	} {
		got, ok := ParseDate(text, now())
		if ok != (want != "") || ok && got.Format(time.RFC3339) != want {
			t.Errorf("%q: %v, %v, want %q", text, got, ok, want)
		}
	}
}

func TestNotModified(t *testing.T) {
	t.Parallel()
	stored := fields(`Etag: "a"`, "Last-Modified: "+date(-time.Hour), "Date: "+date(0))
	undated := fields("Date: " + date(0))
	for _, test := range []struct {
		name    string
		request http.Header
		stored  http.Header
		want    bool
	}{
		{"no condition", fields(), stored, false},
		{"conditional-etag-strong-respond", fields(`If-None-Match: "a"`), stored, true},
		{"another tag", fields(`If-None-Match: "b"`), stored, false},
		{"weak comparison", fields(`If-None-Match: W/"a"`), stored, true},
		{"conditional-etag-strong-respond-multiple-last", fields(`If-None-Match: "b", "c,d","a"`), stored, true},
		{"several lines", fields(`If-None-Match: "b"`, `If-None-Match: "a"`), stored, true},
		{"a part of a tag", fields(`If-None-Match: "x,"a"`), stored, false},
		{"any", fields("If-None-Match: *"), undated, true},
		{"conditional-etag-precedence", fields(`If-None-Match: "b"`, "If-Modified-Since: "+date(0)), stored, false},
		{"conditional-lm-fresh", fields("If-Modified-Since: " + date(-time.Hour)), stored, true},
		{"conditional-lm-fresh-earlier", fields("If-Modified-Since: " + date(-time.Minute)), stored, true},
		{"modified later", fields("If-Modified-Since: " + date(-2*time.Hour)), stored, false},
		{"no Last-Modified", fields("If-Modified-Since: " + date(0)), undated, true},
		{"no Last-Modified, newer", fields("If-Modified-Since: " + date(-time.Hour)), undated, false},
		{"an invalid date", fields("If-Modified-Since: tomorrow"), stored, false},
	} {
		if got := NotModified(test.request, http.StatusOK, test.stored, now()); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
	if NotModified(fields(`If-None-Match: "a"`), http.StatusNotFound, stored, now()) {
		t.Error("a condition changes a 404")
	}
}

func TestSelectRange(t *testing.T) {
	t.Parallel()
	stored := fields(`Etag: "a"`, "Last-Modified: "+date(-time.Hour), "Date: "+date(0))
	for _, test := range []struct {
		lines []string
		want  string
	}{
		{nil, "whole"},
		{[]string{"Range: bytes=0-1"}, "0-2"},
		{[]string{"Range: bytes=1-"}, "1-11"},
		{[]string{"Range: bytes=-1"}, "10-11"},
		{[]string{"Range: bytes=-99"}, "0-11"},
		{[]string{"Range: Bytes = 4-99"}, "4-11"},
		{[]string{"Range: bytes=11-"}, "unsatisfiable"},
		{[]string{"Range: bytes=-0"}, "unsatisfiable"},
		{[]string{"Range: bytes=2-1"}, "whole"},
		{[]string{"Range: bytes=0-1,3-4"}, "whole"},
		{[]string{"Range: lines=0-1"}, "whole"},
		{[]string{"Range: bytes=0-1", `If-Range: "a"`}, "0-2"},
		{[]string{"Range: bytes=0-1", `If-Range: "b"`}, "whole"},
		{[]string{"Range: bytes=0-1", `If-Range: W/"a"`}, "whole"},
		{[]string{"Range: bytes=0-1", "If-Range: " + date(-time.Hour)}, "0-2"},
		{[]string{"Range: bytes=0-1", "If-Range: " + date(0)}, "whole"},
	} {
		r, result := SelectRange(fields(test.lines...), stored, 11, now())
		got := map[RangeResult]string{
			Whole: "whole", Unsatisfiable: "unsatisfiable", Part: fmt.Sprintf("%d-%d", r.Start, r.End),
		}[result]
		if got != test.want {
			t.Errorf("%q: %s, want %s", test.lines, got, test.want)
		}
	}
}

func TestMerge(t *testing.T) {
	t.Parallel()
	stored := fields("A: 1", "B: 1", "Content-Length: 5", "Age: 7", "Date: "+date(-time.Hour), "Content-Type: x")
	got := Merge(stored, fields("A: 2", "Content-Length: 10", "Date: "+date(0), "C: 3"))
	want := fields("A: 2", "B: 1", "Content-Length: 5", "Date: "+date(0), "Content-Type: x", "C: 3")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("(-want +got):\n" + diff)
	}
	if stored.Get("A") != "1" {
		t.Error("the stored header was modified")
	}
}

func TestSelects(t *testing.T) {
	t.Parallel()
	selecting := Selecting([]string{"Bar", "Foo"}, fields("Foo: a, b"))
	for _, test := range []struct {
		name    string
		request http.Header
		want    bool
	}{
		{"vary-match", fields("Foo: a, b"), true},
		{"vary-normalise-space", fields("Foo: a,b"), true},
		{"vary-normalise-combine", fields("Foo: a", "Foo: b"), true},
		{"vary-no-match", fields("Foo: a"), false},
		{"vary-omit", fields(), false},
		{"vary-omit-stored", fields("Foo: a, b", "Bar: 1"), false},
		{"an empty value is not an absent one", fields("Foo: a, b", "Bar: "), false},
		{"vary-cache-key", fields("Foo: a, b", "Other: 1"), true},
	} {
		if got := Selects(selecting, test.request); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

func TestGroups(t *testing.T) {
	t.Parallel()
	got, ok := Groups(fields(`Cache-Groups: "b", "a";x=1, token, 5, ("inner")`, `Cache-Groups: "b"`))
	if diff := cmp.Diff([]string{"a", "b"}, got); diff != "" || !ok {
		t.Errorf("ok is %v, (-want +got):\n%s", ok, diff)
	}
	if got, ok := Groups(fields(`Cache-Groups: "a`)); len(got) > 0 || !ok {
		t.Errorf("a malformed field has the groups %q, ok is %v", got, ok)
	}
	var many []string
	for i := range MaxGroups + 1 {
		many = append(many, fmt.Sprintf("%q", fmt.Sprint(i)))
	}
	if _, ok := Groups(fields("Cache-Groups: " + strings.Join(many, ","))); ok {
		t.Error("there is no limit for the number of groups")
	}
}
