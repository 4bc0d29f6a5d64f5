package results

import (
	"fmt"
	"math"
	"time"
)

// The limits of validity. A step beyond one of them measured the client, or
// something outside the run, and not the target.
const (
	maxLag          = time.Millisecond // p99, or maxLagShare of the median response if that is more
	maxLagShare     = 0.05
	maxStallShare   = 0.01 // of the step: a longer stall of the client moves the 99th percentile by itself
	maxClientCPU    = 0.85
	maxGCPause      = 10 * time.Millisecond
	maxLittleError  = 0.03
	maxOutsideShare = 0.10
	// maxQuietSessions is the share of ops that may meet a lost session without a
	// word about it.
	maxQuietSessions = 0.001
	// minLittleSeconds is how much in-flight time a check of Little's law needs:
	// below it the clock's own resolution is a visible share.
	minLittleSeconds = 0.05
)

// Evidence is what a step's validity is judged by besides its own figures.
type Evidence struct {
	// InFlightNS is the integral of the number of requests in flight, counted at
	// the transport, and ServiceNS the sum of the service times that were
	// recorded. By Little's law they are equal unless something got lost between.
	InFlightNS, ServiceNS int64
	Recorded              int64 // successes in the histograms
	FDHeadroom            int64 // file descriptors that were still free; negative when unknown
	EarlierUnanswered     int64 // requests that the step before had left unanswered
}

// Assess sets Valid, gives the reasons in Invalid, and adds the warnings of
// everything that is wrong with the step, these reasons included. Nothing is ever
// hidden: an invalid step keeps its figures.
func Assess(s *Step, e Evidence) {
	s.Valid, s.Invalid = true, nil
	if s.Warnings == nil {
		s.Warnings = []string{}
	}
	invalid := func(format string, args ...any) {
		s.Valid = false
		why := fmt.Sprintf(format, args...)
		s.Invalid, s.Warnings = append(s.Invalid, why), append(s.Warnings, why)
	}
	if err := s.Ledger.Check(); err != nil {
		invalid("%v", err)
	}
	if e.Recorded != s.Ledger.OK {
		invalid("%d successes, but %d in the histograms", s.Ledger.OK, e.Recorded)
	}
	if s.ServerCount != nil {
		if err := s.Ledger.CheckServer(*s.ServerCount, e.EarlierUnanswered); err != nil {
			invalid("%v", err)
		}
	}
	assessClient(s, e, invalid)
	if e.InFlightNS > int64(minLittleSeconds*float64(time.Second)) {
		if off := math.Abs(float64(e.ServiceNS)/float64(e.InFlightNS) - 1); off > maxLittleError {
			invalid("Little's law is off by %.1f%%: %.3f s in flight by the transport's count, %.3f s by the outcomes",
				off*100, float64(e.InFlightNS)/1e9, float64(e.ServiceNS)/1e9)
		}
	}
	if lost := float64(s.Ledger.SessionLost); lost > maxQuietSessions*float64(s.Ledger.Scheduled) {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%.1f%% of ops met a lost session, which counts neither as an error nor as slow", 100*lost/float64(s.Ledger.Scheduled)))
	}
	if s.Ledger.InFlight > 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%d requests were still in flight when the step was ended", s.Ledger.InFlight))
	}
	if clamped := s.ResponseNS.Clamped + s.WaitNS.Clamped + s.LagNS.Clamped; clamped > 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%d samples above 60 s were recorded as 60 s", clamped))
	}
}

// LagLimit is how late the client may take an op up: max(1 ms, 5 % of the median
// response time), in nanoseconds.
func LagLimit(responseP50 *int64) int64 {
	limit := int64(maxLag)
	if responseP50 != nil {
		limit = max(limit, int64(maxLagShare*float64(*responseP50)))
	}
	return limit
}

// assessClient looks for the ways in which the client is the bottleneck.
func assessClient(s *Step, e Evidence, invalid func(string, ...any)) {
	for _, why := range lateness(*s) {
		invalid("%s", why)
	}
	if ClientSaturated(*s) {
		invalid("the client used %.0f%% of the CPU that it had, at most %.0f%% allowed", s.Client.CPUShare*100, maxClientCPU*100)
	}
	if s.Client.GCPauseMaxNS > int64(maxGCPause) {
		invalid("a garbage collection stopped the client for %v, at most %v allowed", time.Duration(s.Client.GCPauseMaxNS), maxGCPause)
	}
	if n := s.Causes["no local port free"]; n > 0 {
		invalid("the client ran out of local ports %d times", n)
	}
	if n := s.Causes["too many open files"]; n > 0 || e.FDHeadroom == 0 {
		invalid("the client ran out of file descriptors")
	}
	if s.Client.OutsideKnown && s.Client.OutsideShare > maxOutsideShare {
		invalid("something outside the run took %.0f%% of the machine's CPU, at most %.0f%% allowed", s.Client.OutsideShare*100, maxOutsideShare*100)
	}
}

// lateness lists the reasons of a step's invalidity that are in its lag.
func lateness(s Step) (reasons []string) {
	// Counted, not read off a percentile: those of short steps are blank.
	if s.LateOps > allowed(s.LagNS.Count) {
		reasons = append(reasons, fmt.Sprintf("the client was late: lag above %v for %.1f%% of ops, at most 1%% allowed",
			time.Duration(LagLimit(s.ResponseNS.P50)).Round(time.Microsecond), 100*float64(s.LateOps)/float64(max(s.LagNS.Count, 1))))
	}
	if stall := s.LagNS.Max; stall != nil && s.Seconds > 0 && float64(*stall)/1e9 > maxStallShare*s.Seconds {
		reasons = append(reasons, fmt.Sprintf("the client stood still for %v, more than %.0f%% of the step",
			time.Duration(*stall).Round(time.Millisecond), maxStallShare*100))
	}
	return reasons
}

// ClientSaturated reports whether the client used more of its CPU than it may.
func ClientSaturated(s Step) bool { return s.Client.CPUShare > maxClientCPU }

// HarmlessLateness reports whether all that is wrong with a step that failed is
// that the client was late by far less than the objective allows: that did not
// break it. An objective without a bound for all ops allows no lateness.
func HarmlessLateness(s Step, slo SLO) bool {
	late := len(lateness(s))
	if s.SLOMet || late == 0 || late < len(s.Invalid) || s.LagNS.Max == nil || slo.Bound == math.MaxInt64 {
		return false
	}
	strictest := slo.Bound
	for _, bound := range slo.Classes {
		strictest = min(strictest, bound)
	}
	return *s.LagNS.Max < int64(strictest)/10
}

// minLimitShare is the share of its budget that a host must have used, and
// minThrottledShare the share of quota periods in which it must have been held
// back, to be called the limit. Below both, the limit is unknown.
const (
	minLimitShare     = 0.70
	minThrottledShare = 0.50
)

// FindLimit names the role whose host was nearest its budget at a step.
func FindLimit(s Step) Limit {
	var nearest *HostUsage
	for i := range s.Hosts {
		h := &s.Hosts[i]
		if h.CPU > 0 && (nearest == nil || h.CPUShare > nearest.CPUShare) {
			nearest = h
		}
	}
	if nearest == nil {
		return Limit{By: "unknown", Figure: "no host was measured"}
	}
	l := Limit{
		By: "unknown", Host: nearest.Host, CPUShare: nearest.CPUShare,
		Figure: fmt.Sprintf("%.0f%% of its CPU, throttled in %.0f%% of periods", nearest.CPUShare*100, nearest.ThrottledShare*100),
	}
	if nearest.CPUShare >= minLimitShare || nearest.ThrottledShare >= minThrottledShare {
		l.By = busiestRole(s.Nodes, nearest.Host)
	}
	return l
}

// busiestRole is the role of the node that used most of a host.
func busiestRole(nodes []NodeUsage, host string) string {
	role, most := "unknown", -1.0
	for _, n := range nodes {
		if n.Host == host && n.CPUSeconds > most {
			role, most = n.Role, n.CPUSeconds
		}
	}
	return role
}
