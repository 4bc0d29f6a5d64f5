// Package local runs the nodes of a topology as processes on this machine. It assigns
// addresses, builds data templates, enforces budgets, starts nodes in order, restarts dead
// nodes, injects faults and shuts the system down.
//
// Up builds the data template if it is missing. It starts every node after the nodes that
// it uses, and returns when all are ready. Then each node has a supervisor: when the node
// dies, the supervisor restarts it on the same address and port, after a delay that makes
// the outage real. Down removes all processes, cgroups and directories of the system, also
// after Up failed or was interrupted; Sweep does so after the harness was killed. Scale adds
// and drains hosts while the system serves, and rolls back when it fails. With web.autoscale,
// the number of web hosts follows the load in the same way. Kill, Pause and Resume inject
// faults into a host or a node with all its processes.
//
// Call Up first and Down last. All methods may be called concurrently. Times are
// wall-clock durations; the units of budgets are those of targets/budget. The package
// knows only the configuration of a node, its ready line, the answers at its admin address
// and how it died.
package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/budget"
	"github.com/stagebench/stagebench/targets/proc"
	"github.com/stagebench/stagebench/targets/topology"
)

const (
	// dirPrefix is the prefix of the names of private directories; the owner follows.
	dirPrefix = "stagebench-"
	// logsDir is a name in the private directory, like templateWork and the nodes'
	// directories. So no node may have the name logsDir or templateWork.
	logsDir = "logs"
)

// Options configure a system. Binary and Topology are required. A topology with a database
// or a blob store also requires Data, TemplateDir and TemplateVersion.
type Options struct {
	Binary   string   // executable that runs any node
	NodeArgs []string // arguments of the executable: "node"

	Topology sut.Topology
	Data     sut.Data

	// TemplateDir caches built data sets. TemplateVersion returns the version of the files
	// that an engine builds; each version has its own template.
	TemplateDir     string
	TemplateVersion func(sut.Engine) (string, error)

	// Release frees what the kernel keeps for the files in a directory of dead nodes, such as shared memory. It is
	// called before the directory is removed; nil = nothing.
	Release func(dir string) error

	// Listen is the address and port of the first frontend; further ones get the next ports. The zero value means an
	// address of the system's own and any free port.
	Listen netip.AddrPort

	LogDir string // directory of the nodes' logs, "" = in the private directory, removed by Down

	Budgets *budget.Manager // nil = no limits
	// Admit returns an error if Scale must not change to a topology, for example because
	// the machine is too small; nil = every topology is admitted.
	Admit func(sut.Topology) error

	// FailoverSilence is the time without an answer after which a replicated database is considered
	// dead, 0 = 2 s. It must be longer than the pauses of a host that has used up its CPU
	// budget. A killed process refuses connections, which is detected sooner.
	FailoverSilence time.Duration

	Log      *slog.Logger // nil = none
	Progress func(string) // called for each step of Up and Down, never concurrently; may be nil

	// Only tests set these.
	env          []string      // environment of the nodes, nil = this process's
	workDir      string        // parent of the system's private directory, "" = os.TempDir
	readyTimeout time.Duration // of one node, 0 = 30 s
	drainTimeout time.Duration // of one node that is stopped, 0 = 5 s
	restartDelay time.Duration // from the death of a node to its next start, 0 = 1 s
	neverRestart bool          // dead nodes stay dead
}

func (o Options) withDefaults() Options {
	o.workDir = cmp.Or(o.workDir, os.TempDir())
	o.readyTimeout = cmp.Or(o.readyTimeout, 30*time.Second)
	o.drainTimeout = cmp.Or(o.drainTimeout, 5*time.Second)
	o.restartDelay = cmp.Or(o.restartDelay, time.Second)
	o.FailoverSilence = cmp.Or(o.FailoverSilence, 2*time.Second)
	if o.Release == nil {
		o.Release = func(string) error { return nil }
	}
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	return o
}

// System is a running topology.
type System struct {
	opts    Options
	dir     string // private directory
	logDir  string
	bringUp time.Duration
	budgets func() error // closes the manager if it is ours

	life     context.Context // ends when Down begins: nothing is restarted after it
	endLife  context.CancelFunc
	logs     sync.WaitGroup // goroutines that close log files
	watching sync.WaitGroup // the goroutines of collectLosses and autoscaler.run
	down     sync.Once
	downErr  error // set inside down

	admin  http.Client // for requests to nodes' admin addresses
	losses *losses     // acknowledged writes that the system lost
	secret sut.Secret  // that the processes of this system have in common

	progress sync.Mutex // one Progress call at a time

	scaling  sync.Mutex // held while the topology changes
	template string     // directory with the initial data of databases and blob stores

	// mu guards all fields below. A slice is replaced and never modified, so a goroutine
	// may read its copy of the slice without mu.
	mu       sync.Mutex
	topology sut.Topology
	hosts    []*host
	nodes    []*node          // in start order
	changed  chan struct{}    // closed and replaced when a node's state or a replication role changes
	events   []targets.Event  // append only
	epoch    int64            // epoch of the wirings, incremented at every change
	moving   sut.Role         // role whose keys will move between its nodes, "" = none
	draining []*node          // leaving nodes that may still have requests in flight
	sessions *sut.SessionMove // sessions were moved while the system served; nil = never. It has no Owners
	owning   bool             // web nodes may have sessions in their memory that the store does not have
	unsticky bool             // balancers do not keep users on a host any more
	leased   int              // the last host number for ids that was assigned
	complete bool             // all nodes of the first topology have started
	// replicaSets are the replicated databases in the order of their shards; nil = databases are not replicated.
	replicaSets []*replicaSet
}

// host is a host of the topology on this machine.
type host struct {
	sut.Host
	number  int    // index into the addresses of the system
	address string // IP address
	budget  *budget.Host
	nodes   []*node
	lifted  bool // guarded by System.mu: the CPU budget is not in force
}

// node is a node of the topology and its process.
type node struct {
	sut.Node
	host *host
	leaf *budget.Leaf
	dir  string

	life    context.Context // ends when the node leaves the system, or the system ends
	endLife context.CancelFunc
	watched sync.WaitGroup // the goroutine of keepUp

	// System.mu guards all fields below, and Node.Uses and Node.Routes.
	uses     []*node
	joining  bool // the other members of its tier do not know it yet
	leaving  bool // it is no longer a member of its tier
	state    targets.State
	process  *proc.Process // the last one, nil before the first start
	ready    sut.Ready
	readyIn  time.Duration // from start to ready
	since    time.Time     // when it was last ready
	restarts int
	failures int    // unexpected deaths in a row
	oomKills int64  // OOM kills in its leaf, counted at its last death
	cause    string // of the last death
	expected bool   // we kill the process: its next death is not a failure
	idHost   int    // of a web node: the host number in the ids that its process creates
	held     int    // kills in progress; the node must not start meanwhile
	frozen   bool   // paused: the node must not start
	// launching is true from the moment when the configuration of a process is composed until
	// that process is ready or has failed. A kill meanwhile sets the state to Dead.
	launching bool
}

// Up starts the topology. If it fails or ctx ends, it leaves nothing behind. The end of ctx
// after Up has returned does not stop the system; Down does.
func Up(ctx context.Context, opts Options) (*System, error) {
	opts = opts.withDefaults()
	if err := validate(opts); err != nil {
		return nil, fmt.Errorf("bring up %s: %w", opts.Topology.Stage, err)
	}
	s := &System{
		opts: opts, topology: opts.Topology, epoch: 1, changed: make(chan struct{}),
		secret: sut.NewSecret(), losses: newLosses(), budgets: func() error { return nil },
	}
	s.admin.Transport = &http.Transport{}
	s.life, s.endLife = context.WithCancel(context.WithoutCancel(ctx))
	if opts.Budgets == nil {
		s.opts.Budgets = budget.Unlimited("not asked for")
		s.budgets = s.opts.Budgets.Close
	}
	if err := s.up(ctx); err != nil {
		err = fmt.Errorf("bring up %s: %w", opts.Topology.Stage, err)
		if left := s.Down(ctx); left != nil {
			err = errors.Join(err, left)
		}
		return nil, err
	}
	return s, nil
}

func (s *System) up(ctx context.Context) error {
	if err := s.makeDirs(); err != nil {
		return err
	}
	var err error
	if s.template, err = s.findTemplate(ctx); err != nil {
		return err
	}
	begin := time.Now()
	nodes, err := s.place(s.opts.Topology)
	if err != nil {
		return err
	}
	if err := s.startAll(ctx, nodes); err != nil {
		return err
	}
	// The members of a tier started concurrently and do not know each other's addresses yet.
	s.change(func() {})
	for _, t := range ladder.Tiers() {
		if err := s.updateMembers(ctx, t.Role); err != nil {
			return err
		}
	}
	if err := s.superviseDatabases(ctx); err != nil {
		return err
	}
	if len(s.sets()) > 0 {
		s.watching.Go(s.collectLosses)
	}
	if err := s.enforceBudgets(); err != nil {
		return err
	}
	s.scaleAutomatically()
	s.bringUp = time.Since(begin)
	s.say("%s is up after %v", s.opts.Topology.Stage, s.bringUp.Round(time.Millisecond))
	return nil
}

// validate returns an error for options with which Up would fail later.
func validate(opts Options) error {
	if opts.Binary == "" {
		return errors.New("Options.Binary is empty: want the executable that runs nodes")
	}
	if err := topology.Check(opts.Topology, logsDir, templateWork); err != nil {
		return err
	}
	if needsTemplate(opts.Topology) {
		if opts.TemplateDir == "" || opts.TemplateVersion == nil || opts.Data.Size == "" {
			return errors.New("a database needs a data set, a template directory and a template version")
		}
		if _, err := templateEngine(opts.Topology); err != nil {
			return err
		}
	}
	return checkWalkable(opts)
}

// checkWalkable returns an error if an ordinary user cannot enter the work directory. A
// native server that refuses to run as root runs as an ordinary user. Its own error would
// only say that its files do not exist.
func checkWalkable(opts Options) error {
	if os.Geteuid() != 0 || !topology.HasNative(opts.Topology) {
		return nil
	}
	dir, err := filepath.Abs(opts.workDir)
	if err != nil {
		return fmt.Errorf("find the work directory: %w", err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err == nil && info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("the work directory %s: native servers run as an ordinary user, who cannot pass through %s\n"+
				"choose another with TMPDIR, or allow it with: chmod o+x %s", opts.workDir, dir, dir)
		}
	}
	return nil
}

// startAll prepares the directories of nodes, starts them and supervises them. A node starts
// after the nodes of the list that it uses. It does not wait for other nodes that it uses:
// they started earlier and may be dead now.
func (s *System) startAll(ctx context.Context, nodes []*node) error {
	all, ctx := errgroup.WithContext(ctx)
	for _, n := range nodes {
		all.Go(func() error {
			if err := s.fill(ctx, n); err != nil {
				return err
			}
			before := slices.DeleteFunc(slices.Clone(s.usedBy(n)), func(used *node) bool {
				return !slices.Contains(nodes, used)
			})
			if err := s.awaitServing(ctx, before); err != nil {
				return err
			}
			process, err := s.start(ctx, n)
			if err != nil {
				return err
			}
			s.say("%s is ready", n.Name)
			n.watched.Go(func() { s.keepUp(n, process) })
			return nil
		})
	}
	return all.Wait()
}

// usedBy returns the nodes that a node uses.
func (s *System) usedBy(n *node) []*node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return n.uses
}

// members returns the current hosts and nodes.
func (s *System) members() ([]*host, []*node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hosts, s.nodes
}

// PrivateDir makes a directory that only this user can enter. The caller removes it; after a kill, Sweep does.
func PrivateDir() (string, error) { return privateDir(os.TempDir()) }

func privateDir(parent string) (string, error) {
	owner, err := proc.Self("/")
	if err != nil {
		return "", fmt.Errorf("identify this process: %w", err)
	}
	if err := os.MkdirAll(parent, 0o711); err != nil {
		return "", fmt.Errorf("make the work directory: %w", err)
	}
	dir, err := os.MkdirTemp(parent, dirPrefix+owner.String()+"-")
	if err != nil {
		return "", fmt.Errorf("make a private directory: %w", err)
	}
	return dir, nil
}

// makeDirs makes the private directory, which only this user can enter, and the log directory.
func (s *System) makeDirs() error {
	var err error
	if s.dir, err = privateDir(s.opts.workDir); err != nil {
		return err
	}
	// A native server that refuses to run as root runs as another user. That user must pass through, to a directory
	// of its own, but cannot list anything.
	if os.Geteuid() == 0 && topology.HasNative(s.opts.Topology) {
		if err := os.Chmod(s.dir, 0o711); err != nil {
			return fmt.Errorf("make a private directory: %w", err)
		}
	}
	if s.logDir = s.opts.LogDir; s.logDir == "" {
		s.logDir = filepath.Join(s.dir, logsDir)
	}
	if err := os.MkdirAll(s.logDir, 0o700); err != nil {
		return fmt.Errorf("make the log directory: %w", err)
	}
	return nil
}

// place adds the new hosts and nodes of a topology to the system, with addresses, budgets
// and replication roles. It returns the new nodes, also with an error.
func (s *System) place(t sut.Topology) ([]*node, error) {
	s.declareSets(t)
	oldHosts, oldNodes := s.members()
	hosts, nodes, taken := map[string]*host{}, map[string]*node{}, map[int]bool{}
	for _, h := range oldHosts {
		hosts[h.Name], taken[h.number] = h, true
	}
	for _, n := range oldNodes {
		nodes[n.Name] = n
	}
	addresses := topology.Addresses(filepath.Base(s.dir), topology.MaxHosts)
	for _, declared := range t.Hosts {
		if hosts[declared.Name] != nil {
			continue
		}
		number := 0
		for taken[number] {
			number++
		}
		taken[number] = true
		limits, err := s.opts.Budgets.NewHost(declared.Name, declared.CPU, declared.MemoryBytes)
		if err != nil {
			return nil, err
		}
		h := &host{Host: declared, number: number, address: addresses[number], budget: limits, lifted: true}
		hosts[h.Name] = h
		s.join(h, nil)
	}
	var placed []*node
	for _, declared := range t.Nodes {
		if nodes[declared.Name] != nil {
			continue
		}
		h := hosts[declared.Host]
		leaf, err := h.budget.Leaf(declared.Name)
		if err != nil {
			return placed, err
		}
		n := &node{
			Node: declared, host: h, leaf: leaf, dir: filepath.Join(s.dir, declared.Name),
			state: targets.Starting, joining: len(oldNodes) > 0,
		}
		n.life, n.endLife = context.WithCancel(s.life)
		for _, name := range declared.Uses {
			n.uses = append(n.uses, nodes[name])
		}
		nodes[n.Name] = n
		placed = append(placed, n)
		s.join(nil, n)
	}
	return placed, nil
}

// join adds a host or a node to the system.
func (s *System) join(h *host, n *node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h != nil {
		s.hosts = append(slices.Clone(s.hosts), h)
	}
	if n != nil {
		n.host.nodes = append(slices.Clone(n.host.nodes), n)
		s.nodes = append(slices.Clone(s.nodes), n)
	}
}

// fill makes a node's directory. A database or a blob store starts with a copy of the
// template.
func (s *System) fill(ctx context.Context, n *node) error {
	var err error
	switch n.Role {
	case sut.DB:
		err = copyTree(ctx, n.dir, s.templateOf(n), false)
	case sut.Blob:
		err = copyTree(ctx, n.dir, filepath.Join(s.template, templateBlob), true)
	default:
		err = os.Mkdir(n.dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("fill the directory of %s: %w", n.Name, err)
	}
	return nil
}

// say reports progress to the caller and the log.
func (s *System) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.opts.Log.Debug(text)
	if s.opts.Progress != nil {
		s.progress.Lock()
		defer s.progress.Unlock()
		s.opts.Progress(text)
	}
}
