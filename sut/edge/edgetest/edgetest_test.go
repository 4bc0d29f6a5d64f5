package edgetest

import (
	"errors"
	"net/http"
	"strings"
	"testing"
)

// Each case has its own id, and what it needs exists.
func TestCases(t *testing.T) {
	t.Parallel()
	seen := map[string]Case{}
	var all []Case
	for _, s := range suites() {
		all = append(all, s.cases...)
		for _, p := range s.probes {
			all = append(all, p.Case)
		}
	}
	for _, c := range all {
		if _, twice := seen[c.ID]; twice {
			t.Errorf("two cases have the id %s", c.ID)
		}
		seen[c.ID] = c
		if c.Group == "" || c.Section == "" || c.Severity == "" {
			t.Errorf("%s: group %q, section %q, severity %q: want all three", c.ID, c.Group, c.Section, c.Severity)
		}
		for _, step := range c.Steps {
			for _, line := range step.Send {
				field(line) // panics if it is none
			}
		}
	}
	for _, c := range all {
		if needed, found := seen[c.Needs]; c.Needs != "" && (!found || needed.Needs == c.ID) {
			t.Errorf("%s needs %s, which does not exist or needs it, too", c.ID, c.Needs)
		}
	}
}

func TestWants(t *testing.T) {
	t.Parallel()
	stored, again := response{status: 200, body: "x #1"}, response{status: 200, body: "x #2"}
	wrong := response{status: 502, body: "bad gateway"}
	reached, validated := []arrival{{}}, []arrival{{notModified: true}}
	broken := errors.New("broken")
	for _, test := range []struct {
		want    Want
		res     response
		failure error
		after   []arrival
		good    bool
	}{
		{Hit, stored, nil, nil, true},
		{Hit, stored, nil, reached, false},
		{Hit, again, nil, reached, false},
		{Hit, stored, broken, nil, false},
		{Miss, again, nil, reached, true},
		{Miss, stored, nil, nil, false},
		{Miss, stored, nil, reached, false}, // the origin was asked, and the client got the old response
		{Miss, again, nil, append(reached, reached...), false},
		{Validated, stored, nil, validated, true},
		{Validated, stored, nil, reached, false},
		{Validated, again, nil, reached, false},
		{Stale, stored, nil, nil, true},
		{Stale, stored, nil, reached, true},
		{Stale, again, nil, reached, false},
		{Stale, wrong, nil, reached, false},
		{Failed, wrong, nil, reached, true},
		{Failed, response{}, broken, reached, true},
		{Failed, stored, nil, reached, false},
		{Any, again, nil, reached, true},
	} {
		err := test.want.check(test.res, test.failure, 1, test.after)
		if (err == nil) != test.good {
			t.Errorf("want %v, got %+v, %v, %d requests: %v", test.want, test.res, test.failure, len(test.after), err)
		}
	}
}

func TestMatch(t *testing.T) {
	t.Parallel()
	header := http.Header{"Age": {"5"}, "Two": {"1", "2"}, "Cache-Status": {"edge-1; hit; ttl=7"}}
	for pattern, good := range map[string]bool{
		"Age": true, "Age: 5": true, "Age: 6": false, "Age>4": true, "Age>5": false, "!Age": false, "!None": true,
		"None": false, "Two: 1, 2": true, "Cache-Status~hit; ttl=\\d": true, "Cache-Status~^hit": false, "Host: h": true,
	} {
		if err := (&script{}).match([]string{pattern}, header, "h"); (err == nil) != good {
			t.Errorf("%s: %v, want a match: %t", pattern, err, good)
		}
	}
}

// A list of differences may only shrink.
func TestVerdict(t *testing.T) {
	t.Parallel()
	failed := errors.New("failed")
	for name, test := range map[string]struct {
		severity Severity
		err      error
		reason   string
		without  bool
		want     string
	}{
		"passes":                      {Required, nil, "", false, ""},
		"fails":                       {Required, failed, "", false, "failed"},
		"an optimal case fails":       {Optimal, failed, "", false, "failed"},
		"fails as listed":             {Required, failed, "it cannot", false, ""},
		"passes although listed":      {Required, nil, "it cannot", false, "passes: remove"},
		"a check fails":               {Check, failed, "", false, ""},
		"a check is listed":           {Check, failed, "it cannot", false, "no verdict"},
		"what it needs fails":         {Required, failed, "", true, ""},
		"not judged, although listed": {Required, failed, "it cannot", true, "not judged"},
	} {
		got := verdict(outcome{Case{Severity: test.severity, Section: "RFC"}, test.err}, test.reason, test.without)
		if test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}
