package cell

import (
	"math"
	"runtime"
	"time"

	"github.com/stagebench/stagebench/results/capacity"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/workloads/driver"
	"github.com/stagebench/stagebench/workloads/pace"
)

// Plan configures durations and precision of the measurement of a cell.
type Plan struct {
	Mode string // "quick", "default", "full"

	Visits  int  // of each cell
	Freeze  bool // systems stay up between the visits, frozen; otherwise they are restarted
	Repeats int  // measurements of a fixed rate or a trace, with restarted processes

	Shape pace.Shape // of the schedule of all steps; the mean of each step is its rate

	ReferenceRPS float64       // the reference rate, equal in all cells
	Reference    time.Duration // of each visit; five give ten samples beyond the 99th percentile
	Peak         time.Duration // of each visit, after the cut
	FirstPeak    float64       // rate of the first step at the peak, requests/s; raised if it is no overload
	Step         Length        // of a step near the capacity, after the cut
	WarmupSlice  time.Duration // of one warm-up step
	WarmupSlices int           // maximum number of warm-up steps after a start
	Search       capacity.Config
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

// Quick is the plan for a rough measurement of the ladder: one visit with short steps.
func Quick() Plan {
	p := Default()
	p.Mode = "quick"
	p.Visits, p.Search.First = 1, 5
	p.Reference, p.Peak = 1500*time.Millisecond, time.Second
	p.Step = Length{Ops: 200, Min: 800 * time.Millisecond, Max: 1500 * time.Millisecond}
	p.WarmupSlice, p.WarmupSlices = 500*time.Millisecond, 2
	return p
}

// Default is the plan of `make run`.
func Default() Plan {
	return Plan{
		Mode: "default", Visits: 5, Repeats: 1, Freeze: true,
		ReferenceRPS: 100, Reference: 2250 * time.Millisecond, Peak: 2 * time.Second, FirstPeak: 2000,
		Step:        Length{Ops: 600, Min: 2 * time.Second, Max: 8 * time.Second},
		WarmupSlice: time.Second, WarmupSlices: 3,
		Search: capacity.Config{Start: 200, Min: 5, Max: 50_000, First: 6, Steps: 3},
	}
}

// fewCells is the number of cells up to which each has all visits of the default plan.
const fewCells = 8

// Across returns the default plan for this number of cells. If there are many, each is visited less often, and with
// more than 13 cells, twice and with shorter steps. So the whole ladder with two workloads takes less than eight
// minutes, and its intervals are wider than those of a few stages.
func (p Plan) Across(cells int) Plan {
	if p.Mode != Default().Mode || cells <= fewCells {
		return p
	}
	p.Visits = max(2, fewCells*p.Visits/cells)
	if p.Visits == 2 {
		p.Search.First, p.Search.Steps = 4, 2
		p.Reference, p.Peak = 1500*time.Millisecond, time.Second
		p.Step = Length{Ops: 200, Min: 700 * time.Millisecond, Max: 1750 * time.Millisecond}
		p.WarmupSlice, p.WarmupSlices = 500*time.Millisecond, 3
	}
	return p
}

// smallUnit is the CPU unit for which the rates of the plans are meant, that of two cores.
const smallUnit = 0.1

// For returns the plan with the rates for hosts of another CPU unit. Larger hosts have a higher capacity, and a
// reference rate that costs them as large a part of their CPU.
func (p Plan) For(unit float64) Plan {
	larger := max(1, unit/smallUnit)
	for _, rate := range []*float64{&p.ReferenceRPS, &p.FirstPeak, &p.Search.Start, &p.Search.Max} {
		*rate = math.Round(*rate * larger)
	}
	return p
}

// Full is the plan with the highest precision: five times as many visits as the default one.
func Full() Plan {
	p := Default()
	p.Mode, p.Visits, p.Repeats = "full", 25, 5
	p.WarmupSlices = 10
	return p
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

// Reserve returns the number of cores that are reserved for the driver: a quarter. Hosts do not get them. Measured, a
// request costs the driver 0.3 ms of CPU, and the hosts of the cheapest cell 0.7 ms.
func Reserve(cores int) float64 { return float64(cores) / 4 }

// Connections returns the usual number of connections of the driver: enough to keep all hosts busy.
func Connections(cores int) int { return max(64, 32*cores) }

// Unit returns the size of one CPU unit, in cores, on a machine with the given number of
// cores.
func Unit(cores int) float64 { return ladder.UnitCPU(cores, Reserve(cores)) }
