package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/hdr"
	"github.com/stagebench/stagebench/results/live"
	"github.com/stagebench/stagebench/results/table"
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
  stagebench attack --workload read-heavy --rate 200       # the system that "stagebench up" keeps`,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s) },
	}
	f := cmd.Flags()
	f.StringVar(&o.target, "target", "", "URL to send to; without it, the system that `stagebench up` keeps")
	f.StringVar(&o.workload, "workload", "", "a workload of the photo service (stagebench list workloads); without it, GET of the URL")
	f.StringVar(&o.schedule, "schedule", "poisson", "arrivals: constant or poisson")
	f.StringVar(&o.driver, "driver", "vegeta", "what sends the requests: vegeta")
	f.Float64Var(&o.rate, "rate", 100, "requests/s")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "length of the schedule")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "of one request")
	f.DurationVar(&o.life, "connection-life", 0, "renew connections that are older; 0 = keep them")
	f.IntVar(&o.connections, "connections", 64, "connections, and so requests in flight at most")
	f.Uint64Var(&o.seed, "seed", 1, "of the arrivals; with --target and --workload also of keys and data set")
	f.StringVar(&o.data, "data", "small", "with --target and --workload: the data set that the service holds")
	f.StringSliceVar(&o.allow, "allow-host", nil, "permit load to this host although it is not on the loopback network")
	f.StringVar(&o.hlog, "hlog", "", "write an HDR interval log to this file")
	f.StringVar(&o.vegetaOut, "vegeta-results", "", "write every outcome to this file, for `vegeta report` and `vegeta plot`")
	formatFlag(cmd, &o.format)
	return cmd
}

func (o attackOptions) run(ctx context.Context, s streams) error {
	format, err := table.ParseFormat(o.format)
	if err != nil {
		return usage(err)
	}
	schedule, err := o.arrivals()
	if err != nil {
		return err
	}
	aim, err := o.aim(ctx)
	if err != nil {
		return err
	}
	endpoint, workload := aim.endpoint, aim.workload
	clients, err := driver.NewClients(driver.ClientConfig{
		Endpoint: endpoint, Connections: o.connections, Sources: cell.Sources(endpoint, uint64(os.Getpid())),
		ConnectionLife: o.life, DialTimeout: min(o.timeout, 5*time.Second),
	})
	if err != nil {
		return usage(err)
	}
	defer clients.Close()
	progress := live.New(s.err, s.terminal, 1)
	defer progress.Done()
	progress.Expect(o.duration)
	progress.Cell(endpoint.Host, 0)
	stepper := &cell.Stepper{
		Driver: vegeta.Driver{}, Clients: clients, Workload: workload, SLO: results.DefaultSLO(),
		Timeout: o.timeout, Drain: time.Second, Progress: progress, ClientCPU: float64(cell.Cores()),
	}
	if err := aim.observe(ctx, stepper); err != nil {
		return err
	}
	closeFiles, err := o.files(stepper)
	if err != nil {
		return err
	}
	if err := clients.LogIn(ctx, workload, o.timeout); err != nil {
		return errors.Join(fmt.Errorf("start the users' sessions: %w", err), closeFiles())
	}
	step, err := stepper.Step(ctx, "attack", o.rate, schedule, o.duration)
	progress.Done()
	if err := errors.Join(err, closeFiles()); err != nil {
		return err
	}
	return o.conclude(ctx, s, step, format)
}

// arrivals checks the numbers and makes the schedule.
func (o attackOptions) arrivals() (pace.Schedule, error) {
	switch {
	case o.duration <= 0 || o.timeout <= 0:
		return nil, usagef("--duration %v, --timeout %v\nwant more than 0, for example --duration 30s", o.duration, o.timeout)
	case o.driver != "vegeta":
		return nil, usagef("unknown driver %q\nwant vegeta", o.driver)
	}
	var schedule pace.Schedule
	var err error
	switch o.schedule {
	case "constant":
		schedule, err = pace.Constant(o.rate)
	case "poisson":
		schedule, err = pace.Poisson(o.rate, o.seed)
	default:
		return nil, usagef("unknown schedule %q\nwant constant or poisson", o.schedule)
	}
	if err != nil {
		return nil, usagef("--rate: %w\nfor example: --rate 500", err)
	}
	return schedule, nil
}

// aimed is where the load goes, what it is, and what is known of the target.
type aimed struct {
	endpoint *url.URL
	workload workloads.Workload
	system   *control.Client // nil for a target of which only the address is known
	admin    string
}

// aim finds out where to send what.
func (o attackOptions) aim(ctx context.Context) (a aimed, err error) {
	target, size, seed := o.target, o.data, o.seed
	if target == "" {
		if a.system, err = control.Dial(control.DefaultDir(), ""); err != nil {
			return a, usagef("no --target given, and %w", err)
		}
		info, err := a.system.Info(ctx)
		if err != nil {
			return a, err
		}
		target, size, seed, a.admin = info.Endpoints[0], info.Data.Size, info.Data.Seed, info.Admin
	}
	if a.endpoint, err = attach.Parse(ctx, target, o.allow); err != nil {
		return a, usage(err)
	}
	if o.workload == "" {
		a.workload, err = workloads.Single(http.MethodGet, a.endpoint.RequestURI(), nil, nil)
		a.endpoint = &url.URL{Scheme: a.endpoint.Scheme, Host: a.endpoint.Host}
		return a, usage(err)
	}
	a.endpoint = &url.URL{Scheme: a.endpoint.Scheme, Host: a.endpoint.Host, Path: strings.TrimSuffix(a.endpoint.Path, "/")}
	data, err := dataOf(size, seed)
	if err != nil {
		return a, err
	}
	if a.workload, err = workloadMaker(data)(o.workload); err != nil {
		return a, usagef("%w\nsee: stagebench list workloads", err)
	}
	return a, nil
}

// observe lets the stepper read the accounts of a system that is up.
func (a aimed) observe(ctx context.Context, s *cell.Stepper) error {
	if a.system == nil {
		return nil
	}
	system := remote{ctx, a.system}
	usage, err := system.Usage()
	if err != nil {
		return err
	}
	s.Target, s.ClientCPU = system, cell.FreeFor(usage)
	s.Served = func(ctx context.Context) (int64, error) { return cell.Served(ctx, a.admin) }
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
	create := func(name string) *os.File {
		f, err := os.Create(name)
		if err != nil {
			failed = errors.Join(failed, err)
			return nil
		}
		opened = append(opened, f)
		return f
	}
	if o.hlog != "" {
		if f := create(o.hlog); f != nil {
			s.Log, failed = hdr.NewLog(f, "stagebench attack, nanoseconds", time.Now())
		}
	}
	if o.vegetaOut != "" && failed == nil {
		if f := create(o.vegetaOut); f != nil {
			var encoder *vegeta.Encoder
			s.Also = func(outcome results.Outcome) {
				if encoder == nil { // users log in before time 0
					encoder = vegeta.NewEncoder(f, "stagebench", time.Now().Add(-time.Duration(outcome.Done)))
				}
				failed = errors.Join(failed, encoder.Encode(outcome))
			}
		}
	}
	if failed != nil {
		return nil, closeAll()
	}
	return closeAll, nil
}

func (o attackOptions) conclude(ctx context.Context, s streams, step results.Step, format table.Format) error {
	if err := table.RenderAll(s.out, table.Attack(step), format); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return errors.New("interrupted: the figures above are those of the time until then")
	}
	if !step.Valid {
		return invalidf("the measurement is invalid: %s\nlower --rate, raise --connections, or give the client more CPU", step.Warnings[0])
	}
	return nil
}
