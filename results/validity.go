package results

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Judge sets the verdicts of a step: whether it met the objective (SLOMet, SLOBroken), and whether its figures
// can be trusted (Valid, Invalid, Excused, ByClient). The warnings
// of the step are then its notes and every problem. An invalid step keeps its figures.
//
// A client is always a little late. What counts is whether it could have decided a figure. So the objective is
// judged twice, with and without the delays that the client may have caused, and each percentile is compared with
// the one without the client's lag.
func Judge(s *Step, slo SLO, e Evidence) {
	s.Warnings = append([]string{}, s.Notes...)
	warnf := func(format string, args ...any) { s.Warnings = append(s.Warnings, fmt.Sprintf(format, args...)) }
	s.SLOBroken = slo.broken(*s)
	s.SLOMet = s.SLOBroken == ""
	s.ByClient = !s.SLOMet && slo.broken(s.punctual()) == ""
	s.Invalid = slices.Concat(s.countMismatches(e), s.disturbances(e))
	if s.Ledger.Scheduled == 0 {
		s.SLOMet = false
		s.Invalid = append(s.Invalid, "nothing was measured: no request was scheduled in this time")
	}
	if s.ByClient {
		s.Invalid = append(s.Invalid, "the client may have decided this step: "+s.SLOBroken+
			", but the objective was met without the delays that the client may have caused")
	}
	decisive := len(s.Invalid)
	s.Invalid = append(s.Invalid, s.lateness(e)...)
	s.Valid = len(s.Invalid) == 0
	s.Excused = !s.Valid && decisive == 0
	s.Warnings = append(s.Warnings, s.Invalid...)
	// A distorted p99.9 is only a warning, because the other percentiles stand without it.
	if reason := distortion("p99.9", s.ResponseAll.P999, s.ResponseNoLag.P999); reason != "" {
		s.Warnings = append(s.Warnings, reason)
	}
	if lost := float64(s.Ledger.SessionLost) / float64(max(s.Ledger.Scheduled, 1)); lost > maxQuietSessions {
		warnf("%.1f%% of ops lost their session; they count neither as errors nor as slow", 100*lost)
	}
	if n := s.Ledger.Redirected; n > 0 {
		warnf("%d of %d responses were redirects, which are not followed: the response times do not include the pages "+
			"that they point to", n, s.Ledger.OK)
	}
	if j := s.Journeys; j != nil && 1-j.DueShare() > maxNotDue {
		warnf("%.1f%% of the planned ops were not due in the step, because earlier ops of their journeys took time or "+
			"failed: %.1f/s were offered, not %.1f/s", 100*(1-j.DueShare()), s.OfferedRPS*j.DueShare(), s.OfferedRPS)
	}
	if s.Ledger.InFlight > 0 {
		warnf("%d requests were still in flight when the step ended", s.Ledger.InFlight)
	}
	if clamped := s.ResponseNS.Clamped + s.WaitNS.Clamped + s.LagNS.Clamped; clamped > 0 {
		warnf("%d samples above 60 s were recorded as 60 s", clamped)
	}
}

// Invalidate adds a reason why the step cannot be trusted.
func (s *Step) Invalidate(reason string) {
	s.Valid, s.Excused = false, false
	s.Invalid, s.Warnings = append(s.Invalid, reason), append(s.Warnings, reason)
}

// Trusted reports whether SLOMet can be trusted.
func (s Step) Trusted() bool { return s.Valid || s.Excused }

// Evidence holds the measurements that Judge needs in addition to the step.
type Evidence struct {
	// InFlightNS is the number of requests in flight, counted at the transport and integrated over time.
	// ServiceNS is the sum of the recorded service times. By Little's law both are equal; a difference means
	// that outcomes were lost.
	InFlightNS, ServiceNS int64
	Recorded              int64 // successes in the histograms
	FDHeadroom            int64 // free file descriptors; negative = unknown
	Stalls                []Stall
	EarlierUnanswered     int64 // requests that the previous step left unanswered
}

// The limits of validity. A step beyond one of them measured the client, or
// something outside the run, and not the target.
const (
	maxLag          = time.Millisecond // the client's part of a percentile; maxLagShare of it if that is more
	maxLagShare     = 0.05
	maxStalled      = 0.01 // share of the step in which the client did not run
	maxClientCPU    = 0.85
	maxLittleError  = 0.03
	maxOutsideShare = 0.10
	// maxQuietSessions is the share of ops that may lose their session without a warning.
	maxQuietSessions = 0.001
	// maxNotDue is the share of the planned ops of journeys that may be missing without a warning.
	maxNotDue = 0.05
	// minLittleSeconds is the least in-flight time for a check of Little's law. Below it, the resolution of the
	// clock causes a visible error.
	minLittleSeconds = 0.05
)

// fewSamples is the number of ops below which the 99th percentile is the maximum. One slow op is then allowed,
// because it proves nothing.
const fewSamples = 100

// allowedOver returns how many of n ops may exceed a bound on the 99th percentile.
func allowedOver(n int64) int64 {
	if n < fewSamples {
		return 1
	}
	return n / 100
}

// broken returns why the step missed the objective, "" if it met it:
// "p99 > 100ms (2.3% of ops were slower, worst class: like with 8.1%)".
func (s SLO) broken(step Step) string {
	failing := ""
	if rate := step.Ledger.ErrorRate(); rate > s.ErrorRate {
		failing = fmt.Sprintf("%s%.2f%% > %s%%", errorsMissed, rate*100, strconv.FormatFloat(s.ErrorRate*100, 'g', -1, 64))
		if cause := step.MainCause(); cause != "" {
			failing += ", mostly: " + cause
		}
	}
	// A target that fails is not slow. But a slow one also leaves ops unsent or without an answer in time, and then
	// these errors are not the cause.
	l := step.Ledger
	failures := l.ConnectError + l.HTTPError - l.SessionLost + l.TransportError
	if float64(failures) > s.ErrorRate*float64(l.Scheduled) {
		return failing
	}
	var pooled, pooledOver int64
	worst, worstShare := "", 0.0
	for _, class := range slices.Sorted(maps.Keys(step.Ops)) {
		op := step.Ops[class]
		over := op.OverSLO + op.Errors
		if bound, own := s.Classes[class]; own {
			if over > allowedOver(op.Count) {
				return fmt.Sprintf("%s p99 > %v (%d of %d ops were slower)", class, bound, over, op.Count)
			}
			continue
		}
		pooled += op.Count
		pooledOver += over
		if share := float64(over) / float64(max(op.Count, 1)); share > worstShare {
			worst, worstShare = class, share
		}
	}
	if s.Bound != math.MaxInt64 && pooledOver > allowedOver(pooled) {
		return fmt.Sprintf("p99 > %v (%.1f%% of ops were slower, worst class: %s with %.1f%%)",
			s.Bound, 100*float64(pooledOver)/float64(pooled), worst, 100*worstShare)
	}
	return failing
}

// errorsMissed begins the reason of a missed objective for errors.
const errorsMissed = "errors "

// BrokenByErrors reports whether the step missed the objective because of errors, and not of latency.
func (s Step) BrokenByErrors() bool { return strings.HasPrefix(s.SLOBroken, errorsMissed) }

// MainCause returns the most frequent cause of failures, "" if no op failed.
func (s Step) MainCause() string {
	if len(s.Causes) == 0 {
		return ""
	}
	return slices.MinFunc(slices.Collect(maps.Keys(s.Causes)), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.Causes[b], s.Causes[a]), cmp.Compare(a, b))
	})
}

// punctual returns the counts of a step without the misses that the client may have caused.
func (s Step) punctual() Step {
	classes := s.Ops
	s.Ops = map[string]OpStats{}
	for name, op := range classes {
		op.OverSLO -= op.OverSLOByClient
		op.Errors -= op.UnsentByClient
		s.Ledger.Unsent -= op.UnsentByClient
		s.Ops[name] = op
	}
	return s
}

// countMismatches lists the counts of a step that contradict each other.
func (s Step) countMismatches(e Evidence) (reasons []string) {
	if err := s.Ledger.Check(); err != nil {
		reasons = append(reasons, err.Error())
	}
	if e.Recorded != s.Ledger.OK {
		reasons = append(reasons, fmt.Sprintf("%d successes, but %d in the histograms", s.Ledger.OK, e.Recorded))
	}
	if s.ServerCount != nil {
		if err := s.Ledger.CheckServer(*s.ServerCount, e.EarlierUnanswered); err != nil {
			reasons = append(reasons, err.Error())
		}
	}
	return reasons
}

// tolerated returns the part of a response time that the client may cause.
func tolerated(ns int64) int64 { return max(int64(maxLag), int64(maxLagShare*float64(ns))) }

// distortion says how the client's lag distorts a percentile; "" if it does not, or if one of the values is unknown.
func distortion(name string, with, without *int64) string {
	if with == nil || without == nil || *with-*without <= tolerated(*with) {
		return ""
	}
	return fmt.Sprintf("the client was late: the %s is %v, and %v without its lag",
		name, roughly(*with), roughly(*without))
}

// lateness lists the percentiles that the client's lag distorts. Too long stalls distort them, too: in a stall, the
// client also reads late.
func (s Step) lateness(e Evidence) (reasons []string) {
	highest := int64(0) // the highest known percentile
	for _, p := range []struct {
		name          string
		with, without *int64
	}{
		{"p50", s.ResponseAll.P50, s.ResponseNoLag.P50},
		{"p90", s.ResponseAll.P90, s.ResponseNoLag.P90},
		{"p95", s.ResponseAll.P95, s.ResponseNoLag.P95},
		{"p99", s.ResponseAll.P99, s.ResponseNoLag.P99},
	} {
		if p.with != nil {
			highest = *p.with
		}
		if reason := distortion(p.name, p.with, p.without); reason != "" {
			reasons = append(reasons, reason)
		}
	}
	var stalled int64
	for _, stall := range e.Stalls {
		if stall.LengthNS > tolerated(highest) {
			stalled += stall.LengthNS
		}
	}
	if share := float64(stalled) / 1e9 / max(s.Seconds, 1e-9); share > maxStalled {
		reasons = append(reasons, fmt.Sprintf("the client stalled for %.1f%% of the step, longest %v, at most %.0f%% allowed",
			share*100, roughly(s.Client.StallMaxNS), maxStalled*100))
	}
	return reasons
}

// roughly returns nanoseconds as a duration with at most four digits.
func roughly(ns int64) time.Duration {
	unit := time.Microsecond
	for ns/int64(unit) >= 10_000 {
		unit *= 10
	}
	return time.Duration(ns).Round(unit)
}

// disturbances lists how the client, or something outside the run, distorted the figures.
func (s Step) disturbances(e Evidence) (reasons []string) {
	add := func(format string, args ...any) { reasons = append(reasons, fmt.Sprintf(format, args...)) }
	if s.Client.CPUShare > maxClientCPU {
		add("the client used %.0f%% of its CPU, at most %.0f%% allowed",
			s.Client.CPUShare*100, maxClientCPU*100)
	}
	if n := s.Causes["no local port free"]; n > 0 {
		add("the client ran out of local ports %d times", n)
	}
	if n := s.Causes["too many open files"]; n > 0 || e.FDHeadroom == 0 {
		add("the client ran out of file descriptors")
	}
	if s.Client.OutsideKnown && s.Client.OutsideShare > maxOutsideShare {
		add("something outside the run took %.0f%% of the machine's CPU, at most %.0f%% allowed",
			s.Client.OutsideShare*100, maxOutsideShare*100)
	}
	off := math.Abs(float64(e.ServiceNS)/float64(e.InFlightNS) - 1)
	if e.InFlightNS > int64(minLittleSeconds*float64(time.Second)) && off > maxLittleError {
		add("Little's law is off by %.1f%%: the transport counted %.3f s in flight, the outcomes add up to %.3f s",
			off*100, float64(e.InFlightNS)/1e9, float64(e.ServiceNS)/1e9)
	}
	return reasons
}
