// Package failover supervises the nodes of one replicated database. It probes all
// nodes, promotes the most advanced replica when the primary is dead, and decides
// which replicas may serve reads.
//
// It starts and kills no process and speaks no SQL: it acts through Databases. It fences
// the old primary before it promotes a replica, so that two nodes never accept writes at
// the same time. It does not fence a primary while no replica can be promoted. One
// goroutine runs a Supervisor; Failovers, Last, SetNodes and Suspend may be called concurrently.
//
// Times are wall-clock durations. Call New, then Run; call SetNodes while Run runs.
package failover

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
)

// Databases gives a Supervisor access to the nodes of one database, by name.
type Databases interface {
	// Probe returns the replication status of a node.
	Probe(ctx context.Context, node string) (sut.ReplicationStatus, error)
	// Assign sets the role of a running node for an epoch: primary if node == primary,
	// otherwise replica of primary.
	Assign(ctx context.Context, node string, epoch int64, primary string) error
	// Fence kills a node. After it returns, the node accepts no writes and is not
	// restarted before release is called.
	Fence(ctx context.Context, node string) (release func(), err error)
	// PublishRoles publishes the roles to the nodes that use the database. Nodes started after the
	// call always get these roles. An error means that some running nodes do not have them
	// yet and that PublishRoles must be called again.
	PublishRoles(ctx context.Context, roles Roles) error
}

// Roles is the current assignment of replication roles. With one primary it names the
// primary, its epoch and the replicas that may serve reads. In a multi-primary database
// it names the primaries that are alive.
type Roles struct {
	Epoch     int64
	Primary   string // "" = multi-primary
	Replicas  []string
	Primaries []string // empty unless multi-primary
}

// Config configures a Supervisor.
type Config struct {
	Databases Databases
	// Roles are the roles at the start. Replicas must list every node except the primary,
	// even those that may not serve reads. Primaries must list every primary.
	Roles Roles
	// Interval is the time between two probes. A node is dead after Failures refused probes
	// in a row, or after Silence without an answer. Silence is longer, because a busy node
	// answers late.
	Interval time.Duration
	Failures int
	Silence  time.Duration
	// Sync says that a write is acknowledged only when a replica has it, too. Then a replica is not promoted if it lacks
	// what its primary held when it was promoted itself. That may have been the last copy of acknowledged writes, so the
	// system waits for it.
	Sync    bool
	OnEvent func(node, text string) // called for every event
}

// Supervisor supervises one database.
type Supervisor struct {
	cfg      Config
	changes  chan change
	suspends chan suspension

	// Only the goroutine of Run uses these.
	nodes    []string
	health   map[string]*health // by node
	roles    Roles
	epoch    int64                 // the highest epoch that was ever assigned to a node
	stale    bool                  // some node does not have the current roles yet
	answers  chan answer           // answers to probes
	tried    []string              // replicas that were asked to become primary in this failover
	lastNote map[string]string     // by node; prevents repeated notes
	inherits sut.ReplicationStatus // of the primary before its promotion; zero = it was never promoted
	unfence  func()                // lets the fenced primary restart; nil unless a failover is under way

	mu        sync.Mutex
	failovers []targets.Failover               // guarded by mu
	last      map[string]sut.ReplicationStatus // guarded by mu: the last answer of each node
}

// change is a call of SetNodes for the goroutine of Run.
type change struct {
	nodes []string
	done  chan<- error
}

// Timeouts of single steps. A replica applies all changes that it has received before
// its promotion ends.
const (
	probeTimeout   = time.Second
	promoteTimeout = 10 * time.Second
	followTimeout  = 2 * time.Second
	fenceTimeout   = 10 * time.Second
	publishTimeout = 2 * time.Second
)

// New returns a supervisor of the nodes that the roles name.
func New(cfg Config) *Supervisor {
	return &Supervisor{
		cfg: cfg, changes: make(chan change), suspends: make(chan suspension),
		nodes: members(cfg.Roles), answers: make(chan answer), roles: cfg.Roles, epoch: cfg.Roles.Epoch,
		health: map[string]*health{},
		last:   map[string]sut.ReplicationStatus{}, lastNote: map[string]string{},
	}
}

// members lists all nodes that the roles name.
func members(r Roles) []string {
	if r.Primary == "" {
		return slices.Clone(r.Primaries)
	}
	return append([]string{r.Primary}, r.Replicas...)
}

// Failovers lists the changes of the primary so far.
func (s *Supervisor) Failovers() []targets.Failover {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.failovers)
}

// Last returns the last status that a node reported. ok is false if the node has not
// answered any probe yet.
func (s *Supervisor) Last(node string) (status sut.ReplicationStatus, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status, ok = s.last[node]
	return status, ok
}

// SetNodes changes the supervised nodes while Run runs. A new replica serves reads once
// it has caught up. After SetNodes returns, a removed replica serves no reads and is never
// promoted. SetNodes returns an error and changes nothing if nodes does not contain the
// primary, or if the primary does not answer its probes.
func (s *Supervisor) SetNodes(ctx context.Context, nodes []string) error {
	done := make(chan error, 1)
	select {
	case s.changes <- change{nodes, done}:
		return <-done
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Supervisor) setNodes(ctx context.Context, nodes []string) error {
	primary := s.roles.Primary
	missing := func(node string) bool { return !slices.Contains(nodes, node) }
	switch {
	case len(nodes) == len(s.nodes) && !slices.ContainsFunc(s.nodes, missing):
		return nil
	case primary == "":
		return errors.New("the number of databases of a multi-primary system cannot change while it runs")
	case s.unfence != nil || s.health[primary].refused > 0 || s.dead(primary):
		return fmt.Errorf("the primary %s does not answer\nwait for the failover: stagebench status", primary)
	case missing(primary):
		return fmt.Errorf("%s is the primary now\nstart a failover first: stagebench kill primary", primary)
	}
	for _, node := range nodes {
		if s.health[node] == nil {
			s.health[node] = &health{answered: time.Now()}
		}
	}
	maps.DeleteFunc(s.health, func(node string, _ *health) bool { return missing(node) })
	maps.DeleteFunc(s.lastNote, func(node, _ string) bool { return missing(node) })
	s.nodes = slices.Clone(nodes)
	replicas := slices.DeleteFunc(slices.Clone(s.roles.Replicas), missing)
	if !slices.Equal(replicas, s.roles.Replicas) {
		s.roles.Replicas = replicas
		s.publishRoles(ctx)
	}
	return nil
}

// Run supervises until ctx ends. All nodes must be serving when it is called.
func (s *Supervisor) Run(ctx context.Context) {
	for _, node := range s.nodes {
		s.health[node] = &health{answered: time.Now()}
	}
	tick := time.NewTicker(s.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-s.changes:
			c.done <- s.setNodes(ctx, c.nodes)
			continue
		case c := <-s.suspends:
			s.suspend(ctx, c)
			continue
		case <-tick.C:
		}
		begin := time.Now()
		s.probe(ctx)
		s.gather(ctx, s.cfg.Interval, begin)
		if ctx.Err() != nil {
			return
		}
		if s.roles.Primary == "" {
			s.updatePrimaries(ctx)
			continue
		}
		if s.dead(s.roles.Primary) {
			s.replacePrimary(ctx)
		}
		s.fenceExtraPrimaries(ctx)
		s.repointReplicas(ctx)
		s.updateReplicas(ctx)
	}
}

// replacePrimary promotes a replica in place of the dead primary. If a step fails, the
// next round tries again. The old primary stays fenced meanwhile, because the failed
// promotion may have succeeded: without the fence two nodes could accept writes.
func (s *Supervisor) replacePrimary(ctx context.Context) {
	old := s.roles.Primary
	if s.best() == "" {
		if errors.Is(s.health[old].err, errNoPrimary) { // it takes writes again after a restart in a higher epoch
			s.fence(ctx, old)
		}
		s.abandonFailover(ctx)
		return
	}
	answered := s.health[old].answered
	f := targets.Failover{From: old, UnixNS: answered.UnixNano(), DetectNS: time.Since(answered).Nanoseconds()}
	begin := time.Now()
	if !s.fence(ctx, old) {
		return
	}
	f.FenceNS = time.Since(begin).Nanoseconds()
	// Everything that the old primary sent before it died has arrived now. An answer to an
	// earlier probe can report an older position: discard it.
	for _, h := range s.health {
		h.pending = time.Time{}
	}
	s.probe(ctx)
	s.gather(ctx, probeTimeout, time.Now().Add(probeTimeout)) // does not wait for dead nodes
	// Wait for a replica that is late but not dead: it may be the only one with a write
	// that was acknowledged. To promote another replica would lose that write.
	for _, node := range s.nodes {
		h := s.health[node]
		late := h.err != nil || !h.pending.IsZero()
		if node != old && late && !s.dead(node) {
			return
		}
	}
	if f.To = s.best(); f.To == "" {
		s.abandonFailover(ctx)
		return
	}
	begin = time.Now()
	if to := s.health[f.To].status; to.Primary {
		f.Epoch = to.Epoch
	} else {
		// Each attempt uses a new epoch: an attempt that returned an error may have succeeded.
		s.epoch++
		f.Epoch = s.epoch
		s.tried = append(s.tried, f.To)
		if err := s.assign(ctx, f.To, f.Epoch, f.To, promoteTimeout); err != nil {
			s.note(f.To, "could not be promoted: "+err.Error())
			return
		}
	}
	f.PromoteNS, f.Position = time.Since(begin).Nanoseconds(), s.health[f.To].status.Position
	s.install(ctx, f)
}

// fence fences the old primary unless it is fenced already, and reports whether it is fenced.
func (s *Supervisor) fence(ctx context.Context, old string) bool {
	if s.unfence != nil {
		return true
	}
	s.cfg.OnEvent(old, "is considered dead: "+s.health[old].cause())
	s.unfence = s.fenceNode(ctx, old)
	return s.unfence != nil
}

// fenceNode fences a node. It returns nil if that failed.
func (s *Supervisor) fenceNode(ctx context.Context, node string) (release func()) {
	ctx, cancel := context.WithTimeout(ctx, fenceTimeout)
	defer cancel()
	release, err := s.cfg.Databases.Fence(ctx, node)
	if err != nil {
		s.note(node, "could not be fenced: "+err.Error())
		return nil
	}
	return release
}

// abandonFailover releases a fenced primary, because no replica is left to promote. It
// first fences the replicas that were asked to become primary, because one of them may
// have done so. The old primary gets an epoch later than all that were tried: replicas
// refuse a primary whose epoch is earlier than one that they know.
func (s *Supervisor) abandonFailover(ctx context.Context) {
	if s.unfence == nil {
		return
	}
	for _, node := range s.tried {
		release := s.fenceNode(ctx, node)
		if release == nil {
			return
		}
		defer release()
	}
	s.note(s.roles.Primary, "stays the primary and is restarted: no replica is left to promote")
	s.epoch++
	s.roles.Epoch, s.roles.Replicas = s.epoch, nil
	s.publishRoles(ctx)
	s.health[s.roles.Primary] = &health{answered: time.Now(), err: errors.New("not restarted yet")}
	s.endFailover()
}

// note reports a node's event, unless it repeats the last note about that node.
func (s *Supervisor) note(node, text string) {
	if s.lastNote[node] != text {
		s.lastNote[node] = text
		s.cfg.OnEvent(node, text)
	}
}

// endFailover lets the fenced primary restart.
func (s *Supervisor) endFailover() {
	s.tried = nil
	if s.unfence != nil {
		s.unfence()
		s.unfence = nil
	}
}

// install publishes the promoted replica as the primary and records the failover.
func (s *Supervisor) install(ctx context.Context, f targets.Failover) {
	begin := time.Now()
	s.roles = Roles{Epoch: f.Epoch, Primary: f.To}
	for _, node := range s.nodes {
		if h := s.health[node]; node != f.To && node != f.From && h.err == nil && h.status.Serves {
			s.roles.Replicas = append(s.roles.Replicas, node)
		}
	}
	s.publishRoles(ctx)
	s.endFailover()
	f.SwitchNS = time.Since(begin).Nanoseconds()
	s.mu.Lock()
	s.failovers = append(s.failovers, f)
	s.mu.Unlock()
	s.cfg.OnEvent(f.To, fmt.Sprintf("is the primary of epoch %d instead of %s: "+
		"detected in %v, fenced in %v, promoted in %v, clients switched in %v",
		f.Epoch, f.From, rounded(f.DetectNS), rounded(f.FenceNS), rounded(f.PromoteNS), rounded(f.SwitchNS)))
	s.inherits = s.health[f.To].status
	s.inherits.Primary = false
	// The last status of the old primary says that it is a primary. That is no longer true.
	s.health[f.From] = &health{answered: time.Now(), err: errors.New("not restarted yet")}
	s.health[f.To].status.Primary = true
}

func rounded(ns int64) time.Duration { return time.Duration(ns).Round(time.Millisecond) }

// fenceExtraPrimaries kills every primary except the current one. A promotion that
// succeeded after its timeout leaves such a node.
func (s *Supervisor) fenceExtraPrimaries(ctx context.Context) {
	if s.unfence != nil {
		return // during a failover the new primary is not decided yet
	}
	for _, node := range s.nodes {
		if h := s.health[node]; node == s.roles.Primary || h.err != nil || !h.status.Primary {
			continue
		}
		s.cfg.OnEvent(node, fmt.Sprintf("is a second primary besides %s: it is killed and restarted as a replica",
			s.roles.Primary))
		if release := s.fenceNode(ctx, node); release != nil {
			release()
			s.health[node].err = errors.New("not restarted yet")
		}
	}
}

func (s *Supervisor) assign(
	ctx context.Context, node string, epoch int64, primary string, timeout time.Duration,
) error {
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return s.cfg.Databases.Assign(bounded, node, epoch, primary)
}

// repointReplicas makes every replica that follows another primary, or an older epoch,
// follow the current primary.
func (s *Supervisor) repointReplicas(ctx context.Context) {
	for _, node := range s.nodes {
		h := s.health[node]
		follows := h.status.Following == s.roles.Primary && h.status.Epoch >= s.roles.Epoch
		if node == s.roles.Primary || h.err != nil || h.status.Primary || follows {
			continue
		}
		if err := s.assign(ctx, node, s.roles.Epoch, s.roles.Primary, followTimeout); err != nil {
			s.note(node, fmt.Sprintf("does not follow %s: %v", s.roles.Primary, err))
			continue
		}
		h.status.Following = s.roles.Primary
	}
}

// updateReplicas publishes which replicas may serve reads, if the list has changed or
// some node does not have it yet.
func (s *Supervisor) updateReplicas(ctx context.Context) {
	var replicas []string
	for _, node := range s.nodes {
		status := s.health[node].status
		follows := !status.Primary && status.Following == s.roles.Primary
		if node != s.roles.Primary && !s.dead(node) && status.Serves && follows {
			replicas = append(replicas, node)
		}
	}
	s.recordReplaced(append([]string{s.roles.Primary}, replicas...))
	if slices.Equal(replicas, s.roles.Replicas) && !s.stale {
		return
	}
	for _, node := range s.nodes {
		was, is := slices.Contains(s.roles.Replicas, node), slices.Contains(replicas, node)
		switch {
		case was && !is:
			s.cfg.OnEvent(node, "no longer serves reads")
		case is && !was:
			s.cfg.OnEvent(node, "has caught up and serves reads")
		}
	}
	s.roles.Replicas = replicas
	s.publishRoles(ctx)
}

// recordReplaced sets ReplaceNS of the failovers whose old primary is one of these nodes, which serve. It does not ask
// what they did before: another failover may already have made such a node a replica that serves reads.
func (s *Supervisor) recordReplaced(serving []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.failovers {
		if f := &s.failovers[i]; f.ReplaceNS == 0 && slices.Contains(serving, f.From) {
			f.ReplaceNS = time.Now().UnixNano() - f.UnixNS
		}
	}
}

// updatePrimaries publishes which primaries of a multi-primary database are alive, if
// that has changed. If none is alive, it changes nothing: a restarted one must find its
// clients.
func (s *Supervisor) updatePrimaries(ctx context.Context) {
	var alive []string
	for _, node := range s.nodes {
		if h := s.health[node]; !s.dead(node) && (h.err != nil || h.status.Serves) {
			alive = append(alive, node)
		}
	}
	if len(alive) == 0 || slices.Equal(alive, s.roles.Primaries) && !s.stale {
		return
	}
	for _, node := range s.nodes {
		was, is := slices.Contains(s.roles.Primaries, node), slices.Contains(alive, node)
		switch {
		case was && !is:
			s.cfg.OnEvent(node, "gets no more requests")
		case is && !was:
			s.cfg.OnEvent(node, "gets requests again")
		}
	}
	s.roles.Primaries = alive
	s.publishRoles(ctx)
}

// publishRoles gives the roles to all nodes. If a node cannot get them, the next round retries.
func (s *Supervisor) publishRoles(ctx context.Context) {
	bounded, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	roles := s.roles
	roles.Replicas, roles.Primaries = slices.Clone(roles.Replicas), slices.Clone(roles.Primaries)
	s.stale = s.cfg.Databases.PublishRoles(bounded, roles) != nil
}
