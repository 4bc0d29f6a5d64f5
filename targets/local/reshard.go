package local

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/shard"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/budget"
)

const (
	// firstLease is the longest time for which the writes of a bucket may be held back by the first attempt of its move.
	// Each further attempt may take twice as long, up to lastLease. Requests wait for 5 s at most.
	firstLease = 80 * time.Millisecond
	lastLease  = 3 * time.Second
	// askBound bounds an attempt.
	askBound = 10 * time.Second
	// movePatience is the time in which a bucket must have moved. A failover of one of its shards is much shorter.
	movePatience = 30 * time.Second
	// breathPeriods is the wait between the copy of a bucket and the hold of its writes, in periods of the CPU budget.
	// With 0.1 cores, the median hold was 48 ms without a wait, and 17 ms with 2.5 periods.
	breathPeriods = 2
	movePoll      = 100 * time.Millisecond
	// loadWindow is the time in which the load of buckets is measured before a directory spreads them.
	loadWindow = 10 * time.Second
	// cleanDelay is longer than any operation of a client that may still read the rows at the old shard.
	cleanDelay = 6 * time.Second
)

// reshard changes the number of shards while the system serves, and moves the buckets that have another shard then. It
// also continues a change that was interrupted: the shards themselves know which buckets they own.
//
// Until the first bucket moves, an error is followed by a rollback. After that the change stays as it is, and a second
// call continues it, or one with the old number undoes it.
func (s *System) reshard(ctx context.Context, next sut.Topology, done *targets.Scaled) error {
	ctx, end, err := s.beginChange(ctx)
	if err != nil {
		return err
	}
	defer end()
	before := s.Topology()
	if err := errors.Join(checkDifference(before, next), s.obstacleToReshard()); err != nil {
		return err
	}
	back := context.WithoutCancel(ctx) // a rollback is not cancelled; each of its steps is bounded
	if err := s.addShards(ctx, next); err != nil {
		s.change(func() { s.adopt(before) })
		return errors.Join(err, s.updateCallers(s.life, sut.DB), s.removeOthers(back, before))
	}
	if err := s.moveBuckets(ctx, before, next, done); err != nil {
		return fmt.Errorf("%w\nall shards stay, and each bucket is at one of them; the same command continues the move", err)
	}
	s.change(func() { s.adopt(next) })
	if err := s.updateCallers(ctx, sut.DB); err != nil {
		return err
	}
	return s.removeOthers(back, next)
}

// addShards starts the shards of a topology that the system does not have. Afterwards all callers know them, and they
// own no bucket.
func (s *System) addShards(ctx context.Context, next sut.Topology) error {
	added, err := s.place(next)
	if err != nil || len(added) == 0 {
		return err
	}
	if err := s.startAll(ctx, added); err != nil {
		return err
	}
	s.change(func() {
		for _, n := range added {
			n.joining = false
		}
		s.adopt(next)
	})
	if err := s.updateMembers(ctx, sut.DB); err != nil {
		return err
	}
	if err := s.superviseDatabases(ctx); err != nil {
		return err
	}
	if err := s.awaitRead(ctx, sut.DB, added); err != nil {
		return err
	}
	for _, n := range added {
		s.lockAndNote(n, "takes part")
	}
	return s.updateCallers(ctx, sut.DB)
}

// obstacleToReshard returns an error if a node is in a state in which no bucket can move.
func (s *System) obstacleToReshard() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		switch {
		case n.frozen && n.state == targets.Serving:
			return errors.New("the system is frozen, so that another one has the machine\ntry again later")
		case n.state == targets.Paused && (n.Role == sut.DB || n.calls(sut.DB)):
			return pausedError(n.Name, "take part in the move")
		}
	}
	return nil
}

// moveBuckets moves all buckets to the shards that they have in a topology, and then deletes their rows at the others.
func (s *System) moveBuckets(ctx context.Context, before, next sut.Topology, done *targets.Scaled) error {
	settings, old := ladder.ShardOf(next.Knobs), ladder.ShardOf(before.Knobs).Count
	known := map[int][]sut.ShardBucket{}
	for i := range max(old, settings.Count) {
		buckets, err := s.askBuckets(ctx, i+1)
		if err != nil {
			return err
		}
		known[i+1] = buckets
	}
	var want shard.Map
	var err error
	if settings.By == ladder.ShardDirectory {
		load, stopped := s.loadOf(ctx, loadWindow)
		if stopped != nil {
			return stopped
		}
		want, err = shard.Balance(known, load, old, settings.Count)
	} else {
		want, err = shard.Fill(shard.By(settings.By), settings.Count)
	}
	if err != nil {
		return err
	}
	plan := shard.NewPlan(known, want)
	if len(plan.Missing) > 0 {
		return fmt.Errorf("no shard has the rows of %d buckets, the first of them is %d: a failover has lost them\n"+
			"see what is known of the losses: stagebench recover", len(plan.Missing), plan.Missing[0])
	}
	moved := targets.Resharded{Least: shard.Least(old, settings.Count)}
	var pauses []time.Duration
	for _, m := range plan.Moves {
		one, err := s.insist(ctx, http.MethodPut, m, &plan.Epoch)
		if err != nil {
			return fmt.Errorf("%d of %d buckets have moved: %w", moved.Buckets, len(plan.Moves), err)
		}
		moved.Buckets++
		moved.Rows += int64(one.Rows)
		pauses = append(pauses, time.Duration(one.PauseNS))
	}
	if len(pauses) > 0 {
		slices.Sort(pauses)
		moved.PauseP50NS, moved.PauseMaxNS = pauses[len(pauses)/2].Nanoseconds(), pauses[len(pauses)-1].Nanoseconds()
	}
	done.Resharded = &moved
	if len(plan.Clean) == 0 {
		return nil
	}
	if err := sleep(ctx, cleanDelay); err != nil {
		return err
	}
	for _, m := range plan.Clean {
		if _, err := s.insist(ctx, http.MethodDelete, m, &plan.Epoch); err != nil {
			return fmt.Errorf("all buckets have moved, but rows are still at their old shards, too: %w", err)
		}
	}
	return nil
}

// loadOf returns what web nodes ask of each bucket within a time.
func (s *System) loadOf(ctx context.Context, d time.Duration) ([]int64, error) {
	before := s.bucketLoad(ctx)
	if err := sleep(ctx, d); err != nil {
		return nil, err
	}
	load := s.bucketLoad(ctx)
	for b := range load[:min(len(load), len(before))] {
		load[b] = max(0, load[b]-before[b]) // less than before: a node was restarted
	}
	return load, nil
}

// bucketLoad sums what all web nodes have asked of each bucket since they started. A node that does not answer counts
// nothing.
func (s *System) bucketLoad(ctx context.Context) []int64 {
	ctx, cancel := context.WithTimeout(ctx, answerBound)
	defer cancel()
	s.mu.Lock()
	var callers []string
	for _, n := range s.nodes {
		if n.Role == sut.Web && n.state == targets.Serving {
			callers = append(callers, n.Name)
		}
	}
	s.mu.Unlock()
	var sum []int64
	for _, name := range callers {
		var load []int64
		if s.call(ctx, name, request{method: http.MethodGet, path: sut.BucketLoadPath, answer: &load}) != nil {
			continue
		}
		sum = append(sum, make([]int64, max(0, len(load)-len(sum)))...)
		for b, n := range load {
			sum[b] += n
		}
	}
	return sum
}

// insist sends a request for the move of a bucket. It tries again while a shard has no primary, with higher epochs. A
// move uses two: that of the copy, and the next one.
func (s *System) insist(
	ctx context.Context, method string, m sut.BucketMove, epoch *int64,
) (moved sut.BucketMoved, err error) {
	late := time.Now().Add(movePatience)
	for lease := firstLease; ; lease = min(2*lease, lastLease) {
		*epoch += 2
		m.Epoch, m.LeaseNS = *epoch, lease.Nanoseconds()
		if err = s.askBucket(ctx, method, m, &moved); err == nil || time.Now().After(late) {
			return moved, err
		}
		if stopped := sleep(ctx, movePoll); stopped != nil {
			return moved, errors.Join(err, stopped)
		}
	}
}

// askBucket sends a request for the move of a bucket to its new shard.
func (s *System) askBucket(ctx context.Context, method string, m sut.BucketMove, answer any) error {
	s.mu.Lock()
	primary := s.databasesOf(m.To)[0].Node
	if host, _ := s.topology.Host(primary); s.opts.Budgets.Isolated() {
		if quota, err := budget.QuotaFor(host.CPU); err == nil {
			m.BreathNS = breathPeriods * quota.Period.Nanoseconds()
		}
	}
	m.Databases = s.allDatabases() // the same each time, so that the shard keeps its connections
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, askBound)
	defer cancel()
	return s.call(ctx, primary, request{method: method, path: sut.BucketsPath, document: m, answer: answer})
}

// askBuckets asks a shard what it knows of buckets.
func (s *System) askBuckets(ctx context.Context, number int) (buckets []sut.ShardBucket, err error) {
	s.mu.Lock()
	primary := s.databasesOf(number)[0].Node
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, answerBound)
	defer cancel()
	return buckets, s.call(ctx, primary, request{method: http.MethodGet, path: sut.BucketsPath, answer: &buckets})
}

// allDatabases lists the databases of all shards, or those of a database without shards. The caller holds mu.
func (s *System) allDatabases() (all []sut.Peer) {
	all = s.databasesOf(0)
	for number := 1; len(s.databasesOf(number)) > 0; number++ {
		all = append(all, s.databasesOf(number)...)
	}
	return all
}

// databasesOf lists the databases of a shard, the primary first. The caller holds mu.
func (s *System) databasesOf(number int) (all []sut.Peer) {
	if set := setIn(s.replicaSets, number); set != nil {
		return s.peers(append([]string{set.roles.Primary}, set.roles.Replicas...))
	}
	for _, n := range s.nodes {
		if n.Role == sut.DB && n.Shard == number {
			all = append(all, n.peer())
		}
	}
	return all
}

// sleep waits for a time, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
