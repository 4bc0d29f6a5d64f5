package cell

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/capacity"
	"github.com/stagebench/stagebench/workloads/driver"
)

// Repeat is what one repeat of a cell has measured, with processes of its own. As JSON it has everything that is needed
// to join it with other repeats as the visits of a run are joined.
type Repeat struct {
	Cell       results.Cell        `json:"cell"`
	Capacity   *capacity.Estimator `json:"capacity"`
	Quiet      *capacity.Estimator `json:"quiet_capacity"` // without the steps that cannot be trusted
	QuietPeaks []float64           `json:"quiet_peaks"`
	Reference  pool                `json:"reference"`
}

// Attached is a target that is not one of our systems.
type Attached struct {
	Name     string // the stage of its cells
	Endpoint *url.URL
	Remote   bool                // on another machine
	Clients  driver.ClientConfig // what all its clients have in common, such as headers
	// Start starts it, and returns when it answers; nil = it always runs. Logs is a directory for its log. Stop stops it,
	// and returns an error if it had ended before.
	Start func(ctx context.Context, logs string) (stop func(context.Context) error, err error)
}

// RepeatName returns the name of the directory of a repeat, counted from 0, in a run directory.
func RepeatName(s Spec, n int) string {
	return path.Join(s.stage(), s.Load.Workload.Name(), s.Variant, fmt.Sprintf("repeat-%d", n+1))
}

// Repeat measures a cell once, with new processes. n is the number of the repeat, from 0: each has arrivals and ops of
// its own. Cancelling ctx ends it early, and Repeat then returns the cause of that.
func (b *Bench) Repeat(ctx context.Context, s Spec, n int) (Repeat, error) {
	r := b.open(s, RepeatName(s, n))
	err := r.failed
	if err == nil {
		err = r.visit(ctx, n, true)
	}
	err = errors.Join(err, r.close(context.WithoutCancel(ctx)), context.Cause(ctx))
	return Repeat{r.cell, r.estimator, r.quiet.estimator, r.quiet.peaks, r.reference}, err
}

// Join returns the cell of several repeats.
func (b *Bench) Join(s Spec, repeats []Repeat) Joined {
	if len(repeats) == 0 {
		return Joined{Cell: b.describe(s)}
	}
	r := b.newRun(s, b.describe(s))
	for _, p := range repeats {
		r.join(p)
	}
	c, estimate := r.concluded()
	return Joined{c, estimate}
}

// join adds a repeat to the measurement of its cell.
func (r *cellRun) join(p Repeat) {
	c, more := &r.cell, p.Cell
	c.Steps, c.Peaks = append(c.Steps, more.Steps...), append(c.Peaks, more.Peaks...)
	c.Speeds, c.Failovers = append(c.Speeds, more.Speeds...), append(c.Failovers, more.Failovers...)
	for _, w := range more.Warnings {
		if !slices.Contains(c.Warnings, w) {
			c.Warnings = append(c.Warnings, w)
		}
	}
	c.BringUpNS, c.WarmupCutNS = more.BringUpNS, max(c.WarmupCutNS, more.WarmupCutNS)
	maps.Copy(c.Versions, more.Versions)
	if more.Writes != nil {
		if c.Writes == nil {
			c.Writes = &results.Writes{}
		}
		c.Writes.Add(*more.Writes)
	}
	r.estimator.Append(p.Capacity)
	r.quiet.estimator.Append(p.Quiet)
	r.quiet.peaks = append(r.quiet.peaks, p.QuietPeaks...)
	r.reference.merge(p.Reference)
}

// attach starts a target that is not ours, and returns a stepper for it.
func (r *cellRun) attach(ctx context.Context) (err error) {
	if r.Attached.Start != nil {
		if r.down, err = r.Attached.Start(ctx, r.logs); err != nil {
			return err
		}
	}
	config := r.Attached.Clients
	config.Endpoint, config.Sources = r.Attached.Endpoint, Sources(r.Attached.Endpoint, r.Seed)
	config.Connections, config.ConnectionLife, config.DialTimeout = r.Connections, r.ConnectionLife, dialTimeout
	config.Log = r.Log
	clients, err := driver.NewClients(config)
	if err != nil {
		return err
	}
	r.stepper = &Stepper{
		Driver: r.Driver, Clients: clients, Workload: r.Load.Workload, SLO: r.SLO, Timeout: opTimeout, Drain: drainAtStop,
		Progress: r.Progress, ClientCores: float64(Cores()), Remote: r.Attached.Remote, Log: r.files.log,
		timeline: r.files.timeline,
	}
	return nil
}
