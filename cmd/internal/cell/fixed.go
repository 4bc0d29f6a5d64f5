package cell

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/hdr"
	"github.com/stagebench/stagebench/results/history"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/faults"
	"github.com/stagebench/stagebench/targets/local"
	"github.com/stagebench/stagebench/workloads/driver"
)

// Fixed configures a measurement at one rate, without a capacity.
type Fixed struct {
	RPS      float64
	Duration time.Duration
	Faults   faults.Schedule // faults injected during the measurement; may be empty
}

// fixedRate warms up and measures one rate while faults are injected.
func (r *cellRun) fixedRate(ctx context.Context) error {
	r.begin(warming)
	if err := r.warmUp(ctx, r.Fixed.RPS, r.Plan.WarmupSlices); err != nil {
		return err
	}
	r.begin(steadily)
	if len(r.Fixed.Faults) > 0 {
		system := r.system
		r.stepper.Faults = func(ctx context.Context, start time.Time) []targets.Event {
			return faults.Run(ctx, r.Fixed.Faults, start, system)
		}
	}
	if err := r.referenceSlice(ctx, "fixed", r.Fixed.RPS, r.Fixed.Duration); err != nil {
		return err
	}
	return r.awaitProcessed(ctx, &r.cell.Steps[len(r.cell.Steps)-1])
}

// Failovers returns the failovers of a target as results.
func Failovers(all []targets.Failover) (failovers []results.Failover) {
	for _, f := range all {
		failovers = append(failovers, results.Failover(f))
	}
	return failovers
}

// Settings for reading records back. The configured replica lag is added to the patience.
const (
	readBackPatience = 5 * time.Second
	readBackPause    = 50 * time.Millisecond
)

// checkWrites reads back every written record through the target and adds the counts of
// acknowledged and lost writes to the cell. It runs only if writes can be lost: with
// replicas or shards, with write-back, or after faults.
func (r *cellRun) checkWrites(ctx context.Context) error {
	c, system := &r.cell, r.system
	databases := 0
	t := system.Topology()
	cache := ladder.CacheOf(t.Knobs)
	for _, n := range t.Nodes {
		if n.Role == sut.DB {
			databases++
		}
	}
	back := cache.WritesBack()
	if databases < 2 && !back && (r.Fixed == nil || len(r.Fixed.Faults) == 0) {
		return nil
	}
	if back {
		// Before the flush, a read from the cache does not prove that the database has the write.
		if err := awaitFlushed(ctx, system, cache.FlushInterval+readBackPatience); err != nil {
			c.Warnf("%v", err)
		}
	}
	config := driver.ReadBack{
		Timeout: opTimeout, MaxWait: readBackPatience + ladder.DBOf(t.Knobs).ReplicaLag, Pause: readBackPause,
	}
	writes, err := CheckWrites(ctx, r.stepper.History, r.stepper.Clients, config)
	if err != nil {
		return err
	}
	if c.Writes == nil {
		c.Writes = &results.Writes{}
	}
	discarded := mostDiscarded(system.Status())
	writes.Conflicts, writes.Discarded = discarded.Conflicts, discarded.Differences
	c.Writes.Add(writes)
	for _, lost := range system.Losses() {
		if lost.Unknown {
			c.Warnf("%s: %s", lost.Node, lost.Partial)
		}
	}
	if writes.Unread > 0 {
		c.Warnf("%d records could not be read back after the measurement: more writes may be lost than counted",
			writes.Unread)
	}
	return nil
}

// mostDiscarded returns what a multi-primary database discarded. All nodes count the same, but some may still miss
// changes, so the highest count is the one to use.
func mostDiscarded(nodes []targets.NodeStatus) (most sut.Discarded) {
	for _, n := range nodes {
		if n.Conflicts > most.Conflicts {
			most = n.Discarded
		}
	}
	return most
}

// awaitFlushed waits until no cache host holds unflushed writes.
func awaitFlushed(ctx context.Context, system *local.System, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		hosts, err := CacheNodes(ctx, system.Status())
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

// CheckWrites reads back every written record and counts acknowledged, lost and ambiguous
// writes; see history.Resolve for the limits of this method. No op may be in flight. The
// target decides which replica answers a read. CheckWrites waits for a lagging replica up
// to config.MaxWait; writes that are missing after that count as lost.
func CheckWrites(
	ctx context.Context, seen *history.Recorder, clients *driver.Clients, config driver.ReadBack,
) (results.Writes, error) {
	written := seen.Written()
	want := map[string]int64{}
	for _, w := range written {
		want[w.Record] = w.Highest()
	}
	readBack, err := clients.ReadVersions(ctx, want, config)
	if err != nil {
		return results.Writes{}, err
	}
	return history.Resolve(written, readBack), nil
}

// made is a record that an op of a step made.
type made struct {
	record          string
	intended, acked int64 // since the start of the step
}

// DefaultPatience is how long the end of the processing of uploads is waited for.
const DefaultPatience = time.Minute

// processingPause is the time between two reads of a photo that is processing.
const processingPause = 200 * time.Millisecond

// awaitProcessed adds to a step what became of its uploads, which workers process. Without workers it does nothing.
func (r *cellRun) awaitProcessed(ctx context.Context, step *results.Step) error {
	worker := func(n sut.Node) bool { return n.Role == sut.Worker }
	if !slices.ContainsFunc(r.Topology.Nodes, worker) {
		return nil
	}
	r.stepper.Patience = DefaultPatience + ladder.DBOf(r.Topology.Knobs).ReplicaLag
	var err error
	step.Processing, err = r.stepper.AwaitProcessed(ctx)
	if p := step.Processing; p != nil && p.Missing+p.Unfinished > 0 {
		r.cell.Warnf("of %d acknowledged uploads, %d do not exist any more and %d were still processing %v after the step",
			p.Uploaded, p.Missing, p.Unfinished, r.stepper.Patience)
	}
	return err
}

// AwaitProcessed reads the photos that the last step uploaded until workers have processed them, for Patience at most.
// It returns what became of them; nil if there were none.
func (s *Stepper) AwaitProcessed(ctx context.Context) (*results.Processing, error) {
	if len(s.made) == 0 {
		return nil, nil
	}
	uploads := map[string]*results.Upload{}
	var paths []string
	for _, m := range s.made {
		uploads[m.record] = &results.Upload{Intended: m.intended, Acked: m.acked, End: results.UploadUnfinished}
		paths = append(paths, m.record)
	}
	config := driver.ReadBack{Timeout: opTimeout, MaxWait: cmp.Or(s.Patience, DefaultPatience), Pause: processingPause}
	start := s.begun.UnixNano()
	err := s.Clients.ReadUntil(ctx, paths, config, func(path string, status int, body []byte) bool {
		u := uploads[path] // each path is read by one goroutine at a time
		if status == http.StatusNotFound {
			u.End = results.UploadMissing // a replica may not have it yet
			return false
		}
		var photo photos.Photo
		if status != http.StatusOK || json.Unmarshal(body, &photo) != nil {
			return false
		}
		u.Done = photo.DoneUS*int64(time.Microsecond) - start
		switch photo.State {
		case photos.StateReady:
			u.End = results.UploadReady
		case photos.StateFailed:
			u.End = results.UploadFailed
		default:
			u.End = results.UploadUnfinished
			return false
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	var all []results.Upload
	done, unended := hdr.NewHistogram(), int64(0)
	for _, path := range paths {
		u := *uploads[path]
		all = append(all, u)
		if u.End == results.UploadReady || u.End == results.UploadFailed {
			done.Record(u.Done - u.Intended)
		} else {
			unended++
		}
	}
	processing := results.NewProcessing(all)
	processing.DoneNS = done.Latency(unended)
	return processing, nil
}
