package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/workloads/pace"
)

// rate is a flag with a rate in requests per second. It is written as a number, or with a unit of time: 100/s, 6000/m.
type rate float64

// Type is shown in the help.
func (*rate) Type() string { return "rate" }

// String returns the rate in requests per second.
func (r *rate) String() string { return strconv.FormatFloat(float64(*r), 'g', -1, 64) }

// Set parses a rate. Its range is checked where it is used.
func (r *rate) Set(text string) error {
	number, unit, found := strings.Cut(text, "/")
	if !found {
		unit = "s"
	}
	per, known := map[string]time.Duration{
		"s": time.Second, "1s": time.Second, "m": time.Minute, "1m": time.Minute, "h": time.Hour, "1h": time.Hour,
	}[unit]
	requests, err := strconv.ParseFloat(number, 64)
	if err != nil || !known {
		return fmt.Errorf("want requests per second such as 500, or 100/s, 6000/m")
	}
	*r = rate(requests / per.Seconds())
	return nil
}

// shape is a flag with the shape of a schedule.
type shape struct{ *pace.Shape }

// Type is shown in the help.
func (shape) Type() string { return "schedule" }

// Set parses a shape.
func (s shape) Set(text string) (err error) {
	*s.Shape, err = pace.Parse(text)
	return err
}

// shapeFlag adds --schedule.
func shapeFlag(cmd *cobra.Command, s *pace.Shape) {
	must(shape{s}.Set("poisson"))
	cmd.Flags().Var(shape{s}, "schedule", "arrivals: constant, poisson, step, ramp, sine or burst; with settings such as "+
		"burst:rate=x5,every=10s,length=1s (see: stagebench list schedules)")
}

// checkShape returns an error for a shape that a command with steps of its own cannot offer. Shortest is the length of
// its shortest steps.
func checkShape(s pace.Shape, shortest time.Duration) error {
	switch {
	case !s.Relative():
		return exit.Usagef("--schedule %v has rates of its own, which only attack sends\n"+
			"write proportions such as x2: then the mean is the offered rate", s)
	case s.Period() > shortest:
		return exit.Usagef("--schedule %v repeats every %v, and the shortest steps last %v\n"+
			"want a shorter time; see: stagebench list schedules", s, s.Period(), shortest)
	}
	return nil
}

// checkSchedule returns an error for a --schedule that the job cannot offer.
func (o runOptions) checkSchedule(j job) error {
	ownTimes := func(l load.Load) bool { return l.Times != nil }
	if own := slices.IndexFunc(j.loads, ownTimes); own >= 0 && o.given("schedule") {
		return exit.Usagef("--schedule cannot be used with %s, which has its own times\n"+
			"remove --schedule, or choose another workload", j.loads[own].Workload.Name())
	}
	if j.fixed != nil {
		return checkShape(o.schedule, j.fixed.Duration)
	}
	return checkShape(o.schedule, j.plan.Step.Min)
}
