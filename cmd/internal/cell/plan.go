package cell

import (
	"runtime"
	"time"

	"github.com/stagebench/stagebench/results/capacity"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/workloads/driver"
)

// Plan configures durations and precision of the measurement of a cell.
type Plan struct {
	Mode string // "quick", "default", "full"

	ReferenceRPS float64       // the reference rate, equal in all cells
	Reference    time.Duration // of the reference step: ten samples beyond the 99th percentile
	Step         Length        // of a search step
	Confirm      Length        // of a confirmation step
	WarmupSlice  time.Duration // of one warm-up step
	WarmupSlices int           // maximum number of warm-up steps
	Search       capacity.Config
	Repeats      int // measurements of each cell, with restarted processes
}

// Length is the duration of a step: the time for the given number of ops, within Min and
// Max. With a fixed short duration, a step at a low rate would have too few ops to judge.
type Length struct {
	Ops      int
	Min, Max time.Duration
}

// At returns the length at a rate in ops per second.
func (l Length) At(rate float64) time.Duration {
	return min(max(time.Duration(float64(l.Ops)/rate*float64(time.Second)), l.Min), l.Max)
}

// Quick is the plan for a rough measurement of the ladder, with short steps.
func Quick() Plan {
	p := Default()
	p.Mode = "quick"
	p.Reference = 2500 * time.Millisecond
	p.Step = Length{Ops: 200, Min: 800 * time.Millisecond, Max: 1500 * time.Millisecond}
	p.Confirm = Length{Ops: 300, Min: time.Second, Max: 1500 * time.Millisecond}
	p.WarmupSlice, p.WarmupSlices = 500*time.Millisecond, 2
	p.Search.Precision, p.Search.Steps, p.Search.Confirms = 0.25, 5, 3
	return p
}

// Default is the plan of `make run`: it narrows the capacity of each of six cells to 10 %
// within four minutes.
func Default() Plan {
	return Plan{
		Mode:         "default",
		ReferenceRPS: 100, Reference: 11 * time.Second,
		Step:        Length{Ops: 600, Min: 1500 * time.Millisecond, Max: 3 * time.Second},
		Confirm:     Length{Ops: 1200, Min: 2500 * time.Millisecond, Max: 5 * time.Second},
		WarmupSlice: time.Second, WarmupSlices: 3,
		Search:  capacity.Config{Start: 200, Factor: 2, Precision: 0.10, Min: 5, Max: 50_000, Steps: 7, Confirms: 4},
		Repeats: 1,
	}
}

// Full is the plan with the highest precision. It repeats every cell with restarted
// processes and so gives the spread of the capacity.
func Full() Plan {
	p := Default()
	p.Mode = "full"
	p.Reference = 30 * time.Second
	p.Step = Length{Ops: 3000, Min: 5 * time.Second, Max: 15 * time.Second}
	p.Confirm = Length{Ops: 6000, Min: 10 * time.Second, Max: 30 * time.Second}
	p.WarmupSlices = 10
	p.Search.Precision, p.Search.Steps, p.Search.Confirms = 0.05, 12, 5
	p.Repeats = 5
	return p
}

// Typical values of a default run, used by Estimate.
const (
	bringUp      = 2 * time.Second // start, logins and stop with embedded engines
	bringUpDB    = 4 * time.Second // the same with native engines
	typicalSteps = 4               // duration of a search in full steps; a failing step is shorter but repeated once
)

// Estimate returns the expected time to measure the given number of cells. Trace is the
// length of the replayed trace; 0 = no trace.
func (p Plan) Estimate(cells int, native bool, trace time.Duration) time.Duration {
	one := bringUp
	if native {
		one = bringUpDB
	}
	if trace > 0 {
		return time.Duration(cells*p.Repeats) * (one + trace)
	}
	one += p.WarmupSlice*time.Duration((p.WarmupSlices+1)/2) + p.Reference
	one += time.Duration(typicalSteps*float64(p.Step.Min+p.Step.Max)/2) + p.Confirm.Max
	return time.Duration(cells*p.Repeats) * one
}

// Cores returns the number of cores that this process may use by CPU affinity and quota.
func Cores() int { return runtime.GOMAXPROCS(0) }

// ClientCores returns the number of cores that the isolated hosts of a system leave for
// the client, at least 0.1.
func ClientCores(usage targets.Usage) float64 {
	free := float64(Cores())
	for _, h := range usage.Hosts {
		if h.Isolated {
			free -= h.CPU
		}
	}
	return max(free, 0.1)
}

// DriverPriority returns the priority that the driver has while a step runs, for people: whether
// it is the real-time priority, and if not, why. Isolated says that all hosts of the target are.
func DriverPriority(isolated bool) (description string, realTime bool) {
	if !isolated {
		return "ordinary (hosts are not isolated)", false
	}
	lower, err := driver.RaisePriority()
	if err != nil {
		return "ordinary (" + err.Error() + ")", false
	}
	lower()
	return "real-time", true
}

// Reserve returns the number of cores that are reserved for the driver. Hosts do not get
// them.
func Reserve(cores int) float64 {
	return min(0.5, float64(cores)/4)
}

// Unit returns the size of one CPU unit, in cores, on a machine with the given number of
// cores.
func Unit(cores int) float64 { return ladder.UnitCPU(cores, Reserve(cores)) }
