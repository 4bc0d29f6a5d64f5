package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/budget"
	"github.com/stagebench/stagebench/targets/proc"
)

// awaitServing waits until all of the nodes serve.
func (s *System) awaitServing(ctx context.Context, nodes []*node) error {
	var waiting string
	err := s.await(ctx, func() bool {
		waiting = ""
		for _, n := range nodes {
			if !n.serves() {
				waiting = n.Name
			}
		}
		return waiting == ""
	})
	if err != nil {
		return fmt.Errorf("wait for %s: %w", waiting, err)
	}
	return nil
}

// await waits until a condition on the state of the system is true. It checks the condition
// with mu held, now and after every change of a node's state or a replication role.
func (s *System) await(ctx context.Context, condition func() bool) error {
	for {
		s.mu.Lock()
		holds, changed := condition(), s.changed
		s.mu.Unlock()
		if holds {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// serves reports whether the node is ready and alive, possibly paused. The caller holds
// System.mu.
func (n *node) serves() bool { return n.state == targets.Serving || n.state == targets.Paused }

// set changes a node's state and wakes all waiters. The caller holds mu.
func (s *System) set(n *node, state targets.State) {
	n.state = state
	s.wake()
}

// wake wakes all goroutines in await. The caller holds mu.
func (s *System) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// note records an event and logs it. The caller holds mu.
func (s *System) note(n *node, format string, args ...any) {
	event := targets.Event{UnixNS: time.Now().UnixNano(), Node: n.Name, Text: fmt.Sprintf(format, args...)}
	if n.Role == sut.Web {
		event.Supply = new(s.supply())
	}
	s.events = append(s.events, event)
	s.opts.Log.Info(event.Text, "node", n.Name)
}

// enforceBudgets puts all CPU budgets in force after the first start of all nodes.
func (s *System) enforceBudgets() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.complete = true
	var errs []error
	for _, h := range s.hosts {
		errs = append(errs, s.applyBudget(h))
	}
	return errors.Join(errs...)
}

// applyBudget lifts the host's CPU budget while a node on it is starting, and those of all hosts while the system comes
// up, because the cost of a start is not part of the measurement. Otherwise it puts the budget in force. The caller
// holds mu.
func (s *System) applyBudget(h *host) error {
	lift := !s.complete
	for _, n := range h.nodes {
		lift = lift || n.state == targets.Starting
	}
	if lift == h.lifted {
		return nil
	}
	change := h.budget.Apply
	if lift {
		change = h.budget.Lift
	}
	if err := change(); err != nil {
		return err
	}
	h.lifted = lift
	return nil
}

// start starts a node and waits until it is ready.
func (s *System) start(ctx context.Context, n *node) (*proc.Process, error) {
	s.mu.Lock()
	s.set(n, targets.Starting)
	if n.Role == sut.Web {
		n.idHost = s.lease()
	}
	err := s.applyBudget(n.host)
	config := s.configFor(n)
	n.launching = err == nil
	if err != nil {
		s.set(n, targets.Dead)
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	process, ready, err := s.launch(ctx, n.leaf, config, s.opts.readyTimeout, s.opts.drainTimeout+time.Second)

	s.mu.Lock()
	defer s.mu.Unlock()
	n.launching = false
	if err != nil {
		s.set(n, targets.Dead)
		return nil, errors.Join(err, s.applyBudget(n.host)) // in force again for the host's other nodes
	}
	n.process, n.ready, n.since = process, ready, time.Now()
	n.readyIn = n.since.Sub(begin)
	s.set(n, targets.Serving)
	s.note(n, "serving on %s after %v", ready.Address, n.readyIn.Round(time.Millisecond))
	return process, s.applyBudget(n.host)
}

// lease returns an unused host number for the ids that a starting web node creates, see
// sut.NodeConfig. It always finds one: a system has fewer hosts than there are numbers.
// The caller holds mu.
func (s *System) lease() int {
	s.leased = s.leased%sut.MaxIDHost + 1
	for slices.ContainsFunc(s.nodes, func(n *node) bool { return n.idHost == s.leased }) {
		s.leased = s.leased%sut.MaxIDHost + 1
	}
	return s.leased
}

// configFor returns the configuration of a node that starts. The caller holds mu.
func (s *System) configFor(n *node) sut.NodeConfig {
	config := sut.NodeConfig{
		Node: n.Name, Host: n.Host, Role: n.Role, Engine: n.Engine,
		Listen: n.host.address, Dir: n.dir, Procs: procsFor(n.host.CPU),
		MemoryBytes:  memoryOf(n),
		DrainSeconds: s.opts.drainTimeout.Seconds(), Secret: s.secret,
		IDHost: n.idHost, Service: n.Service, Shard: n.Shard, Knobs: s.topology.Knobs, Data: s.opts.Data,
		Wiring: s.wiringFor(n),
	}
	if i := slices.Index(s.topology.Frontends, n.Name); i >= 0 && s.opts.Listen.IsValid() {
		config.Listen, config.Port = s.opts.Listen.Addr().String(), int(s.opts.Listen.Port())+i
	}
	if n.Replicated {
		config.Replication = s.replication(n)
	}
	if n.ready.Address != "" { // a restart: its peers use the old port
		config.Port = portOf(n.ready.Address)
	}
	return config
}

// memoryOf returns a node's part of the memory of its host. A web node gets two parts: it also processes pictures.
func memoryOf(n *node) int64 {
	parts := func(n *node) int64 {
		if n.Role == sut.Web {
			return 2
		}
		return 1
	}
	var all int64
	for _, other := range n.host.nodes {
		all += parts(other)
	}
	return n.host.MemoryBytes * parts(n) / max(all, 1)
}

func procsFor(cores float64) int {
	if procs := budget.Procs(cores); procs > 0 {
		return procs
	}
	return runtime.NumCPU()
}

// launch starts the process of a node inside its leaf and waits until it is ready. If that
// fails, launch kills all processes in the leaf.
func (s *System) launch(
	ctx context.Context, leaf *budget.Leaf, config sut.NodeConfig, readyTimeout, stopTimeout time.Duration,
) (*proc.Process, sut.Ready, error) {
	document, err := json.Marshal(config)
	if err != nil {
		return nil, sut.Ready{}, fmt.Errorf("write the configuration of %s: %w", config.Node, err)
	}
	logFile := filepath.Join(s.logDir, config.Node+".log")
	log, err := os.OpenFile(logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, sut.Ready{}, fmt.Errorf("open the log of %s: %w", config.Node, err)
	}
	process, err := proc.Start(ctx, proc.Spec{
		Name: config.Node, Path: s.opts.Binary, Args: s.opts.NodeArgs,
		Env: s.opts.env, Stdin: append(document, '\n'), Log: log, Launch: leaf.Start,
		ReadyTimeout: readyTimeout, StopTimeout: stopTimeout,
	})
	if err != nil {
		log.Close()
		if killed := leaf.KillAll(); killed != nil {
			s.opts.Log.Error("a failed start left processes", "node", config.Node, "error", killed)
		}
		return nil, sut.Ready{}, err
	}
	s.logs.Go(func() {
		process.Wait()
		log.Close()
	})
	ready, err := parseReady(process.Ready(), config)
	if err != nil {
		process.Kill()
		process.Wait()
		if killed := leaf.KillAll(); killed != nil {
			s.opts.Log.Error("a failed start left processes", "node", config.Node, "error", killed)
		}
		return nil, sut.Ready{}, fmt.Errorf("%s: %w", config.Node, err)
	}
	return process, ready, nil
}

// parseReady parses a ready line and checks it against the node's configuration.
func parseReady(line []byte, config sut.NodeConfig) (sut.Ready, error) {
	var ready sut.Ready
	if err := json.Unmarshal(line, &ready); err != nil {
		return ready, fmt.Errorf("its ready line %.200q: %w", bytes.TrimSpace(line), err)
	}
	if config.Role == sut.Seed { // a seed node has no address
		return ready, nil
	}
	host, port, err := net.SplitHostPort(ready.Address)
	switch {
	case ready.Node != config.Node:
		return ready, fmt.Errorf("its ready line names the node %q", ready.Node)
	case err != nil:
		return ready, fmt.Errorf("its ready line has an invalid address: %w", err)
	case host != config.Listen:
		return ready, fmt.Errorf("it listens on %s, want %s", host, config.Listen)
	case config.Port != 0 && port != strconv.Itoa(config.Port):
		return ready, fmt.Errorf("it listens on port %s, want %d", port, config.Port)
	}
	return ready, nil
}

// portOf returns the port of an address that parseReady has accepted.
func portOf(address string) int {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return 0
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return 0
	}
	return port
}

const (
	// stableAfter is the serving time after which a death starts a new count of failures.
	// Deaths after a shorter time count as failures in a row.
	stableAfter = 10 * time.Second
	// loopAfter is the number of failures in a row that is reported as a crash loop.
	loopAfter = 3
	// maxRestartDelay bounds the delay in a crash loop.
	maxRestartDelay = 30 * time.Second
)

// keepUp restarts a node whenever it dies, until its life ends.
func (s *System) keepUp(n *node, process *proc.Process) {
	for process != nil {
		select {
		case <-n.life.Done():
			return
		case <-process.Done():
		}
		s.died(n, process.Wait())
		if s.opts.neverRestart {
			return
		}
		process = s.restart(n)
	}
}

// died records a death and kills all processes that the node left. A native server survives
// the death of its wrapper and would keep its port and its files.
func (s *System) died(n *node, exit proc.Exit) {
	if err := n.leaf.KillAll(); err != nil {
		s.opts.Log.Error("the processes of a dead node cannot be killed", "node", n.Name, "error", err)
	}
	oomKills := usageOf(n.leaf).OOMKills
	s.mu.Lock()
	defer s.mu.Unlock()
	outOfMemory := oomKills > n.oomKills && exit.Signal == syscall.SIGKILL
	n.oomKills = oomKills
	switch {
	case n.expected:
		n.cause = exit.Cause + " on request"
	case outOfMemory:
		n.cause = fmt.Sprintf("%s: over the host's memory limit of %d MiB", exit.Cause, n.host.MemoryBytes>>20)
	default:
		n.cause = causeOf(exit)
	}
	s.countDeath(n, time.Since(n.since) > stableAfter)
	s.set(n, targets.Dead)
	s.note(n, "died: %s", n.cause)
	if s.writesBack(n) && !exit.Clean() {
		s.losses.add(unknownLoss(n, "it died ("+n.cause+") with acknowledged writes that it had not yet written to the "+
			"database. Only its memory had them, so their number and ids are unknown"))
	}
}

// countDeath counts unexpected deaths in a row. The caller holds mu.
func (s *System) countDeath(n *node, stable bool) {
	if n.expected || stable {
		n.failures = 0
	}
	if !n.expected {
		n.failures++
	}
	n.expected = false
}

// restart restarts a dead node and retries until that succeeds. It returns nil if the life
// of the node ends first.
func (s *System) restart(n *node) *proc.Process {
	for {
		wait := time.NewTimer(s.nextDelay(n))
		select {
		case <-wait.C:
		case <-n.life.Done():
			wait.Stop()
			return nil
		}
		// After the death of a host its nodes restart in their start order. A node does not
		// wait for nodes of other hosts.
		var before []*node
		for _, used := range s.usedBy(n) {
			if used.host == n.host {
				before = append(before, used)
			}
		}
		if s.awaitServing(n.life, before) != nil || s.claimStart(n) != nil {
			return nil
		}
		process, err := s.start(n.life, n)
		if process != nil {
			if err != nil {
				s.opts.Log.Error("the CPU budget of a restarted node is not in force", "node", n.Name, "error", err)
			}
			s.mu.Lock()
			n.restarts++
			s.mu.Unlock()
			return process
		}
		if n.life.Err() != nil {
			return nil
		}
		s.mu.Lock()
		n.cause, _, _ = strings.Cut(err.Error(), "\n")
		s.countDeath(n, false)
		s.note(n, "restart failed: %s", n.cause)
		s.mu.Unlock()
	}
}

// claimStart waits until no kill or fence holds the node and it is not paused. Under the same
// lock it sets launching, so that a later Fence waits for the new process and kills it.
func (s *System) claimStart(n *node) error {
	return s.await(n.life, func() bool {
		n.launching = n.launching || n.held == 0 && !n.frozen
		return n.launching
	})
}

// nextDelay returns the delay before the next restart: the configured delay, doubled for
// each failure in a row after the first, up to maxRestartDelay.
func (s *System) nextDelay(n *node) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	delay := s.opts.restartDelay
	for range n.failures - 1 {
		delay = min(2*delay, maxRestartDelay)
	}
	if n.failures >= loopAfter {
		s.note(n, "crash loop: it died %d times in a row, the next start is in %v", n.failures, delay)
	}
	return delay
}

// usageOf returns the usage of a leaf, zero if it cannot be read.
func usageOf(leaf *budget.Leaf) budget.Usage {
	usage, err := leaf.Usage()
	if err != nil {
		return budget.Usage{}
	}
	return usage
}

// causeOf returns the cause of a death, with the most useful line of the log tail.
func causeOf(exit proc.Exit) string {
	if line := deathLine(exit.Tail); line != "" {
		return exit.Cause + ": " + line
	}
	return exit.Cause
}

// deathLine returns the line of a log tail that best explains a death: the first line of a
// Go panic, or the last line. If the last line is JSON, it returns its message and error.
func deathLine(tail []string) string {
	for _, line := range tail {
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			return line
		}
	}
	if len(tail) == 0 {
		return ""
	}
	last := tail[len(tail)-1]
	var record struct{ Msg, Error, Err string }
	if json.Unmarshal([]byte(last), &record) != nil || record.Msg == "" {
		return last
	}
	for _, detail := range []string{record.Error, record.Err} {
		if detail != "" {
			return record.Msg + ": " + detail
		}
	}
	return record.Msg
}
