package results

import (
	"fmt"
	"slices"
	"time"
)

// Latency is the distribution of one clock, in nanoseconds. A nil percentile
// has fewer than ten samples beyond it, or, where failures count as infinitely
// slow, lies among the failures.
type Latency struct {
	Count int64  `json:"count"`
	P50   *int64 `json:"p50"`
	P90   *int64 `json:"p90"`
	P95   *int64 `json:"p95"`
	P99   *int64 `json:"p99"`
	P999  *int64 `json:"p999"`
	Max   *int64 `json:"max"`
	Mean  *int64 `json:"mean"`
	// Clamped counts samples above the histogram's 60 s, recorded as 60 s.
	Clamped int64 `json:"clamped,omitempty"`
}

// OpStats is one op class of one step.
type OpStats struct {
	Count       int64   `json:"count"` // scheduled
	ResponseNS  Latency `json:"response_ns"`
	ResponseAll Latency `json:"response_all_ns"` // failures as infinitely slow
	ServiceNS   Latency `json:"service_ns"`
	Errors      int64   `json:"errors"`
	SessionLost int64   `json:"session_lost,omitempty"`
	OverSLO     int64   `json:"over_slo"` // successes slower than the class's bound
}

// NodeUsage is what one node used during one step.
type NodeUsage struct {
	Node       string  `json:"node"`
	Host       string  `json:"host"`
	Role       string  `json:"role"`
	CPUSeconds float64 `json:"cpu_seconds"`
	RSSBytes   int64   `json:"rss_bytes"`
}

// HostUsage is what one host used of its budget during one step.
type HostUsage struct {
	Host             string  `json:"host"`
	CPU              float64 `json:"cpu"` // budget in cores
	Isolated         bool    `json:"isolated"`
	CPUSeconds       float64 `json:"cpu_seconds"`
	CPUShare         float64 `json:"cpu_share"`         // of the budget, 1 = all of it
	ThrottledSeconds float64 `json:"throttled_seconds"` // runnable threads held back, summed over CPUs
	ThrottledShare   float64 `json:"throttled_share"`   // share of quota periods in which the host was throttled
}

// ClientUsage is what the load generator itself used during one step.
type ClientUsage struct {
	CPUSeconds   float64 `json:"cpu_seconds"`
	CPUShare     float64 `json:"cpu_share"` // of the cores that were free for it
	GCPauseMaxNS int64   `json:"gc_pause_max_ns"`
	GCPauseSumNS int64   `json:"gc_pause_sum_ns"`
	OutsideShare float64 `json:"outside_share"` // of the machine: CPU of other processes, and steal
	OutsideKnown bool    `json:"outside_known"` // OutsideShare was measured
}

// Outage is a stretch of failures in the order of intended times.
type Outage struct {
	FromNS int64 `json:"from_ns"` // intended time of the first failure, since the start of the step
	ToNS   int64 `json:"to_ns"`   // intended time of the last failure
	Failed int64 `json:"failed"`
}

// Event is something that happened to the target during a step.
type Event struct {
	AtNS int64  `json:"at_ns"`
	Text string `json:"text"`
}

// Stale is what the reads of single records came to that could be compared with
// what had been acknowledged before they were sent; results/history says how.
type Stale struct {
	Reads int64 `json:"reads"` // that could be judged
	Stale int64 `json:"stale"` // of them, those that showed less than what had been acknowledged
	// RYWViolations are the stale reads of a user who had himself been acknowledged
	// more than he was shown: he does not read his own writes.
	RYWViolations int64 `json:"ryw_violations"`
	// AgeNS is how long the stale ones were behind: from the answer to the first
	// write that they should have shown to their sending.
	AgeNS Latency `json:"age_ns"`
	// Hits are the reads that a cache answered, StaleHits those of them that were
	// stale, and HitAgeNS is how long these were behind. They are a part of the
	// figures above; the rest are answers of the database.
	Hits      int64   `json:"hits"`
	StaleHits int64   `json:"stale_hits"`
	HitAgeNS  Latency `json:"hit_age_ns"`
}

// Share is the part of the reads that was stale.
func (s Stale) Share() float64 { return float64(s.Stale) / float64(max(s.Reads, 1)) }

// HitShare is the part of the reads that a cache answered which was stale.
func (s Stale) HitShare() float64 { return float64(s.StaleHits) / float64(max(s.Hits, 1)) }

// CacheReads is what the web tier found when it asked the cache tier, by its own
// count.
type CacheReads struct {
	Hits   int64 `json:"hits"`
	Misses int64 `json:"misses"` // those that no cache host answered not included
}

// HitRatio is the part of the reads that were hits.
func (c CacheReads) HitRatio() float64 { return float64(c.Hits) / float64(max(c.Hits+c.Misses, 1)) }

// DatabaseCalls is what web and cache hosts asked of the databases, by their own
// count: operations of one round trip each.
type DatabaseCalls struct {
	Reads  int64 `json:"reads"`
	Writes int64 `json:"writes"` // a batch of write-back is one
}

// CacheNode is what one cache host says of itself: what it counted during one step,
// and what it held at the end. A host that loads or writes records itself asks its
// values more often than web hosts ask it.
type CacheNode struct {
	Node      string `json:"node"`
	Hits      int64  `json:"hits"`   // keys that were asked for and there
	Misses    int64  `json:"misses"` // keys that were asked for and not there
	Evictions int64  `json:"evictions"`
	Expired   int64  `json:"expired"`
	// At the end of the step. Each engine has an idea of its own of the bytes that an
	// entry takes: they compare with the limit, and not between engines.
	Entries    int64 `json:"entries"`
	Bytes      int64 `json:"bytes"`
	LimitBytes int64 `json:"limit_bytes"` // 0 = none
	// WriteBack is nil for a host that neither loads nor writes records itself, and 0
	// throughout for one that writes nothing back.
	WriteBack *WriteBack `json:"write_back,omitempty"`
	// SinceStart says that the counts are those since the host was started: that was
	// during the step, or the host did not answer at its beginning.
	SinceStart bool `json:"since_start,omitempty"`
}

// WriteBack is what became of the acknowledged writes that a cache host holds before
// it writes them to the database.
type WriteBack struct {
	Unflushed int64 `json:"unflushed"` // held at the end of the step
	Flushed   int64 `json:"flushed"`   // taken by the database
	Refused   int64 `json:"refused"`   // not taken by it: they are lost
}

// Writes is what became of the writes to single records, as far as their versions
// tell; results/history says what they cannot tell.
type Writes struct {
	Acknowledged     int64 `json:"acknowledged"`
	Lost             int64 `json:"lost"`              // acknowledged, and gone
	Ambiguous        int64 `json:"ambiguous"`         // sent, without an answer that says whether they took effect
	AmbiguousApplied int64 `json:"ambiguous_applied"` // of them, those that did
	Unread           int64 `json:"unread,omitempty"`  // records that could not be read back
	// Conflicts is how often several primaries had changed one row at a time, by their
	// own counts: the last writer won, and what the others had written to it is gone.
	Conflicts int64 `json:"conflicts,omitempty"`
}

// Figure is something that the nodes of a tier count or hold, summed over the nodes that report it.
type Figure struct {
	Name  string `json:"name"`            // unit last: "cache_evictions"
	Title string `json:"title,omitempty"` // of its column in tables; "" = it has none
	Doc   string `json:"doc,omitempty"`   // one sentence
	Kind  string `json:"kind"`            // "counter": growth over the step; "gauge": value at its end
	Value *int64 `json:"value"`           // nil = unknown
	// Unknown lists the nodes that did not answer at the end of the step. The value is unknown then.
	Unknown []string `json:"unknown,omitempty"`
	// SinceStart lists the nodes whose part is the count since their start: they were restarted during the
	// step, or did not answer at its beginning.
	SinceStart []string `json:"since_start,omitempty"`
}

// Figure returns the figure of that name, nil if no node reports it.
func (s Step) Figure(name string) *Figure {
	i := slices.IndexFunc(s.Figures, func(f Figure) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	return &s.Figures[i]
}

// Warnf adds a warning.
func (s *Step) Warnf(format string, args ...any) {
	s.Warnings = append(s.Warnings, fmt.Sprintf(format, args...))
}

// Step is one offered rate in a cell.
type Step struct {
	Purpose      string             `json:"purpose"` // warmup, search, confirm, reference, replay, fixed, attack
	OfferedRPS   float64            `json:"offered_rps"`
	SentRPS      float64            `json:"sent_rps"`
	CompletedRPS float64            `json:"completed_rps"`
	Seconds      float64            `json:"seconds"`
	Schedule     string             `json:"schedule"`
	CatchUp      string             `json:"catch_up"`
	ResponseNS   Latency            `json:"response_ns"`     // successes
	ResponseAll  Latency            `json:"response_all_ns"` // failures as infinitely slow
	ServiceNS    Latency            `json:"service_ns"`
	WaitNS       Latency            `json:"wait_ns"`
	LagNS        Latency            `json:"lag_ns"`
	Ledger       Ledger             `json:"ledger"`
	Ops          map[string]OpStats `json:"ops"`
	Causes       map[string]int64   `json:"causes,omitempty"` // failures by cause
	LateOps      int64              `json:"late_ops"`         // ops that the client took up later than LagLimit allows
	Outages      []Outage           `json:"outages,omitempty"`
	Events       []Event            `json:"events,omitempty"`
	Stale        *Stale             `json:"stale,omitempty"`   // nil = no read of a single record could be judged
	Figures      []Figure           `json:"figures,omitempty"` // declared, and reported by some node
	Cache        *CacheReads        `json:"cache,omitempty"`   // nil = no cache tier, or web nodes were restarted
	CacheNodes   []CacheNode        `json:"cache_nodes,omitempty"`
	Database     *DatabaseCalls     `json:"database,omitempty"` // nil = its users were restarted, or were not asked
	Hosts        []HostUsage        `json:"hosts,omitempty"`
	Nodes        []NodeUsage        `json:"nodes,omitempty"`
	Client       ClientUsage        `json:"client"`
	OwnLatencyNS *Latency           `json:"own_latency_ns,omitempty"` // by the engine under the driver, for comparison
	CutShort     bool               `json:"cut_short,omitempty"`      // ended early: the SLO could no longer be met
	SLOMet       bool               `json:"slo_met"`
	SLOBroken    string             `json:"slo_broken,omitempty"` // what broke it: "feed p99 240ms > 100ms"
	BytesIn      int64              `json:"bytes_in"`
	BytesOut     int64              `json:"bytes_out"`
	ServerCount  *int64             `json:"server_count,omitempty"` // requests by the server's own count
	OpsHash      string             `json:"ops_hash"`               // of the op sequence, same seed, same hash
	Valid        bool               `json:"valid"`
	Invalid      []string           `json:"invalid,omitempty"` // why it is not valid; each of these is also a warning
	Excused      bool               `json:"excused,omitempty"` // not valid, but lateness did not break the SLO
	Warnings     []string           `json:"warnings"`
}

// Trace is what became of the lines of a trace that was replayed.
type Trace struct {
	Lines          int64            `json:"lines"`
	Broken         int64            `json:"broken"`          // lines that are no requests
	OutOfOrder     int64            `json:"out_of_order"`    // requests logged after a later one; they were sorted
	DuplicateTimes int64            `json:"duplicate_times"` // requests at the time of the one before
	Mapped         int64            `json:"mapped"`          // requests that are sent
	Skipped        map[string]int64 `json:"skipped"`         // not sent, by reason; broken lines included
	Paths          int64            `json:"paths"`           // different ones
	Clients        int64            `json:"clients"`         // different ones
	SpanNS         int64            `json:"span_ns"`         // from the first to the last request, as logged
	LengthNS       int64            `json:"length_ns"`       // the same as replayed
}

// Limit is what stopped a cell from going faster.
type Limit struct {
	By       string  `json:"by"` // a role, "client" or "unknown"
	Host     string  `json:"host,omitempty"`
	Figure   string  `json:"figure,omitempty"` // the evidence: "93% of its CPU budget"
	CPUShare float64 `json:"cpu_share,omitempty"`
}

// CellHost is a host of a cell as the tables show it.
type CellHost struct {
	Host     string  `json:"host"`
	CPU      float64 `json:"cpu"`
	Isolated bool    `json:"isolated"`
}

// MethodReplay is the capacity method of a cell whose workload has times of its
// own: no rate is searched for.
const MethodReplay = "none: a replay has its own times"

// MethodFixed is the capacity method of a cell that was measured at one rate, for
// example while faults were injected: none is searched for.
const MethodFixed = "none: one fixed rate"

// Searched reports whether a capacity was searched for.
func (c Cell) Searched() bool {
	return c.CapacityMethod != MethodReplay && c.CapacityMethod != MethodFixed
}

// Cell is one configuration times one workload.
type Cell struct {
	Stage          string            `json:"stage"`
	Workload       string            `json:"workload"`
	Engines        map[string]string `json:"engines"`
	Versions       map[string]string `json:"versions,omitempty"` // of the engines, by role
	Driver         string            `json:"driver"`
	Knobs          map[string]string `json:"knobs"`
	Topology       string            `json:"topology"` // digest
	Hosts          []CellHost        `json:"hosts"`
	Units          float64           `json:"units"`
	BringUpNS      int64             `json:"bring_up_ns"`
	CapacityRPS    float64           `json:"capacity_rps"`
	CapacityLow    float64           `json:"capacity_low"`    // highest rate that met the SLO; lowest of all repeats
	CapacityHigh   float64           `json:"capacity_high"`   // lowest rate that did not, 0 = none; of repeats: highest capacity
	CapacityMethod string            `json:"capacity_method"` // "bracket", MethodReplay or MethodFixed
	FailingRPS     float64           `json:"failing_rps"`     // lowest rate that did not meet the SLO, in any repeat
	SLO            string            `json:"slo"`
	Repeats        []float64         `json:"repeats"`                // highest rate that met the SLO, by repeat
	RepeatsHigh    []float64         `json:"repeats_high,omitempty"` // lowest rate that did not, by repeat; 0 = none
	WarmupCutNS    int64             `json:"warmup_cut_ns"`          // how much was cut as warm-up
	Trace          *Trace            `json:"trace,omitempty"`
	Reference      *Step             `json:"reference,omitempty"` // the step with the cell's latency, of the last repeat
	Writes         *Writes           `json:"writes,omitempty"`    // nil = nobody looked for them after the measurement
	Steps          []Step            `json:"steps"`
	LimitedBy      string            `json:"limited_by"`
	Limit          Limit             `json:"limit"`
	Valid          bool              `json:"valid"`
	Warnings       []string          `json:"warnings"`
	Error          string            `json:"error,omitempty"` // why the cell could not be measured
}

// Warnf adds a warning.
func (c *Cell) Warnf(format string, args ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...))
}

// Isolated reports whether every host of the cell was held to its budget.
func (c Cell) Isolated() bool {
	return !slices.ContainsFunc(c.Hosts, func(h CellHost) bool { return !h.Isolated })
}

// ReferenceSteps are the steps at the rate of Reference that were made for the
// same purpose, one for each repeat. Reference is the last of them.
func (c Cell) ReferenceSteps() []*Step {
	var steps []*Step
	for i := range c.Steps {
		if c.Reference != nil && c.Steps[i].Purpose == c.Reference.Purpose {
			steps = append(steps, &c.Steps[i])
		}
	}
	return steps
}

// Schema is the version of summary.json. Fields may be added, never renamed.
const Schema = 1

// Run is everything measured by one invocation: summary.json.
type Run struct {
	Schema   int      `json:"schema"`
	Run      string   `json:"run"`
	Complete bool     `json:"complete"` // false while it runs and after an interruption
	Cells    []Cell   `json:"cells"`
	Warnings []string `json:"warnings"`
}

// Manifest says what was run, on what, so that it can be run again:
// manifest.json.
type Manifest struct {
	Schema    int               `json:"schema"`
	Run       string            `json:"run"`
	Command   []string          `json:"command"`
	Started   time.Time         `json:"started"`
	Seed      uint64            `json:"seed"`
	Data      string            `json:"data"`
	Config    map[string]any    `json:"config"` // effective configuration, from the values that were used
	Digests   map[string]string `json:"digests"`
	Version   string            `json:"version"`
	BinarySHA string            `json:"binary_sha256"`
	Go        string            `json:"go"`
	OS        string            `json:"os"`
	Kernel    string            `json:"kernel"`
	CPUModel  string            `json:"cpu_model"`
	Cores     int               `json:"cores"`
	Budgets   string            `json:"budgets"` // how hosts were isolated: "cgroup v1", "cgroup v2", "not isolated"
	UnitCPU   float64           `json:"unit_cpu"`
	Reserve   float64           `json:"reserve_cpu"`
	Engines   map[string]string `json:"engines"`
	Warnings  []string          `json:"warnings"`
}
