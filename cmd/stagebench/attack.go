package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/hdr"
	"github.com/stagebench/stagebench/results/history"
	"github.com/stagebench/stagebench/results/live"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/attach"
	"github.com/stagebench/stagebench/targets/control"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
	"github.com/stagebench/stagebench/workloads/pace"
)

// attackOptions are the flags of `stagebench attack`.
type attackOptions struct {
	target, workload, schedule, driver string
	rate                               float64
	duration, timeout, life            time.Duration
	connections                        int
	seed                               uint64
	data                               string
	allow                              []string
	hlog, vegetaOut, format            string
	method, body, bodyFile             string
	// given reports whether the user set a flag. A default value alone does not show that.
	given    func(flag string) bool
	identity load.Identity
	replay   load.Replay
}

func attackCommand(s streams) *cobra.Command {
	var o attackOptions
	cmd := &cobra.Command{
		Use:   "attack",
		Short: "Send load to any HTTP service and measure the response times of its users",
		Long: `Sends requests by a fixed schedule over a bounded number of connections. Response
times start at the intended time of a request, so they include the delay that a
stalled server causes for later requests. Prints the latency by op, the four
clocks, and a ledger that counts every scheduled request. Exits with status 3 if
the measurement is invalid, for example because the client could not keep up.`,
		Example: `  stagebench attack --target http://127.0.0.1:8080/ --rate 500 --duration 30s
  stagebench attack --workload read-heavy --rate 200       # the system that "stagebench up" started
  stagebench attack --target http://127.0.0.1:8080/ --workload shop.yaml --rate 200
  stagebench attack --target http://127.0.0.1:8080/ --workload trace:access.log.gz --speed 10 --max-gap 1s
  stagebench attack --target https://127.0.0.1:8443/api/items --method POST --body '{"n":1}' \
      --header 'Content-Type: application/json' --bearer-env API_TOKEN --tls-ca ca.pem`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.given = cmd.Flags().Changed
			return o.run(cmd.Context(), s)
		},
	}
	o.flags(cmd)
	identityFlags(cmd, &o.identity)
	replayFlags(cmd, &o.replay)
	formatFlag(cmd, &o.format)
	return cmd
}

func (o *attackOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.target, "target", "", "URL of the service; default: the system that `stagebench up` started")
	f.StringVar(&o.workload, "workload", "",
		"photo service workload (see: stagebench list workloads), a workload FILE.yaml, or trace:FILE (an access log);"+
			" default: request only the URL")
	f.StringVar(&o.schedule, "schedule", "poisson", "arrivals: constant or poisson")
	f.StringVar(&o.driver, "driver", "vegeta", "load driver: vegeta")
	f.Float64Var(&o.rate, "rate", 100, "requests/s; for a trace this replaces its own times")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "length of the schedule; a trace may end earlier")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "timeout of one request")
	f.DurationVar(&o.life, "connection-life", 0, "renew connections older than this; 0 = never")
	f.IntVar(&o.connections, "connections", 64, "number of connections, the maximum of requests in flight")
	f.Uint64Var(&o.seed, "seed", 1, "seed of the arrivals; with --target and --workload also of keys and data set")
	f.StringVar(&o.data, "data", "small", "data set of the service; for --target with --workload")
	f.StringSliceVar(&o.allow, "allow-host", nil, "allow load to this host outside the loopback network")
	f.StringVar(&o.hlog, "hlog", "", "write an HDR interval log to this file")
	f.StringVar(&o.vegetaOut, "vegeta-results", "",
		"write every outcome to this file, for `vegeta report` and `vegeta plot`")
	f.StringVar(&o.method, "method", http.MethodGet, "request method, without --workload")
	f.StringVar(&o.body, "body", "", "request body, without --workload")
	f.StringVar(&o.bodyFile, "body-file", "", "file with the request body, without --workload")
}

// identityFlags adds the flags for headers, credentials and TLS.
func identityFlags(cmd *cobra.Command, i *load.Identity) {
	f := cmd.Flags()
	f.StringArrayVar(&i.Headers, "header", nil, "send this header with every request, 'Name: value'; may be repeated")
	f.StringVar(&i.BasicEnv, "basic-env", "", "environment variable with user:password for basic authentication")
	f.StringVar(&i.BearerEnv, "bearer-env", "", "environment variable with the token for bearer authentication")
	f.StringVar(&i.CA, "tls-ca", "", "PEM file of the trusted authorities; default: those of the system")
	f.StringVar(&i.Cert, "tls-cert", "", "PEM file of the client's certificate")
	f.StringVar(&i.Key, "tls-key", "", "PEM file of the client's key")
	f.StringVar(&i.Name, "tls-name", "", "expected name in the server's certificate; default: host of the URL")
	f.BoolVar(&i.Insecure, "tls-insecure", false, "do not verify the server's certificate")
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
	if !r.Changes() || slices.ContainsFunc(loads, func(l load.Load) bool { return l.Times != nil }) {
		return nil
	}
	return exit.Usagef("--speed, --max-gap and --loop are for a trace, and there is none\n" +
		"remove them, or name a trace: trace:FILE")
}

func (o attackOptions) run(ctx context.Context, s streams) error {
	if err := o.check(); err != nil {
		return err
	}
	dest, err := o.destination(ctx)
	if err != nil {
		return err
	}
	timing, err := o.timing(dest.load)
	if err != nil {
		return err
	}
	if timing.schedule.Count(timing.duration) == 0 {
		return exit.Usagef("the schedule has no request within %v\nraise --duration or --rate", timing.duration)
	}
	clients, err := o.clients(s, dest)
	if err != nil {
		return err
	}
	defer clients.Close()
	progress := live.New(s.err, s.terminal)
	defer progress.Done()
	progress.Visit(dest.endpoint.Host, 0, 1, timing.duration)
	stepper := &cell.Stepper{
		Driver: vegeta.Driver{}, Clients: clients, Workload: dest.load.Workload, SLO: results.DefaultSLO(),
		Timeout: o.timeout, Drain: time.Second, Progress: progress, ClientCores: float64(cell.Cores()),
	}
	if err := dest.observe(ctx, s, stepper, timing.schedule.Count(timing.duration)); err != nil {
		return err
	}
	closeFiles, err := o.files(stepper)
	if err != nil {
		return err
	}
	if err := clients.LogIn(ctx, dest.load.Workload, o.timeout); err != nil {
		return errors.Join(fmt.Errorf("log the users in: %w", err), closeFiles())
	}
	step, err := stepper.Step(ctx, "attack", timing.rate, timing.schedule, timing.duration)
	progress.Done()
	err = errors.Join(err, closeFiles())
	if err != nil && step.Purpose == "" {
		return err // there was no step
	}
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w\nthe figures above are complete; to get the file, too, "+
			"repeat with another path for --hlog or --vegeta-results", err)
	}
	// The figures are shown even if an output file could not be written.
	return errors.Join(o.conclude(ctx, s, step, dest.load.Trace), err)
}

// maxJudgedOps is the largest number of ops for which stale reads are counted. Each
// op needs 40 bytes until the end of the attack.
const maxJudgedOps = 2_000_000

// check returns an error for options that are wrong for every target.
func (o attackOptions) check() error {
	switch {
	case o.duration <= 0 || o.timeout <= 0:
		return exit.Usagef("--duration %v, --timeout %v\nwant more than 0, for example --duration 30s",
			o.duration, o.timeout)
	case o.driver != "vegeta":
		return exit.Usagef("unknown driver %q\nwant vegeta", o.driver)
	case o.workload != "" && (o.body != "" || o.bodyFile != "" || o.method != http.MethodGet):
		return exit.Usagef("--method, --body and --body-file cannot be used with --workload %s\n"+
			"remove these flags, or --workload", o.workload)
	case o.body != "" && o.bodyFile != "":
		return exit.Usagef("--body and --body-file exclude each other\nuse only one of them")
	}
	return exit.Usage(o.replay.Validate())
}

// clients returns the connections to the destination.
func (o attackOptions) clients(s streams, dest destination) (*driver.Clients, error) {
	header, err := o.identity.Header(os.Getenv)
	if err != nil {
		return nil, exit.Usage(err)
	}
	security, err := o.identity.TLS()
	if err != nil {
		return nil, exit.Usage(err)
	}
	clients, err := driver.NewClients(driver.ClientConfig{
		Endpoint: dest.endpoint, Addresses: dest.addresses, Connections: o.connections,
		Sources:        cell.Sources(dest.endpoint, uint64(os.Getpid())),
		ConnectionLife: o.life, DialTimeout: min(o.timeout, 5*time.Second), Header: header, TLS: security,
		Log: s.log,
	})
	return clients, exit.Usage(err)
}

// timing is the schedule of the ops.
type timing struct {
	schedule pace.Schedule
	duration time.Duration
	rate     float64 // average
}

// checkTiming returns an error for timing flags that would have no effect on this load.
func (o attackOptions) checkTiming(l load.Load) error {
	switch {
	case l.Times == nil:
		return checkReplay(o.replay, []load.Load{l})
	case o.given("rate") && o.replay.Changes():
		return exit.Usagef("--rate replaces the times of a trace, so --speed, --max-gap and --loop have no effect\n" +
			"remove these flags, or --rate")
	case !o.given("rate") && o.given("schedule"):
		return exit.Usagef("--schedule needs --rate, because %s has its own times\nremove --schedule, or add --rate",
			l.Workload.Name())
	}
	return nil
}

// timing returns the schedule: that of --rate, or the times of a trace if --rate is
// not given.
func (o attackOptions) timing(l load.Load) (timing, error) {
	if err := o.checkTiming(l); err != nil {
		return timing{}, err
	}
	if l.Times != nil && !o.given("rate") {
		t := timing{schedule: l.Times, duration: l.Length}
		switch {
		case o.replay.Loop:
			t.duration = o.duration
		case o.given("duration"):
			t.duration = min(o.duration, l.Length)
		}
		t.rate = float64(t.schedule.Count(t.duration)) / t.duration.Seconds()
		return t, nil
	}
	t := timing{duration: o.duration, rate: o.rate}
	var err error
	switch o.schedule {
	case "constant":
		t.schedule, err = pace.Constant(o.rate)
	case "poisson":
		t.schedule, err = pace.Poisson(o.rate, o.seed)
	default:
		return t, exit.Usagef("unknown schedule %q\nwant constant or poisson", o.schedule)
	}
	if err != nil {
		return t, exit.Usagef("--rate: %w\nfor example: --rate 500", err)
	}
	return t, nil
}

// destination is the target with the load for it.
type destination struct {
	endpoint  *url.URL
	addresses []string // of all frontends; empty = that of the endpoint
	load      load.Load
	system    *control.Client // nil = only the address of the target is known
}

// destination finds the target and makes its load.
func (o attackOptions) destination(ctx context.Context) (d destination, err error) {
	maker := load.Maker{Data: sut.Data{Size: o.data, Seed: o.seed}, Replay: o.replay}
	urls := []string{o.target}
	if o.target == "" {
		if d.system, err = control.Dial(control.DefaultDir(), ""); err != nil {
			return d, exit.Usagef("no --target given, and %w", err)
		}
		info, err := d.system.Info(ctx)
		if err != nil {
			return d, err
		}
		// This target is the photo service: a trace is mapped to its photos and users.
		urls, maker.Data, maker.Service = info.Endpoints, info.Data, true
		if _, d.addresses, err = cell.Endpoint(urls); err != nil {
			return d, err
		}
	}
	if d.endpoint, err = attach.Parse(ctx, urls[0], o.allow); err != nil {
		return d, exit.Usage(err)
	}
	if o.workload == "" {
		body := []byte(o.body)
		if o.bodyFile != "" {
			if body, err = os.ReadFile(o.bodyFile); err != nil {
				return d, exit.Usagef("--body-file: %w", err)
			}
		}
		d.load.Workload, err = workloads.Single(o.method, d.endpoint.RequestURI(), nil, body)
		d.endpoint = &url.URL{Scheme: d.endpoint.Scheme, Host: d.endpoint.Host}
		return d, exit.Usage(err)
	}
	d.endpoint = &url.URL{
		Scheme: d.endpoint.Scheme, Host: d.endpoint.Host,
		Path: strings.TrimSuffix(d.endpoint.Path, "/"), RawPath: strings.TrimSuffix(d.endpoint.RawPath, "/"),
	}
	d.load, err = maker.Make(o.workload)
	return d, exit.Usage(err)
}

// observe makes the stepper read the usage and figures of a running system, and count
// stale reads unless there are too many ops.
func (d destination) observe(ctx context.Context, out streams, s *cell.Stepper, ops uint64) error {
	if d.system == nil {
		return nil
	}
	system := remote{ctx, d.system}
	usage, err := system.Usage()
	if err != nil {
		return err
	}
	s.Target, s.ClientCores = system, cell.ClientCores(usage)
	s.Nodes, s.Figures = d.system.Status, ladder.Figures()
	if ops > maxJudgedOps {
		fmt.Fprintf(out.err, "stale reads are not counted: %d ops exceed the limit of %d\nuse a lower --rate or --duration\n",
			ops, uint64(maxJudgedOps))
		return nil
	}
	s.History = history.New()
	return nil
}

// remote is a system in another process, for a stepper.
type remote struct {
	ctx    context.Context // in a field, because the methods of cell.Target have no context
	client *control.Client
}

// Usage returns the resource usage of hosts and nodes.
func (r remote) Usage() (targets.Usage, error) { return r.client.Usage(context.WithoutCancel(r.ctx)) }

// Events returns the events so far, none if the system does not answer.
func (r remote) Events() []targets.Event {
	events, err := r.client.Events(context.WithoutCancel(r.ctx))
	if err != nil {
		return nil
	}
	return events
}

// files opens the output files and makes the stepper write them. Call closeAll at the end.
func (o attackOptions) files(s *cell.Stepper) (closeAll func() error, err error) {
	var opened []*os.File
	var failed error
	closeAll = func() error {
		for _, f := range opened {
			failed = errors.Join(failed, f.Close())
		}
		return failed
	}
	create := func(name string) *os.File { // nil = no file requested, or an earlier failure
		if name == "" || failed != nil {
			return nil
		}
		var f *os.File
		if f, failed = os.Create(name); failed != nil {
			return nil
		}
		opened = append(opened, f)
		return f
	}
	if f := create(o.hlog); f != nil {
		s.Log, failed = hdr.NewLog(f, "stagebench attack, nanoseconds", time.Now())
	}
	if f := create(o.vegetaOut); f != nil {
		var encoder *vegeta.Encoder
		s.OnOutcome = func(outcome results.Outcome) {
			if encoder == nil { // made late, because time 0 comes after the logins
				encoder = vegeta.NewEncoder(f, "stagebench", time.Now().Add(-time.Duration(outcome.Done)))
			}
			if failed == nil { // report only the first error
				failed = encoder.Encode(outcome)
			}
		}
	}
	if failed != nil {
		return nil, closeAll()
	}
	return closeAll, nil
}

func (o attackOptions) conclude(ctx context.Context, s streams, step results.Step, trace *results.Trace) error {
	tables := append(table.Attack(step), table.Traces(trace)...)
	if err := table.RenderAll(s.out, tables, table.Format(o.format)); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return errors.New("interrupted: the figures above cover the time until the interruption")
	}
	if !step.Valid {
		return exit.Invalidf("the measurement is invalid: %s\n"+
			"lower --rate, raise --connections, or give the client more CPU", step.Invalid[0])
	}
	return nil
}
