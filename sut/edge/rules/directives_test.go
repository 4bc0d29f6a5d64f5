package rules

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseControl(t *testing.T) {
	t.Parallel()
	age := func(n int) seconds { return seconds{time.Duration(n) * time.Second, true} }
	for _, test := range []struct {
		name  string // of the public suite http-tests/cache-tests, where it has such a test
		lines []string
		want  control
	}{
		{"freshness-max-age", []string{"max-age=3600"}, control{maxAge: age(3600)}},
		{"freshness-max-age-case-insenstive", []string{"MaX-aGe=3600"}, control{maxAge: age(3600)}},
		{"freshness-max-age-extension", []string{"foobar, max-age=3600"}, control{maxAge: age(3600)}},
		{"freshness-max-age-quoted", []string{`max-age="3600"`}, control{maxAge: age(3600)}},
		{"freshness-max-age-single-quoted", []string{`max-age='3600'`}, control{maxAge: age(0)}},
		{"freshness-max-age-negative", []string{"max-age=-3600"}, control{maxAge: age(0)}},
		{"freshness-max-age-leading-zero", []string{"max-age=003600"}, control{maxAge: age(3600)}},
		{"freshness-max-age-decimal-five", []string{"max-age=3600.5"}, control{maxAge: age(0)}},
		{"freshness-max-age-100a", []string{"max-age=3600a"}, control{maxAge: age(0)}},
		{"freshness-max-age-max-plus", []string{"max-age=99999999999"}, control{maxAge: age(1 << 31)}},
		{"freshness-max-age-space-before-equals", []string{"max-age =3600"}, control{maxAge: age(0)}},
		{"freshness-max-age-space-after-equals", []string{"max-age= 3600"}, control{maxAge: age(0)}},
		{"freshness-max-age-ignore-quoted", []string{`extension="max-age=3600", max-age=1`}, control{maxAge: age(1)}},
		{"freshness-max-age-ignore-quoted-rev", []string{`max-age=1, extension="max-age=3600"`}, control{maxAge: age(1)}},
		{"a comma in quotes", []string{`extension="a, no-store", max-age=1`}, control{maxAge: age(1)}},
		{"an escaped quote", []string{`extension="a\", no-store", max-age=1`}, control{maxAge: age(1)}},
		{"freshness-max-age-two-fresh-stale-sameline", []string{"max-age=1800, max-age=1"}, control{maxAge: age(1)}},
		{"freshness-max-age-two-stale-fresh-sepline", []string{"max-age=1", "max-age=1800"}, control{maxAge: age(1)}},
		{
			"freshness-max-age-s-maxage-shared-shorter",
			[]string{"max-age=1, s-maxage=3600"},
			control{maxAge: age(1), sharedMaxAge: age(3600)},
		},
		{"cc-resp-no-store-case-insensitive", []string{"No-StOrE"}, control{noStore: true}},
		{"no-cache with fields", []string{`no-cache="a, b"`, "max-age=1"}, control{noCache: true, maxAge: age(1)}},
		{"private with fields", []string{`private="a"`}, control{private: true}},
		{
			"a quoted string that does not end",
			[]string{`max-age=1, extension="no-store`},
			control{noStore: true, maxAge: age(1)},
		},
		{
			"RFC 5861",
			[]string{"stale-while-revalidate=3, stale-if-error=4, stale-if-error=5"},
			control{whileRevalidate: age(3), ifError: age(4)},
		},
		{
			"revalidation",
			[]string{"must-revalidate", "proxy-revalidate, must-understand, public"},
			control{mustRevalidate: true, proxyRevalidate: true, mustUnderstand: true, public: true},
		},
		{"empty members", []string{",, ,", ""}, control{}},
	} {
		if diff := cmp.Diff(test.want, parseControl(test.lines), cmp.AllowUnexported(control{}, seconds{})); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestTargeted(t *testing.T) {
	t.Parallel()
	age := func(n int) seconds { return seconds{time.Duration(n) * time.Second, true} }
	for _, test := range []struct {
		name  string
		lines []string
		want  control
		ok    bool
	}{
		{"absent", nil, control{}, false},
		{"empty", []string{""}, control{}, false},
		{"cdn-max-age", []string{"max-age=3600"}, control{maxAge: age(3600)}, true},
		{"cdn-max-age-max-plus", []string{"max-age=99999999999"}, control{maxAge: age(1 << 31)}, true},
		{"cdn-max-age-space-before-equals", []string{"max-age =100"}, control{}, false},
		{"cdn-max-age-space-after-equals", []string{"max-age= 100"}, control{}, false},
		{"cdn-max-age-case-insensitive", []string{"MaX-aGe=3600"}, control{}, false},
		{"cdn-cc-invalid-sh-type-unknown", []string{"max-age=10000, &&&&&"}, control{}, false},
		{"cdn-cc-invalid-sh-type-wrong", []string{`max-age="10000"`}, control{}, true},
		{"no coercion of decimals", []string{"max-age=10.5"}, control{}, true},
		{"cdn-no-store-cc-fresh", []string{"no-store"}, control{noStore: true}, true},
		{"false", []string{"no-store=?0, max-age=1"}, control{maxAge: age(1)}, true},
		{
			"stale",
			[]string{"max-age=1, stale-while-revalidate=2", "stale-if-error=3"},
			control{maxAge: age(1), whileRevalidate: age(2), ifError: age(3)},
			true,
		},
		{"a negative number", []string{"max-age=-1"}, control{maxAge: age(0)}, true},
		{"field names", []string{`private="a"`}, control{private: true}, true},
	} {
		got, ok := targeted(test.lines)
		if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(control{}, seconds{})); diff != "" || ok != test.ok {
			t.Errorf("%s: ok is %v, (-want +got):\n%s", test.name, ok, diff)
		}
	}
}

// FuzzParseControl: a restriction that stands alone is always found, wherever it is added, and nothing that follows can
// extend a lifetime.
func FuzzParseControl(f *testing.F) {
	for _, seed := range []string{"max-age=1", `a="b, c", no-cache`, `x="`, "s-maxage=3, ,=", `a="\"",max-age =2`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		alone := parseControl([]string{line})
		if alone.maxAge.value < 0 || alone.maxAge.value > MaxDelta {
			t.Errorf("max-age is %v", alone.maxAge.value)
		}
		for _, lines := range [][]string{{line, "no-store, max-age=5"}, {"no-store, max-age=5", line}} {
			both := parseControl(lines)
			if !both.noStore || !both.maxAge.set || both.maxAge.value > 5*time.Second {
				t.Errorf("%q: got %+v", lines, both)
			}
			if alone.maxAge.set && both.maxAge.value > alone.maxAge.value || alone.private && !both.private ||
				alone.noCache && !both.noCache || alone.mustRevalidate && !both.mustRevalidate {
				t.Errorf("%q is less restrictive than %q", lines, line)
			}
		}
		if first := parseControl([]string{"no-store," + line}); !first.noStore {
			t.Errorf("no-store,%s: no-store is lost", line)
		}
	})
}

// FuzzTargeted: a field that applies is a valid dictionary, so its text with a syntax error appended does not apply.
func FuzzTargeted(f *testing.F) {
	for _, seed := range []string{"max-age=1", "a;b=c, d=(1 2)", "no-store=?0", `private="x"`, "max-age=1.5"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		c, ok := targeted([]string{line})
		if !ok && c != (control{}) {
			t.Errorf("%q does not apply and gives %+v", line, c)
		}
		if c.maxAge.value < 0 || c.maxAge.value > MaxDelta {
			t.Errorf("%q: max-age is %v", line, c.maxAge.value)
		}
		if _, ok := targeted([]string{line, "&"}); ok {
			t.Errorf("%q with an error still applies", line)
		}
	})
}

func FuzzParseAge(f *testing.F) {
	for _, seed := range []string{"0", "7200, 0", "7200.0", "-1", "99999999999999999999", " 5 ", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		got := ParseAge(http.Header{"Age": {line, "1000000"}})
		if got < 0 || got > MaxDelta || got%time.Second != 0 {
			t.Errorf("%q: %v", line, got)
		}
		first, _, _ := strings.Cut(line, ",")
		if alone := ParseAge(http.Header{"Age": {first}}); alone != got {
			t.Errorf("%q: %v, but its first member alone is %v", line, got, alone)
		}
		if strings.ContainsAny(first, ".-;abcdef") && got != 0 {
			t.Errorf("%q: %v", line, got)
		}
	})
}

func FuzzParseVary(f *testing.F) {
	for _, seed := range []string{"Accept", "a, B,*", "*", ",", "Foo, foo", "a b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		names, any := ParseVary(http.Header{"Vary": {line}})
		if any && len(names) > 0 {
			t.Errorf("%q: %q", line, names)
		}
		if _, star := ParseVary(http.Header{"Vary": {line, "x, *"}}); !star {
			t.Errorf("%q hides the star of a later line", line)
		}
		if any {
			return
		}
		again, _ := ParseVary(http.Header{"Vary": {strings.Join(names, ",")}})
		if !cmp.Equal(names, again) && len(names) > 0 {
			t.Errorf("%q: %q, again: %q", line, names, again)
		}
		request := http.Header{}
		for _, name := range names {
			request[name] = []string{"v, w"}
		}
		fields := Selecting(names, request)
		if !Selects(fields, request) {
			t.Errorf("%q: a request does not select its own response", line)
		}
		if len(names) > 0 {
			request[names[0]] = []string{"other"}
			if Selects(fields, request) {
				t.Errorf("%q: another value of %s selects the response", line, names[0])
			}
		}
	})
}

func FuzzParseRange(f *testing.F) {
	for _, seed := range []string{
		"bytes=0-1", "bytes=-5", "bytes=5-", "bytes=1-0", "bytes=0-1,3-4", "bytes=9223372036854775808-",
	} {
		f.Add(seed, int64(10))
	}
	f.Fuzz(func(t *testing.T, text string, size int64) {
		if size < 0 {
			return
		}
		r, result := ParseRange(text, size)
		if result == Part && !(0 <= r.Start && r.Start < r.End && r.End <= size) {
			t.Errorf("%q of %d bytes: %+v", text, size, r)
		}
		if result != Part && r != (Range{}) {
			t.Errorf("%q of %d bytes: no part, but %+v", text, size, r)
		}
	})
}
