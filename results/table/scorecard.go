package table

import (
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results/scorecard"
)

// Scorecard shows the answers to the six questions of a web architect, one row for each stage.
func Scorecard(stages []scorecard.Stage, currency string) Table {
	type stage = scorecard.Stage
	known := func(cell func(stage) Cell) func(stage) Cell {
		return func(s stage) Cell {
			if s.Error != "" {
				return Cell{}
			}
			return cell(s)
		}
	}
	numbers := func(name, key string, cell func(stage) Cell) column[stage] { return numbers(name, key, known(cell)) }
	const growth = "Growth, operation and cost"
	t := newTable("Scorecard", slices.Concat([]column[stage]{
		identifying("stage", func(s stage) Cell { return Text(s.Stage).With(s.Notes...) }),
		{Column{Name: "errors\nat worst", Key: "worst_errors_share", Align: Right}, worstErrors},
		words("when this\ndies", "worst_role", func(s stage) Cell {
			worst, _ := s.Worst()
			return textOrNothing(worst.Role)
		}),
		numbers("peak\nrps", "peak_rps", func(s stage) Cell { return Rate(s.PeakRPS) }),
		numbers("p50 ms", "p50_ns", func(s stage) Cell {
			if s.P50NS == nil {
				return Blank()
			}
			return Nanoseconds(*s.P50NS)
		}),
		numbers("lost\nwrites", "lost_writes", func(s stage) Cell { return Count(s.Lost) }),
		numbers("of", "acknowledged_writes", func(s stage) Cell { return Count(s.Acknowledged) }),
		numbers("lost\nsessions", "lost_sessions", func(s stage) Cell { return Count(s.SessionsLost) }),
		numbers("stale\nreads", "stale_share", func(s stage) Cell { return Share(s.StaleShare) }),
	}, in(growth,
		numbers("one more\nweb host", "gain", func(s stage) Cell {
			if s.Gain == nil {
				return Blank()
			}
			return Cell{Text: "x" + significant(*s.Gain, 3), Value: *s.Gain}
		}),
		numbers("nodes", "", func(s stage) Cell { return Count(int64(s.Nodes)) }),
		numbers("hosts", "", func(s stage) Cell { return Count(int64(s.Hosts)) }),
		numbers("up after\nms", "bring_up_ns", func(s stage) Cell { return Nanoseconds(s.BringUpNS) }),
		numbers("replaced\nafter ms", "replaced_ns", func(s stage) Cell {
			if slowest := s.Slowest(); slowest != nil {
				return Nanoseconds(*slowest)
			}
			return Blank("a host was not replaced in time")
		}),
		numbers("host-hours\nper million", "host_hours_per_million", func(s stage) Cell { return threeDigits(s.HostHours) }),
		numbers(currency+"\nper million", "money_per_million", func(s stage) Cell { return threeDigits(s.Money) }),
	)), stages, "errors at worst: the share of requests that failed from the kill of one host until the next kill, for "+
		"the host whose death cost most; each of them is below",
		"peak: successes per second under overload; p50: response time at the reference rate",
		"lost: over all kills; stale: reads that returned an older version than one acknowledged before")
	t.PartLegend = map[string][]string{growth: {
		"one more web host: the peak with it, divided by the peak",
		"up: the time to bring the system up; replaced: the longest time until a killed host served again",
		"per million: of requests at the peak",
	}}
	return t
}

// threeDigits shows a number that may be unknown.
func threeDigits(x *float64) Cell {
	if x == nil {
		return Blank("no rate was found that succeeded")
	}
	return Cell{Text: significant(*x, 3), Value: *x}
}

func worstErrors(s scorecard.Stage) Cell {
	if s.Error != "" {
		return Cell{Text: "failed", Notes: []string{s.Error}, Bad: true}
	}
	worst, ok := s.Worst()
	if !ok {
		return Blank()
	}
	return Share(worst.Share())
}

// Sizings shows stages with the hosts of a tier in several numbers and sizes, one row for each.
func Sizings(all []scorecard.Sizing, tier, currency string) Table {
	type sizing = scorecard.Sizing
	row := func(s sizing) ladderRow { return ladderRow{Cell: s.Cell} }
	gained := func(s sizing) Cell {
		switch {
		case s.Cell.Gain != nil && !s.BaseValid:
			return gain(*s.Cell.Gain).With("the capacity with one host is not valid, so this ratio is not valid either")
		case s.Cell.Gain != nil:
			return gain(*s.Cell.Gain)
		case s.Base || s.Cell.Error != "":
			return Cell{}
		}
		return Blank("it has no capacity to compare, or one host has none")
	}
	const price = "Latency and price"
	t := newTable("Scale up and out: "+all[0].Cell.Workload, slices.Concat([]column[sizing]{
		identifying("stage", func(s sizing) Cell { return Text(s.Cell.Stage) }),
		machineOnly("workload", func(s sizing) Cell { return Text(s.Cell.Workload) }),
		{
			Column{Name: tier + "\nhosts", Key: "hosts", Align: Right, Row: true},
			func(s sizing) Cell { return Count(int64(s.Hosts)) },
		},
		{
			Column{Name: "units\neach", Key: "units", Align: Right, Row: true},
			func(s sizing) Cell { return Number(s.Units) },
		},
	}, capacityColumns("against one", gained, row), []column[sizing]{
		words("limited by", "limited_by", func(s sizing) Cell { return row(s).ifLookedFor(Text(s.Cell.LimitedBy)) }),
		words("valid", "", func(s sizing) Cell { return row(s).valid() }),
	}, in(price,
		numbers("p99 ms", "p99_ns", func(s sizing) Cell { return p99(row(s).measured().ResponseAll) }),
		numbers(currency+"\nan hour", "money_per_hour", func(s sizing) Cell { return threeDigits(&s.Hour) }),
		numbers(currency+"\nper million", "money_per_million", func(s sizing) Cell {
			if s.Cell.Error != "" {
				return Cell{}
			}
			return threeDigits(s.Money)
		}),
	)), all, "against one: the capacity divided by that with one host, with its 90 % interval")
	t.PartLegend = map[string][]string{price: {
		"p99: response time at the reference rate",
		"memory budgets, such as cache.memory_mb, are those of each host",
		"an hour: of the " + tier + " hosts; per million: of requests at the capacity, with all hosts",
	}}
	return t
}

// Kills shows what each killed host cost.
func Kills(stages []scorecard.Stage) Table {
	type kill struct {
		stage string
		rate  float64
		scorecard.Loss
	}
	var rows []kill
	for _, s := range stages {
		for _, l := range s.Losses {
			rows = append(rows, kill{s.Stage, s.Rate, l})
		}
	}
	return newTable("Killed hosts", []column[kill]{
		identifying("stage", func(k kill) Cell { return Text(k.stage) }),
		identifying("role", func(k kill) Cell { return Text(k.Role) }),
		words("host", "", func(k kill) Cell { return Text(k.Host) }),
		words("nodes", "", func(k kill) Cell { return Text(strings.Join(k.Nodes, " ")) }),
		numbers("failed", "", func(k kill) Cell { return Count(k.Failed) }),
		numbers("of requests", "failed_share", func(k kill) Cell { return Share(k.Share()) }),
		numbers("failures for ms", "outage_ns", func(k kill) Cell { return Nanoseconds(k.OutageNS) }),
		numbers("replaced after ms", "replaced_ns", func(k kill) Cell {
			if k.ReplacedNS == nil {
				return Blank("it did not serve again before the end of the measurement")
			}
			return Nanoseconds(*k.ReplacedNS)
		}),
		machineOnly("rate_rps", func(k kill) Cell { return Rate(k.rate) }),
		machineOnly("at_ns", func(k kill) Cell { return Nanoseconds(k.AtNS) }),
	}, rows, "failures for: from the first failed request to the last one; replaced: until all nodes of the host served "+
		"again")
}
