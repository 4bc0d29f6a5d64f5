package results_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
)

func TestLedgerFindsMissingOps(t *testing.T) {
	var l results.Ledger
	fates := []results.Fate{
		results.OK, results.OK, results.HTTPError, results.TransportError,
		results.Timeout, results.InFlight, results.ConnectError, results.Unsent,
	}
	for _, fate := range fates {
		l.Count(results.Outcome{Fate: fate})
	}
	l.Scheduled = int64(len(fates))
	if err := l.Check(); err != nil {
		t.Error(err)
	}
	if l.Errors() != 6 {
		t.Errorf("%d errors, want 6", l.Errors())
	}
	l.Scheduled++
	if err := l.Check(); err == nil {
		t.Error("the check missed a scheduled op without a fate")
	}
	l.Scheduled--
	l.OK--
	if err := l.Check(); err == nil {
		t.Error("the check missed a sent op without a result")
	}
}

// Wait and response start at the intended time, lag when the slot is free as well, and
// service when the request is sent. Response leaves out the time of a simulated slow line.
func TestClocks(t *testing.T) {
	o := results.Outcome{Intended: 100, Free: 110, Dispatched: 130, Sent: 160, Done: 1000, Paced: 50}
	got := []int64{o.Lag(), o.Wait(), o.Service(), o.Response()}
	if want := []int64{20, 60, 840, 850}; !slices.Equal(got, want) {
		t.Errorf("lag, wait, service, response are %v, want %v", got, want)
	}
}

func TestServerCountMayDifferByTheUnanswered(t *testing.T) {
	l := results.Ledger{Scheduled: 100, Sent: 100, OK: 95, TransportError: 3, Timeout: 1, InFlight: 1}
	for served, agrees := range map[int64]bool{94: false, 95: true, 100: true, 101: false} {
		if err := l.CheckServer(served, 0); (err == nil) != agrees {
			t.Errorf("served %d: %v, want agreement %v", served, err, agrees)
		}
	}
	if err := l.CheckServer(102, 2); err != nil {
		t.Errorf("two unanswered requests of an earlier step: %v", err)
	}
}

func TestLostSessionsAreNoErrors(t *testing.T) {
	var l results.Ledger
	l.Count(results.Outcome{Fate: results.HTTPError, SessionLost: true})
	l.Scheduled = 1
	if l.Errors() != 0 || l.SessionLost != 1 || l.Check() != nil {
		t.Errorf("ledger %+v: want one lost session, no error, and sums that match", l)
	}
}

// A step without a request measured nothing: it neither met nor missed the objective.
func TestNothingMeasured(t *testing.T) {
	var s results.Step
	results.Judge(&s, results.DefaultSLO(), results.Evidence{FDHeadroom: -1})
	reasons := strings.Join(s.Invalid, "; ")
	if s.SLOMet || s.SLOBroken != "" || s.Valid || !strings.Contains(reasons, "nothing was measured") {
		t.Errorf("met %t (%s), valid %t, %v", s.SLOMet, s.SLOBroken, s.Valid, s.Invalid)
	}
}

func TestRedirectsAreReported(t *testing.T) {
	s := step(100, 0, 0)
	s.Ledger.Redirected = 30
	results.Judge(&s, results.DefaultSLO(), results.Evidence{FDHeadroom: -1, Recorded: 100})
	if !s.Valid || len(s.Warnings) != 1 || !strings.HasPrefix(s.Warnings[0], "30 of 100 responses were redirects") {
		t.Errorf("valid %t, warnings %v", s.Valid, s.Warnings)
	}
}

func step(pooled, over, errors int64) results.Step {
	return results.Step{
		Ledger: results.Ledger{Scheduled: pooled, Sent: pooled, OK: pooled - errors, HTTPError: errors},
		Ops:    map[string]results.OpStats{"feed": {Count: pooled, OverSLO: over, Errors: errors}},
	}
}

func TestJudge(t *testing.T) {
	slo := results.DefaultSLO()
	withUploads := func(s results.Step, n, over int64) results.Step {
		s.Ops["upload"] = results.OpStats{Count: n, OverSLO: over}
		return s
	}
	for name, c := range map[string]struct {
		step results.Step
		met  bool
		text string
	}{
		"all fast":                       {step(1000, 0, 0), true, ""},
		"exactly one in a hundred slow":  {step(1000, 10, 0), true, ""},
		"more than one in a hundred":     {step(1000, 11, 0), false, "worst class: feed"},
		"too many errors":                {step(1000, 0, 2), false, "errors 0.20%"},
		"slow because it fails":          {step(1000, 0, 50), false, "errors 5.00%"},
		"one slow upload of few":         {withUploads(step(1000, 0, 0), 5, 1), true, ""},
		"two slow uploads of few":        {withUploads(step(1000, 0, 0), 5, 2), false, "upload p99 > 1s"},
		"slow uploads do not hide reads": {withUploads(step(1000, 11, 0), 1000, 0), false, "worst class: feed"},
	} {
		s := c.step
		results.Judge(&s, slo, results.Evidence{})
		if s.SLOMet != c.met || s.SLOMet != (s.SLOBroken == "") || !strings.Contains(s.SLOBroken, c.text) {
			t.Errorf("%s: met %v, %q; want %v, %q", name, s.SLOMet, s.SLOBroken, c.met, c.text)
		}
	}
}

func TestSLOTextRoundTrip(t *testing.T) {
	want := results.DefaultSLO().String()
	if want != "p99<100ms,upload:p99<1s,errors<0.1%" {
		t.Errorf("the default objective is %q", want)
	}
	slo, err := results.ParseSLO(want)
	if err != nil || slo.String() != want {
		t.Errorf("%q came back as %q, %v", want, slo, err)
	}
	for _, bad := range []string{
		"", "p99", "p50<1s", "p99<fast", "errors<2", "errors<-1%", "p99<-1s", ":p99<1s", "upload:p50<1s",
		"p99<1s,p99<2s", "errors<100%,errors<1%", "a:p99<1s, a:p99<1s",
	} {
		if slo, err := results.ParseSLO(bad); err == nil {
			t.Errorf("%q was parsed as %q, want an error", bad, slo)
		}
	}
}

// validStep returns a step without any problem, and its evidence.
func validStep() (results.Step, results.Evidence) {
	latency := func(p99 time.Duration) results.Latency {
		return results.Latency{
			Count: 1000, P50: new(int64(5 * time.Millisecond)), P99: new(int64(p99)), Max: new(int64(p99)),
		}
	}
	return results.Step{
		Seconds: 10, Ledger: results.Ledger{Scheduled: 1000, Sent: 1000, OK: 1000},
		ResponseNS: latency(20 * time.Millisecond), ResponseAll: latency(20 * time.Millisecond),
		ResponseNoLag: latency(20 * time.Millisecond),
		LagNS:         latency(400 * time.Microsecond), ServerCount: new(int64(1000)),
		Client: results.ClientUsage{OutsideKnown: true},
	}, results.Evidence{InFlightNS: 1e9, ServiceNS: 1e9, Recorded: 1000, FDHeadroom: 1000}
}

// Each validity rule alone must be able to make a step invalid.
func TestEveryRuleOfValidityCanFail(t *testing.T) {
	s, e := validStep()
	results.Judge(&s, results.DefaultSLO(), e)
	if !s.Valid || len(s.Invalid) != 0 || len(s.Warnings) != 0 {
		t.Fatalf("a step without problems: valid %v, %q, warnings %q", s.Valid, s.Invalid, s.Warnings)
	}
	for want, spoil := range map[string]func(*results.Step, *results.Evidence){
		"op counts do not add up": func(s *results.Step, _ *results.Evidence) { s.Ledger.Scheduled++ },
		"in the histograms":       func(_ *results.Step, e *results.Evidence) { e.Recorded-- },
		"the server counted":      func(s *results.Step, _ *results.Evidence) { *s.ServerCount = 990 },
		"the p99 is 20ms, and 18ms without its lag": func(s *results.Step, _ *results.Evidence) {
			*s.ResponseNoLag.P99 = int64(18 * time.Millisecond)
		},
		"the client may have decided this step: p99 > 100ms": func(s *results.Step, _ *results.Evidence) {
			s.Ops = map[string]results.OpStats{"feed": {Count: 1000, OverSLO: 11, OverSLOByClient: 1}}
		},
		"the client used 90%":       func(s *results.Step, _ *results.Evidence) { s.Client.CPUShare = 0.9 },
		"out of local ports":        func(s *results.Step, _ *results.Evidence) { s.Causes = noLocalPort() },
		"out of file descriptors":   func(_ *results.Step, e *results.Evidence) { e.FDHeadroom = 0 },
		"Little's law":              func(_ *results.Step, e *results.Evidence) { e.ServiceNS = 9e8 },
		"something outside the run": func(s *results.Step, _ *results.Evidence) { s.Client.OutsideShare = 0.3 },
	} {
		s, e := validStep()
		spoil(&s, &e)
		results.Judge(&s, results.DefaultSLO(), e)
		invalid := !s.Valid && len(s.Invalid) == 1 && strings.Contains(s.Invalid[0], want)
		if !invalid || !slices.Equal(s.Warnings, s.Invalid) {
			t.Errorf("%s: valid %v, %q, warnings %q", want, s.Valid, s.Invalid, s.Warnings)
		}
	}
}

func noLocalPort() map[string]int64 { return map[string]int64{"no local port free": 1} }

// lateStep is a step whose client was late, and the expected verdicts.
type lateStep struct {
	spoil             func(*results.Step, *results.Evidence)
	excused, byClient bool
	reasons           []string
}

const (
	late    = "the client was late"
	decided = "the client may have decided"
)

// Lateness that cannot have changed the verdict on the objective leaves it standing, unless
// something else is wrong with the step.
func TestLatenessAndTheVerdict(t *testing.T) {
	judgeLateSteps(t, map[string]lateStep{
		"met and punctual": {},
		"met": {
			spoil:   func(s *results.Step, _ *results.Evidence) { *s.ResponseNoLag.P99 = 18e6 },
			excused: true, reasons: []string{late},
		},
		"an unnoticeable part of a percentile": {
			spoil: func(s *results.Step, _ *results.Evidence) { *s.ResponseNoLag.P99 = 191e5 },
		},
		"an unnoticeable share of a percentile": {
			spoil: func(s *results.Step, _ *results.Evidence) { *s.ResponseAll.P99, *s.ResponseNoLag.P99 = 200e6, 191e6 },
		},
		"missed without the client, too": {
			spoil: func(s *results.Step, _ *results.Evidence) {
				s.Ops = map[string]results.OpStats{"feed": {Count: 1000, OverSLO: 30, OverSLOByClient: 19}}
				*s.ResponseNoLag.P50 = 1e6
			},
			excused: true, reasons: []string{late},
		},
		"missed because of the client": {
			spoil: func(s *results.Step, _ *results.Evidence) {
				s.Ops = map[string]results.OpStats{"feed": {Count: 1000, OverSLO: 30, OverSLOByClient: 20}}
				*s.ResponseNoLag.P50 = 1e6
			},
			byClient: true, reasons: []string{decided, late},
		},
		"missed by a class because of the client": {
			spoil: func(s *results.Step, _ *results.Evidence) {
				s.Ops = map[string]results.OpStats{"upload": {Count: 200, OverSLO: 3, OverSLOByClient: 1}}
			},
			byClient: true, reasons: []string{decided},
		},
		"missed by failures, which the client did not cause": {
			spoil: func(s *results.Step, _ *results.Evidence) {
				s.Ops = map[string]results.OpStats{"feed": {Count: 1000, OverSLO: 5, OverSLOByClient: 5, Errors: 11}}
			},
		},
		"stalled": {
			spoil: func(s *results.Step, e *results.Evidence) {
				s.Client.StallMaxNS = 80e6
				e.Stalls = []results.Stall{{AtNS: 1e9, LengthNS: 80e6}, {AtNS: 3e9, LengthNS: 30e6}}
			},
			excused: true, reasons: []string{"the client stalled for 1.1% of the step, longest 80ms"},
		},
		"stalled for an unnoticeable time": {
			spoil: func(s *results.Step, e *results.Evidence) {
				e.Stalls = slices.Repeat([]results.Stall{{LengthNS: 1e6}}, 1000)
			},
		},
		"something else is wrong": {
			spoil: func(s *results.Step, e *results.Evidence) {
				*s.ResponseNoLag.P99 = 18e6
				e.FDHeadroom = 0
			},
			reasons: []string{"file descriptors", late},
		},
	})
}

// Ops that were not sent because of the client.
func TestUnsentOpsAndTheVerdict(t *testing.T) {
	judgeLateSteps(t, map[string]lateStep{
		"missed by unsent ops because of the client": {
			spoil: func(s *results.Step, e *results.Evidence) {
				s.Ledger = results.Ledger{Scheduled: 1000, Sent: 980, OK: 980, Unsent: 20}
				s.Ops = map[string]results.OpStats{"feed": {Count: 1000, Errors: 20, UnsentByClient: 20}}
				*s.ServerCount, e.Recorded = 980, 980
			},
			byClient: true, reasons: []string{decided},
		},
		"missed by more unsent ops": {
			spoil: func(s *results.Step, e *results.Evidence) {
				s.Ledger = results.Ledger{Scheduled: 1000, Sent: 980, OK: 980, Unsent: 20}
				s.Ops = map[string]results.OpStats{"feed": {Count: 1000, Errors: 20, UnsentByClient: 18}}
				*s.ServerCount, e.Recorded = 980, 980
			},
		},
	})
}

func judgeLateSteps(t *testing.T, steps map[string]lateStep) {
	t.Helper()
	for name, test := range steps {
		s, e := validStep()
		if test.spoil != nil {
			test.spoil(&s, &e)
		}
		results.Judge(&s, results.DefaultSLO(), e)
		if s.Excused != test.excused || s.ByClient != test.byClient {
			t.Errorf("%s: excused %v, by the client %v: %q", name, s.Excused, s.ByClient, s.Invalid)
		}
		if trusted := len(test.reasons) == 0 || test.excused; s.Trusted() != trusted {
			t.Errorf("%s: trusted %v, want %v", name, s.Trusted(), trusted)
		}
		if !slices.EqualFunc(s.Invalid, test.reasons, strings.Contains) {
			t.Errorf("%s: invalid because of %q, want %q", name, s.Invalid, test.reasons)
		}
		if limit := results.FindLimit(s); (limit.By == "client") != test.byClient {
			t.Errorf("%s: limited by %s, %s", name, limit.By, limit.Figure)
		}
	}
}

// Each percentile of a step is judged. The highest one is only a warning.
func TestEveryPercentileIsJudged(t *testing.T) {
	of := func(l *results.Latency, p string) **int64 {
		return map[string]**int64{"p50": &l.P50, "p90": &l.P90, "p95": &l.P95, "p99": &l.P99, "p99.9": &l.P999}[p]
	}
	for _, p := range []string{"p50", "p90", "p95", "p99", "p99.9"} {
		s, e := validStep()
		*of(&s.ResponseAll, p), *of(&s.ResponseNoLag, p) = new(int64(30e6)), new(int64(25e6))
		results.Judge(&s, results.DefaultSLO(), e)
		want := "the client was late: the " + p + " is 30ms, and 25ms without its lag"
		if s.Valid != (p == "p99.9") || !slices.Contains(s.Warnings, want) {
			t.Errorf("%s: valid %v, warnings %q, want %q", p, s.Valid, s.Warnings, want)
		}
	}
}

func TestLostSessionsAreReported(t *testing.T) {
	s, e := validStep()
	s.Ledger.OK, s.Ledger.HTTPError, s.Ledger.SessionLost = 990, 10, 10
	e.Recorded = 990
	results.Judge(&s, results.DefaultSLO(), e)
	if !s.Valid || len(s.Invalid) != 0 || len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "lost their session") {
		t.Errorf("valid %v, warnings %q: want a warning about lost sessions", s.Valid, s.Warnings)
	}
}

func TestObjectiveWithoutLatency(t *testing.T) {
	slo, err := results.ParseSLO("errors<5%")
	if err != nil {
		t.Fatal(err)
	}
	s := step(1000, 0, 60)
	results.Judge(&s, slo, results.Evidence{})
	if s.SLOMet || !strings.HasPrefix(s.SLOBroken, "errors 6.00%") {
		t.Errorf("met %v, %q: want it missed because of the errors", s.SLOMet, s.SLOBroken)
	}
}

func TestFindLimit(t *testing.T) {
	s := results.Step{
		Hosts: []results.HostUsage{
			{Host: "web-1", CPU: 0.1, CPUShare: 0.6},
			{Host: "db-1", CPU: 0.1, CPUShare: 0.93, ThrottledShare: 0.4},
		},
		Nodes: []results.NodeUsage{
			{Node: "blob-1", Host: "db-1", Role: "blob", CPUSeconds: 0.1},
			{Node: "db-1", Host: "db-1", Role: "db", CPUSeconds: 0.8},
		},
	}
	if l := results.FindLimit(s); l.By != "db" || l.Host != "db-1" || !strings.HasPrefix(l.Figure, "93%") {
		t.Errorf("limit %+v, want db with its figure", l)
	}
	s.Hosts[1].CPUShare = 0.5
	if l := results.FindLimit(s); l.By != "unknown" {
		t.Errorf("limit %+v, want unknown: no host was near its budget", l)
	}
	s.Client.CPUShare = 0.95
	if l := results.FindLimit(s); l.By != "client" || l.Figure != "95% of its CPU" {
		t.Errorf("limit %+v of a failed step, want the client: it had no CPU left", l)
	}
	if l := results.FindLimit(results.Step{}); l.By != "unknown" {
		t.Errorf("limit %+v without hosts", l)
	}
}

// A host is the limit if it uses most of its budget, or if its threads wait long for a CPU. The next limit is another
// role on another host.
func TestEvidenceForTheLimit(t *testing.T) {
	step := func(share, throttled, waited float64) results.Step {
		return results.Step{
			SLOMet: true, Ledger: results.Ledger{OK: 100},
			Hosts: []results.HostUsage{
				{Host: "db-1", CPU: 0.1, CPUShare: share / 2},
				{Host: "web-1", CPU: 0.1, CPUShare: share, ThrottledShare: throttled},
			},
			Nodes: []results.NodeUsage{
				{Node: "web-1", Host: "web-1", Role: "web", CPUSeconds: 0.5, WaitSeconds: waited / 2},
				{Node: "blob-1", Host: "web-1", Role: "blob", CPUSeconds: 0.1, WaitSeconds: waited / 2},
				{Node: "db-1", Host: "db-1", Role: "db", CPUSeconds: 0.3},
			},
		}
	}
	for name, test := range map[string]struct {
		step results.Step
		want string
	}{
		"little":      {step(0.5, 0.1, 0.1), "unknown"},
		"CPU":         {step(0.8, 0.1, 0.1), "web"},
		"throttled":   {step(0.5, 0.6, 0.1), "web"},
		"wait":        {step(0.5, 0.1, 0.9), "web"},
		"without CPU": {results.Step{SLOMet: true}, "unknown"},
	} {
		got := results.FindLimit(test.step)
		if got.By != test.want || (got.Next == "db") != (test.want == "web") {
			t.Errorf("%s: %+v, want %s", name, got, test.want)
		}
	}
	got := results.FindLimit(step(0.5, 0.1, 0.9))
	if got.WaitNS != 9e6 || !strings.Contains(got.Figure, "9.0 ms waiting") {
		t.Errorf("%+v, want 9 ms of waiting per request", got)
	}
}

func TestSpeedOfMachine(t *testing.T) {
	cells := []results.Cell{
		{Speeds: []results.Speed{{Compute: 100, Loopback: 10, Memory: 5}, {Compute: 110, Loopback: 10, Memory: 10}}},
		{Speeds: []results.Speed{{Compute: 100, Loopback: 9, Memory: 20}}},
	}
	want := "speed of the machine before the 3 visits, as a multiple of the median: " +
		"computing 1.00 to 1.10, loopback 0.90 to 1.00, memory 0.50 to 2.00"
	if got := results.SpeedOfMachine(cells); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := results.SpeedOfMachine(cells[1:]); got != "" {
		t.Errorf("one visit: %q", got)
	}
}
