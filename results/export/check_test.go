package export_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/joshdk/go-junit"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/export"
)

func checks() []export.Check {
	return []export.Check{
		{
			Suite: "lb/read-heavy", Name: "p99", Outcome: export.Failed, Message: "+7.2 %, [4.1, 10.4]", Text: "a\nb",
			Seconds: 600,
		},
		{Suite: "lb/read-heavy", Name: "p50", Outcome: export.Passed, Seconds: 12},
		{Suite: "lb/write-heavy", Name: "p99", Outcome: export.Inconclusive, Message: "40 blocks\x00 were too few"},
		{Suite: "lb/write-heavy", Name: "cpu", Outcome: export.Invalid, Message: "<client> & \x1b[31mserver\xff"},
	}
}

// A reader of JUnit gets each outcome.
func TestJUnit(t *testing.T) {
	var out bytes.Buffer
	if err := export.JUnit(&out, checks()...); err != nil {
		t.Fatal(err)
	}
	suites, err := junit.Ingest(out.Bytes())
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	var got []string
	for _, s := range suites {
		for _, test := range s.Tests {
			got = append(got, fmt.Sprintf("%s %s %s %s %v", s.Name, test.Classname, test.Name, test.Status, test.Duration))
		}
	}
	if want := []string{
		"lb/read-heavy lb.read-heavy p99 failed 10m0s", "lb/read-heavy lb.read-heavy p50 passed 12s",
		"lb/write-heavy lb.write-heavy p99 skipped 0s", "lb/write-heavy lb.write-heavy cpu error 0s",
	}; !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	totals := suites[1].Totals
	if totals.Tests != 2 || totals.Error != 1 || totals.Skipped != 1 {
		t.Errorf("totals of the second suite: %+v", totals)
	}
	if message := suites[0].Tests[0].Message; message != "+7.2 %, [4.1, 10.4]" {
		t.Errorf("message of the failure: %q", message)
	}
	if message := suites[1].Tests[0].Message; message != "40 blocks were too few" {
		t.Errorf("message with a control character: %q", message)
	}
	followsSchema(t, out.Bytes())
}

// followsSchema checks elements and attributes as the XML schema of Jenkins (junit-10.xsd) permits them.
func followsSchema(t *testing.T, text []byte) {
	type rule struct{ required, optional, children []string }
	reason := rule{optional: []string{"type", "message"}}
	rules := map[string]rule{
		"testsuites": {nil, []string{"name", "time", "tests", "failures", "errors"}, []string{"testsuite"}},
		"testsuite": {
			[]string{"name", "tests", "failures", "errors"},
			[]string{"time", "skipped", "timestamp", "hostname", "id"},
			[]string{"testcase", "properties", "system-out", "system-err"},
		},
		"testcase": {
			[]string{"name"}, []string{"time", "classname"}, []string{"skipped", "error", "failure", "system-out", "system-err"},
		},
		"failure": reason, "error": reason, "skipped": reason, "system-out": {},
	}
	var open []string
	for decoder := xml.NewDecoder(bytes.NewReader(text)); ; {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e := token.(type) {
		case xml.EndElement:
			open = open[:len(open)-1]
		case xml.StartElement:
			name := e.Name.Local
			r, known := rules[name]
			if !known || len(open) == 0 != (name == "testsuites") ||
				len(open) > 0 && !slices.Contains(rules[open[len(open)-1]].children, name) {
				t.Errorf("element %s is not permitted in %v", name, open)
			}
			var attributes []string
			for _, a := range e.Attr {
				attributes = append(attributes, a.Name.Local)
				if !slices.Contains(slices.Concat(r.required, r.optional), a.Name.Local) {
					t.Errorf("element %s has no attribute %s", name, a.Name.Local)
				}
			}
			for _, a := range r.required {
				if !slices.Contains(attributes, a) {
					t.Errorf("element %s lacks the attribute %s", name, a)
				}
			}
			open = append(open, name)
		}
	}
}

func annotations(t *testing.T, checks ...export.Check) []string {
	var out strings.Builder
	if err := export.Annotations(&out, checks...); err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
}

// A message cannot end its line or its property.
func TestAnnotations(t *testing.T) {
	got := annotations(t, export.Check{
		Suite: "lb", Name: "p99<1s,errors:1%", Outcome: export.Failed, Message: "50%\r\n::error::injected",
	}, export.Check{Suite: "lb", Name: "p50", Outcome: export.Passed})
	want := []string{"::error title=lb p99<1s%2Cerrors%3A1%25::failed: 50%25%0D%0A::error::injected"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// GitHub hides the eleventh annotation of a level, so the tenth says how many there are.
func TestAnnotationLimit(t *testing.T) {
	for outcome, level := range map[export.Outcome]string{
		export.Failed: "::error ", export.Invalid: "::error ", export.Inconclusive: "::warning ",
	} {
		for n, last := range map[int]string{10: "why", 11: "2 more", 25: "16 more"} {
			got := annotations(t, slices.Repeat([]export.Check{{Suite: "s", Outcome: outcome, Message: "why"}}, n)...)
			if len(got) != 10 || !strings.HasPrefix(got[9], level) || !strings.Contains(got[9], last) {
				t.Errorf("%d checks %s: %d lines, the last one %q, want %q", n, outcome, len(got), got[len(got)-1], last)
			}
		}
	}
}

// The summary begins with the worst outcome. A long one is cut below the limit and says so; its folded part is closed.
func TestStepSummary(t *testing.T) {
	for _, test := range []struct {
		limit, details int
		cut            bool
	}{{export.SummaryLimit, 10, false}, {export.SummaryLimit, export.SummaryLimit, true}, {900, 5000, true}} {
		var out strings.Builder
		details := strings.Repeat("0123456789\n", 1+test.details/11)
		if err := export.StepSummary(&out, test.limit, "gate", checks(), details); err != nil {
			t.Fatal(err)
		}
		text := out.String()
		if len(text) > test.limit || strings.Contains(text, "cut here") != test.cut ||
			strings.Count(text, "<details>") != strings.Count(text, "</details>") {
			t.Errorf("limit %d: %d bytes, cut: %v\n%.2000s", test.limit, len(text), !test.cut, text)
		}
		for _, want := range []string{
			"## gate: failed\n\n1 of 4 checks passed\n", "| lb/read-heavy | p99 | failed |", "&lt;client> &amp; ",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("the summary has no %q\n%.2000s", want, text)
			}
		}
	}
	for limit := range 1500 {
		var out strings.Builder
		if err := export.StepSummary(&out, limit, "gate", checks(), "details"); err != nil || out.Len() > limit {
			t.Fatalf("%d bytes, but there is room for %d only; error %v", out.Len(), limit, err)
		}
	}
}

// The verdict on a run: a cell that is not valid is no success, and neither is a run that ended early.
func TestChecks(t *testing.T) {
	run := sample(5e6)
	missed := run.Cells[0]
	missed.CapacityRPS, missed.CapacityLow, missed.CapacityHigh = 0, 0, 20
	failed := run.Cells[0]
	failed.Error = "it did not come up"
	slow := run.Cells[0]
	slow.CapacityMethod, slow.Reference = "none: one fixed rate", new(step(5e6))
	slow.Reference.SLOMet, slow.Reference.SLOBroken = false, "errors 1% > 0.1%"
	run.Cells, run.Complete = append(run.Cells, missed, failed, slow), false
	var got []string
	for _, c := range export.Checks(run) {
		got = append(got, fmt.Sprintf("%s %s", c.Outcome, c.Message))
	}
	if want := []string{
		"passed capacity 300 requests/s", "passed capacity 300 requests/s", "invalid the client | was\x1b slow <b>",
		"failed no offered rate met the objective", "invalid it did not come up", "failed errors 1% > 0.1%",
		"inconclusive the run is not complete: cells may be missing",
	}; !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// The checks of a gate have the verdicts of the gate and of its metrics. No verdict but a pass is a success.
func TestChecksOfAGate(t *testing.T) {
	metrics := []results.GateMetric{
		{
			Name: "cpu", Unit: "ns", Better: "lower", Margin: 0.05, Change: 0.07, Low: 0.04, High: 0.1,
			Verdict: results.GateRegression,
		},
		{Name: "errors", Unit: results.GateShare, Better: "lower", Margin: 0.005, Verdict: results.GatePass},
		{Name: "burst", Unit: "rps", Better: "higher", Margin: 0.05, Verdict: results.GateInconclusive},
	}
	for verdict, want := range map[string]string{
		results.GateRegression:   "failed failed passed inconclusive",
		results.GatePass:         "passed failed passed inconclusive",
		results.GateInconclusive: "inconclusive failed passed inconclusive",
		results.GateUndecided:    "inconclusive failed passed inconclusive",
		results.GateInvalid:      "invalid invalid invalid invalid",
		"":                       "inconclusive failed passed inconclusive",
	} {
		run := results.Run{Complete: true, Gate: &results.Gate{Verdict: verdict, Why: "+7.0 % CPU", Metrics: metrics}}
		var got []string
		all := export.Checks(run)
		for _, c := range all {
			got = append(got, string(c.Outcome))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: outcomes %v, want %s", verdict, got, want)
		}
		if all[0].Message != "+7.0 % CPU" || all[1].Message != "+7.0 % [+4.0 %, +10.0 %], margin +5.0 %" ||
			all[3].Message != "+0.0 % [+0.0 %, +0.0 %], margin -4.8 %" {
			t.Errorf("messages %q, %q, %q", all[0].Message, all[1].Message, all[3].Message)
		}
	}
}
