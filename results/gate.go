package results

import "fmt"

// The verdicts on a gate, and without GateInvalid those on a metric.
const (
	GateUndecided    = "undecided" // more blocks are needed
	GatePass         = "pass"
	GateRegression   = "regression"
	GateInconclusive = "inconclusive" // the last look did not decide
	GateInvalid      = "invalid"      // too many blocks were dropped
)

// Gate compares a new version of a service, the head, with an old one, the base. Package gate defines the statistics.
type Gate struct {
	Base    string `json:"base"` // as the user named it
	Head    string `json:"head"`
	Verdict string `json:"verdict"` // GatePass and so on; GateUndecided = it was interrupted
	Why     string `json:"why"`
	// OfferedRPS is the rate of both sides in all blocks; 0 = not the same in all blocks, as in stored runs.
	OfferedRPS float64      `json:"offered_rps,omitempty"`
	Seed       uint64       `json:"seed"`
	Metrics    []GateMetric `json:"metrics"`
	Blocks     []GateBlock  `json:"blocks"`
	Counted    int          `json:"counted"` // blocks that were not dropped
	Looks      []int        `json:"looks"`   // numbers of counted blocks after which the gate may decide
	Warnings   []string     `json:"warnings"`
}

// GateMetric is a metric of a gate, with the figures of the last look.
type GateMetric struct {
	Name   string `json:"name"`   // "cpu", "p99"
	Title  string `json:"title"`  // "CPU time per request"
	Unit   string `json:"unit"`   // of Base and Head: "ns", "rps", or GateShare
	Better string `json:"better"` // "lower" or "higher"
	// Margin is the change for the worse that a pass excludes, and Material the smallest one that is a regression. Both
	// are shares of the base, or if the unit is a share, differences of shares.
	Margin   float64 `json:"margin"`
	Material float64 `json:"material"`
	// Base and Head are the medians over the counted blocks.
	Base float64 `json:"base"`
	Head float64 `json:"head"`
	// Change is the geometric mean of head/base minus 1, or for shares the mean difference. Low and High are its 90 %
	// interval.
	Change float64 `json:"change"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	// Chance is the probability that any metric shows so large a change for the worse if base and head are the same;
	// nil = the last look could not find a regression.
	Chance  *float64 `json:"chance"`
	Verdict string   `json:"verdict"`
}

// GateBlock is one measurement of the base and one of the head, next to each other in time.
type GateBlock struct {
	HeadFirst bool               `json:"head_first"`
	Base      map[string]float64 `json:"base"` // by metric
	Head      map[string]float64 `json:"head"`
	Dropped   string             `json:"dropped,omitempty"` // why the block does not count; "" = it counts
}

// GateShare is the unit of metrics that are shares of all requests. They are compared by their difference.
const GateShare = "share"

// Text returns a change for people: "+7.2 %", or for shares "+0.30 points".
func (m GateMetric) Text(change float64) string {
	if m.Unit == GateShare {
		return fmt.Sprintf("%+.2f points", 100*change)
	}
	return fmt.Sprintf("%+.1f %%", 100*change)
}

// Worst returns the change for the worse that a pass excludes, as a change of the figure: negative if a higher figure
// is better.
func (m GateMetric) Worst() float64 {
	if m.Better == "higher" {
		return 1/(1+m.Margin) - 1
	}
	return m.Margin
}
