package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
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
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
)

// aim holds the flags of commands that send load to a target which is already there: where it goes, what is sent, and
// by which objective it is judged.
type aim struct {
	target, system         string
	more                   []string  // further URLs, of the same service
	weights                []float64 // of all URLs
	workload               string
	method, body, bodyFile string
	timeout, life          time.Duration
	sourcePerUser          bool
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
	f.Float64SliceVar(&a.weights, "weights", nil,
		"how often each of several URLs is requested, such as 9,1; default: all equally often")
	systemFlag(cmd, &a.system)
	f.StringVar(&a.workload, "workload", "",
		"photo service workload (see: stagebench list workloads), a workload FILE.yaml, or trace:FILE (an access log);"+
			" default: request only the URL")
	f.StringVar(&a.slo, "slo", results.DefaultSLO().String(), "objective, such as p99<100ms,errors<0.1%")
	f.StringVarP(&a.out, "out", "o", "", "directory of the run (default runs/ID)")
	f.DurationVar(&a.timeout, "timeout", 10*time.Second, "timeout of one request")
	f.DurationVar(&a.life, "connection-life", 0, "renew connections older than this; 0 = never")
	f.BoolVar(&a.sourcePerUser, "source-per-user", false,
		"each user of the workload keeps one source address, for address hashing; connections are made more often")
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
		case slices.Contains(args, "") || a.given("target") && a.target == "":
			return exit.Usagef("an empty URL\n" +
				"want a URL such as http://127.0.0.1:8080/, or none for the system of \"stagebench up\"")
		case len(args) > 0 && a.target != "":
			return exit.Usagef("two targets: %s and --target %s\nuse only one of them", args[0], a.target)
		case len(args) > 0:
			a.target, a.more = args[0], args[1:]
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
	case a.workload != "" && len(a.more) > 0:
		return exit.Usagef("--workload %s is for one URL, but got %d\nname only the address of the service",
			a.workload, 1+len(a.more))
	case len(a.weights) > 0 && len(a.weights) != 1+len(a.more):
		return exit.Usagef("--weights has %d values, and the number of URLs is %d\n"+
			"give one weight for each URL, in the same order", len(a.weights), 1+len(a.more))
	}
	return exit.Usage(a.replay.Validate())
}

// destination is the target with the load for it.
type destination struct {
	stage     string // of our own system, or "target"
	endpoint  *url.URL
	addresses []string // of all frontends; empty = that of the endpoint
	fallbacks []string // for clients that no frontend accepts
	load      load.Load
	slo       results.SLO
	system    *control.Client // nil = only the address of the target is known
	remote    bool            // on another machine
	data      sut.Data
	engines   map[string]string
	versions  map[string]string // of the engines
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
		if d.addresses, err = cell.Addresses(info.Endpoints); err != nil {
			return d, err
		}
		if d.fallbacks, err = cell.Addresses(info.Fallbacks); err != nil {
			return d, err
		}
		if d.engines, d.versions, err = enginesOf(ctx, d.system); err != nil {
			return d, err
		}
	}
	if d.endpoint, err = attach.Parse(ctx, urls[0], a.allow); err != nil {
		return d, exit.Usage(err)
	}
	d.remote, d.data = !attach.OnThisMachine(ctx, d.endpoint), maker.Data
	// After an interruption, the reader still uses the destination that it was given, so it gets a copy.
	loaded, err := interruptible(ctx, func() (with destination, err error) {
		with = d
		with.load, err = a.load(ctx, &with, maker)
		return with, err
	})
	if err != nil {
		return d, exit.Usage(err)
	}
	loaded.slo, err = a.objective(loaded.load)
	return loaded, err
}

// load makes the load, and cuts from the endpoint what belongs to the requests.
func (a aim) load(ctx context.Context, d *destination, maker load.Maker) (l load.Load, err error) {
	whole := *d.endpoint
	d.endpoint = &url.URL{Scheme: whole.Scheme, Host: whole.Host}
	if a.workload != "" {
		d.endpoint.Path, d.endpoint.RawPath = strings.TrimSuffix(whole.Path, "/"), strings.TrimSuffix(whole.RawPath, "/")
		return maker.Make(a.workload)
	}
	body := []byte(a.body)
	if a.bodyFile != "" {
		if body, err = os.ReadFile(a.bodyFile); err != nil {
			return l, fmt.Errorf("--body-file: %w\nname a file that you can read", err)
		}
	}
	if len(a.more) == 0 {
		l.Workload, err = workloads.Single(a.method, whole.RequestURI(), nil, body)
		return l, err
	}
	requests, err := a.requests(ctx, whole)
	if err == nil {
		l.Workload, err = workloads.Several(a.method, requests, nil, body, a.seed)
	}
	return l, err
}

// requests returns the requests of several URLs, of which the first one is given.
func (a aim) requests(ctx context.Context, first url.URL) (requests []workloads.Weighted, err error) {
	for i, text := range append([]string{first.String()}, a.more...) {
		u, err := attach.Parse(ctx, text, a.allow)
		if err != nil {
			return nil, err
		}
		if !attach.SameService(&first, u) {
			return nil, fmt.Errorf("%s and %s are two services\nsend load to one of them, or start a second attack",
				first.String(), text)
		}
		weight := 1.0
		if len(a.weights) > 0 {
			weight = a.weights[i]
		}
		requests = append(requests, workloads.Weighted{Path: u.RequestURI(), Weight: weight})
	}
	return requests, nil
}

// objective returns the objective of --slo. The default one has only the terms for ops that the load has.
func (a aim) objective(l load.Load) (results.SLO, error) {
	slo, err := parseSLO(a.slo)
	switch known := l.Classes(); {
	case err != nil:
	case a.given("slo"):
		err = checkClasses(slo, []load.Load{l})
	case known != nil:
		maps.DeleteFunc(slo.Classes, func(class string, _ time.Duration) bool { return !slices.Contains(known, class) })
	}
	return slo, err
}

// parseSLO returns the objective of --slo.
func parseSLO(text string) (results.SLO, error) {
	slo, err := results.ParseSLO(text)
	if err != nil {
		return slo, exit.Usagef("%w\nfor example: --slo '%s'", err, results.DefaultSLO())
	}
	return slo, nil
}

// checkClasses returns an error if an objective has a class that no load has. Such an objective would always be met.
func checkClasses(slo results.SLO, loads []load.Load) error {
	var known []string
	for _, l := range loads {
		classes := l.Classes()
		if classes == nil {
			return nil
		}
		known = append(known, classes...)
	}
	slices.Sort(known)
	for _, class := range slices.Sorted(maps.Keys(slo.Classes)) {
		if !slices.Contains(known, class) {
			return exit.Usagef("--slo %s: no workload has ops of class %q\nwant one of %s",
				slo, class, strings.Join(slices.Compact(known), ", "))
		}
	}
	return nil
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
	if len(a.more) > 0 {
		config["urls"], config["weights"] = append([]string{a.target}, a.more...), a.weights
		delete(config, "path") // only that of the first op
	}
	maps.Copy(config, more)
	return config
}

// manifest returns the manifest of a run against the destination.
func (a aim) manifest(s streams, d destination, more map[string]any) (results.Manifest, error) {
	m, err := newManifest(s, a.seed, d.data.Size, a.config(d, more))
	if d.system != nil {
		m.Engines, m.Versions = d.engines, d.versions
	}
	m.Digests["workload"] = workloads.Hash(d.load.Workload, 0, hashedOps)
	return m, err
}

// hashedOps is the number of ops that the digest of a workload in the manifest covers. That of a step covers up to a
// million.
const hashedOps = 1000

// enginesOf returns the engines of a running system by role, and their versions.
func enginesOf(ctx context.Context, system *control.Client) (engines, versions map[string]string, err error) {
	nodes, err := system.Status(ctx)
	if err != nil {
		return nil, nil, err
	}
	engines, versions = map[string]string{}, map[string]string{}
	for _, n := range nodes {
		if !ladder.Selectable(n.Role) {
			continue
		}
		engines[string(n.Role)] = string(n.Engine)
		if n.Version != "" { // our own engines have none
			versions[string(n.Role)] = n.Version
		}
	}
	return engines, versions, nil
}

// cell returns the cell of the destination without figures.
func (d destination) cell(driver string) results.Cell {
	return results.Cell{
		Stage: d.stage, Workload: d.load.Workload.Name(), Driver: driver, SLO: d.slo.String(), Trace: d.load.Trace,
		Engines: d.engines, Versions: d.versions,
	}
}

// dataSize returns the size of the data of our own system, "" for any other target.
func (d destination) dataSize() string {
	if d.system == nil {
		return ""
	}
	return d.data.String()
}

// clients returns the connections to the destination.
func (a aim) clients(ctx context.Context, s streams, d destination) (*driver.Clients, error) {
	s.sendsLoad()
	header, err := a.identity.Header(os.Getenv)
	if err != nil {
		return nil, exit.Usage(err)
	}
	security, err := interruptible(ctx, a.identity.TLS)
	if err != nil {
		return nil, exit.Usage(err)
	}
	sources := cell.Sources(d.endpoint, uint64(os.Getpid()))
	if _, err := netip.ParseAddr(d.endpoint.Hostname()); err != nil && sources != nil {
		_, _ = fmt.Fprintf(s.err, "load for %s goes to its IPv4 address; for the other one: http://[::1]:PORT/\n",
			d.endpoint.Hostname())
	}
	switch {
	case a.sourcePerUser && sources == nil:
		return nil, exit.Usagef("--source-per-user needs a target on the IPv4 loopback network, where a client has many " +
			"addresses\nremove --source-per-user, or send load to 127.0.0.1")
	case a.sourcePerUser && d.load.Workload.Users() == 0:
		return nil, exit.Usagef("--source-per-user needs a workload with users\n" +
			"remove it, or name such a workload; see: stagebench list workloads")
	}
	clients, err := driver.NewClients(driver.ClientConfig{
		Endpoint: d.endpoint, Addresses: d.addresses, Fallbacks: d.fallbacks, Connections: a.connections,
		Sources: sources, SourcePerUser: a.sourcePerUser,
		ConnectionLife: a.life, DialTimeout: min(a.timeout, 5*time.Second), Header: header, TLS: security, Log: s.log,
	})
	return clients, exit.Usage(err)
}

// stepper returns the stepper for a destination. It reads the usage and figures of a running system, and counts stale
// reads unless there are too many ops.
func (a aim) stepper(
	ctx context.Context, out streams, d destination, clients *driver.Clients, progress cell.Progress, ops uint64,
) (*cell.Stepper, error) {
	s := &cell.Stepper{
		Driver: vegeta.Driver{}, Clients: clients, Workload: d.load.Workload, SLO: d.slo,
		Timeout: a.timeout, Drain: time.Second, Progress: progress, ClientCores: float64(cell.Cores()), Remote: d.remote,
	}
	if d.system == nil {
		return s, nil
	}
	system := remote{ctx, d.system}
	usage, err := system.Usage()
	if err != nil {
		return nil, err
	}
	s.Target, s.ClientCores = system, cell.ClientCores(usage)
	s.Nodes, s.Figures = d.system.Status, ladder.Figures()
	if ops > maxJudgedOps {
		_, _ = fmt.Fprintf(out.err, "stale reads are not counted: %d ops exceed the limit of %d\n"+
			"use a lower --rate or --duration\n", ops, uint64(maxJudgedOps))
		return s, nil
	}
	s.History = history.New()
	return s, nil
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
