package cell

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/history"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/faults"
	"github.com/stagebench/stagebench/targets/local"
	"github.com/stagebench/stagebench/workloads/driver"
)

// Fixed is a cell at one rate, without a search.
type Fixed struct {
	RPS      float64
	Duration time.Duration
	Faults   faults.Schedule // what is done meanwhile; may be empty
}

// fixedRate warms up and measures one rate, while faults are injected.
func (r *repeat) fixedRate(ctx context.Context, system *local.System) error {
	if err := r.warmUp(ctx, r.Fixed.RPS); err != nil {
		return err
	}
	if len(r.Fixed.Faults) > 0 {
		r.stepper.During = func(ctx context.Context, start time.Time) []targets.Event {
			return faults.Run(ctx, r.Fixed.Faults, start, system)
		}
	}
	step, err := r.step(ctx, "fixed", r.Fixed.RPS, r.Fixed.Duration)
	r.setReference(&step)
	return err
}

// How records are read back: with replicas that are behind on purpose, their lag
// comes on top of the patience, and with a cache the time that an old record may
// stay there.
const (
	readBackPatience = 5 * time.Second
	readBackPause    = 50 * time.Millisecond
)

// findWrites reads every record that was written to back through the target, and
// adds to the cell what became of the writes. It does so where some can have been
// lost: when there are replicas or write-back, and after faults.
func (r *repeat) findWrites(ctx context.Context, system *local.System) error {
	c := r.cell
	databases := 0
	t := system.Topology()
	cache := ladder.CacheOf(t.Knobs)
	for _, n := range t.Nodes {
		if n.Role == sut.DB {
			databases++
		}
	}
	back := cache.HoldsBack()
	if databases < 2 && !back && (r.Fixed == nil || len(r.Fixed.Faults) == 0) {
		return nil
	}
	if back {
		// What is read from the cache before it is flushed is not known to be there.
		if err := awaitFlushed(ctx, system, cache.FlushInterval+readBackPatience); err != nil {
			c.Warnf("%v", err)
		}
	}
	patience := readBackPatience + ladder.DBOf(t.Knobs).ReplicaLag
	if cache.Hosts > 0 {
		patience += cache.TTL
	}
	how := driver.ReadBack{Timeout: opTimeout, Patience: patience, Pause: readBackPause}
	writes, err := FindWrites(ctx, r.stepper.History, r.stepper.Clients, how)
	if err != nil {
		return err
	}
	if c.Writes == nil {
		c.Writes = &results.Writes{}
	}
	sum := c.Writes
	sum.Acknowledged += writes.Acknowledged
	sum.Lost += writes.Lost
	sum.Ambiguous += writes.Ambiguous
	sum.AmbiguousApplied += writes.AmbiguousApplied
	sum.Unread += writes.Unread
	for _, n := range system.Status() {
		sum.Conflicts += n.Conflicts
	}
	if writes.Unread > 0 {
		c.Warnf("%d records could not be read back after the measurement: more writes may be lost than were found",
			writes.Unread)
	}
	return nil
}

// awaitFlushed waits until no cache host holds writes that the database does not have.
func awaitFlushed(ctx context.Context, system *local.System, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		hosts, err := CacheHosts(ctx, system.Status())
		var left int64
		for _, h := range hosts {
			if h.WriteBack != nil {
				left += h.WriteBack.Unflushed
			}
		}
		if err == nil && left == 0 {
			return nil
		}
		select {
		case <-time.After(readBackPause):
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%d acknowledged writes were not flushed within %v after the measurement",
				left, patience), err)
		}
	}
}

// FindWrites reads every record that was written to back, when no op is in flight
// any more, and says what became of the writes; see history.Resolve for what that
// cannot tell. Reads go where the target sends them: a replica that is behind is
// waited for as long as how allows, and what it lacks after that counts as lost.
func FindWrites(
	ctx context.Context, seen *history.Recorder, clients *driver.Clients, how driver.ReadBack,
) (results.Writes, error) {
	written := seen.Written()
	want := map[string]int64{}
	for _, w := range written {
		want[w.Record] = w.Highest()
	}
	readBack, err := clients.Versions(ctx, want, how)
	if err != nil {
		return results.Writes{}, err
	}
	return history.Resolve(written, readBack), nil
}
