// Package failover keeps one primary among the copies of a database: it probes
// all copies, takes a dead primary's place with the replica that holds most, and
// says which copies may be read.
//
// It starts and kills nothing itself and speaks no SQL: what it sees and does goes
// through Databases. It never promotes before the old primary is dead for certain, so
// that no two can take writes, and never promotes on suspicion alone when there is
// no replica to promote. One goroutine runs a Supervisor; its records may be read
// by any number.
//
// Times are wall-clock durations. The order of calls is New, Run, and meanwhile SetNodes.
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

// Databases is what a Supervisor acts on: the nodes of one database, by name.
type Databases interface {
	// Probe asks a node how its copy stands.
	Probe(ctx context.Context, node string) (sut.ReplicationStatus, error)
	// Assign makes a running node the primary of an epoch, or a replica of that
	// primary when it is another node.
	Assign(ctx context.Context, node string, epoch int64, primary string) error
	// Fence ends a node for certain: when it returns, the node takes no writes, and
	// is not started again before release is called.
	Fence(ctx context.Context, node string) (release func(), err error)
	// Use makes these the databases in use: of nodes that are started from now on,
	// whatever happens, and of the running nodes that use them. An error means that some of
	// those could not be told, and that Use must be called again.
	Use(ctx context.Context, roles Roles) error
}

// Roles is which node is the primary, since which epoch, and which replicas may
// be read; or which of several primaries are alive.
type Roles struct {
	Epoch     int64
	Primary   string // "" = there are several
	Replicas  []string
	Primaries []string // when there are several
}

// Config says what is supervised.
type Config struct {
	Databases Databases
	Roles     Roles // to begin with; Replicas are all others, whether they may be read or not, and Primaries all
	// Interval is the time between two probes. A node is dead after Failures probes
	// in a row that it refused, or when it has been silent for Silence: a busy node
	// answers late, a dead one not at all.
	Interval time.Duration
	Failures int
	Silence  time.Duration
	Note     func(node, text string) // is told what happens
}

// Supervisor watches one database.
type Supervisor struct {
	cfg     Config
	changes chan change

	// The goroutine of Run alone.
	nodes   []string
	seen    map[string]*health
	roles   Roles
	epoch   int64             // the highest that any node was told
	stale   bool              // the roles in use are not known to all
	answers chan answer       // to probes
	tried   []string          // who was told to take the dead primary's place
	said    map[string]string // what was noted of a node last
	release func()            // of the dead primary, as long as nobody has its place

	mu        sync.Mutex
	failovers []targets.Failover
	last      map[string]sut.ReplicationStatus // that each node gave
}

// change asks for other nodes to be supervised.
type change struct {
	nodes []string
	done  chan<- error
}

// Bounds of single steps. A promotion may have to apply what was received.
const (
	probeTimeout   = time.Second
	promoteTimeout = 10 * time.Second
	followTimeout  = 2 * time.Second
	fenceTimeout   = 10 * time.Second
	useTimeout     = 2 * time.Second
)

// New returns a supervisor of the copies that the roles name.
func New(cfg Config) *Supervisor {
	return &Supervisor{
		cfg: cfg, changes: make(chan change), nodes: members(cfg.Roles), answers: make(chan answer),
		roles: cfg.Roles, epoch: cfg.Roles.Epoch, seen: map[string]*health{}, last: map[string]sut.ReplicationStatus{}, said: map[string]string{},
	}
}

// members lists all nodes.
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

// Last is what a node said of its copy when it was probed last; ok is false when
// it never was.
func (s *Supervisor) Last(node string) (status sut.ReplicationStatus, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status, ok = s.last[node]
	return status, ok
}

// SetNodes changes which databases are supervised while Run is under way. A new replica
// serves reads once it has caught up. When SetNodes returns, a removed replica serves no
// reads and is never promoted. It is an error, and changes nothing, to remove the primary,
// or to change anything while the primary does not answer.
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
		return errors.New("the databases of a multi-primary system are fixed")
	case s.release != nil || s.seen[primary].refused > 0 || s.dead(primary):
		return fmt.Errorf("the primary %s does not answer\nwait for the failover: stagebench status", primary)
	case missing(primary):
		return fmt.Errorf("%s is the primary now\nstart a failover first: stagebench kill primary", primary)
	}
	for _, node := range nodes {
		if s.seen[node] == nil {
			s.seen[node] = &health{answered: time.Now()}
		}
	}
	maps.DeleteFunc(s.seen, func(node string, _ *health) bool { return missing(node) })
	maps.DeleteFunc(s.said, func(node, _ string) bool { return missing(node) })
	s.nodes = slices.Clone(nodes)
	replicas := slices.DeleteFunc(slices.Clone(s.roles.Replicas), missing)
	if !slices.Equal(replicas, s.roles.Replicas) {
		s.roles.Replicas = replicas
		s.use(ctx)
	}
	return nil
}

// Run supervises until ctx ends. All copies serve when it is called.
func (s *Supervisor) Run(ctx context.Context) {
	for _, node := range s.nodes {
		s.seen[node] = &health{answered: time.Now()}
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
		case <-tick.C:
		}
		begin := time.Now() // an answer to an earlier probe makes nobody dead
		s.probe(ctx)
		s.gather(ctx, s.cfg.Interval, begin)
		if ctx.Err() != nil {
			return
		}
		if s.roles.Primary == "" {
			s.spread(ctx)
			continue
		}
		if s.dead(s.roles.Primary) {
			s.replace(ctx)
		}
		s.evict(ctx)
		s.follow(ctx)
		s.readable(ctx)
	}
}

// best is the replica that holds most of those that answer, "" if none does. One
// that was promoted, but could not say so in time, is the best.
func (s *Supervisor) best() string {
	best := ""
	for _, node := range s.nodes {
		h := s.seen[node]
		if node == s.roles.Primary || h.err != nil || !h.status.Serves || h.status.Primary && h.status.Epoch <= s.roles.Epoch {
			continue
		}
		if best == "" || s.seen[best].status.Before(h.status) {
			best = node
		}
	}
	return best
}

// replace puts a replica into the place of the dead primary. When it fails, the
// next round begins anew, and the primary stays fenced as long as another one may
// have been promoted.
func (s *Supervisor) replace(ctx context.Context) {
	old := s.roles.Primary
	if s.best() == "" {
		s.abandon(ctx)
		return // it may come back, and nobody else can take its place
	}
	f := targets.Failover{From: old, UnixNS: s.seen[old].answered.UnixNano(), DetectNS: time.Since(s.seen[old].answered).Nanoseconds()}
	begin := time.Now()
	if !s.fence(ctx, old, f) {
		return
	}
	f.FenceNS = time.Since(begin).Nanoseconds()
	// What the old primary sent before it died has arrived by now.
	for _, h := range s.seen {
		h.asked = time.Time{} // what was asked before that says less
	}
	s.probe(ctx)
	s.gather(ctx, probeTimeout, time.Now().Add(probeTimeout)) // for the living alone
	// One that is late may hold more than all others, and what was acknowledged
	// because of it.
	for _, node := range s.nodes {
		if h := s.seen[node]; node != old && (h.err != nil || !h.asked.IsZero()) && !s.dead(node) {
			return
		}
	}
	if f.To = s.best(); f.To == "" {
		s.abandon(ctx)
		return
	}
	begin = time.Now()
	if to := s.seen[f.To].status; to.Primary {
		f.Epoch = to.Epoch
	} else {
		// Each attempt has an epoch of its own: one that failed may have succeeded.
		s.epoch++
		f.Epoch = s.epoch
		s.tried = append(s.tried, f.To)
		if err := s.assign(ctx, f.To, f.Epoch, f.To, promoteTimeout); err != nil {
			s.note(f.To, "could not be promoted: "+err.Error())
			return
		}
	}
	f.PromoteNS, f.Position = time.Since(begin).Nanoseconds(), s.seen[f.To].status.Position
	s.install(ctx, f)
}

// fence ends the old primary, once.
func (s *Supervisor) fence(ctx context.Context, old string, f targets.Failover) bool {
	if s.release != nil {
		return true
	}
	s.cfg.Note(old, fmt.Sprintf("taken for dead: silent for %v", rounded(f.DetectNS)))
	s.release = s.end(ctx, old)
	return s.release != nil
}

// end ends a node for certain. It returns nil when it could not.
func (s *Supervisor) end(ctx context.Context, node string) (release func()) {
	ctx, cancel := context.WithTimeout(ctx, fenceTimeout)
	defer cancel()
	release, err := s.cfg.Databases.Fence(ctx, node)
	if err != nil {
		s.note(node, "could not be fenced: "+err.Error())
		return nil
	}
	return release
}

// abandon lets a fenced primary come back, because nobody is left who could take
// its place. Who was told to is ended first, for it may have done so, and the old
// primary comes back in an epoch that is later than any that was tried: copies that
// have heard of one would refuse an earlier primary.
func (s *Supervisor) abandon(ctx context.Context) {
	if s.release == nil {
		return
	}
	for _, node := range s.tried {
		release := s.end(ctx, node)
		if release == nil {
			return
		}
		defer release()
	}
	s.note(s.roles.Primary, "no replica is left that could take its place: it may come back")
	s.epoch++
	s.roles.Epoch, s.roles.Replicas = s.epoch, nil
	s.use(ctx)
	s.seen[s.roles.Primary] = &health{answered: time.Now(), err: errors.New("not started again yet")}
	s.letGo()
}

// note says something about a node, once as long as it stays the same.
func (s *Supervisor) note(node, text string) {
	if s.said[node] != text {
		s.said[node] = text
		s.cfg.Note(node, text)
	}
}

func (s *Supervisor) letGo() {
	s.tried = nil
	if s.release != nil {
		s.release()
		s.release = nil
	}
}

// install makes the promoted replica the primary for all.
func (s *Supervisor) install(ctx context.Context, f targets.Failover) {
	begin := time.Now()
	s.roles = Roles{Epoch: f.Epoch, Primary: f.To}
	for _, node := range s.nodes {
		if h := s.seen[node]; node != f.To && node != f.From && h.err == nil && h.status.Serves {
			s.roles.Replicas = append(s.roles.Replicas, node)
		}
	}
	s.use(ctx)
	s.letGo()
	f.SwitchNS = time.Since(begin).Nanoseconds()
	s.mu.Lock()
	s.failovers = append(s.failovers, f)
	s.mu.Unlock()
	s.cfg.Note(f.To, fmt.Sprintf("is the primary of epoch %d instead of %s: detected after %v, fenced in %v, promoted in %v, in use after %v more",
		f.Epoch, f.From, rounded(f.DetectNS), rounded(f.FenceNS), rounded(f.PromoteNS), rounded(f.SwitchNS)))
	// The old one's record is that of a primary, which it will not be.
	s.seen[f.From] = &health{answered: time.Now(), err: errors.New("not started again yet")}
	s.seen[f.To].status.Primary = true
}

func rounded(ns int64) time.Duration { return time.Duration(ns).Round(time.Millisecond) }

// evict ends primaries that are not the one: a promotion that came too late.
func (s *Supervisor) evict(ctx context.Context) {
	if s.release != nil {
		return // it is not known yet which one it will be
	}
	for _, node := range s.nodes {
		if h := s.seen[node]; node == s.roles.Primary || h.err != nil || !h.status.Primary {
			continue
		}
		s.cfg.Note(node, fmt.Sprintf("is a primary besides %s: ended", s.roles.Primary))
		if release := s.end(ctx, node); release != nil {
			release()
			s.seen[node].err = errors.New("ended")
		}
	}
}

func (s *Supervisor) assign(ctx context.Context, node string, epoch int64, primary string, timeout time.Duration) error {
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return s.cfg.Databases.Assign(bounded, node, epoch, primary)
}

// follow has replicas of another primary, or of an older epoch, follow this one.
func (s *Supervisor) follow(ctx context.Context) {
	for _, node := range s.nodes {
		h := s.seen[node]
		if node == s.roles.Primary || h.err != nil || h.status.Primary || h.status.Following == s.roles.Primary && h.status.Epoch >= s.roles.Epoch {
			continue
		}
		if err := s.assign(ctx, node, s.roles.Epoch, s.roles.Primary, followTimeout); err != nil {
			s.note(node, fmt.Sprintf("does not follow %s: %v", s.roles.Primary, err))
			continue
		}
		h.status.Following = s.roles.Primary
	}
}

// readable says which replicas may be read, when that has changed, or not
// everybody knows yet.
func (s *Supervisor) readable(ctx context.Context) {
	var replicas []string
	for _, node := range s.nodes {
		if h := s.seen[node]; node != s.roles.Primary && !s.dead(node) && h.status.Serves && !h.status.Primary && h.status.Following == s.roles.Primary {
			replicas = append(replicas, node)
		}
	}
	if slices.Equal(replicas, s.roles.Replicas) && !s.stale {
		return
	}
	for _, node := range s.nodes {
		was, is := slices.Contains(s.roles.Replicas, node), slices.Contains(replicas, node)
		switch {
		case was && !is:
			s.cfg.Note(node, "is read no more")
		case is && !was:
			s.cfg.Note(node, "has caught up, and is read")
			s.replaced(node)
		}
	}
	s.roles.Replicas = replicas
	s.use(ctx)
}

// replaced notes that a primary of the past is a replica that is read.
func (s *Supervisor) replaced(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.failovers {
		if f := &s.failovers[i]; f.From == node && f.ReplaceNS == 0 {
			f.ReplaceNS = time.Now().UnixNano() - f.UnixNS
		}
	}
}

// spread says which of several primaries take part, when that has changed. When
// none does, everything is left as it is: one will come back.
func (s *Supervisor) spread(ctx context.Context) {
	var alive []string
	for _, node := range s.nodes {
		if h := s.seen[node]; !s.dead(node) && (h.err != nil || h.status.Serves) {
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
			s.cfg.Note(node, "is used no more")
		case is && !was:
			s.cfg.Note(node, "is used again")
		}
	}
	s.roles.Primaries = alive
	s.use(ctx)
}

func (s *Supervisor) use(ctx context.Context) {
	bounded, cancel := context.WithTimeout(ctx, useTimeout)
	defer cancel()
	s.stale = s.cfg.Databases.Use(bounded, Roles{
		Epoch: s.roles.Epoch, Primary: s.roles.Primary, Replicas: slices.Clone(s.roles.Replicas), Primaries: slices.Clone(s.roles.Primaries),
	}) != nil
}
