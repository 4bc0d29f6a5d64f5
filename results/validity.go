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
	// minLittleSeconds is how much in-flight time a check of Little's law needs:
	// below it the clock's own resolution is a visible share.
	minLittleSeconds = 0.05
)

// Evidence is what a step's validity is judged by besides its own figures.
type Evidence struct {
	InFlightNS, ServiceNS int64 // see driver.Report
	Recorded              int64 // successes in the histograms
	FDHeadroom            int64 // file descriptors that were still free; negative when unknown
	OutsideKnown          bool  // Client.OutsideShare was measured
}

// Assess sets Valid and adds the warnings of everything that is wrong with the
// step. Nothing is ever hidden: an invalid step keeps its figures.
func Assess(s *Step, e Evidence) {
	s.Valid = true
	if s.Warnings == nil {
		s.Warnings = []string{}
	}
	invalid := func(format string, args ...any) {
		s.Valid = false
		s.Warnings = append(s.Warnings, fmt.Sprintf(format, args...))
	}
	if err := s.Ledger.Check(); err != nil {
		invalid("%v", err)
	}
	if e.Recorded != s.Ledger.OK {
		invalid("%d successes, but %d in the histograms", s.Ledger.OK, e.Recorded)
	}
	if s.ServerCount != nil {
		if err := s.Ledger.CheckServer(*s.ServerCount); err != nil {
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
	if s.Ledger.InFlight > 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%d requests were still in flight when the step was ended", s.Ledger.InFlight))
	}
	if clamped := s.ResponseNS.Clamped + s.WaitNS.Clamped + s.LagNS.Clamped; clamped > 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%d samples above 60 s were recorded as 60 s", clamped))
	}
}

// assessClient looks for the ways in which the client is the bottleneck.
func assessClient(s *Step, e Evidence, invalid func(string, ...any)) {
	limit := int64(maxLag)
	if p50 := s.ResponseNS.P50; p50 != nil {
		limit = max(limit, int64(maxLagShare*float64(*p50)))
	}
	if p99 := s.LagNS.P99; p99 != nil && *p99 > limit {
		invalid("the client was late: lag p99 %v, at most %v allowed", time.Duration(*p99).Round(time.Microsecond), time.Duration(limit).Round(time.Microsecond))
	}
	if stall := s.LagNS.Max; stall != nil && s.Seconds > 0 && float64(*stall)/1e9 > maxStallShare*s.Seconds {
		invalid("the client stood still for %v, more than %.0f%% of the step", time.Duration(*stall).Round(time.Millisecond), maxStallShare*100)
	}
	if s.Client.CPUShare > maxClientCPU {
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
	if e.OutsideKnown && s.Client.OutsideShare > maxOutsideShare {
		invalid("something outside the run took %.0f%% of the machine's CPU, at most %.0f%% allowed", s.Client.OutsideShare*100, maxOutsideShare*100)
	}
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
