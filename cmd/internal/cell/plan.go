package cell

import (
	"runtime"
	"time"

	"github.com/stagebench/stagebench/results/capacity"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
)

// Plan says how long and how finely a cell is measured.
type Plan struct {
	Mode string // "quick", "default", "full"

	ReferenceRPS float64       // the rate that all cells have in common
	Reference    time.Duration // long enough for ten samples beyond the 99th percentile
	Step         Length        // of a search step
	Confirm      Length        // of a confirmation
	WarmupSlice  time.Duration // one slice of the warm-up
	WarmupSlices int           // at most
	Search       capacity.Config
	Repeats      int // with restarted processes
}

// Length is how long a step lasts: until it should have so many ops, within
// bounds. At a low rate a short step would be judged by a handful of them.
type Length struct {
	Ops      int
	Min, Max time.Duration
}

// At is the length at that rate.
func (l Length) At(rate float64) time.Duration {
	return min(max(time.Duration(float64(l.Ops)/rate*float64(time.Second)), l.Min), l.Max)
}

// Quick is a look at the ladder in about a minute.
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

// Default is what `make run` shows: a bracket of 10 % for each of six cells
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

// Full repeats every cell with restarted processes, for an interval.
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

// What the estimate counts with, besides what the plan fixes: typical figures
// of the default run.
const (
	bringUp      = 2 * time.Second // with the users' logins and the way down
	bringUpDB    = 4 * time.Second // with native engines
	typicalSteps = 4               // search steps of full length; failing ones end early, but are made twice
)

// Estimate is how long that many cells of a workload will take, which replays a
// trace of that length; 0 = it is no trace.
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

// Cores is how many cores this process may use: those of its affinity, and no
// more than a quota gives it.
func Cores() int { return runtime.GOMAXPROCS(0) }

// FreeFor is how many cores are left for the client beside the isolated hosts of
// a system.
func FreeFor(usage targets.Usage) float64 {
	free := float64(Cores())
	for _, h := range usage.Hosts {
		if h.Isolated {
			free -= h.CPU
		}
	}
	return max(free, 0.1)
}

// Reserve is the part of the machine, in cores, that no host gets: the driver
// has it for itself.
func Reserve(cores int) float64 {
	return min(0.5, float64(cores)/4)
}

// Unit is the size of the unit on a machine with that many cores.
func Unit(cores int) float64 { return ladder.UnitCPU(cores, Reserve(cores)) }
