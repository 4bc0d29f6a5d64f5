package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/live"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
	"github.com/stagebench/stagebench/workloads/pace"
)

// attackOptions are the flags of `stagebench attack`.
type attackOptions struct {
	aim
	schedule  pace.Shape
	driver    string
	rate      rate
	duration  time.Duration
	vegetaOut string
	output    outputFlags
}

func attackCommand(s streams) *cobra.Command {
	o := attackOptions{rate: 100}
	cmd := &cobra.Command{
		Use:   "attack [URL...]",
		Short: "Send load to any HTTP service and measure the response times of its users",
		Long: `Sends requests by a fixed schedule over a bounded number of connections. Response
times start at the intended time of a request, so they include the delay that a
stalled server causes for later requests. Prints the latency by op, the four
clocks, and a ledger that counts every scheduled request, and keeps them in the
directory of a run.

Exits with status 4 if the objective (--slo) is missed, or if nothing succeeds, and
with status 3 if the measurement is invalid, for example because the client could
not keep up. If nothing connects for 5 s, the attack ends early.`,
		Example: `  stagebench attack http://127.0.0.1:8080/ --rate 500 --duration 30s
  stagebench attack http://127.0.0.1:8080/ -r 6000/m -d 1m -c 32 --slo 'p99<50ms,errors<1%'
  stagebench attack http://127.0.0.1:8080/ http://127.0.0.1:8080/search --weights 9,1
  stagebench attack http://127.0.0.1:8080/ --schedule ramp:from=10,to=500 -d 1m
  stagebench attack --workload read-heavy --rate 200       # the system that "stagebench up" started
  stagebench attack http://127.0.0.1:8080/ --workload shop.yaml --rate 200 --out runs/shop
  stagebench attack http://127.0.0.1:8080/ --workload trace:access.log.gz --speed 10 --max-gap 1s
  stagebench attack https://127.0.0.1:8443/api/items --method POST --body '{"n":1}' \
      --header 'Content-Type: application/json' --bearer-env API_TOKEN --tls-ca ca.pem`,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s) },
	}
	o.flags(cmd)
	completeFlags(cmd)
	return cmd
}

func (o *attackOptions) flags(cmd *cobra.Command) {
	o.aim.flags(cmd)
	replayFlags(cmd, &o.replay)
	o.output.runFlags(cmd)
	f := cmd.Flags()
	shapeFlag(cmd, &o.schedule)
	f.StringVar(&o.driver, "driver", "vegeta", "load driver: vegeta")
	f.VarP(&o.rate, "rate", "r", "requests per second, or 6000/m, 100/s; for a trace this replaces its own times")
	f.DurationVarP(&o.duration, "duration", "d", 15*time.Second, "length of the schedule; a trace may end earlier")
	f.StringVar(&o.vegetaOut, "vegeta-results", "",
		"write every outcome to this file, for vegeta's commands report and plot")
}

// replayFlags adds the flags for the replay of a trace.
func replayFlags(cmd *cobra.Command, r *load.Replay) {
	f := cmd.Flags()
	f.Float64Var(&r.Speed, "speed", 1, "replay a trace this many times faster than it was logged")
	f.DurationVar(&r.MaxGap, "max-gap", 0,
		"shorten longer gaps of a trace to this, before --speed; 0 = keep all gaps")
	f.BoolVar(&r.Loop, "loop", false, "repeat a trace until --duration is over")
}

// checkReplay returns an error if replay flags are given but no load is a trace.
func checkReplay(r load.Replay, loads []load.Load) error {
	if !r.Changes() || slices.ContainsFunc(loads, func(l load.Load) bool { return l.Trace != nil }) {
		return nil
	}
	return exit.Usagef("--speed, --max-gap and --loop are for a trace, and there is none\n" +
		"remove them, or name a trace: trace:FILE")
}

func (o attackOptions) run(ctx context.Context, s streams) error {
	switch {
	case o.duration <= 0:
		return exit.Usagef("--duration %v\nwant more than 0, for example --duration 30s", o.duration)
	case o.driver != "vegeta":
		return exit.Usagef("unknown driver %q\nwant vegeta", o.driver)
	}
	d, err := o.destination(ctx)
	if err != nil {
		return err
	}
	timing, err := o.timing(d.load)
	if err != nil {
		return err
	}
	clients, err := o.clients(ctx, s, d)
	if err != nil {
		return err
	}
	defer clients.Close()
	progress := live.New(s.err, s.terminal, false)
	defer progress.Done()
	progress.Visit(d.endpoint.Host, 0, 1, timing.duration)
	stepper, err := o.stepper(ctx, s, d, clients, progress, timing.schedule.Count(timing.duration))
	if err != nil {
		return err
	}
	files, err := o.open(ctx, s, d, timing, stepper)
	if err != nil {
		return err
	}
	if timing.partial != "" {
		_, _ = fmt.Fprintln(s.err, timing.partial)
	}
	if err := clients.LogIn(ctx, d.load.Workload, o.timeout); err != nil {
		return errors.Join(fmt.Errorf("log the users in: %w", err), files.close())
	}
	trying, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	stepper.OnOutcome = files.recording(untilConnected(giveUp))
	step, err := stepper.Step(trying, "attack", timing.rate, timing.schedule, timing.duration)
	progress.Done()
	if timing.partial != "" {
		part, _, _ := strings.Cut(timing.partial, "\n")
		step.Warnings = append(step.Warnings, part)
	}
	if err = errors.Join(err, files.close()); err != nil && step.Purpose == "" {
		return err // there was no step
	}
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w\nthe figures above are complete; to get the files, too, "+
			"repeat with another path for --out or --vegeta-results", err)
	}
	// The figures are shown even if an output file could not be written.
	return errors.Join(o.conclude(ctx, s, d, files, step, errors.Is(context.Cause(trying), errNothingConnects)), err)
}

// patience is the time after which an attack ends if nothing has connected.
const patience = 5 * time.Second

var errNothingConnects = errors.New("nothing connects")

// untilConnected returns a receiver of outcomes that gives up if nothing connects.
func untilConnected(giveUp context.CancelCauseFunc) func(results.Outcome) {
	connected := false
	return func(o results.Outcome) {
		connected = connected || o.Fate != results.ConnectError
		if !connected && o.Done >= int64(patience) {
			giveUp(errNothingConnects)
		}
	}
}

// timing is the schedule of the ops.
type timing struct {
	schedule pace.Schedule
	duration time.Duration
	rate     float64 // average
	partial  string  // which part of a trace lies within the duration; "" = all of it
}

// checkTiming returns an error for timing flags that would have no effect on this load.
func (o attackOptions) checkTiming(l load.Load) error {
	switch {
	case o.given("rate") && !o.schedule.NeedsRate():
		return exit.Usagef("--schedule %v has its own rates\nremove --rate, or write proportions such as x2", o.schedule)
	case l.Trace == nil && o.replay.Changes() || l.Times == nil:
		return checkReplay(o.replay, []load.Load{l})
	case o.hasRate() && o.replay.Changes():
		return exit.Usagef("a rate replaces the times of a trace, so --speed, --max-gap and --loop have no effect\n" +
			"remove these flags, or --rate and --schedule")
	case !o.hasRate() && o.given("schedule"):
		return exit.Usagef("--schedule needs --rate, because %s has its own times\nremove --schedule, or add --rate",
			l.Workload.Name())
	}
	return nil
}

// hasRate reports whether the user gave a rate.
func (o attackOptions) hasRate() bool { return o.given("rate") || !o.schedule.NeedsRate() }

// timing returns the schedule: that of --rate, or the times of a trace or of phases if --rate is
// not given.
func (o attackOptions) timing(l load.Load) (t timing, err error) {
	if err := o.checkTiming(l); err != nil {
		return t, err
	}
	defer func() {
		if err == nil && t.schedule.Count(t.duration) == 0 {
			err = exit.Usagef("the schedule has no request within %v\nraise --duration or --rate", t.duration)
		}
	}()
	if l.Times != nil && !o.hasRate() {
		t = timing{schedule: l.Times, duration: max(l.Length, time.Second)} // a rate needs a time
		switch {
		case o.replay.Loop:
			t.duration = o.duration
		case o.given("duration"):
			t.duration = min(o.duration, t.duration)
		}
		t.rate = float64(t.schedule.Count(t.duration)) / t.duration.Seconds()
		if sent, all := t.schedule.Count(t.duration), t.schedule.Count(l.Length); sent < all {
			gap, at := longestGap(t.schedule, all)
			t.partial = fmt.Sprintf("only %d of the %d requests of %s are sent within %v; its longest gap is %v, after %v\n"+
				"to send more: a longer --duration, or for a trace a higher --speed, or --max-gap",
				sent, all, l.Workload.Name(), t.duration, gap.Round(time.Millisecond), at.Round(time.Millisecond))
		}
		return t, nil
	}
	t = timing{duration: o.duration}
	// The schedule gives the begins of journeys, and --rate is in requests.
	opsPerJourney, _ := workloads.ShapeOf(l.Workload)
	t.schedule, t.rate, err = o.schedule.Schedule(float64(o.rate), opsPerJourney, t.duration, o.seed)
	if err != nil {
		return t, exit.Usagef("%w\nfor example: --rate 500", err)
	}
	return t, nil
}

// longestGap returns the longest time between two of the first n requests of a schedule, and when it begins.
func longestGap(s pace.Schedule, n uint64) (gap, at time.Duration) {
	for i := uint64(1); i < n; i++ {
		if next := s.At(i) - s.At(i-1); next > gap {
			gap, at = next, s.At(i-1)
		}
	}
	return gap, at
}

// attackFiles are the files that an attack writes.
type attackFiles struct {
	dir     *rundir.Dir
	run     results.Run
	closers []func() error
	vegeta  *os.File // nil = none
	failed  error    // the first error of writing outcomes
}

// open makes the directory of the run, and makes the stepper write to it.
func (o attackOptions) open(
	ctx context.Context, s streams, d destination, t timing, stepper *cell.Stepper,
) (*attackFiles, error) {
	m, err := o.manifest(s, d, map[string]any{
		"schedule": pace.NewJourneys(d.load.Workload, 0, t.schedule).String(),
		"rate_rps": t.rate, "duration": t.duration.String(),
		"speed": o.replay.Speed, "max_gap": o.replay.MaxGap.String(), "driver": o.driver,
	})
	if err != nil {
		return nil, err
	}
	f := &attackFiles{}
	if f.dir, err = createRun(o.out, m); err != nil {
		return nil, err
	}
	if o.vegetaOut != "" { // after the directory: a refused one must not empty this file
		create := func() (*os.File, error) { return os.Create(o.vegetaOut) } // a pipe waits for its reader
		if f.vegeta, err = interruptible(ctx, create); err != nil {
			return nil, err
		}
		f.closers = append(f.closers, f.vegeta.Close)
	}
	c := d.cell(o.driver)
	c.CapacityMethod = results.MethodFixed
	f.run = results.Run{Schema: results.Schema, Run: m.Run, Data: d.dataSize(), Cells: []results.Cell{c}}
	closeCell, err := stepper.Keep(f.dir, c)
	f.closers = append(f.closers, closeCell)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w\nchoose another directory with --out DIR", err), f.close())
	}
	return f, nil
}

func (f *attackFiles) close() error {
	err := f.failed
	for _, c := range f.closers {
		err = errors.Join(err, c())
	}
	f.closers = nil
	return err
}

// recording returns a receiver of outcomes that also writes them in vegeta's format, if that was requested.
func (f *attackFiles) recording(next func(results.Outcome)) func(results.Outcome) {
	if f.vegeta == nil {
		return next
	}
	var encoder *vegeta.Encoder
	return func(o results.Outcome) {
		next(o)
		if encoder == nil { // made late, because time 0 comes after the logins
			encoder = vegeta.NewEncoder(f.vegeta, "stagebench", time.Now().Add(-time.Duration(o.Done)))
		}
		if f.failed == nil { // report only the first error
			f.failed = encoder.Encode(o)
		}
	}
}

// conclude writes the summary, prints the figures, and returns an error with the exit status of the attack.
func (o attackOptions) conclude(
	ctx context.Context, s streams, d destination, f *attackFiles, step results.Step, gaveUp bool,
) error {
	for class, request := range workloads.Requests(d.load.Workload) {
		if op, sent := step.Ops[string(class)]; sent {
			op.Request = request
			step.Ops[string(class)] = op
		}
	}
	c := &f.run.Cells[0]
	c.Steps, c.Reference = []results.Step{step}, &step
	c.Valid, c.Invalid, c.Warnings = step.Valid, step.Invalid, step.Warnings
	c.LimitedBy, c.Limit = "unknown", results.Limit{By: "unknown", Figure: "no limit was looked for"}
	f.run.Complete = ctx.Err() == nil && !gaveUp
	err := f.dir.WriteSummary(f.run)
	err = errors.Join(err, o.output.run(s, f.run))
	finish(s, f.dir, o.out, f.run.Complete)
	return errors.Join(attackVerdict(ctx, step, d, gaveUp), err)
}

// attackVerdict returns why an attack was not a success, nil if it was. What explains the rest comes first.
func attackVerdict(ctx context.Context, step results.Step, d destination, gaveUp bool) error {
	l := step.Ledger
	switch {
	case ctx.Err() != nil:
		return exit.Interruptedf("interrupted: the figures above cover the time until the interruption")
	case gaveUp:
		return exit.Missedf("nothing connected in the first %.0f s, so the attack ended early: %s\n"+
			"check that the service listens at %s", step.Seconds, step.MainCause(), d.endpoint)
	case l.ConnectError > 0 && l.Sent == 0:
		return exit.Missedf("nothing connected: %s\ncheck that the service listens at %s", step.MainCause(), d.endpoint)
	case l.Sent > 0 && l.OK == 0:
		return exit.Missedf("all %d requests failed: %s\ncheck the URL, and what the service expects",
			l.Sent, step.MainCause())
	case !step.Valid:
		return exit.Invalidf("the measurement is invalid: %s\n%s", step.Invalid[0], remedy(step.Invalid[0]))
	case !step.SLOMet:
		advice := "lower --rate"
		if step.BrokenByErrors() {
			advice = "check what the service answers"
		}
		return exit.Missedf("the objective %s was missed: %s\n%s, or set another objective with --slo",
			d.slo, step.SLOBroken, advice)
	}
	return nil
}

// remedy says what to do about a reason why a measurement is invalid.
func remedy(reason string) string {
	switch {
	case strings.Contains(reason, "outside the run"):
		return "end the other programs on this machine, or repeat it later"
	case strings.Contains(reason, "file descriptors"):
		return "raise the limit of open files (ulimit -n), or lower --connections"
	case strings.Contains(reason, "local ports"):
		return "lower --connections, or do not set --connection-life"
	case strings.Contains(reason, "the client"):
		return "lower --rate, raise --connections, or give the client more CPU"
	}
	return "the figures contradict each other; repeat the attack, and report it if that does not help"
}
