// Package local turns a topology into processes on this machine and keeps them
// up: addresses, data templates, budgets, start order, supervision, faults and
// the way down.
//
// Up builds the data template if it is missing, starts every node after those
// that it uses and returns when all are ready. From then on each node has a
// supervisor that restarts it on its old address and port when it dies, after
// a delay that makes the outage real. Down ends everything: no process, no
// cgroup and no directory of the system is left, also when Up failed or was
// interrupted half-way. Scale adds and drains hosts while the system serves,
// and takes back what it has begun when it fails. Kill, Pause and Resume are for
// tests of failure and act on a host or a node with all its processes.
//
// The order of calls is Up, anything, Down. All methods may be called
// concurrently. Times are wall-clock durations; the budgets' units are those
// of targets/budget. The package never looks into a node: what it knows of one
// is its NodeConfig, its Ready line and how it died.
package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
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
	"github.com/stagebench/stagebench/targets/failover"
	"github.com/stagebench/stagebench/targets/proc"
)

// Options say what to bring up, and with what. Binary, Topology and, where the
// topology has a database or a blob store, Data, TemplateDir and
// TemplateVersion are required.
type Options struct {
	Binary   string   // executable that becomes any node
	NodeArgs []string // its arguments for that: "node"
	Env      []string // of the nodes, nil = this process's

	Topology sut.Topology
	Data     sut.Data

	// TemplateDir caches built data sets. TemplateVersion returns what the files of
	// a data set depend on, for an engine: another version is another template.
	TemplateDir     string
	TemplateVersion func(sut.Engine) (string, error)

	WorkDir string // where the system's private directory is made, "" = the system's temporary directory
	LogDir  string // where the nodes' logs are kept, "" = with the private directory, and gone with it

	Budgets *budget.Manager // nil = no limits
	Restart Restart
	// Admit may refuse a topology that the system is to be scaled to, for example
	// because the machine is too small for it; nil = all are welcome.
	Admit func(sut.Topology) error

	ReadyTimeout time.Duration // of one node, 0 = 30 s
	DrainTimeout time.Duration // of one node on the way down, 0 = 5 s
	// Silence is how long a database that has copies may not answer before it is taken
	// for dead; 0 = 2 s, which is longer than the pauses of a host that has used up its
	// budget. One that is dead refuses, which is seen sooner.
	Silence time.Duration

	Log      *slog.Logger // nil = none
	Progress func(string) // told about each stage of a bring-up, one at a time; may be nil
}

// Restart says how dead nodes come back.
type Restart struct {
	Never    bool          // they stay dead
	Delay    time.Duration // from death to the next start, 0 = 1 s
	MaxDelay time.Duration // bound of the delay in a crash loop, 0 = 30 s
}

func (o Options) withDefaults() Options {
	if o.WorkDir == "" {
		o.WorkDir = os.TempDir()
	}
	if o.Restart.Delay == 0 {
		o.Restart.Delay = time.Second
	}
	if o.Restart.MaxDelay == 0 {
		o.Restart.MaxDelay = 30 * time.Second
	}
	if o.ReadyTimeout == 0 {
		o.ReadyTimeout = 30 * time.Second
	}
	if o.DrainTimeout == 0 {
		o.DrainTimeout = 5 * time.Second
	}
	if o.Silence == 0 {
		o.Silence = 2 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
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
	watching sync.WaitGroup // the supervision of the databases
	down     sync.Once
	downErr  error // set inside down

	admin http.Client // asks nodes at their admin addresses

	progress sync.Mutex // one Progress call at a time

	scaling  sync.Mutex // held while the topology is changed
	template string     // directory of the data that new databases and blob stores begin with

	// All below are guarded by mu. The slices are replaced, never written to, so
	// that whoever has one may go on reading it.
	mu       sync.Mutex
	topology sut.Topology
	hosts    []*host
	nodes    []*node         // in start order
	changed  chan struct{}   // closed and replaced when a node's state changes
	events   []targets.Event // only ever appended to
	roles    failover.Roles  // of the databases; Epoch 0 = there are no copies
	epoch    int64           // of the wirings, raised with every change
	moving   sut.Role        // whose keys are about to move, "" = none
	draining []*node         // leaving nodes that callers may still have requests at
	leased   int             // the last host number for ids that was given out

	failover *failover.Supervisor // nil = there are no copies; set before Up returns
}

// host is a host of the topology with its place on this machine.
type host struct {
	sut.Host
	number  int    // among the addresses of the system
	address string // IP address
	budget  *budget.Host
	nodes   []*node
	lifted  bool // guarded by System.mu: whether the CPU budget is off
}

// node is a node of the topology with its process.
type node struct {
	sut.Node
	host *host
	leaf *budget.Leaf
	dir  string

	life    context.Context // ends when the node leaves the system, or the system ends
	endLife context.CancelFunc
	watched sync.WaitGroup // its supervisor

	// All below, and what the topology says of its relations, are guarded by
	// System.mu.
	uses     []*node
	joining  bool // the other members of its tier do not know it yet
	leaving  bool // it is no longer a member of its tier
	state    targets.State
	process  *proc.Process // the last one, nil before the first start
	ready    sut.Ready
	readyIn  time.Duration
	since    time.Time // of the last ready
	restarts int
	failures int    // deaths in a row that nobody asked for
	oomKills int64  // of its leaf at its last death
	cause    string // of the last death
	asked    bool   // the next death is our doing
	idHost   int    // of a web node: the host number of its process's ids
	held     int    // kills under way that would take a new process, too
	frozen   bool   // its host is paused: nothing can start on it
	// launching holds from the writing of a configuration to the readiness, or the
	// failure, of the process that gets it. A kill meanwhile makes the state Dead.
	launching bool
}

// Up brings the topology up. When it fails, or ctx ends, it leaves nothing
// behind. ctx does not bound the life of the system: Down does.
func Up(ctx context.Context, opts Options) (*System, error) {
	opts = opts.withDefaults()
	if err := validate(opts); err != nil {
		return nil, fmt.Errorf("bring up %s: %w", opts.Topology.Stage, err)
	}
	s := &System{opts: opts, topology: opts.Topology, epoch: 1, changed: make(chan struct{}), budgets: func() error { return nil }}
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
	s.declareRoles(s.opts.Topology)
	nodes, err := s.place(s.opts.Topology)
	if err != nil {
		return err
	}
	if err := s.startAll(ctx, nodes); err != nil {
		return err
	}
	// Members were started at the same time, without knowing each other's addresses.
	s.change(func() {})
	for _, t := range ladder.Tiers() {
		if err := s.tellMembers(ctx, t.Role); err != nil {
			return err
		}
	}
	if err := s.superviseDatabases(ctx); err != nil {
		return err
	}
	s.bringUp = time.Since(begin)
	s.say("%s is up after %v", s.opts.Topology.Stage, s.bringUp.Round(time.Millisecond))
	return nil
}

// startAll fills and starts nodes, each after the nodes of the list that it uses, and
// supervises them. Other nodes that it uses have served before, and may be dead now.
func (s *System) startAll(ctx context.Context, nodes []*node) error {
	all, ctx := errgroup.WithContext(ctx)
	for _, n := range nodes {
		all.Go(func() error {
			if err := s.fill(ctx, n); err != nil {
				return err
			}
			before := slices.DeleteFunc(slices.Clone(s.usedBy(n)), func(used *node) bool { return !slices.Contains(nodes, used) })
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

// members returns the hosts and the nodes at this moment.
func (s *System) members() ([]*host, []*node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hosts, s.nodes
}

// makeDirs makes the private directory and removes those of killed harnesses.
// It can be passed through by everybody, because a native server may run as
// another user, and listed by nobody else.
func (s *System) makeDirs() error {
	owner, err := proc.Self("/")
	if err != nil {
		return fmt.Errorf("identify this process: %w", err)
	}
	if err := os.MkdirAll(s.opts.WorkDir, 0o711); err != nil {
		return fmt.Errorf("make the work directory: %w", err)
	}
	sweepDirs(s.opts.WorkDir)
	if s.dir, err = os.MkdirTemp(s.opts.WorkDir, dirPrefix+owner.String()+"-"); err != nil {
		return fmt.Errorf("make a private directory: %w", err)
	}
	if err := os.Chmod(s.dir, 0o711); err != nil {
		return fmt.Errorf("make a private directory: %w", err)
	}
	if s.logDir = s.opts.LogDir; s.logDir == "" {
		s.logDir = filepath.Join(s.dir, logsDir)
	}
	if err := os.MkdirAll(s.logDir, 0o755); err != nil {
		return fmt.Errorf("make the log directory: %w", err)
	}
	return nil
}

// place gives the hosts and nodes of a topology that are not there yet their
// addresses, budgets and hosts, and returns those nodes.
func (s *System) place(t sut.Topology) ([]*node, error) {
	oldHosts, oldNodes := s.members()
	hosts, nodes, taken := map[string]*host{}, map[string]*node{}, map[int]bool{}
	for _, h := range oldHosts {
		hosts[h.Name], taken[h.number] = h, true
	}
	for _, n := range oldNodes {
		nodes[n.Name] = n
	}
	addresses := addressesFor(filepath.Base(s.dir), maxHosts)
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
		n := &node{Node: declared, host: h, leaf: leaf, state: targets.Starting, dir: filepath.Join(s.dir, declared.Name)}
		n.joining = len(oldNodes) > 0
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

// join makes a host or a node part of the system.
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

// fill makes a node's directory; a database and a blob store begin with a copy
// of the template.
func (s *System) fill(ctx context.Context, n *node) error {
	var err error
	switch n.Role {
	case sut.DB:
		err = copyTree(ctx, n.dir, filepath.Join(s.template, templateDB), false)
	case sut.Blob:
		err = copyTree(ctx, n.dir, filepath.Join(s.template, templateBlob), true)
	default:
		err = os.Mkdir(n.dir, 0o755)
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
