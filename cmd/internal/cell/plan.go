package cell

import (
	"time"

	"github.com/stagebench/stagebench/results/capacity"
	"github.com/stagebench/stagebench/sut"
)

// Plan says how long and how finely a cell is measured.
type Plan struct {
	Mode string // "quick", "default", "full"

	ReferenceRPS     float64       // the rate that all cells have in common
	ReferenceSeconds time.Duration // long enough for ten samples beyond the 99th percentile
	StepSeconds      time.Duration // one search step
	ConfirmSeconds   time.Duration // one confirmation
	WarmupSlice      time.Duration // one slice of the warm-up
	WarmupSlices     int           // at most
	Search           capacity.Config
	Repeats          int // with restarted processes
}

// Quick is a look at the ladder in about a minute.
func Quick() Plan {
	p := Default()
	p.Mode = "quick"
	p.ReferenceRPS, p.ReferenceSeconds = 100, 3*time.Second
	p.StepSeconds, p.ConfirmSeconds = time.Second, 1500*time.Millisecond
	p.WarmupSlice, p.WarmupSlices = 500*time.Millisecond, 2
	p.Search.Precision, p.Search.Steps, p.Search.Confirms = 0.25, 5, 1
	return p
}

// Default is what `make run` shows: a bracket of 10 % for each of six cells
// within four minutes.
func Default() Plan {
	return Plan{
		Mode:         "default",
		ReferenceRPS: 100, ReferenceSeconds: 10 * time.Second,
		StepSeconds: 2500 * time.Millisecond, ConfirmSeconds: 4 * time.Second,
		WarmupSlice: time.Second, WarmupSlices: 4,
		Search:  capacity.Config{Start: 200, Factor: 2, Precision: 0.10, Min: 5, Max: 50_000, Steps: 7, Confirms: 3},
		Repeats: 1,
	}
}

// Full repeats every cell with restarted processes, for an interval.
func Full() Plan {
	p := Default()
	p.Mode = "full"
	p.ReferenceSeconds = 30 * time.Second
	p.StepSeconds, p.ConfirmSeconds = 10*time.Second, 20*time.Second
	p.WarmupSlices = 10
	p.Search.Precision, p.Search.Steps, p.Search.Confirms = 0.05, 12, 5
	p.Repeats = 5
	return p
}

// Times that the estimate counts with, besides what the plan fixes.
const (
	bringUp    = 2500 * time.Millisecond // embedded, template there, users logged in
	bringUpDB  = 3500 * time.Millisecond // with native engines
	typicalOps = 5                       // search steps of a cell
	shutDown   = 500 * time.Millisecond
)

// Estimate is how long that many cells will take.
func (p Plan) Estimate(cells int, native bool) time.Duration {
	one := bringUp + shutDown
	if native {
		one = bringUpDB + shutDown
	}
	one += p.WarmupSlice*time.Duration((p.WarmupSlices+1)/2) + p.ReferenceSeconds + p.ConfirmSeconds
	one += p.StepSeconds * time.Duration(min(typicalOps, p.Search.Steps))
	return time.Duration(cells*p.Repeats) * one
}

// Reserve is the part of the machine, in cores, that no host gets: the driver
// has it for itself.
func Reserve(cores int) float64 {
	return min(0.5, float64(cores)/4)
}

// Unit is the size of the unit on a machine with that many cores.
func Unit(cores int) float64 { return sut.UnitCPU(cores, Reserve(cores)) }
