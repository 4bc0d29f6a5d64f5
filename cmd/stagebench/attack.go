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
	// given says which of the flags were, as their defaults mean something else.
	given    func(flag string) bool
	identity load.Identity
	replay   load.Replay
}

func attackCommand(s streams) *cobra.Command {
	var o attackOptions
	cmd := &cobra.Command{
		Use:   "attack",
		Short: "Send load to any HTTP service and say what its users felt",
		Long: `Sends requests by a fixed schedule over a bounded number of connections. All
clocks start at the intended time of a request, so a server that stalls cannot
hide it by slowing the client down. Prints latency by op, the four clocks, and
the ledger of every scheduled request. Exits with status 3 when the measurement
is invalid, for example because the client itself could not keep up.`,
		Example: `  stagebench attack --target http://127.0.0.1:8080/ --rate 500 --duration 30s
  stagebench attack --workload read-heavy --rate 200       # the system that "stagebench up" keeps
  stagebench attack --target http://127.0.0.1:8080/ --workload shop.yaml --rate 200
  stagebench attack --target http://127.0.0.1:8080/ --workload trace:access.log.gz --speed 10 --max-gap 1s
  stagebench attack --target https://127.0.0.1:8443/api/items --method POST --body '{"n":1}' \
      --header 'Content-Type: application/json' --bearer-env API_TOKEN --tls-ca ca.pem`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.given = cmd.Flags().Changed
			return o.run(cmd.Context(), s)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.target, "target", "", "URL to send to; without it, the system that `stagebench up` keeps")
	f.StringVar(&o.workload, "workload", "", "a workload of the photo service (stagebench list workloads), a workload FILE.yaml, or trace:FILE (an access log); without it, one request for the URL")
	f.StringVar(&o.schedule, "schedule", "poisson", "arrivals: constant or poisson")
	f.StringVar(&o.driver, "driver", "vegeta", "what sends the requests: vegeta")
	f.Float64Var(&o.rate, "rate", 100, "requests/s; with a trace, send its requests at this rate instead of at their own times")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "length of the schedule; with a trace at its own times, at most its length")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "of one request")
	f.DurationVar(&o.life, "connection-life", 0, "renew connections that are older; 0 = keep them")
	f.IntVar(&o.connections, "connections", 64, "connections, and so requests in flight at most")
	f.Uint64Var(&o.seed, "seed", 1, "of the arrivals; with --target and --workload also of keys and data set")
	f.StringVar(&o.data, "data", "small", "with --target and --workload: the data set that the service holds")
	f.StringSliceVar(&o.allow, "allow-host", nil, "permit load to this host although it is not on the loopback network")
	f.StringVar(&o.hlog, "hlog", "", "write an HDR interval log to this file")
	f.StringVar(&o.vegetaOut, "vegeta-results", "", "write every outcome to this file, for `vegeta report` and `vegeta plot`")
	f.StringVar(&o.method, "method", http.MethodGet, "without a workload: the method")
	f.StringVar(&o.body, "body", "", "without a workload: the body")
	f.StringVar(&o.bodyFile, "body-file", "", "without a workload: the file that holds the body")
	identityFlags(cmd, &o.identity)
	replayFlags(cmd, &o.replay)
	formatFlag(cmd, &o.format)
	return cmd
}

// identityFlags say who the clients are.
func identityFlags(cmd *cobra.Command, i *load.Identity) {
	f := cmd.Flags()
	f.StringArrayVar(&i.Headers, "header", nil, "send this header with every request, 'Name: value'; may be repeated")
	f.StringVar(&i.BasicEnv, "basic-env", "", "basic authentication: the environment variable that holds user:password")
	f.StringVar(&i.BearerEnv, "bearer-env", "", "bearer authentication: the environment variable that holds the token")
	f.StringVar(&i.CA, "tls-ca", "", "PEM file of the authorities to trust instead of the system's")
	f.StringVar(&i.Cert, "tls-cert", "", "PEM file of the client's certificate")
	f.StringVar(&i.Key, "tls-key", "", "PEM file of its key")
	f.StringVar(&i.Name, "tls-name", "", "name that the server's certificate must have, if not that of the URL")
	f.BoolVar(&i.Insecure, "tls-insecure", false, "take any certificate")
}

// replayFlags say how a trace is replayed.
func replayFlags(cmd *cobra.Command, r *load.Replay) {
	f := cmd.Flags()
	f.Float64Var(&r.Speed, "speed", 1, "with a trace: how many times faster than it was logged")
	f.DurationVar(&r.MaxGap, "max-gap", 0, "with a trace: gaps longer than this are shortened to it, before --speed; 0 = as logged")
	f.BoolVar(&r.Loop, "loop", false, "with a trace: begin again at its end, until --duration is over")
}

// noTrace refuses to change the times of a trace where there is none.
func noTrace(r load.Replay, loads []load.Load) error {
	if !r.Changes() || slices.ContainsFunc(loads, func(l load.Load) bool { return l.Times != nil }) {
		return nil
	}
	return exit.Usagef("--speed, --max-gap and --loop are for a trace, and there is none\nleave them out, or name a trace: trace:FILE")
}

func (o attackOptions) run(ctx context.Context, s streams) error {
	if err := o.check(); err != nil {
		return err
	}
	aim, err := o.aim(ctx)
	if err != nil {
		return err
	}
	timing, err := o.timing(aim.load)
	if err != nil {
		return err
	}
	clients, err := o.clients(aim)
	if err != nil {
		return err
	}
	defer clients.Close()
	progress := live.New(s.err, s.terminal, 1)
	defer progress.Done()
	progress.Expect(timing.duration)
	progress.Cell(aim.endpoint.Host, 0)
	stepper := &cell.Stepper{
		Driver: vegeta.Driver{}, Clients: clients, Workload: aim.load.Workload, SLO: results.DefaultSLO(),
		Timeout: o.timeout, Drain: time.Second, Progress: progress, ClientCPU: float64(cell.Cores()),
	}
	if err := aim.observe(ctx, s, stepper, timing.schedule.Count(timing.duration)); err != nil {
		return err
	}
	closeFiles, err := o.files(stepper)
	if err != nil {
		return err
	}
	if err := clients.LogIn(ctx, aim.load.Workload, o.timeout); err != nil {
		return errors.Join(fmt.Errorf("start the users' sessions: %w", err), closeFiles())
	}
	step, err := stepper.Step(ctx, "attack", timing.rate, timing.schedule, timing.duration)
	progress.Done()
	err = errors.Join(err, closeFiles())
	if err != nil && step.Purpose == "" {
		return err // there was no step
	}
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w\nthe figures above are whole; to have the file, too, name another place by --hlog or --vegeta-results", err)
	}
	// What was measured is shown even if a file that goes along could not be written.
	return errors.Join(o.conclude(ctx, s, step, aim.load.Trace), err)
}

// mostJudged is of how many ops the versions are kept until the end of an attack, to find
// stale answers: 40 bytes each.
const mostJudged = 2_000_000

// check looks at what can be judged before anything else is known.
func (o attackOptions) check() error {
	switch {
	case o.duration <= 0 || o.timeout <= 0:
		return exit.Usagef("--duration %v, --timeout %v\nwant more than 0, for example --duration 30s", o.duration, o.timeout)
	case o.driver != "vegeta":
		return exit.Usagef("unknown driver %q\nwant vegeta", o.driver)
	case o.workload != "" && (o.body != "" || o.bodyFile != "" || o.method != http.MethodGet):
		return exit.Usagef("--method, --body and --body-file are for one request, and --workload %s has its own\nleave one or the other out", o.workload)
	case o.body != "" && o.bodyFile != "":
		return exit.Usagef("--body and --body-file exclude each other\nuse one of them")
	}
	return exit.Usage(o.replay.Validate())
}

// clients makes the connections, and says who is at their other end.
func (o attackOptions) clients(aim aimed) (*driver.Clients, error) {
	header, err := o.identity.Header(os.Getenv)
	if err != nil {
		return nil, exit.Usage(err)
	}
	security, err := o.identity.TLS()
	if err != nil {
		return nil, exit.Usage(err)
	}
	clients, err := driver.NewClients(driver.ClientConfig{
		Endpoint: aim.endpoint, Addresses: aim.addresses, Connections: o.connections,
		Sources:        cell.Sources(aim.endpoint, uint64(os.Getpid())),
		ConnectionLife: o.life, DialTimeout: min(o.timeout, 5*time.Second), Header: header, TLS: security,
	})
	return clients, exit.Usage(err)
}

// timing is when ops are sent.
type timing struct {
	schedule pace.Schedule
	duration time.Duration
	rate     float64 // on average
}

// suits refuses flags that would change nothing, so that nobody believes they did.
func (o attackOptions) suits(l load.Load) error {
	switch {
	case l.Times == nil:
		return noTrace(o.replay, []load.Load{l})
	case o.given("rate") && o.replay.Changes():
		return exit.Usagef("--speed, --max-gap and --loop change the times of a trace, and --rate is in the place of all of them\nleave one or the other out")
	case !o.given("rate") && o.given("schedule"):
		return exit.Usagef("--schedule is for a rate, and %s has times of its own\nleave it out, or give --rate", l.Workload.Name())
	}
	return nil
}

// timing makes the schedule: a trace has its own unless a rate was given.
func (o attackOptions) timing(l load.Load) (timing, error) {
	if err := o.suits(l); err != nil {
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

// aimed is where the load goes, what it is, and what is known of the target.
type aimed struct {
	endpoint  *url.URL
	addresses []string // of several frontends; empty = the endpoint's own
	load      load.Load
	system    *control.Client // nil for a target of which only the address is known
}

// aim finds out where to send what.
func (o attackOptions) aim(ctx context.Context) (a aimed, err error) {
	maker := load.Maker{Data: sut.Data{Size: o.data, Seed: o.seed}, Replay: o.replay}
	urls := []string{o.target}
	if o.target == "" {
		if a.system, err = control.Dial(control.DefaultDir(), ""); err != nil {
			return a, exit.Usagef("no --target given, and %w", err)
		}
		info, err := a.system.Info(ctx)
		if err != nil {
			return a, err
		}
		// What is known to be the photo service gets traces as photos and users.
		urls, maker.Data, maker.Service = info.Endpoints, info.Data, true
		if _, a.addresses, err = cell.Endpoint(urls); err != nil {
			return a, err
		}
	}
	if a.endpoint, err = attach.Parse(ctx, urls[0], o.allow); err != nil {
		return a, exit.Usage(err)
	}
	if o.workload == "" {
		body := []byte(o.body)
		if o.bodyFile != "" {
			if body, err = os.ReadFile(o.bodyFile); err != nil {
				return a, exit.Usagef("--body-file: %w", err)
			}
		}
		a.load.Workload, err = workloads.Single(o.method, a.endpoint.RequestURI(), nil, body)
		a.endpoint = &url.URL{Scheme: a.endpoint.Scheme, Host: a.endpoint.Host}
		return a, exit.Usage(err)
	}
	a.endpoint = &url.URL{Scheme: a.endpoint.Scheme, Host: a.endpoint.Host, Path: strings.TrimSuffix(a.endpoint.Path, "/")}
	a.load, err = maker.Make(o.workload)
	return a, exit.Usage(err)
}

// observe lets the stepper read the accounts of a system that is up, and look for stale
// answers among so many ops.
func (a aimed) observe(ctx context.Context, out streams, s *cell.Stepper, ops uint64) error {
	if a.system == nil {
		return nil
	}
	system := remote{ctx, a.system}
	usage, err := system.Usage()
	if err != nil {
		return err
	}
	s.Target, s.ClientCPU = system, cell.FreeFor(usage)
	s.Nodes, s.Figures = a.system.Status, ladder.Figures()
	if ops > mostJudged {
		fmt.Fprintf(out.err, "stale answers are not looked for: %d ops are more than %d\n", ops, uint64(mostJudged))
		return nil
	}
	s.History = history.New()
	return nil
}

// remote is a system that another invocation keeps up, as a stepper sees it.
type remote struct {
	ctx    context.Context // Observed takes none: a local system needs none
	client *control.Client
}

// Usage asks for what hosts and nodes have used.
func (r remote) Usage() (targets.Usage, error) { return r.client.Usage(context.WithoutCancel(r.ctx)) }

// Events asks for what has happened; a system that cannot be asked any more has
// nothing to tell.
func (r remote) Events() []targets.Event {
	events, err := r.client.Events(context.WithoutCancel(r.ctx))
	if err != nil {
		return nil
	}
	return events
}

// files opens what the user wants to keep; call the result at the end.
func (o attackOptions) files(s *cell.Stepper) (closeAll func() error, err error) {
	var opened []*os.File
	var failed error
	closeAll = func() error {
		for _, f := range opened {
			failed = errors.Join(failed, f.Close())
		}
		return failed
	}
	create := func(name string) *os.File { // nil when none is wanted, or something has failed
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
		s.Also = func(outcome results.Outcome) {
			if encoder == nil { // users log in before time 0
				encoder = vegeta.NewEncoder(f, "stagebench", time.Now().Add(-time.Duration(outcome.Done)))
			}
			if failed == nil { // else each outcome would say the same once more
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
	if err := table.RenderAll(s.out, append(table.Attack(step), table.Traces(trace)...), table.Format(o.format)); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return errors.New("interrupted: the figures above are those of the time until then")
	}
	if !step.Valid {
		return exit.Invalidf("the measurement is invalid: %s\nlower --rate, raise --connections, or give the client more CPU", step.Invalid[0])
	}
	return nil
}
