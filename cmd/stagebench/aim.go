package main

import (
	"context"
	"fmt"
	"maps"
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
	"github.com/stagebench/stagebench/results/history"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/attach"
	"github.com/stagebench/stagebench/targets/control"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// aim holds the flags of commands that send load to a target which is already there: where it goes, what is sent, and
// by which objective it is judged.
type aim struct {
	target, system         string
	workload               string
	method, body, bodyFile string
	timeout, life          time.Duration
	connections            int
	seed                   uint64
	data                   string
	allow                  []string
	slo                    string
	out                    string
	identity               load.Identity
	replay                 load.Replay
	// given reports whether the user set a flag. A default value alone does not show that.
	given func(flag string) bool
}

func (a *aim) flags(cmd *cobra.Command) {
	a.replay.Speed = 1
	f := cmd.Flags()
	f.StringVar(&a.target, "target", "", "URL of the service, as the argument; default: the system of \"stagebench up\"")
	systemFlag(cmd, &a.system)
	f.StringVar(&a.workload, "workload", "",
		"photo service workload (see: stagebench list workloads), a workload FILE.yaml, or trace:FILE (an access log);"+
			" default: request only the URL")
	f.StringVar(&a.slo, "slo", results.DefaultSLO().String(), "objective, such as p99<100ms,errors<0.1%")
	f.StringVarP(&a.out, "out", "o", "", "directory of the run (default runs/ID)")
	f.DurationVar(&a.timeout, "timeout", 10*time.Second, "timeout of one request")
	f.DurationVar(&a.life, "connection-life", 0, "renew connections older than this; 0 = never")
	f.IntVarP(&a.connections, "connections", "c", 64, "number of connections, the maximum of requests in flight")
	f.Uint64Var(&a.seed, "seed", 1, "seed of the arrivals; with a URL and --workload also of keys and data set")
	f.StringVar(&a.data, "data", "small", "data set of the service; for a URL with --workload")
	f.StringSliceVar(&a.allow, "allow-host", nil, "allow load to this host outside the loopback network")
	f.StringVar(&a.method, "method", http.MethodGet, "request method, without --workload")
	f.StringVar(&a.body, "body", "", "request body, without --workload")
	f.StringVar(&a.bodyFile, "body-file", "", "file with the request body, without --workload")
	identityFlags(cmd, &a.identity)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		a.given = cmd.Flags().Changed
		switch {
		case len(args) > 1:
			return exit.Usagef("%s takes one URL, but got %d arguments\nsee: %s --help",
				cmd.CommandPath(), len(args), cmd.CommandPath())
		case len(args) == 1 && a.target != "":
			return exit.Usagef("two targets: %s and --target %s\nuse only one of them", args[0], a.target)
		case len(args) == 1:
			a.target = args[0]
		}
		return nil
	}
}

// identityFlags adds the flags for headers, credentials and TLS.
func identityFlags(cmd *cobra.Command, i *load.Identity) {
	f := cmd.Flags()
	f.StringArrayVarP(&i.Headers, "header", "H", nil,
		"send this header with every request, 'Name: value'; may be repeated")
	f.StringVar(&i.BasicEnv, "basic-env", "", "environment variable with user:password for basic authentication")
	f.StringVar(&i.BearerEnv, "bearer-env", "", "environment variable with the token for bearer authentication")
	f.StringVar(&i.CA, "tls-ca", "", "PEM file of the trusted authorities; default: those of the system")
	f.StringVar(&i.Cert, "tls-cert", "", "PEM file of the client's certificate")
	f.StringVar(&i.Key, "tls-key", "", "PEM file of the client's key")
	f.StringVar(&i.Name, "tls-name", "", "expected name in the server's certificate; default: host of the URL")
	f.BoolVar(&i.Insecure, "tls-insecure", false, "do not verify the server's certificate")
}

// check returns an error for options that are wrong for every target.
func (a aim) check() error {
	switch {
	case a.timeout <= 0:
		return exit.Usagef("--timeout %v\nwant more than 0, for example --timeout 10s", a.timeout)
	case a.target != "" && a.system != "":
		return exit.Usagef("--system %s and the URL %s are two targets\nuse only one of them", a.system, a.target)
	case a.workload != "" && (a.body != "" || a.bodyFile != "" || a.method != http.MethodGet):
		return exit.Usagef("--method, --body and --body-file cannot be used with --workload %s\n"+
			"remove these flags, or --workload", a.workload)
	case a.body != "" && a.bodyFile != "":
		return exit.Usagef("--body and --body-file exclude each other\nuse only one of them")
	}
	return exit.Usage(a.replay.Validate())
}

// destination is the target with the load for it.
type destination struct {
	stage     string // of our own system, or "target"
	endpoint  *url.URL
	addresses []string // of all frontends; empty = that of the endpoint
	load      load.Load
	slo       results.SLO
	system    *control.Client // nil = only the address of the target is known
	remote    bool            // on another machine
}

// destination finds the target and makes its load and objective.
func (a aim) destination(ctx context.Context) (d destination, err error) {
	if err := a.check(); err != nil {
		return d, err
	}
	maker := load.Maker{Data: sut.Data{Size: a.data, Seed: a.seed}, Replay: a.replay}
	urls := []string{a.target}
	d.stage = "target"
	if a.target == "" {
		if d.system, err = control.Dial(control.DefaultDir(), a.system); err != nil {
			return d, exit.Usagef("no URL given, and %w", err)
		}
		info, err := d.system.Info(ctx)
		if err != nil {
			return d, err
		}
		// This target is the photo service: a trace is mapped to its photos and users.
		urls, maker.Data, maker.Service, d.stage = info.Endpoints, info.Data, true, string(info.Stage)
		if _, d.addresses, err = cell.Endpoint(urls); err != nil {
			return d, err
		}
	}
	if d.endpoint, err = attach.Parse(ctx, urls[0], a.allow); err != nil {
		return d, exit.Usage(err)
	}
	d.remote = !attach.OnThisMachine(ctx, d.endpoint)
	if d.load, err = a.load(&d, maker); err != nil {
		return d, exit.Usage(err)
	}
	d.slo, err = a.objective(d.load)
	return d, err
}

// load makes the load, and cuts from the endpoint what belongs to the requests.
func (a aim) load(d *destination, maker load.Maker) (l load.Load, err error) {
	whole := *d.endpoint
	d.endpoint = &url.URL{Scheme: whole.Scheme, Host: whole.Host}
	if a.workload != "" {
		d.endpoint.Path, d.endpoint.RawPath = strings.TrimSuffix(whole.Path, "/"), strings.TrimSuffix(whole.RawPath, "/")
		return maker.Make(a.workload)
	}
	body := []byte(a.body)
	if a.bodyFile != "" {
		if body, err = os.ReadFile(a.bodyFile); err != nil {
			return l, fmt.Errorf("--body-file: %w", err)
		}
	}
	l.Workload, err = workloads.Single(a.method, whole.RequestURI(), nil, body)
	return l, err
}

// objective returns the objective of --slo. The default one has only the terms for ops that the load has.
func (a aim) objective(l load.Load) (results.SLO, error) {
	slo, err := results.ParseSLO(a.slo)
	if err != nil {
		return slo, exit.Usage(err)
	}
	known := l.Classes()
	for _, class := range slices.Sorted(maps.Keys(slo.Classes)) {
		switch {
		case known == nil || slices.Contains(known, class):
		case a.given("slo"):
			return slo, exit.Usagef("--slo %s: the workload has no ops of class %q\nwant one of %s",
				a.slo, class, strings.Join(known, ", "))
		default:
			delete(slo.Classes, class)
		}
	}
	return slo, nil
}

// config returns the effective configuration for the manifest.
func (a aim) config(d destination, more map[string]any) map[string]any {
	config := map[string]any{
		"endpoint": d.endpoint.String(), "workload": d.load.Workload.Name(), "slo": d.slo.String(),
		"connections": a.connections, "connection_life": a.life.String(), "timeout": a.timeout.String(),
	}
	if a.workload == "" {
		config["method"], config["path"] = a.method, d.load.Workload.Op(0).Path
	}
	maps.Copy(config, more)
	return config
}

// manifest returns the manifest of a run against the destination.
func (a aim) manifest(s streams, d destination, more map[string]any) (results.Manifest, error) {
	m, err := newManifest(s, a.seed, a.data, a.config(d, more))
	m.Digests["workload"] = workloads.Hash(d.load.Workload, 0, hashedOps)
	return m, err
}

// hashedOps is the number of ops that the digest of a workload in the manifest covers.
const hashedOps = 1000

// cell returns the cell of the destination without figures.
func (d destination) cell(driver string) results.Cell {
	return results.Cell{
		Stage: d.stage, Workload: d.load.Workload.Name(), Driver: driver, SLO: d.slo.String(), Trace: d.load.Trace,
	}
}

// clients returns the connections to the destination.
func (a aim) clients(s streams, d destination) (*driver.Clients, error) {
	s.sendsLoad()
	header, err := a.identity.Header(os.Getenv)
	if err != nil {
		return nil, exit.Usage(err)
	}
	security, err := a.identity.TLS()
	if err != nil {
		return nil, exit.Usage(err)
	}
	clients, err := driver.NewClients(driver.ClientConfig{
		Endpoint: d.endpoint, Addresses: d.addresses, Connections: a.connections,
		Sources:        cell.Sources(d.endpoint, uint64(os.Getpid())),
		ConnectionLife: a.life, DialTimeout: min(a.timeout, 5*time.Second), Header: header, TLS: security, Log: s.log,
	})
	return clients, exit.Usage(err)
}

// observe makes the stepper read the usage and figures of a running system, and count
// stale reads unless there are too many ops.
func (d destination) observe(ctx context.Context, out streams, s *cell.Stepper, ops uint64) error {
	if s.Remote = d.remote; d.system == nil {
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

// maxJudgedOps is the largest number of ops for which stale reads are counted. Each
// op needs 40 bytes until the end of the attack.
const maxJudgedOps = 2_000_000

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
