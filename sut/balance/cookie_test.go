package balance

import (
	"math/rand/v2"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTakeCookie(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		lines  []string
		value  string
		remain []string
	}{
		{"none", nil, "", nil},
		{"others", []string{"a=1; b=2"}, "", []string{"a=1; b=2"}},
		{"alone", []string{"lb=web-1"}, "web-1", nil},
		{"first", []string{"lb=web-1; a=1"}, "web-1", []string{"a=1"}},
		{"middle", []string{"a=1; lb=web-1; b=2"}, "web-1", []string{"a=1; b=2"}},
		{"quoted", []string{`a="x y"; lb="web-1"`}, "web-1", []string{`a="x y"`}},
		{"twice", []string{"lb=web-1; lb=web-2"}, "web-1", nil},
		{"lines", []string{"a=1", "lb=web-1", "b=2"}, "web-1", []string{"a=1", "b=2"}},
		{"names alike", []string{"lbx=1; xlb=2; a=lb=3"}, "", []string{"lbx=1; xlb=2; a=lb=3"}},
		{"no spaces", []string{"a=1;lb=web-1;b=2"}, "web-1", []string{"a=1; b=2"}},
		{"empty", []string{"lb=; a=1"}, "", []string{"a=1"}},
		{"no value", []string{"lb; a=1"}, "", []string{"lb; a=1"}},
	} {
		header := http.Header{"X-Other": {"lb=web-9"}}
		if test.lines != nil {
			header["Cookie"] = slices.Clone(test.lines)
		}
		if got := takeCookie(header, "lb"); got != test.value {
			t.Errorf("%s: value %q, want %q", test.name, got, test.value)
		}
		if diff := cmp.Diff(test.remain, header["Cookie"]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

// TestTakeCookieAgreesWithNetHTTP compares takeCookie with the standard library on
// random cookie headers. takeCookie itself cannot use that parser, because it would
// change other cookies.
func TestTakeCookieAgreesWithNetHTTP(t *testing.T) {
	t.Parallel()
	parts := []string{"lb=web-1", "lb=web-2", "a=1", "b=2", "session=x", "lbx=3"}
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 0))
		var lines []string
		for range random.IntN(3) {
			var pairs []string
			for range 1 + random.IntN(4) {
				pairs = append(pairs, parts[random.IntN(len(parts))])
			}
			lines = append(lines, strings.Join(pairs, "; "))
		}
		before := &http.Request{Header: http.Header{"Cookie": lines}}
		want, remain := "", []string(nil)
		for _, cookie := range before.Cookies() {
			if cookie.Name != "lb" {
				remain = append(remain, cookie.String())
			} else if want == "" {
				want = cookie.Value
			}
		}
		after := &http.Request{Header: before.Header.Clone()}
		got := takeCookie(after.Header, "lb")
		var left []string
		for _, cookie := range after.Cookies() {
			left = append(left, cookie.String())
		}
		if got != want || !slices.Equal(left, remain) {
			t.Fatalf("seed %d, header %q: value %q, remaining cookies %q, want %q and %q",
				seed, lines, got, left, want, remain)
		}
	}
}

// FuzzCookie: the balancer removes all of its own cookies and no other one.
func FuzzCookie(f *testing.F) {
	f.Add("a=1; lb=web-1; b=2", "lb=web-2")
	f.Add(`lb="web-1:web-2"; =; ;`, "lb=; xlb=1")
	f.Fuzz(func(t *testing.T, first, second string) {
		header := http.Header{"Cookie": {first, second}}
		value, _ := cookieOf(header, "lb")
		if taken := takeCookie(header, "lb"); taken != value {
			t.Errorf("%q and %q: value %q, then %q", first, second, value, taken)
		}
		for pair := range strings.SplitSeq(strings.Join(header["Cookie"], ";"), ";") {
			if strings.HasPrefix(textproto.TrimString(pair), "lb=") {
				t.Errorf("%q and %q: still has %q", first, second, pair)
			}
		}
		_ = listsNode(value, "web-1")
	})
}
